//! Requests about the machine's disks. They may take long: each client has a thread of its own,
//! and the guest goes on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use super::Reply;
use crate::config::DiskConfig;
use crate::machine::disks::{Disks, MachineDisk};
use crate::machine::hotplug::{HotPlug, HotPlugError};

/// Why a request about disks was not done; the text goes to the client.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No disk has this serial, or several have it.
    #[error("no disk with the serial {0:?}")]
    NoDisk(String),
    /// The volume has not grown yet.
    #[error("the volume has only {0} bytes")]
    Smaller(u64),
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

/// Makes the disk of `serial` show the size that its volume has.
pub fn resize(disks: &Disks, serial: &str, size_bytes: u64) -> Result<Reply, DiskError> {
    let disk = find(disks, serial)?;
    let has = disk.disk.size_bytes();
    if has < size_bytes {
        return Err(DiskError::Smaller(has));
    }
    disk.device.set_size(size_bytes);
    Ok(Reply::Done)
}

fn find(disks: &Disks, serial: &str) -> Result<Arc<MachineDisk>, DiskError> {
    disks
        .get(serial)
        .ok_or_else(|| DiskError::NoDisk(serial.to_owned()))
}
