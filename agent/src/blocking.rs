//! Work that blocks, off the threads that serve the API.

use crate::error::{ApiError, ApiResult};

/// Runs `work` on a thread that may block. A panic in it becomes an internal error.
pub async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> ApiResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::internal(doing, error))
}

/// Carries `work` through even when the caller goes away: a call that is cut off must not leave
/// a change half made.
pub async fn carried_through<T: Send + 'static>(
    work: impl Future<Output = ApiResult<T>> + Send + 'static,
) -> ApiResult<T> {
    tokio::spawn(work)
        .await
        .map_err(|error| ApiError::internal("carrying out a call", error))?
}
