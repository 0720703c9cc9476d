//! Volumes and snapshots from foreign images.

use super::layout::{Record, TempFile};
use super::{SnapshotInfo, Store, VolumeInfo};
use crate::crash_point;
use crate::error::Result;
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::import::{self, ImportOptions, ImportSource};

impl Store {
    /// Makes a sealed layer from an image, and a snapshot that names it. Everything of the input
    /// is verified before the snapshot appears; on an error nothing stays behind.
    pub fn import_snapshot(
        &self,
        id: &SnapshotId,
        source: ImportSource<'_>,
        options: ImportOptions,
    ) -> Result<SnapshotInfo> {
        self.refuse_existing_snapshot(id)?;
        let temp = self.import_layer(source, &options)?;
        let _lock = self.layout.lock_names()?;
        self.refuse_existing_snapshot(id)?;
        let layer = LayerId::random()?;
        self.layout.publish_layer(temp, true, &layer)?;
        Record::new(&layer)
            .create(&self.layout, &self.layout.snapshots, id.as_ref())
            .inspect_err(|_| self.remove_unreachable())?;
        self.snapshot(id)
    }

    /// Makes a volume from an image; otherwise like [`Store::import_snapshot`].
    pub fn import_volume(
        &self,
        id: &VolumeId,
        source: ImportSource<'_>,
        options: ImportOptions,
    ) -> Result<VolumeInfo> {
        self.refuse_existing_volume(id)?;
        let temp = self.import_layer(source, &options)?;
        let _lock = self.layout.lock_names()?;
        self.refuse_existing_volume(id)?;
        let layer = LayerId::random()?;
        self.layout.publish_layer(temp, false, &layer)?;
        self.name_volume(id, &layer)?;
        self.volume(id)
    }

    fn import_layer(&self, source: ImportSource<'_>, options: &ImportOptions) -> Result<TempFile> {
        let layer = TempFile::new(&self.layout)?;
        let spool = || TempFile::new(&self.layout);
        import::import_into(&layer.file, source, options, spool)?;
        crash_point("import.copied");
        Ok(layer)
    }
}
