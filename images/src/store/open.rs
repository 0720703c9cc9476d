//! A volume as a [`Disk`], and recovery after a crash.

use super::lock::{Locked, Mode};
use super::{Access, Store, layout};
use crate::check::{self, CheckReport, Repair};
use crate::disk::Disk;
use crate::error::{IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain::{self, Link};
use crate::layer::header::Header;
use std::fs::OpenOptions;

/// The top layer of a volume, locked against other processes and threads.
pub(super) struct LockedTop {
    pub id: LayerId,
    pub file: Locked,
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
        let ancestors = self.sealed_ancestors(&link)?;
        Disk::open(link, top.file, &ancestors, access)
    }

    /// Opens the contents of a snapshot, for reading. They never change; the snapshot may be
    /// deleted meanwhile, and the contents stay until the value is dropped.
    pub fn open_snapshot(&self, id: &SnapshotId) -> Result<Disk> {
        let layer = self.snapshot_record(id)?.layer_id()?;
        let link = chain::open_link(&self.layout.layers, layer)?;
        let file = link.file.try_clone().context(|| format!("snapshot {id}"))?;
        let file = Locked::try_new(file, Mode::Shared, || format!("snapshot {id}"))?;
        let ancestors = self.sealed_ancestors(&link)?;
        Disk::open(link, file, &ancestors, Access::ReadOnly)
    }

    /// The layers below a top layer that is locked, all of them clean. One that a process was
    /// killed over while it sealed it is recovered.
    fn sealed_ancestors(&self, top: &Link) -> Result<Vec<Link>> {
        let ancestors = chain::ancestors(&self.layout.layers, top)?;
        if !ancestors.iter().any(|link| link.header.is_dirty()) {
            return Ok(ancestors);
        }
        for link in ancestors.iter().filter(|link| link.header.is_dirty()) {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.layout.layer_path(&link.id))
                .context(|| format!("opening layer {}", link.id))?;
            // Nobody works on it: the volume is locked, and no snapshot names the layer yet.
            // Only another reader of the volume may be here, too.
            let file = Locked::wait(file, || format!("layer {}", link.id))?;
            if Header::read(&file)?.is_dirty() {
                tracing::info!(
                    "layer {} was not sealed; its refcounts are rebuilt",
                    link.id
                );
                check::check_layer(&file, Repair::Refcounts)?;
            }
            layout::seal(&file)?;
        }
        chain::ancestors(&self.layout.layers, top)
    }

    /// After the VMM of a volume was killed: rebuilds the refcounts of its top layer, and of one
    /// that was being sealed, so that the files are clean at rest. Does nothing to a volume that was closed cleanly.
    ///
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) while the volume is open; [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) if the tables
    /// contradict themselves, and then nothing is changed.
    pub fn recover_volume(&self, id: &VolumeId) -> Result<CheckReport> {
        let top = self.lock_top(id, true)?;
        let report = if is_dirty(&top)? {
            check::check_layer(&top.file, Repair::Refcounts)?
        } else {
            CheckReport::default()
        };
        let file = top.file.try_clone().context(|| format!("volume {id}"))?;
        self.sealed_ancestors(&chain::link_of(top.id, file)?)?;
        Ok(report)
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

    pub(super) fn lock_top(&self, id: &VolumeId, exclusive: bool) -> Result<LockedTop> {
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
