//! Digests of layers at rest, made in the background: one layer at a time, never faster than
//! [`BYTES_PER_SECOND`], so that guests keep the disk to themselves.

use std::{sync::Arc, time::Duration};

use crate::{blocking::blocking, context::Context, shutdown::Shutdown};

/// Between two rounds.
const PERIOD: Duration = Duration::from_secs(30);

/// How fast layers are read.
const BYTES_PER_SECOND: u64 = 100 << 20;

/// Works until the daemon ends.
pub async fn run(context: Arc<Context>, mut shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.wait() => return,
        }
        let (store, ending) = (context.store.clone(), shutdown.clone());
        let made = blocking("making checksums", move || {
            store.seal_checksums(|bytes| {
                let pause = Duration::from_nanos(bytes * 1_000_000_000 / BYTES_PER_SECOND);
                std::thread::sleep(pause);
                ending.is_ending()
            })
        })
        .await;
        match made {
            Ok(Ok(made)) if made.failed > 0 => {
                tracing::warn!(
                    layers = made.failed,
                    "cannot be read; `hearth store check` says why"
                );
            }
            Ok(Ok(made)) => tracing::debug!(layers = made.layers, "made checksums"),
            Ok(Err(error)) => tracing::warn!(%error, "making checksums"),
            Err(error) => tracing::error!(%error, "making checksums"),
        }
    }
}
