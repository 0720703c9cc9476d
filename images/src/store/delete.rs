//! Deleting volumes and snapshots, and the layers that nothing reaches any more.
//!
//! A layer lives for as long as a record reaches it. The record goes first, then its layers, so
//! that a crash in between leaves only layers that nothing reaches.

use super::Store;
use super::layout::{self, Record};
use super::lock::{Locked, Mode};
use crate::crash_point;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

impl Store {
    /// Deletes a volume and the layers that only it reached.
    ///
    /// [`ErrorKind::NotFound`] if there is none, [`ErrorKind::InUse`] while it is open.
    pub fn delete_volume(&self, id: &VolumeId) -> Result<()> {
        let _lock = self.layout.lock_names()?;
        let layer = self.volume_record(id)?.layer_id();
        // Held until the end, so that nobody opens a volume that is going away.
        let _top = match &layer {
            Ok(layer) => lock_unused(&self.layout.layer_path(layer), id)?,
            Err(_) => None,
        };
        self.remove_record(&self.layout.volumes, id.as_ref())?;
        self.remove_unreachable();
        Ok(())
    }

    /// Deletes a snapshot and the layers that only it reached. Volumes made from it live on.
    ///
    /// [`ErrorKind::NotFound`] if there is none.
    pub fn delete_snapshot(&self, id: &SnapshotId) -> Result<()> {
        let _lock = self.layout.lock_names()?;
        self.snapshot_record(id)?;
        self.remove_record(&self.layout.snapshots, id.as_ref())?;
        self.remove_unreachable();
        Ok(())
    }

    /// Removes layers that no volume and no snapshot reaches, and returns how many.
    ///
    /// If any record or any layer header cannot be read, nothing is removed and the error says
    /// which one: what cannot be read may reach anything.
    pub fn collect_garbage(&self) -> Result<usize> {
        let _lock = self.layout.lock_names()?;
        self.sweep()
    }

    pub(super) fn remove_record(&self, dir: &Path, id: &str) -> Result<()> {
        let path = dir.join(format!("{id}.json"));
        fs::remove_file(&path).context(|| format!("removing {}", path.display()))?;
        layout::sync_dir(dir).context(|| "removing a record".into())?;
        crash_point("record.removed");
        Ok(())
    }

    /// After a deletion, which has succeeded by now, or a failed creation: what cannot be removed
    /// yet stays for [`Store::collect_garbage`]. The names must be locked.
    pub(super) fn remove_unreachable(&self) {
        if let Err(error) = self.sweep() {
            tracing::warn!("unused layers stay for now: {error}");
        }
    }

    fn sweep(&self) -> Result<usize> {
        let reachable = self.reachable_layers()?;
        let layers = &self.layout.layers;
        let mut removed = 0;
        for entry in fs::read_dir(layers).context(|| format!("{}", layers.display()))? {
            let name = entry
                .context(|| format!("{}", layers.display()))?
                .file_name();
            let Some(id) = name.to_str().and_then(LayerId::parse_file_name) else {
                continue;
            };
            if !reachable.contains(&id) {
                fs::remove_file(self.layout.layer_path(&id))
                    .context(|| format!("removing layer {id}"))?;
                crash_point("layer.removed");
                removed += 1;
            }
        }
        if removed > 0 {
            layout::sync_dir(layers).context(|| "removing layers".into())?;
        }
        Ok(removed)
    }

    /// Every layer that a record reaches.
    fn reachable_layers(&self) -> Result<HashSet<LayerId>> {
        let mut reachable = HashSet::new();
        for dir in [&self.layout.volumes, &self.layout.snapshots] {
            for id in layout::record_ids(dir)? {
                let record = Record::read(dir, &id)?.ok_or_else(|| {
                    Error::new(ErrorKind::Corrupt, format!("record {id} vanished"))
                })?;
                let mut next = Some(record.layer_id()?);
                // A layer that was seen before had its ancestors followed then; this also ends
                // a chain that comes back to itself.
                while let Some(layer) = next {
                    if !reachable.insert(layer.clone()) {
                        break;
                    }
                    next = chain::open_link(&self.layout.layers, layer)?.parent;
                }
            }
        }
        Ok(reachable)
    }
}

/// Locks a top layer that is about to go; `None` if the file is missing already.
fn lock_unused(path: &Path, id: &VolumeId) -> Result<Option<Locked>> {
    let Ok(file) = File::open(path) else {
        return Ok(None);
    };
    Locked::try_new(file, Mode::Exclusive, || format!("volume {id}")).map(Some)
}
