//! New volumes, and larger ones.

use super::layout::{Record, TempFile};
use super::{Store, VolumeInfo, VolumeSource};
use crate::crash_point;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, VolumeId};
use crate::layer::chain::{self, MAX_CHAIN_LENGTH};
use crate::layer::create::{check_size, write_empty_layer};
use crate::layer::grow::grow;

impl Store {
    /// Makes a volume. From a snapshot this is constant time: a new, empty layer over the sealed
    /// one.
    ///
    /// `size_bytes` is needed for an empty volume; for one from a snapshot, `None` keeps the
    /// snapshot's size, and a smaller one is [`ErrorKind::InvalidSize`].
    pub fn create_volume(
        &self,
        id: &VolumeId,
        source: VolumeSource<'_>,
        size_bytes: Option<u64>,
    ) -> Result<VolumeInfo> {
        let _lock = self.layout.lock_names()?;
        self.refuse_existing_volume(id)?;
        let (parent, size) = match source {
            VolumeSource::Empty => {
                let size = size_bytes.ok_or_else(|| {
                    Error::new(ErrorKind::InvalidSize, "an empty volume needs a size")
                })?;
                (None, size)
            }
            VolumeSource::Snapshot(snapshot) => {
                let layer = self.snapshot_layer(snapshot)?;
                let ancestors = chain::ancestors(&self.layout.layers, &layer)?;
                if ancestors.len() + 2 > MAX_CHAIN_LENGTH {
                    return Err(Error::new(
                        ErrorKind::InvalidFormat,
                        format!("snapshot {snapshot} has {MAX_CHAIN_LENGTH} layers already"),
                    ));
                }
                let size = size_bytes.unwrap_or(layer.header.size);
                if size < layer.header.size {
                    return Err(Error::new(
                        ErrorKind::InvalidSize,
                        format!(
                            "{size} bytes are less than snapshot {snapshot} has ({})",
                            layer.header.size
                        ),
                    ));
                }
                (Some(layer.id), size)
            }
        };
        check_size(size)?;
        let layer = self.new_top_layer(size, parent.as_ref())?;
        self.name_volume(id, &layer)?;
        self.volume(id)
    }

    /// Makes a volume larger. It must not be open ([`ErrorKind::InUse`]); a smaller size is
    /// [`ErrorKind::InvalidSize`], the same size does nothing.
    pub fn grow_volume(&self, id: &VolumeId, new_size_bytes: u64) -> Result<VolumeInfo> {
        check_size(new_size_bytes)?;
        let (top, header) = self.clean_top(id)?;
        if new_size_bytes < header.size {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!(
                    "{new_size_bytes} bytes are less than volume {id} has ({})",
                    header.size
                ),
            ));
        }
        grow(&top, &header, new_size_bytes)?;
        drop(top);
        self.volume(id)
    }

    /// Writes an empty layer and gives it its name; nothing refers to it yet.
    pub(super) fn new_top_layer(&self, size: u64, parent: Option<&LayerId>) -> Result<LayerId> {
        let temp = TempFile::new(&self.layout)?;
        write_empty_layer(&temp.file, size, parent)?;
        temp.file
            .sync_all()
            .context(|| "syncing a new layer".into())?;
        crash_point("layer.written");
        let layer = LayerId::random()?;
        self.layout.publish_layer(temp, false, &layer)?;
        Ok(layer)
    }

    /// Writes the record of a new volume; if that fails, the layer goes again.
    pub(super) fn name_volume(&self, id: &VolumeId, layer: &LayerId) -> Result<()> {
        Record::new(layer)
            .create(&self.layout, &self.layout.volumes, id.as_ref())
            .inspect_err(|_| self.remove_unreachable())
    }

    pub(super) fn refuse_existing_volume(&self, id: &VolumeId) -> Result<()> {
        if self.layout.volumes.join(format!("{id}.json")).exists() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("volume {id} exists already"),
            ));
        }
        Ok(())
    }
}
