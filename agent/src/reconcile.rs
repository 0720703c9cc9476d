//! Brings the host back in line with the database: what is wanted is there, what was begun is
//! finished or undone, what nobody owns goes.
//!
//! Runs once at the agent's start ([`at_start`], before the first call is served) and then every
//! [`PERIOD`] ([`sweep`]). Instances look after themselves: their tasks adopt running VMMs or
//! go on from where the row stands ([`crate::instances::driver`]); a round only sees to it that the
//! tasks are there.
//!
//! Why nothing that somebody needs is removed: a row is committed before its file is made, and
//! removed after its file is gone. So a file whose owner is not in the database, asked for
//! *after* the file was seen, has none.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_images::{ErrorKind, SnapshotId, VolumeId};

use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::{ApiError, ApiResult},
    ids::Kind,
    images::{self, model::ImageState},
    instances::Instances,
    shutdown::Shutdown,
    snapshots,
    time::Millis,
    volumes::{self, model::VolumeState},
};

/// How often.
const PERIOD: Duration = Duration::from_secs(30);

/// How long a terminated instance can still be described.
const TERMINATED_KEPT: i64 = 60 * 60 * 1000;

/// How long a client token is remembered.
const TOKENS_KEPT: i64 = 24 * 60 * 60 * 1000;

/// What the agent's start needs, before the first call is served. No call is under way, so
/// whatever is unfinished was cut off.
pub async fn at_start(context: &Arc<Context>) -> ApiResult<()> {
    empty_dir(&context.settings.tmp())
        .map_err(|error| ApiError::internal("emptying the directory of imports", error))?;
    let pending = context
        .db
        .read(|c| db::images::in_state(c, ImageState::Pending))
        .await?;
    for image in pending {
        tracing::info!(image = image.id, "its making was cut off; taken back");
        images::undo(context, image).await?;
    }
    snapshots::delete::undo_cut_off(context).await?;
    for volume in context
        .db
        .read(|c| db::volumes::in_state(c, VolumeState::Creating))
        .await?
    {
        // Those of an instance are made by its start, or go with it.
        if volume.attachment.is_none() {
            tracing::info!(volume = volume.id, "its making was cut off; taken back");
            for operation in [volumes::CREATE, volumes::import::IMPORT] {
                let (owner, token) = (volume.owner.clone(), volume.client_token.clone());
                context
                    .db
                    .write(move |tx| crate::tokens::forget(tx, &owner, operation, &token))
                    .await?;
            }
            volumes::finish_deleting(context, &volume).await?;
        }
    }
    Ok(())
}

/// Sweeps until the agent ends.
pub async fn run(context: Arc<Context>, instances: Arc<Instances>, mut shutdown: Shutdown) {
    // Only a crash leaves layers that no volume and no image reaches, so once is enough.
    remove_unreachable_layers(&context).await;
    loop {
        if let Err(error) = sweep(&context, &instances).await {
            tracing::error!(%error, "reconciling");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = shutdown.wait() => return,
        }
    }
}

async fn remove_unreachable_layers(context: &Context) {
    let store = context.store.clone();
    match blocking("removing unused layers", move || store.collect_garbage()).await {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => tracing::info!(count, "layers that nothing reached; removed"),
        Ok(Err(error)) => tracing::warn!(%error, "unused layers stay"),
        Err(error) => tracing::warn!(%error, "unused layers stay"),
    }
}

/// One round.
pub async fn sweep(context: &Arc<Context>, instances: &Instances) -> ApiResult<()> {
    instances.revive().await?;
    finish_volumes(context).await?;
    volumes::credits::sample(context).await?;
    snapshots::delete::reconcile(context, instances).await?;
    for image in context
        .db
        .read(|c| db::images::in_state(c, ImageState::Deregistered))
        .await?
    {
        log_failure(
            "image",
            &image.id,
            images::finish_deregistering(context, &image).await,
        );
    }
    forget_terminated(context, instances).await?;
    let before = Millis(Millis::now().0 - TOKENS_KEPT);
    context
        .db
        .write(move |tx| db::tokens::prune(tx, before))
        .await
        .map_err(ApiError::from)?;
    remove_ownerless_instances(context).await?;
    remove_ownerless_volumes(context).await?;
    remove_ownerless_snapshots(context).await?;
    images::remove_unused_kernels(context).await
}

