//! A volume as a [`Disk`], and recovery after a crash.

use super::lock::{Locked, Mode};
use super::{Access, Store};
use crate::check::{self, CheckReport, Repair};
use crate::disk::Disk;
use crate::error::{IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain;
use crate::layer::header::Header;
use std::fs::OpenOptions;

/// The top layer of a volume, locked against other processes and threads.
struct LockedTop {
    id: LayerId,
    file: Locked,
}

impl Store {
    /// Opens a volume for guest I/O.
    ///
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) if it is open elsewhere (read-only opens share). If it was not closed
    /// cleanly, its refcounts are rebuilt first; see [`Store::recover_volume`].
    pub fn open_volume(&self, id: &VolumeId, access: Access) -> Result<Disk> {
        let mut top = self.lock_top(id, access == Access::ReadWrite)?;
        if is_dirty(&top)? {
            if access == Access::ReadOnly {
                drop(top);
                self.recover_volume(id)?;
                top = self.lock_top(id, false)?;
            } else {
                check::check_layer(&top.file, Repair::Refcounts)?;
            }
        }
        let link = chain::link_of(
            top.id,
            top.file.try_clone().context(|| format!("volume {id}"))?,
        )?;
        if access == Access::ReadWrite {
            check::check_refcount_coverage(&top.file, &link.header)?;
        }
        let ancestors = chain::ancestors(&self.layout.layers, &link)?;
        Disk::open(link, top.file, ancestors, access)
    }

    /// Opens a snapshot for reading.
    pub fn open_snapshot(&self, id: &SnapshotId) -> Result<Disk> {
        let link = self.snapshot_layer(id)?;
        let file = link.file.try_clone().context(|| format!("snapshot {id}"))?;
        let file = Locked::try_new(file, Mode::Shared, || format!("snapshot {id}"))?;
        let ancestors = chain::ancestors(&self.layout.layers, &link)?;
        Disk::open(link, file, ancestors, Access::ReadOnly)
    }

    /// After the VMM of a volume was killed: rebuilds the refcounts of its top layer, so that the
    /// file is clean at rest. Does nothing to a volume that was closed cleanly.
    ///
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) while the volume is open; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the tables
    /// contradict themselves, and then nothing is changed.
    pub fn recover_volume(&self, id: &VolumeId) -> Result<CheckReport> {
        let top = self.lock_top(id, true)?;
        if is_dirty(&top)? {
            check::check_layer(&top.file, Repair::Refcounts)
        } else {
            Ok(CheckReport::default())
        }
    }

    /// Walks the tables of the volume's top layer and compares its refcounts.
    ///
    /// Unlike [`Store::recover_volume`] this always looks. The volume must not be open for
    /// writing ([`ErrorKind::InUse`](crate::ErrorKind::InUse)).
    pub fn check_volume(&self, id: &VolumeId, repair: Repair) -> Result<CheckReport> {
        let top = self.lock_top(id, repair != Repair::No)?;
        check::check_layer(&top.file, repair)
    }

    /// The top layer of a volume, locked for writing by us alone, and clean.
    pub(super) fn clean_top(&self, id: &VolumeId) -> Result<(Locked, Header)> {
        let top = self.lock_top(id, true)?;
        if is_dirty(&top)? {
            check::check_layer(&top.file, Repair::Refcounts)?;
        }
        let link = chain::link_of(
            top.id,
            top.file.try_clone().context(|| format!("volume {id}"))?,
        )?;
        Ok((top.file, link.header))
    }

    fn lock_top(&self, id: &VolumeId, exclusive: bool) -> Result<LockedTop> {
        loop {
            let layer = self.volume_record(id)?.layer_id()?;
            let path = self.layout.layer_path(&layer);
            let file = OpenOptions::new()
                .read(true)
                .write(exclusive)
                .open(&path)
                .context(|| format!("opening layer {layer} of volume {id}"))?;
            let mode = if exclusive {
                Mode::Exclusive
            } else {
                Mode::Shared
            };
            let file = Locked::try_new(file, mode, || format!("volume {id}"))?;
            // A snapshot or a deletion may have come between reading the record and locking.
            if self.volume_record(id)?.layer_id()? == layer {
                return Ok(LockedTop { id: layer, file });
            }
        }
    }
}

fn is_dirty(top: &LockedTop) -> Result<bool> {
    Ok(Header::read(&top.file)?.is_dirty())
}
