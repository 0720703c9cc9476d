//! Requests about the machine's disks. They may take long: each client has a thread of its own,
//! and the guest goes on meanwhile.

use std::sync::Arc;

use super::Reply;
use crate::machine::disks::{Disks, MachineDisk};

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
