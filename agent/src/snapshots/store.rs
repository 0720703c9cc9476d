//! Takes snapshots in the volume store: itself, of volumes at rest, or by the VMM that has them
//! open.
//!
//! Which of the two it is may change while we look. So it is looked at again until one of them
//! works, for a while.

use std::time::{Duration, Instant};

use hearth_images::{ErrorKind, SnapshotId, VolumeId};
use hearth_vmm::control::{DiskSnapshot, Reply, Request};
use rusqlite::Connection;

use super::{model::Snapshot, snapshot_id};
use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    instances::{
        state::InstanceState,
        vmm::control::{ANSWER, Control, ControlError},
    },
    volumes::{self, model::VolumeState},
};

/// How long a VMM may take to make durable what was written, and take the snapshots.
const SNAPSHOTS: Duration = Duration::from_secs(60);

/// How long to look for where the volumes are.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often.
const AGAIN: Duration = Duration::from_millis(50);

/// Who has the volumes.
enum Place {
    /// Nobody.
    AtRest,
    /// The VMM of an instance; the serials of the disks.
    Vmm {
        instance_id: String,
        serials: Vec<String>,
    },
}

/// Why an attempt did not work.
enum Failed {
    /// It may work a moment later.
    ForNow(ApiError),
    ForGood(ApiError),
}

/// Takes the snapshots of these rows, at one point in time. Returns their sizes in bytes.
pub async fn take(context: &Context, snapshots: &[Snapshot]) -> ApiResult<Vec<u64>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = snapshots.to_vec();
        let place = context.db.read(move |c| place(c, &rows)).await?;
        let attempt = match place {
            Place::AtRest => at_rest(context, snapshots).await,
            Place::Vmm {
                instance_id,
                serials,
            } => by_vmm(context, &instance_id, serials, snapshots).await,
        };
        match attempt {
            Ok(()) => return sizes(context, snapshots).await,
            Err(Failed::ForNow(_)) if Instant::now() < deadline => {
                // A VMM that was cut off may have taken some.
                remove(context, snapshots).await?;
                tokio::time::sleep(AGAIN).await;
            }
            Err(Failed::ForNow(error) | Failed::ForGood(error)) => return Err(error),
        }
    }
}

fn place(connection: &Connection, snapshots: &[Snapshot]) -> ApiResult<Place> {
    let gone = |id: &str, what: &str| {
        ApiError::new(
            Reason::IncorrectState,
            format!("{id} {what} before its snapshot was taken"),
        )
        .with("resource_id", id)
    };
    let mut serials = Vec::with_capacity(snapshots.len());
    let mut instance_ids = Vec::new();
    let mut free = 0;
    for snapshot in snapshots {
        let id = &snapshot.volume_id;
        let volume = db::volumes::get(connection, id)?
            .filter(|v| matches!(v.state, VolumeState::Available | VolumeState::InUse))
            .ok_or_else(|| gone(id, "was deleted"))?;
        serials.push(volume.serial());
        match volume.attachment {
            None => free += 1,
            Some(attachment) if !instance_ids.contains(&attachment.instance_id) => {
                instance_ids.push(attachment.instance_id);
            }
            Some(_) => {}
        }
    }
    let mut running = Vec::new();
    for id in instance_ids {
        match db::instances::get(connection, &id)?.map(|instance| instance.state) {
            None | Some(InstanceState::Stopped) => {}
            Some(_) => running.push(id),
        }
    }
    match (running.pop(), running.is_empty(), free) {
        (None, ..) => Ok(Place::AtRest),
        (Some(instance_id), true, 0) => Ok(Place::Vmm {
            instance_id,
            serials,
        }),
        (Some(instance_id), ..) => Err(gone(&instance_id, "lost some of its volumes")),
    }
}

