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

use super::{Disk, Image};
use imago::Mapping;
use std::io;
use std::sync::atomic::Ordering;

impl Disk {
    /// Makes everything durable that was written before: it is there after kill -9 of this
    /// process, and after a power loss.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_read_only() {
            return self.image().map(drop);
        }
        // Most of the data goes to the disk here, while other requests run on.
        self.sync_allocated()?;
        let image = self.image_alone()?;
        self.write_back(&image)?;
        let freed = self.freed.load(Ordering::Acquire);
        drop(image);
        self.sync()?;
        self.freed_synced.fetch_max(freed, Ordering::AcqRel);
        Ok(())
    }

    /// Writes the tables back to the file. The caller has the image alone; to make them durable,
    /// a sync has to follow.
    pub(super) fn write_back(&self, image: &Image) -> io::Result<()> {
        self.sync_allocated()?;
        image.format.flush()
    }

    /// Before a write that may allocate clusters: clusters that a discard freed are used again
    /// only when the disk knows that they were freed. Otherwise a power loss could leave two
    /// guest clusters in one host cluster.
    ///
    /// The caller has the image shared, so that no discard comes in between.
    pub(super) fn settle_freed(&self, image: &Image, offset: u64, length: u64) -> io::Result<()> {
        let freed = self.freed.load(Ordering::Acquire);
        if self.freed_synced.load(Ordering::Acquire) >= freed {
            return Ok(());
        }
        if let (Mapping::Raw { writable: true, .. }, mapped) =
            image.format.get_mapping(offset, length)?
            && mapped >= length
        {
            return Ok(());
        }
        self.sync()?;
        self.freed_synced.fetch_max(freed, Ordering::AcqRel);
        Ok(())
    }

    /// Syncs the data of clusters that were allocated since the last call.
    fn sync_allocated(&self) -> io::Result<()> {
        if !self.allocated.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.sync()
    }

    /// Syncs the file. Once that has failed, it fails for good: the kernel drops the pages that
    /// it could not write, so that a later success would say nothing about them.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync of this volume failed"));
        }
        self.file.sync_data().inspect_err(|error| {
            tracing::error!("syncing a volume: {error}");
            self.sync_failed.store(true, Ordering::Release);
        })
    }
}
