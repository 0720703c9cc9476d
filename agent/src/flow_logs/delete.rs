//! DeleteFlowLogs.

use std::sync::Arc;

use super::{TURN, enforce};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult},
    ids::Kind,
    tokens,
};

/// Ends flow logs, all or none, and removes their records.
pub async fn delete(context: Arc<Context>, ids: Vec<String>) -> ApiResult<()> {
    let ids = Kind::FlowLog.check_list(&ids, "flow_log_ids")?;
    carried_through(async move {
        let _turn = context.turns.take([TURN]).await;
        let doomed = ids.clone();
        let remove = move |tx: &mut Tx<'_>| {
            for (index, id) in doomed.iter().enumerate() {
                let log = super::get(tx, id, &format!("flow_log_ids[{index}]"))?;
                tokens::forget_of(tx, &log.owner, super::CREATE, &log.client_token, id)?;
                db::flow_logs::remove(tx, id)?;
            }
            Ok::<_, ApiError>(())
        };
        context.db.write(remove).await?;
        // It counts for nobody now; the next round tries again.
        if let Err(error) = enforce::turn(&context).await {
            tracing::warn!(%error, "counting flows goes on");
        }
        let files = context.clone();
        let removed = blocking("removing records", move || {
            ids.iter()
                .try_for_each(|id| files.flow_logs.files.remove(id))
        });
        if let Err(error) = removed.await? {
            tracing::warn!("records of flow logs that are gone: {error}");
        }
        context.flow_logs.changed.notify_one();
        context.flow_logs.written.send_replace(());
        Ok(())
    })
    .await
}
