//! DeleteSnapshot, and taking back what did not come to its end.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    copy, get,
    model::{Snapshot, SnapshotState},
    store, take,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::Instances,
    tokens,
};

/// DeleteSnapshot.
pub async fn delete(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::Snapshot.check(&id, "snapshot_id")?;
    carried_through(async move {
        let _busy = context.busy.mark(&id);
        let deleting = context
            .db
            .write(move |tx| {
                let snapshot = get(tx, &id, "snapshot_id")?;
                check_unused(tx, &snapshot)?;
                let after = Snapshot {
                    state: SnapshotState::Deleting,
                    ..snapshot.clone()
                };
                db::snapshots::update(tx, &snapshot, &after)?;
                Ok::<_, ApiError>(after)
            })
            .await?;
        crash_point("snapshot.row-deleting");
        finish(&context, &deleting).await
    })
    .await
}

fn check_unused(tx: &db::Tx<'_>, snapshot: &Snapshot) -> ApiResult<()> {
    let id = &snapshot.id;
    if !matches!(
        snapshot.state,
        SnapshotState::Completed | SnapshotState::Error
    ) {
        return Err(ApiError::field(
            Reason::IncorrectState,
            "snapshot_id",
            format!("{id} is {}", snapshot.state.word()),
        )
        .with("resource_id", id)
        .with("state", snapshot.state.word()));
    }
    let images = db::images::of_snapshot(tx, id)?;
    if images.is_empty() {
        return Ok(());
    }
    Err(ApiError::field(
        Reason::SnapshotInUse,
        "snapshot_id",
        format!("{id} is used by {}", images.join(", ")),
    )
    .with("resource_id", id)
    .with("image_id", images.join(",")))
}

/// Carries a deletion that is in the database through: store first, row last. Does nothing while
/// a volume or a copy is being made from it, or an instance is to be started again.
pub async fn finish(context: &Context, snapshot: &Snapshot) -> ApiResult<()> {
    let id = snapshot.id.clone();
    let needed = context
        .db
        .read(move |connection| {
            Ok::<_, ApiError>(
                db::volumes::being_made_from_snapshot(connection, &id)?
                    || db::snapshots::being_copied_from(connection, &id)?.is_some()
                    || get(connection, &id, "snapshot_id")?
                        .starts_instance
                        .is_some(),
            )
        })
        .await?;
    if needed {
        return Ok(());
    }
    store::remove(context, std::slice::from_ref(snapshot)).await?;
    crash_point("snapshot.gone-from-store");
    let snapshot = snapshot.clone();
    context
        .db
        .write(move |tx| db::snapshots::remove(tx, &snapshot))
        .await?;
    crash_point("snapshot.row-removed");
    Ok(())
}

/// Takes back snapshots that were not taken, and starts the instance that was stopped for them.
/// What fails here is tried again by reconciliation.
pub async fn undo(context: &Context, instances: &Instances, snapshots: Vec<Snapshot>) {
    if let Err(error) = try_undo(context, instances, snapshots).await {
        tracing::warn!(%error, "taking back snapshots");
    }
}

async fn try_undo(
    context: &Context,
    instances: &Instances,
    snapshots: Vec<Snapshot>,
) -> ApiResult<()> {
    let deleting = mark_undone(context, snapshots).await?;
    take::start_again(context, instances, &deleting).await;
    for snapshot in deleting {
        finish(context, &snapshot).await?;
    }
    Ok(())
}

/// Forgets the client tokens of snapshots that were not taken, and has them deleted.
async fn mark_undone(context: &Context, snapshots: Vec<Snapshot>) -> ApiResult<Vec<Snapshot>> {
    context
        .db
        .write(move |tx| {
            let mut deleting = Vec::with_capacity(snapshots.len());
            for before in snapshots {
                let operations: &[&str] = match before.source_id {
                    Some(_) => &[copy::COPY],
                    None => &[take::CREATE, take::CREATE_MANY],
                };
                for operation in operations {
                    tokens::forget(tx, &before.owner, operation, &before.client_token)?;
                }
                let after = Snapshot {
                    state: SnapshotState::Deleting,
                    ..before.clone()
                };
                db::snapshots::update(tx, &before, &after)?;
                deleting.push(after);
            }
            Ok(deleting)
        })
        .await
}

/// At the agent's start: no call is under way, so what is pending was cut off.
pub async fn undo_cut_off(context: &Context) -> ApiResult<()> {
    let pending = context
        .db
        .read(|c| db::snapshots::in_state(c, SnapshotState::Pending))
        .await?;
    for snapshot in &pending {
        tracing::info!(snapshot = snapshot.id, "its taking was cut off; taken back");
    }
    mark_undone(context, pending).await?;
    mark_missing(context).await
}

