//! The end of an instance: its volumes deleted or set free, its row kept for an hour.

use std::{sync::Arc, time::Duration};

use hearth_images::crash_point;

use super::{
    model::{Instance, Operation},
    state::InstanceState,
};
use crate::{
    context::Context,
    db::{self, DbError},
    networks::plug,
    time::Millis,
    volumes::{
        self,
        model::{Volume, VolumeState},
    },
};

/// Ends an instance that has no VMM any more; returns its last row. What can't be committed is
/// tried until it can.
pub async fn terminate(context: &Arc<Context>, row: Instance) -> Instance {
    plug::down(context, &row.id).await;
    until_done(&row.id, || plug::forget(context, &row.id)).await;
    let doomed = until_done(&row.id, || release_volumes(context, &row.id)).await;
    crash_point("terminate.volumes-released");
    for volume in doomed {
        // What fails here stays `deleting`, and reconciliation tries again.
        if let Err(error) = volumes::finish_deleting(context, &volume).await {
            tracing::error!(volume = volume.id, %error, "deleting a volume");
        }
    }
    crash_point("terminate.volumes-deleted");
    let after = Instance {
        state: InstanceState::Terminated,
        operation: Operation::None,
        vmm_pid: None,
        ended: Some(Millis::now()),
        ..row.clone()
    };
    until_done(&row.id, || {
        let (before, row) = (row.clone(), after.clone());
        context
            .db
            .write(move |tx| db::instances::update(tx, &before, &row))
    })
    .await;
    after
}

/// Marks the volumes to delete and sets the others free, in one transaction.
async fn release_volumes(context: &Context, instance_id: &str) -> Result<Vec<Volume>, DbError> {
    let id = instance_id.to_owned();
    context
        .db
        .write(move |tx| {
            let mut doomed = Vec::new();
            for volume in db::volumes::of_instance(tx, &id)? {
                let unfinished = volume.state == VolumeState::Creating;
                let delete = volume
                    .attachment
                    .as_ref()
                    .is_some_and(|a| a.delete_on_termination);
                let after = if unfinished || delete {
                    volume.deleting()
                } else {
                    volume.detached()
                };
                db::volumes::update(tx, &volume, &after)?;
                if after.state == VolumeState::Deleting {
                    doomed.push(after);
                }
            }
            Ok(doomed)
        })
        .await
}

async fn until_done<T, F: Future<Output = Result<T, DbError>>>(
    id: &str,
    work: impl Fn() -> F,
) -> T {
    loop {
        match work().await {
            Ok(value) => return value,
            Err(error) => {
                tracing::error!(instance = id, %error, "tried again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}
