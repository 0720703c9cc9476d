//! A name for the sealed state of a volume.

use super::layout::{self, Record};
use super::{Access, SnapshotInfo, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::id::{SnapshotId, VolumeId};
use crate::layer::chain::{self, MAX_CHAIN_LENGTH};

impl Store {
    /// Seals the top layer of a volume that is not open, names it, and gives the volume a new
    /// top layer. Constant time.
    pub fn snapshot_volume(&self, volume: &VolumeId, id: &SnapshotId) -> Result<SnapshotInfo> {
        // Read-write, because that repairs what a crash left and keeps everyone else out.
        let disk = self.open_volume(volume, Access::ReadWrite)?;
        disk.mark_clean()?;
        let _lock = self.layout.lock_names()?;
        self.refuse_existing_snapshot(id)?;
        let top = self.volume_top(volume)?;
        if chain::ancestors(&self.layout.layers, &top)?.len() + 2 > MAX_CHAIN_LENGTH {
            return Err(Error::new(
                ErrorKind::InvalidFormat,
                format!("volume {volume} has {MAX_CHAIN_LENGTH} layers already"),
            ));
        }
        layout::seal(&top.file)?;
        // The volume leaves the sealed layer before the snapshot names it: after a crash in
        // between there is a longer chain and no snapshot, never a snapshot that changes.
        let new_top = self.new_top_layer(top.header.size, Some(&top.id))?;
        Record::new(&new_top)
            .replace(&self.layout, &self.layout.volumes, volume.as_ref())
            .inspect_err(|_| self.remove_unreachable())?;
        Record::new(&top.id).create(&self.layout, &self.layout.snapshots, id.as_ref())?;
        drop(disk);
        self.snapshot(id)
    }

    pub(super) fn refuse_existing_snapshot(&self, id: &SnapshotId) -> Result<()> {
        if self.layout.snapshots.join(format!("{id}.json")).exists() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("snapshot {id} exists already"),
            ));
        }
        Ok(())
    }
}
