//! CheckStore.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hearth_images::{CheckOptions, CheckProgress, ErrorKind, StoreReport};
use tokio::sync::mpsc;

use crate::{
    context::Context,
    error::{ApiError, ApiResult, Reason},
};

/// How often progress is told at most.
const PERIOD: Duration = Duration::from_millis(200);

/// What a check says.
#[derive(Debug)]
pub enum Message {
    Progress(CheckProgress),
    Report(StoreReport),
}

/// Starts a check, which ends early when nobody listens any more or the daemon ends.
pub fn check(context: Arc<Context>, options: CheckOptions) -> mpsc::Receiver<ApiResult<Message>> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let mut told: Option<Instant> = None;
        let result = context.store.check(options, |progress| {
            if sender.is_closed() || context.shutdown.is_ending() {
                return false;
            }
            if told.is_none_or(|told| told.elapsed() >= PERIOD) {
                told = Some(Instant::now());
                // Who listens slowly misses some; the report comes in any case.
                let _ = sender.try_send(Ok(Message::Progress(progress)));
            }
            true
        });
        let last = match result {
            Ok(report) => {
                for finding in &report.findings {
                    tracing::warn!(
                        file = finding.file,
                        repaired = finding.repaired,
                        "{:?}: {}",
                        finding.kind,
                        finding.detail
                    );
                }
                Ok(Message::Report(report))
            }
            Err(error) if error.kind() == ErrorKind::Stopped => {
                Err(ApiError::new(Reason::Unavailable, "hearthd is ending"))
            }
            Err(error) => Err(ApiError::from_store(&error, "", "checking the store")),
        };
        let _ = sender.blocking_send(last);
    });
    receiver
}
