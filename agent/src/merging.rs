//! Keeps the chains of layers below volumes short: the store says what to merge
//! ([`Store::merges`]), this says when, and tells VMMs to go over to the merged files.
//!
//! Merging takes as long as it takes to copy; nothing waits for it. A merge that is cut off, by the
//! agent's end or by a full disk, has changed nothing and is begun again later.

use std::{collections::HashSet, ops::ControlFlow, sync::Arc, time::Duration};

use hearth_images::{ErrorKind, Merge, MergeOutcome, Store, VolumeId};
use hearth_vmm::control::Request;

use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::ApiResult,
    instances::vmm::control::{ANSWER, Control, ControlError},
    shutdown::Shutdown,
};

/// How often chains are looked at when nobody asks for it.
const PERIOD: Duration = Duration::from_secs(30);

/// Merges until the agent ends: now, when [`Context::merge_wanted`] says so, and on a timer.
pub async fn run(context: Arc<Context>, mut shutdown: Shutdown) {
    // An earlier agent may have been cut off before it could tell the VMMs.
    if let Err(error) = reload_all(&context).await {
        tracing::warn!(%error, "looking for running instances");
    }
    while !shutdown.is_ending() {
        if let Err(error) = round(&context, &shutdown).await {
            tracing::warn!(%error, "merging layers");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = context.merge_wanted.notified() => {}
            () = shutdown.wait() => {}
        }
    }
}

/// Merges until no chain is too long, or what is too long can't be merged now.
async fn round(context: &Arc<Context>, shutdown: &Shutdown) -> ApiResult<()> {
    let mut failed: Vec<Merge> = Vec::new();
    while !shutdown.is_ending() {
        let store = context.store.clone();
        let merges = match blocking("looking at layers", move || store.merges()).await? {
            Ok(merges) => merges,
            Err(error) => {
                tracing::warn!(%error, "looking at layers");
                return Ok(());
            }
        };
        let Some(merge) = merges.into_iter().find(|merge| !failed.contains(merge)) else {
            return Ok(());
        };
        let (store, shutdown, this) = (context.store.clone(), shutdown.clone(), merge.clone());
        let merged = blocking("merging layers", move || {
            merge_one(&store, &this, &shutdown)
        });
        match merged.await? {
            Ok(MergeOutcome::Merged { volumes }) => reload(context, volumes).await?,
            // What has changed meanwhile is looked at anew.
            Ok(MergeOutcome::Outdated) => failed.push(merge),
            Ok(MergeOutcome::Stopped) => return Ok(()),
            Err(error) => {
                tracing::warn!(%error, "merging layers");
                if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::InUse) {
                    return Ok(());
                }
                failed.push(merge);
            }
        }
    }
    Ok(())
}

fn merge_one(
    store: &Store,
    merge: &Merge,
    shutdown: &Shutdown,
) -> Result<MergeOutcome, hearth_images::Error> {
    store.merge(merge, |_| match shutdown.is_ending() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })
}

/// Tells the VMMs that have these volumes.
async fn reload(context: &Arc<Context>, volumes: Vec<VolumeId>) -> ApiResult<()> {
    let instances: HashSet<String> = context
        .db
        .read(move |connection| {
            let mut instances = HashSet::new();
            for volume in &volumes {
                let volume = db::volumes::get(connection, volume.as_ref())?;
                let attachment = volume.and_then(|volume| volume.attachment);
                instances.extend(attachment.map(|attachment| attachment.instance_id));
            }
            Ok::<_, db::DbError>(instances)
        })
        .await?;
    for id in instances {
        reload_instance(context, &id).await;
    }
    Ok(())
}

async fn reload_all(context: &Arc<Context>) -> ApiResult<()> {
    for instance in context.db.read(db::instances::living).await? {
        reload_instance(context, &instance.id).await;
    }
    Ok(())
}

/// A VMM that isn't there, or can't do it now, goes on with the old files: they are as good, and
/// the next merge asks it again.
async fn reload_instance(context: &Context, id: &str) {
    let asked = async {
        let run_dir = context.settings.run_dir(id);
        let mut control = Control::connect(&run_dir, id, ANSWER).await?;
        control.tell(&Request::ReloadDisks).await
    };
    match asked.await {
        Ok(()) => {}
        // It does not run.
        Err(ControlError::Io(error)) => tracing::debug!(instance = id, %error, "no VMM to tell"),
        Err(error) => tracing::warn!(instance = id, %error, "telling of merged layers"),
    }
}