/// Deletions and modifications that were begun and not ended.
async fn finish_volumes(context: &Context) -> ApiResult<()> {
    for volume in context
        .db
        .read(|c| db::volumes::in_state(c, VolumeState::Deleting))
        .await?
    {
        if !context.busy.contains(&volume.id) {
            log_failure(
                "volume",
                &volume.id,
                volumes::finish_deleting(context, &volume).await,
            );
        }
    }
    for volume in context.db.read(db::volumes::being_modified).await? {
        if !context.busy.contains(&volume.id) {
            let id = volume.id.clone();
            log_failure(
                "volume",
                &id,
                volumes::modify::finish(context, volume).await.map(drop),
            );
        }
    }
    Ok(())
}

fn log_failure(what: &str, id: &str, result: ApiResult<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "{what} {id} is not in order yet");
    }
}

/// Rows and directories of instances that were terminated long enough ago.
async fn forget_terminated(context: &Context, instances: &Instances) -> ApiResult<()> {
    let before = Millis(Millis::now().0 - TERMINATED_KEPT);
    let over = context
        .db
        .read(move |c| db::instances::terminated_before(c, before))
        .await?;
    let ids: Vec<String> = over.into_iter().map(|instance| instance.id).collect();
    instances.forget(&ids);
    for id in ids {
        context
            .db
            .write(move |tx| db::instances::remove(tx, &id))
            .await
            .map_err(ApiError::from)?;
    }
    // Their directories have no owner now.
    Ok(())
}

async fn remove_ownerless_instances(context: &Context) -> ApiResult<()> {
    let dir = context.settings.instances();
    let seen = blocking("looking at instances", move || names(&dir))
        .await?
        .map_err(|error| ApiError::internal("looking at instances", error))?;
    let owned = owned(context, db::instances::ids).await?;
    for id in seen {
        if Kind::Instance.matches(&id) && !owned.contains(&id) {
            let path = context.settings.run_dir(&id);
            tracing::info!(dir = %path.display(), "belongs to no instance; removed");
            let removed = blocking("removing an instance's files", move || {
                fs::remove_dir_all(path)
            });
            if let Err(error) = removed.await? {
                tracing::warn!(instance = id, %error, "removing its files");
            }
        }
    }
    Ok(())
}

async fn remove_ownerless_volumes(context: &Context) -> ApiResult<()> {
    let store = context.store.clone();
    let seen = blocking("listing volumes", move || store.volumes())
        .await?
        .map_err(|error| ApiError::from_store(&error, "", "listing volumes"))?;
    let owned = owned(context, db::volumes::ids).await?;
    for id in seen {
        let name = id.to_string();
        if ownerless(context, Kind::Volume, &name, &owned) {
            tracing::info!(volume = name, "belongs to nobody; removed from the store");
            remove_volume(context, id).await?;
        }
    }
    Ok(())
}

async fn remove_volume(context: &Context, id: VolumeId) -> ApiResult<()> {
    let store = context.store.clone();
    let removed = blocking("deleting a volume", move || store.delete_volume(&id)).await?;
    tell_store_error(removed);
    Ok(())
}

async fn remove_ownerless_snapshots(context: &Context) -> ApiResult<()> {
    let store = context.store.clone();
    let seen = blocking("listing snapshots", move || store.snapshots())
        .await?
        .map_err(|error| ApiError::from_store(&error, "", "listing snapshots"))?;
    let images = owned(context, db::images::ids).await?;
    let snapshots = owned(context, db::snapshots::ids).await?;
    for id in seen {
        let name = id.to_string();
        if ownerless(context, Kind::Image, &name, &images)
            || ownerless(context, Kind::Snapshot, &name, &snapshots)
        {
            tracing::info!(snapshot = name, "belongs to nobody; removed from the store");
            remove_snapshot(context, id).await?;
        }
    }
    Ok(())
}

async fn remove_snapshot(context: &Context, id: SnapshotId) -> ApiResult<()> {
    let store = context.store.clone();
    let removed = blocking("deleting a snapshot", move || store.delete_snapshot(&id)).await?;
    tell_store_error(removed);
    Ok(())
}

fn tell_store_error(result: Result<(), hearth_images::Error>) {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%error, "removing from the store");
        }
        _ => {}
    }
}

fn ownerless(context: &Context, kind: Kind, id: &str, owned: &HashSet<String>) -> bool {
    kind.matches(id) && !owned.contains(id) && !context.busy.contains(id)
}

async fn owned(
    context: &Context,
    ids: fn(&rusqlite::Connection) -> db::DbResult<Vec<String>>,
) -> ApiResult<HashSet<String>> {
    Ok(context.db.read(ids).await?.into_iter().collect())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn empty_dir(dir: &Path) -> io::Result<()> {
    let paths: Vec<PathBuf> = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    paths.into_iter().try_for_each(fs::remove_file)
}
