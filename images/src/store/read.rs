//! Whole snapshots and volumes for readers other than a guest.

use super::Store;
use crate::blocks::{ChangedBlocks, SnapshotReader};
use crate::error::{IoContext, Result};
use crate::export::Export;
use crate::id::{SnapshotId, VolumeId};
use crate::import::DiskFormat;
use crate::layer::chain::{self, Link};
use crate::mapping::ChainMap;

impl Store {
    /// Opens a snapshot for reading block by block.
    pub fn read_snapshot(&self, id: &SnapshotId) -> Result<SnapshotReader> {
        self.snapshot_map(id).map(SnapshotReader::new)
    }

    /// What changed from `first` to `second`, from block `start` on: exactly the blocks whose
    /// contents differ. What lies behind the end of the smaller disk counts as zeroes.
    ///
    /// [`ErrorKind::Unrelated`](crate::ErrorKind::Unrelated) if they share no layer: they are
    /// neither of one volume nor of clones of one.
    pub fn changed_blocks(
        &self,
        first: &SnapshotId,
        second: &SnapshotId,
        start: u64,
    ) -> Result<ChangedBlocks> {
        ChangedBlocks::new(self.snapshot_map(first)?, self.snapshot_map(second)?, start)
    }

    /// Starts to export a snapshot as a stand-alone image.
    pub fn export_snapshot(&self, id: &SnapshotId, format: DiskFormat) -> Result<Export> {
        Export::new(self.snapshot_map(id)?, format)
    }

    /// Starts to export a volume that is at rest; it stays locked for reading meanwhile.
    ///
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) if somebody has it open for writing.
    pub fn export_volume(&self, id: &VolumeId, format: DiskFormat) -> Result<Export> {
        Export::new(self.volume_map(id)?, format)
    }

    /// The chain of a snapshot. Once it is open, deleting and merging do not matter any more.
    pub(super) fn snapshot_map(&self, id: &SnapshotId) -> Result<ChainMap> {
        let (top, ancestors) = {
            // No layer may be merged or removed between finding its name and opening it.
            let _lock = self.layout.lock_names()?;
            let top = self.snapshot_layer(id)?;
            let ancestors = chain::ancestors(&self.layout.layers, &top)?;
            (top, ancestors)
        };
        ChainMap::open(top, ancestors, None)
    }

    /// The chain of a volume, which nobody can open for writing while the map lives.
    ///
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) if somebody has it open for writing.
    pub(super) fn volume_map(&self, id: &VolumeId) -> Result<ChainMap> {
        // After a crash the tables are right, and the refcounts are not looked at here.
        let locked = self.lock_top(id, false)?;
        let _lock = self.layout.lock_names()?;
        let file = locked.file.try_clone().context(|| format!("volume {id}"))?;
        let top: Link = chain::link_of(locked.id, file)?;
        let ancestors = chain::ancestors(&self.layout.layers, &top)?;
        ChainMap::open(top, ancestors, Some(locked.file))
    }
}
