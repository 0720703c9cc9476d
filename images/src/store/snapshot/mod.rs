//! A name for the sealed state of a volume, or of several at one point in time.
//!
//! - this file: of volumes at rest
//! - `live`: of volumes that this process has open, while guests work on them

pub(crate) mod live;

use super::layout::{self, Record, TempFile, record_name};
use super::{Locked, SnapshotInfo, Store};
use crate::crash_point;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain::{self, MAX_CHAIN_LENGTH};

/// A volume at rest whose snapshot is being taken.
struct AtRest<'a> {
    volume: &'a VolumeId,
    snapshot: &'a SnapshotId,
    /// Locked, so that nobody opens the volume meanwhile.
    top: Locked,
    layer: LayerId,
    /// The record that will name the new top layer.
    record: TempFile,
}

impl Store {
    /// Seals the top layer of a volume that is not open, names it, and gives the volume a new
    /// top layer. Constant time.
    pub fn snapshot_volume(&self, volume: &VolumeId, id: &SnapshotId) -> Result<SnapshotInfo> {
        self.snapshot_volumes(&[(volume, id)])?
            .pop()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no snapshot {id}")))
    }

    /// The same for several volumes. After an error there is none of the snapshots, and the same
    /// ids may be tried again; a volume may have one layer more then.
    pub fn snapshot_volumes(
        &self,
        wanted: &[(&VolumeId, &SnapshotId)],
    ) -> Result<Vec<SnapshotInfo>> {
        refuse_twice(wanted)?;
        let tops: Vec<_> = wanted
            .iter()
            .map(|(volume, _)| self.clean_top(volume))
            .collect::<Result<_>>()?;
        let _names = self.layout.lock_names()?;
        let mut at_rest = Vec::with_capacity(wanted.len());
        for ((volume, snapshot), (top, _)) in wanted.iter().copied().zip(tops) {
            self.refuse_existing_snapshot(snapshot)?;
            let (layer, new_top) = self.prepare_top(volume)?;
            at_rest.push(AtRest {
                volume,
                snapshot,
                top,
                layer,
                record: Record::new(&new_top).write_temp(&self.layout)?,
            });
        }
        let switched = self.switch_at_rest(&mut at_rest);
        if let Err(error) = switched {
            self.remove_unreachable();
            return Err(error);
        }
        let names: Vec<_> = at_rest
            .iter()
            .map(|one| (one.snapshot, &one.layer))
            .collect();
        self.name_snapshots(&names)
    }

    /// Gives the layer of a snapshot a second name. Constant time; either may be deleted first.
    pub fn copy_snapshot(&self, from: &SnapshotId, to: &SnapshotId) -> Result<SnapshotInfo> {
        let _names = self.layout.lock_names()?;
        self.refuse_existing_snapshot(to)?;
        let layer = self.snapshot_record(from)?.layer_id()?;
        self.name_snapshots(&[(to, &layer)])?
            .pop()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no snapshot {to}")))
    }

    /// The volumes leave the sealed layers before snapshots name them: after a crash in between
    /// there are longer chains and no snapshot, never a snapshot that changes.
    fn switch_at_rest(&self, at_rest: &mut [AtRest<'_>]) -> Result<()> {
        let volumes = &self.layout.volumes;
        for one in &mut *at_rest {
            layout::seal(&one.top)?;
        }
        for one in &mut *at_rest {
            one.record.replace(volumes, &record_name(one.volume))?;
            crash_point("record.replaced");
        }
        layout::sync_dir(volumes).context(|| "naming new layers".into())
    }

    /// Makes a new, empty layer for a volume, over the top that it has. Returns the old top and
    /// the new one. Names must be locked.
    fn prepare_top(&self, volume: &VolumeId) -> Result<(LayerId, LayerId)> {
        let top = self.volume_top(volume)?;
        if chain::ancestors(&self.layout.layers, &top)?.len() + 2 > MAX_CHAIN_LENGTH {
            return Err(Error::new(
                ErrorKind::InvalidFormat,
                format!("volume {volume} has {MAX_CHAIN_LENGTH} layers already"),
            ));
        }
        let new_top = self.new_top_layer(top.header.size, Some(&top.id))?;
        Ok((top.id, new_top))
    }

    /// Writes the records of snapshots, all or none. Names must be locked.
    fn name_snapshots(&self, names: &[(&SnapshotId, &LayerId)]) -> Result<Vec<SnapshotInfo>> {
        let snapshots = &self.layout.snapshots;
        let mut done = Vec::with_capacity(names.len());
        for (id, layer) in names {
            let named = Record::new(layer)
                .create(&self.layout, snapshots, id.as_ref())
                .and_then(|()| self.snapshot(id));
            match named {
                Ok(info) => done.push(info),
                Err(error) => {
                    for info in done {
                        if let Err(error) = self.remove_record(snapshots, info.id.as_ref()) {
                            tracing::warn!("taking back a snapshot: {error}");
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(done)
    }

    pub(super) fn refuse_existing_snapshot(&self, id: &SnapshotId) -> Result<()> {
        if self.layout.snapshots.join(record_name(id)).exists() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("snapshot {id} exists already"),
            ));
        }
        Ok(())
    }
}

/// Refuses a volume or a snapshot that is asked for twice.
fn refuse_twice(wanted: &[(&VolumeId, &SnapshotId)]) -> Result<()> {
    for (index, (volume, snapshot)) in wanted.iter().enumerate() {
        let twice = |what: &str| {
            Error::new(
                ErrorKind::InvalidId,
                format!("{what} is there twice in one request"),
            )
        };
        let before = &wanted[..index];
        if before.iter().any(|(other, _)| other == volume) {
            return Err(twice(volume.as_ref()));
        }
        if before.iter().any(|(_, other)| other == snapshot) {
            return Err(twice(snapshot.as_ref()));
        }
    }
    Ok(())
}
