//! Changes of the layers below a guest that goes on working.
//!
//! A snapshot puts a new, empty top layer over the one so far, which is sealed. What the guest
//! sees of it is a moment in which no request is in flight: the volume's record is renamed and
//! the new layer takes the old one's place in memory. Nothing is written back or synced in that
//! moment. The old layer's tables may be in memory only then; reads that fall through to it
//! find them there. Writing them, syncing and sealing come afterwards ([`Settling::finish`]),
//! while the guest goes on.
//!
//! What happens when the process is killed, or the power fails:
//!
//! - Before the record is renamed: the volume is as if there had been no snapshot; nothing names
//!   the new layer.
//! - After that, the old layer may still have its dirty bit. Whoever opens the volume next
//!   rebuilds its refcounts, as it would do if the layer were the top still. What was flushed
//!   before is in it, by the rules of `flush`. A power loss may also bring the record back which
//!   names the old layer, for as long as the directory isn't synced.
//! - A flush of the guest that comes in this time waits until the old layer is durable and
//!   sealed, and the record durable. It promises nothing before, so that all it ever promised is
//!   in the chain that the record names. If finishing fails (a full disk, say), each flush tries
//!   it again, and fails for as long as it does.
//! - Only then the snapshot gets its record. So a snapshot never names a layer that is not
//!   complete, and without the record it does not exist.

use super::image::{Format, Image, Layer, Top, open_layer};
use super::{Disk, poisoned};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::LayerId;
use crate::layer::grow::grow;
use crate::layer::header::{Header, set_dirty_bit, write_dirty_bit};
use crate::store::{Locked, sync_dir};
use imago::FormatAccess;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockWriteGuard};

/// A new, empty layer that is ready to become a volume's top.
pub(crate) struct NextTop {
    layer: Layer,
    top: Top,
}

impl NextTop {
    /// `file` is the layer's, locked and open for writing.
    pub fn new(id: LayerId, file: Locked) -> Result<Self> {
        let layer = open_layer(&id, &file, true, None)?;
        write_dirty_bit(&file, true).context(|| format!("marking layer {id}"))?;
        Ok(NextTop {
            layer,
            top: Top::new(id, file),
        })
    }
}

/// A layer that is a volume's top no more, but not yet sealed.
#[derive(Debug)]
pub(crate) struct Sealing {
    format: Arc<Format>,
    top: Arc<Top>,
    /// The directory of the record that names another layer now.
    records: PathBuf,
}

/// A disk whose layers are about to change, or have changed and are not settled yet. Flushes
/// wait; other requests go on.
pub(crate) struct Settling<'d> {
    disk: &'d Disk,
    unsealed: RwLockWriteGuard<'d, Vec<Sealing>>,
}

/// A disk with no request in flight; all of them wait.
pub(crate) struct Paused<'d> {
    disk: &'d Disk,
    image: RwLockWriteGuard<'d, Image>,
}

impl Disk {
    /// Keeps flushes out until the value is dropped.
    pub(crate) fn settling(&self) -> io::Result<Settling<'_>> {
        Ok(Settling {
            disk: self,
            unsealed: self.unsealed.write().map_err(|_| poisoned())?,
        })
    }

    /// The layer that is the top now.
    pub(crate) fn top_id(&self) -> Result<LayerId> {
        let image = self.image().context(|| "looking at a volume".into())?;
        Ok(image.top.id.clone())
    }
}

impl<'d> Settling<'d> {
    /// Waits for what is in flight, and keeps everything out until the value is dropped.
    pub fn pause(&self) -> io::Result<Paused<'d>> {
        Ok(Paused {
            disk: self.disk,
            image: self.disk.image_alone()?,
        })
    }

    /// What the returned layer needs will be done by [`finish`](Self::finish), or else by the
    /// next flush.
    pub fn owe(&mut self, sealing: Sealing) {
        self.unsealed.push(sealing);
    }

    /// Makes layers that are no longer the top complete, durable and sealed.
    pub fn finish(&mut self) -> Result<()> {
        while let Some(sealing) = self.unsealed.first() {
            self.disk
                .seal(sealing)
                .context(|| format!("sealing layer {}", sealing.top.id))?;
            self.unsealed.remove(0);
        }
        Ok(())
    }
}

impl Paused<'_> {
    /// Puts a layer over the one that was the top so far. The record names it already.
    pub fn switch(&mut self, next: NextTop, records: PathBuf) -> Sealing {
        let NextTop { mut layer, top } = next;
        let image = &mut *self.image;
        layer.set_backing(Some(Arc::clone(&image.format)));
        let format = Arc::new(FormatAccess::new(layer));
        let old_format = std::mem::replace(&mut image.format, format);
        let old_top = std::mem::replace(&mut image.top, Arc::new(top));
        image.backing = Some(Arc::clone(&old_format));
        Sealing {
            format: old_format,
            top: old_top,
            records,
        }
    }

    /// Makes the virtual disk larger.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        let disk = self.disk;
        let growing = || "growing a volume".into();
        let top = Arc::clone(&self.image.top);
        disk.write_back(&self.image)
            .and_then(|()| disk.sync(&top))
            .context(growing)?;
        // With all tables on the disk the layer is clean, and stays so until it is in use again.
        let grown = Header::read(&top.file).and_then(|header| grow(&top.file, &header, size));
        let reopened = self.reopen();
        if reopened.is_err() {
            // What is open may know the old tables only, and must not write to them.
            self.image.closed = true;
        }
        grown.and(reopened)?;
        disk.size.store(size, Ordering::Release);
        Ok(())
    }

    /// Opens the top layer anew. Its tables must be on the disk.
    fn reopen(&mut self) -> Result<()> {
        let image = &mut *self.image;
        let top = &image.top;
        // The library refuses a layer that has the mark.
        write_dirty_bit(&top.file, false).context(|| format!("unmarking layer {}", top.id))?;
        let layer = open_layer(&top.id, &top.file, true, image.backing.clone());
        write_dirty_bit(&top.file, true).context(|| format!("marking layer {}", top.id))?;
        image.format = Arc::new(FormatAccess::new(layer?));
        Ok(())
    }
}

impl Disk {
    fn seal(&self, sealing: &Sealing) -> io::Result<()> {
        let Sealing {
            format,
            top,
            records,
        } = sealing;
        // As in a flush: data first, then the tables that name it.
        self.sync_allocated(top)?;
        format.flush()?;
        self.sync(top)?;
        set_dirty_bit(&top.file, false)?;
        top.file.set_permissions(Permissions::from_mode(0o444))?;
        self.sync_by(top, File::sync_all)?;
        sync_dir(records).inspect_err(|_| self.sync_failed.store(true, Ordering::Release))?;
        Ok(top.file.unlock()?)
    }

    /// Refuses what is not an open, writable volume.
    pub(crate) fn check_may_change(&self) -> Result<()> {
        if self.is_read_only() {
            return Err(Error::new(
                ErrorKind::InUse,
                "the volume is open for reading only",
            ));
        }
        Ok(())
    }
}
