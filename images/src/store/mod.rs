//! The directory of volumes, snapshots and layers, and every operation on whole ones.
//!
//! - `layout`: paths, records, temporary files, and what makes a change durable
//! - `lock`: file locks
//! - `create`: new volumes: empty, from a snapshot, grown
//! - `snapshot`: names for the sealed state of volumes, at rest or open
//! - `import`: volumes and snapshots from foreign images
//! - `open`: a volume as a [`Disk`](crate::Disk), and recovery after a crash
//! - `read`: whole snapshots and volumes for readers other than a guest
//! - `delete`: volumes, snapshots, and the layers that nothing reaches any more
//!
//! Changes are made in an order that leaves, after a crash at any point, either the state before
//! or the state after, and perhaps files that nothing names: those go at the next
//! [`Store::open`] (unfinished files) or [`Store::collect_garbage`] (layers).

mod create;
mod delete;
mod import;
mod layout;
mod lock;
mod open;
mod read;
mod snapshot;

use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain::{self, Link};
use layout::{Layout, Record};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use layout::{TempFile, sync_dir};
pub(crate) use lock::Locked;
pub use snapshot::live::DiskSnapshots;

/// One directory of volumes, snapshots and layers. Cheap to clone; safe to use from several
/// threads and several processes at once.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Arc<Layout>,
}

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; several read-only opens may exist at once.
    ReadOnly,
    /// Reads and writes; nobody else may have the volume open.
    ReadWrite,
}

/// What a new volume starts from.
#[derive(Clone, Copy, Debug)]
pub enum VolumeSource<'a> {
    /// Zeroes.
    Empty,
    /// The contents of a snapshot, shared with it.
    Snapshot(&'a SnapshotId),
}

/// A volume as it is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// Size of the virtual disk in bytes.
    pub size_bytes: u64,
    /// What its own, unshared layer takes on the host's disk, in bytes.
    pub allocated_bytes: u64,
    /// Number of layers, its own one included.
    pub chain_length: usize,
}

/// A snapshot as it is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// Size of the virtual disk in bytes.
    pub size_bytes: u64,
    /// What its layer takes on the host's disk, in bytes; layers below it not included.
    pub allocated_bytes: u64,
}

impl Store {
    /// Opens the store in `root`, makes its folders if they are missing, and removes the
    /// unfinished files of processes that are gone.
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        let layout = Layout::open(root.as_ref())?;
        Ok(Store {
            layout: Arc::new(layout),
        })
    }

    /// The directory of this store.
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// One volume.
    pub fn volume(&self, id: &VolumeId) -> Result<VolumeInfo> {
        let top = self.volume_top(id)?;
        let ancestors = chain::ancestors(&self.layout.layers, &top)?;
        Ok(VolumeInfo {
            id: id.clone(),
            size_bytes: top.header.size,
            allocated_bytes: allocated_bytes(&top)?,
            chain_length: 1 + ancestors.len(),
        })
    }

    /// One snapshot.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotInfo> {
        let layer = self.snapshot_layer(id)?;
        Ok(SnapshotInfo {
            id: id.clone(),
            size_bytes: layer.header.size,
            allocated_bytes: allocated_bytes(&layer)?,
        })
    }

    /// The ids of all volumes, sorted.
    pub fn volumes(&self) -> Result<Vec<VolumeId>> {
        let ids = layout::record_ids(&self.layout.volumes)?;
        Ok(ids.into_iter().flat_map(VolumeId::new).collect())
    }

    /// The ids of all snapshots, sorted.
    pub fn snapshots(&self) -> Result<Vec<SnapshotId>> {
        let ids = layout::record_ids(&self.layout.snapshots)?;
        Ok(ids.into_iter().flat_map(SnapshotId::new).collect())
    }

    /// Path of the volume's top layer, for tools such as `qemu-img`.
    ///
    /// Nothing but this crate may write to it, and it may be read only while the volume is not
    /// open for writing.
    pub fn volume_path(&self, id: &VolumeId) -> Result<PathBuf> {
        let record = self.volume_record(id)?;
        Ok(self.layout.layer_path(&record.layer_id()?))
    }

    /// Path of the snapshot's layer, for tools such as `qemu-img`. Sealed: never written again.
    pub fn snapshot_path(&self, id: &SnapshotId) -> Result<PathBuf> {
        let record = self.snapshot_record(id)?;
        Ok(self.layout.layer_path(&record.layer_id()?))
    }

    fn volume_record(&self, id: &VolumeId) -> Result<Record> {
        Record::read(&self.layout.volumes, id.as_ref())?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no volume {id}")))
    }

    fn snapshot_record(&self, id: &SnapshotId) -> Result<Record> {
        Record::read(&self.layout.snapshots, id.as_ref())?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no snapshot {id}")))
    }

    fn volume_top(&self, id: &VolumeId) -> Result<Link> {
        let layer = self.volume_record(id)?.layer_id()?;
        chain::open_link(&self.layout.layers, layer)
    }

    fn snapshot_layer(&self, id: &SnapshotId) -> Result<Link> {
        let layer: LayerId = self.snapshot_record(id)?.layer_id()?;
        chain::open_link(&self.layout.layers, layer)
    }
}

fn allocated_bytes(link: &Link) -> Result<u64> {
    // st_blocks counts units of 512 bytes, whatever the file system's block size is.
    link.file
        .metadata()
        .map(|metadata| metadata.blocks() * 512)
        .context(|| format!("size of layer {}", link.id))
}
