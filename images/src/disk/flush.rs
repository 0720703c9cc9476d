//! What makes written data durable, in the order that a power loss needs.
//!
//! `imago` keeps changed L2 tables and refcount blocks in memory and writes them without any
//! sync in between. An L2 entry that reaches the disk before the data of its new cluster would
//! replace flushed data (copied from the layer below) by whatever the cluster held. So:
//!
//! 1. data of newly allocated clusters, then a sync
//! 2. refcount blocks and L2 tables, then a sync
//!
//! Step 2 starts with no write in flight, so that no table refers to data after the first sync.

use super::image::{Image, Top};
use super::live::Sealing;
use super::{Disk, poisoned};
use imago::Mapping;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLockReadGuard};

impl Disk {
    /// Makes everything durable that was written before: it is there after kill -9 of this
    /// process, and after a power loss.
    pub fn flush(&self) -> io::Result<()> {
        // While a snapshot is finished, a part of what was written before is in the layer that is
        // being sealed; see `live`.
        let _settled = self.settled()?;
        let top = Arc::clone(&self.image()?.top);
        if self.is_read_only() {
            return Ok(());
        }
        // Most of the data goes to the disk here, while other requests run on.
        self.sync_allocated(&top)?;
        let image = self.image_alone()?;
        self.write_back(&image)?;
        let freed = top.freed.load(Ordering::Acquire);
        drop(image);
        self.sync(&top)?;
        top.freed_synced.fetch_max(freed, Ordering::AcqRel);
        Ok(())
    }

    /// Waits until no layer is left that has to be sealed, and keeps the layers as they are.
    fn settled(&self) -> io::Result<RwLockReadGuard<'_, Vec<Sealing>>> {
        loop {
            let unsealed = self.unsealed.read().map_err(|_| poisoned())?;
            if unsealed.is_empty() {
                return Ok(unsealed);
            }
            drop(unsealed);
            self.settling()?.finish()?;
        }
    }

    /// Writes the tables back to the file. The caller has the image alone; to make them durable,
    /// a sync has to follow.
    pub(super) fn write_back(&self, image: &Image) -> io::Result<()> {
        self.sync_allocated(&image.top)?;
        image.format.flush()
    }

    /// Before a write that may allocate clusters: clusters that a discard freed are used again
    /// only when the disk knows that they were freed. Otherwise a power loss could leave two
    /// guest clusters in one host cluster.
    ///
    /// The caller has the image shared, so that no discard comes in between.
    pub(super) fn settle_freed(&self, image: &Image, offset: u64, length: u64) -> io::Result<()> {
        let top = &image.top;
        let freed = top.freed.load(Ordering::Acquire);
        if top.freed_synced.load(Ordering::Acquire) >= freed {
            return Ok(());
        }
        if let (Mapping::Raw { writable: true, .. }, mapped) =
            image.format.get_mapping(offset, length)?
            && mapped >= length
        {
            return Ok(());
        }
        self.sync(top)?;
        top.freed_synced.fetch_max(freed, Ordering::AcqRel);
        Ok(())
    }

    /// Syncs the data of clusters that were allocated since the last call.
    pub(super) fn sync_allocated(&self, top: &Top) -> io::Result<()> {
        if !top.allocated.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.sync(top)
    }

    /// Syncs the file. Once that has failed, it fails for good: the kernel drops the pages that
    /// it could not write, so that a later success would say nothing about them.
    pub(super) fn sync(&self, top: &Top) -> io::Result<()> {
        self.sync_by(top, File::sync_data)
    }

    pub(super) fn sync_by(
        &self,
        top: &Top,
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of this volume failed"));
        }
        sync(&top.file).inspect_err(|error| {
            tracing::error!("syncing a volume: {error}");
            self.sync_failed.store(true, Ordering::Release);
        })
    }
}