/// Snapshots of which the store has nothing are in error.
async fn mark_missing(context: &Context) -> ApiResult<()> {
    let store = context.store.clone();
    let there = crate::blocking::blocking("listing snapshots", move || store.snapshots())
        .await?
        .map_err(|error| ApiError::from_store(&error, "", "listing snapshots"))?;
    let completed = context
        .db
        .read(|c| db::snapshots::in_state(c, SnapshotState::Completed))
        .await?;
    for before in completed {
        if there.iter().any(|id| id.as_ref() == before.id) {
            continue;
        }
        tracing::error!(snapshot = before.id, "the store has no such snapshot");
        context
            .db
            .write(move |tx| {
                let after = Snapshot {
                    state: SnapshotState::Error,
                    state_message: "the volume store has lost its data".to_owned(),
                    ..before.clone()
                };
                db::snapshots::update(tx, &before, &after)
            })
            .await?;
    }
    Ok(())
}

/// A round of reconciliation: what was begun is finished.
pub async fn reconcile(context: &Context, instances: &Instances) -> ApiResult<()> {
    let idle = |snapshot: &Snapshot| !context.busy.contains(&snapshot.id);
    let mut pending = context
        .db
        .read(|c| db::snapshots::in_state(c, SnapshotState::Pending))
        .await?;
    pending.retain(idle);
    // Their undoing failed, for example on a full disk.
    mark_undone(context, pending).await?;
    let mut stopped = context.db.read(db::snapshots::starting_instances).await?;
    stopped.retain(idle);
    take::start_again(context, instances, &stopped).await;
    let mut deleting = context
        .db
        .read(|c| db::snapshots::in_state(c, SnapshotState::Deleting))
        .await?;
    deleting.retain(idle);
    for snapshot in deleting {
        if let Err(error) = finish(context, &snapshot).await {
            tracing::warn!(snapshot = snapshot.id, %error, "not in order yet");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::Db,
        images::model::{BootProtocol, Image, ImageState},
        time::Millis,
    };

    const ID: &str = "snap-0123456789abcdef0";
    const IMAGE: &str = "img-0123456789abcdef0";

    fn snapshot() -> Snapshot {
        Snapshot {
            seq: 0,
            id: ID.to_owned(),
            owner: "local".to_owned(),
            state: SnapshotState::Completed,
            state_message: String::new(),
            volume_id: "vol-0123456789abcdef0".to_owned(),
            source_id: None,
            size_bytes: 1 << 30,
            description: String::new(),
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            starts_instance: None,
        }
    }

    fn image() -> Image {
        Image {
            seq: 0,
            id: IMAGE.to_owned(),
            owner: "local".to_owned(),
            name: "base".to_owned(),
            description: String::new(),
            state: ImageState::Available,
            architecture: "x86_64".to_owned(),
            kernel: "k".to_owned(),
            initrd: None,
            kernel_args: String::new(),
            boot_protocol: BootProtocol::Auto,
            has_root: true,
            root_size_bytes: 1 << 30,
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            disks: Vec::new(),
            source_instance_id: None,
            deprecation_time: None,
        }
    }

    #[tokio::test]
    async fn what_an_image_is_made_of_is_not_deleted_and_the_error_names_the_image() {
        let dir = tempfile::tempdir().expect("tempdir");
        let db = Db::open(&dir.path().join("db")).expect("open");
        let (refused, free) = db
            .write(|tx| {
                let (mut snapshot, mut image) = (snapshot(), image());
                db::snapshots::insert(tx, &mut snapshot)?;
                db::images::insert(tx, &mut image)?;
                tx.execute(
                    "INSERT INTO image_disks VALUES (?1, '/dev/vda', ?2, 1, 1)",
                    [IMAGE, ID],
                )?;
                let refused = check_unused(tx, &snapshot);
                let gone = Image {
                    state: ImageState::Deregistered,
                    ..image.clone()
                };
                db::images::update(tx, &image, &gone)?;
                Ok::<_, ApiError>((refused, check_unused(tx, &snapshot)))
            })
            .await
            .expect("rows");
        let refused = refused.expect_err("used");
        assert_eq!(refused.reason(), Reason::SnapshotInUse);
        assert!(refused.message().contains(IMAGE), "{refused}");
        free.expect("nobody uses it any more");
    }
}
