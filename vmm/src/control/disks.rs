//! Requests about the machine's disks. They may take long: each client has a thread of its own,
//! and the guest goes on meanwhile.

use std::path::Path;
use std::sync::Arc;

use hearth_images::{SnapshotId, Store};

use super::{DiskSnapshot, Reply, SnapshotTaken};
use crate::machine::disks::{Disks, MachineDisk};

/// Why a request about disks was not done; the text goes to the client.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has this serial, or several have it.
    #[error("no disk with the serial {0:?}")]
    NoDisk(String),
    /// Snapshots of disks of several stores, or of no disk.
    #[error("snapshots are taken of the disks of one store at a time")]
    NotOneStore,
    /// The volume store refused or failed.
    #[error(transparent)]
    Store(#[from] hearth_images::Error),
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
