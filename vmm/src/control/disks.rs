//! Requests about the machine's disks. They may take long: each client has a thread of its own,
//! and the guest goes on meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_images::{SnapshotId, Store};

use super::{DiskSnapshot, Reply, SnapshotTaken};
use crate::config::DiskConfig;
use crate::devices::virtio::block::throttle::limits::{DiskLimits, LimitsError};
use crate::machine::disks::{Disks, MachineDisk};
use crate::machine::hotplug::{HotPlug, HotPlugError};

/// Why a request about disks was not done; the text goes to the client.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has this serial, or several have it.
    #[error("no disk with the serial {0:?}")]
    NoDisk(String),
    /// Snapshots of disks of several stores, or of no disk.
    #[error("snapshots are taken of the disks of one store at a time")]
    NotOneStore,
    /// Limits that can't be.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The volume store refused or failed.
    #[error(transparent)]
    Store(#[from] hearth_images::Error),
    /// A disk did not come or go.
    #[error(transparent)]
    HotPlug(#[from] HotPlugError),
}

/// Longest that a guest may be waited for.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Plugs a disk in.
pub fn attach(hotplug: &HotPlug, disk: &DiskConfig) -> Result<Reply, DiskError> {
    hotplug.attach(disk)?;
    Ok(Reply::Done)
}

/// Unplugs a disk.
pub fn detach(
    hotplug: &HotPlug,
    serial: &str,
    force: bool,
    patience_ms: u64,
) -> Result<Reply, DiskError> {
    let patience = Duration::from_millis(patience_ms).min(MAX_PATIENCE);
    hotplug.detach(serial, force, patience)?;
    Ok(Reply::Done)
}

/// Lists the disks.
pub fn list(hotplug: &HotPlug) -> Result<Reply, DiskError> {
    Ok(Reply::Disks {
        disks: hotplug.list(),
    })
}

/// Takes snapshots, all at one point in time.
pub fn snapshot(disks: &Disks, wanted: &[DiskSnapshot]) -> Result<Reply, DiskError> {
    let found = wanted
        .iter()
        .map(|one| Ok((find(disks, &one.serial)?, SnapshotId::new(&*one.snapshot)?)))
        .collect::<Result<Vec<_>, DiskError>>()?;
    let store = one_store(&found)?;
    let wanted: Vec<_> = found
        .iter()
        .map(|(disk, snapshot)| (&*disk.disk, &disk.volume, snapshot))
        .collect();
    let taken = store.snapshot_disks(&wanted)?;
    Ok(Reply::Snapshots {
        pause_ns: u64::try_from(taken.pause.as_nanos()).unwrap_or(u64::MAX),
        snapshots: taken
            .snapshots
            .into_iter()
            .map(|info| SnapshotTaken {
                snapshot: info.id.to_string(),
                size_bytes: info.size_bytes,
                allocated_bytes: info.allocated_bytes,
            })
            .collect(),
    })
}

/// Makes the volume of a disk larger, then tells the guest.
pub fn resize(disks: &Disks, serial: &str, size_bytes: u64) -> Result<Reply, DiskError> {
    let disk = find(disks, serial)?;
    let store = Store::open(&disk.store)?;
    store.grow_disk(&disk.disk, &disk.volume, size_bytes)?;
    // Of two requests at once, the later one may come here first.
    disk.device.set_size(disk.disk.size_bytes());
    Ok(Reply::Done)
}

/// Holds the disk of `serial` to `limits` from now on.
pub fn set_throttle(disks: &Disks, serial: &str, limits: &DiskLimits) -> Result<Reply, DiskError> {
    limits.validate()?;
    find(disks, serial)?.throttle.set_limits(limits);
    Ok(Reply::Done)
}

/// How the disk of `serial` is.
pub fn status(disks: &Disks, serial: &str) -> Result<Reply, DiskError> {
    let disk = find(disks, serial)?;
    Ok(Reply::DiskStatus(disk.credits()))
}

fn find(disks: &Disks, serial: &str) -> Result<Arc<MachineDisk>, DiskError> {
    disks
        .get(serial)
        .ok_or_else(|| DiskError::NoDisk(serial.to_owned()))
}

fn one_store(found: &[(Arc<MachineDisk>, SnapshotId)]) -> Result<Store, DiskError> {
    let mut stores = found.iter().map(|(disk, _)| Path::new(&disk.store));
    match stores.next() {
        Some(first) if stores.all(|other| other == first) => Ok(Store::open(first)?),
        _ => Err(DiskError::NotOneStore),
    }
}