async fn at_rest(context: &Context, snapshots: &[Snapshot]) -> Result<(), Failed> {
    let wanted: Vec<(VolumeId, SnapshotId)> = snapshots
        .iter()
        .map(|s| Ok((volumes::volume_id(&s.volume_id)?, snapshot_id(&s.id)?)))
        .collect::<ApiResult<_>>()
        .map_err(Failed::ForGood)?;
    let store = context.store.clone();
    let taken = blocking("taking snapshots", move || {
        let wanted: Vec<_> = wanted.iter().map(|(volume, id)| (volume, id)).collect();
        store.snapshot_volumes(&wanted).map(drop)
    })
    .await
    .map_err(Failed::ForGood)?;
    taken.map_err(|error| {
        let told = ApiError::from_store(&error, "", "taking snapshots");
        match error.kind() {
            ErrorKind::InUse => Failed::ForNow(told),
            _ => Failed::ForGood(told),
        }
    })
}

async fn by_vmm(
    context: &Context,
    instance_id: &str,
    serials: Vec<String>,
    snapshots: &[Snapshot],
) -> Result<(), Failed> {
    let disks = serials
        .into_iter()
        .zip(snapshots)
        .map(|(serial, snapshot)| DiskSnapshot {
            serial,
            snapshot: snapshot.id.clone(),
        })
        .collect();
    let run_dir = context.settings.run_dir(instance_id);
    let asked = async {
        let mut control = Control::connect(&run_dir, instance_id, ANSWER).await?;
        control
            .ask(&Request::SnapshotDisks { disks }, SNAPSHOTS)
            .await
    };
    let told = |error: &ControlError| ApiError::internal("taking snapshots of a guest", error);
    match asked.await {
        Ok(Reply::Snapshots { pause_ns, .. }) => {
            tracing::debug!(instance = instance_id, pause_ns, "snapshots");
            Ok(())
        }
        Ok(other) => Err(Failed::ForGood(ApiError::internal(
            "taking snapshots of a guest",
            format!("{other:?}"),
        ))),
        Err(ControlError::Refused(message)) if is_no_room(&message) => {
            Err(Failed::ForGood(ApiError::new(
                Reason::InsufficientVolumeCapacity,
                "the host's disk has no room left (taking snapshots)",
            )))
        }
        Err(error @ ControlError::Refused(_)) => Err(Failed::ForGood(told(&error))),
        Err(error) => Err(Failed::ForNow(told(&error))),
    }
}

/// Whether a VMM's words are those of a full disk: they end with the error of the operating
/// system, which the standard library writes with its number.
fn is_no_room(message: &str) -> bool {
    [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT]
        .iter()
        .any(|errno| message.contains(&format!("(os error {})", errno.raw_os_error())))
}

async fn sizes(context: &Context, snapshots: &[Snapshot]) -> ApiResult<Vec<u64>> {
    let ids: Vec<SnapshotId> = snapshots
        .iter()
        .map(|snapshot| snapshot_id(&snapshot.id))
        .collect::<ApiResult<_>>()?;
    let store = context.store.clone();
    blocking("looking at snapshots", move || {
        ids.iter()
            .map(|id| store.snapshot(id).map(|info| info.size_bytes))
            .collect::<Result<_, _>>()
    })
    .await?
    .map_err(|error| ApiError::from_store(&error, "", "looking at snapshots"))
}

/// Removes what is there of these in the store; fine when nothing is.
pub async fn remove(context: &Context, snapshots: &[Snapshot]) -> ApiResult<()> {
    for snapshot in snapshots {
        let (store, id) = (context.store.clone(), snapshot_id(&snapshot.id)?);
        match blocking("deleting a snapshot", move || store.delete_snapshot(&id)).await? {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(ApiError::from_store(&error, "", "deleting a snapshot"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_refusals() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull).to_string();
        let of_os = std::io::Error::from_raw_os_error(28);
        assert!(is_no_room(&format!("writing a layer: {of_os}")));
        assert!(
            !is_no_room(&full),
            "only an error of the system has a number"
        );
        assert!(!is_no_room("no disk with the serial \"os error 28\""));
    }
}
