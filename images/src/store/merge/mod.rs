//! Merging of sealed layers, so that no chain stays longer than [`MERGED_CHAIN_LENGTH`].
//!
//! A merge takes a layer (the child) and the one below it (the parent) and writes a new file with
//! the contents of both: the child's clusters, the parent's where the child has none. It names
//! the parent's parent, and takes the child's name. What reads as the child stays the same, bit
//! for bit, so that no record and no other layer has to change; chains through the child are one
//! layer shorter. A parent that something else reaches (a snapshot, another child) stays, and
//! its clusters are stored twice then; one that nothing else reaches is removed.
//!
//! The writable top of a volume is never merged. Whoever has the old files open goes on with
//! them, and may go over to the new ones ([`Store::reload_disk`]).
//!
//! - `plan`: which two layers
//! - `copy`: the new file
//!
//! Killed, or stopped by an error such as a full disk, a merge leaves an unfinished file in `tmp/`
//! at most; the new file is synced before it gets the child's name, which is one rename. The
//! parent goes only after that is durable. Names are locked for the rename only, so that
//! snapshots and new volumes never wait for the copying; what was true before it is looked at
//! again then.

mod copy;
mod plan;

use super::lock::{Locked, Mode};
use super::{Store, TempFile, layout};
use crate::check::{self, Repair};
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::id::{LayerId, VolumeId};
use crate::layer::chain::{self, Link};
use crate::upkeep::checksums;
use copy::Copy;
use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Chains that are longer, in layers, a volume's writable one included, are shortened.
pub const MERGED_CHAIN_LENGTH: usize = 8;

/// Two layers to merge; see [`Store::merges`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    child: LayerId,
    parent: LayerId,
    /// What has to be copied at most, in bytes.
    pub copies_bytes: u64,
}

/// How far a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeProgress {
    /// Bytes copied so far.
    pub copied_bytes: u64,
    /// What is copied at most, in bytes.
    pub total_bytes: u64,
}

/// How a merge ended, if not with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeOutcome {
    /// The chain is shorter.
    Merged {
        /// Volumes whose chains have changed: who has one open may reload it.
        volumes: Vec<VolumeId>,
    },
    /// The layers were deleted or changed meanwhile; nothing was done.
    Outdated,
    /// The caller stopped it; nothing was done.
    Stopped,
}

impl Store {
    /// Merges that make a chain shorter that is too long; none if no chain is. The best comes
    /// first: in the longest chain the two layers that take least to copy. After it is done the
    /// others may not be the best any more; they are there to go on with if it fails.
    ///
    /// What cannot be read is passed over.
    pub fn merges(&self) -> Result<Vec<Merge>> {
        let _names = self.layout.lock_names()?;
        Ok(plan::Tree::read(&self.layout)?.merges(&self.layout))
    }

    /// The first of [`Store::merges`].
    pub fn next_merge(&self) -> Result<Option<Merge>> {
        Ok(self.merges()?.into_iter().next())
    }

    /// Does a merge. `progress` is called again and again, and may stop it.
    ///
    /// [`ErrorKind::InUse`] while another merge is at work in this store. After an error nothing
    /// has changed.
    pub fn merge(
        &self,
        merge: &Merge,
        mut progress: impl FnMut(MergeProgress) -> ControlFlow<()>,
    ) -> Result<MergeOutcome> {
        let _merging = self.lock_merging()?;
        let Some((child, parent)) = self.open_pair(merge)? else {
            return Ok(MergeOutcome::Outdated);
        };
        let temp = TempFile::new(&self.layout)?;
        let mut report = |copied_bytes| {
            progress(MergeProgress {
                copied_bytes,
                total_bytes: merge.copies_bytes,
            })
        };
        let copied = Copy::new(&child, &parent, &temp.file)?.run(&mut report)?;
        if copied.is_break() {
            return Ok(MergeOutcome::Stopped);
        }
        // Reads the tables only, and keeps a fault of the qcow2 library out of the store.
        let report = check::check_layer(&temp.file, Repair::No)?;
        if !report.is_clean() {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("merging layer {} made a wrong file", merge.child),
            ));
        }
        self.put_in_place(temp, &child, &parent)
    }

    /// One merge at a time: a second one could take a parent away.
    fn lock_merging(&self) -> Result<Locked> {
        let path = self.layout.root.join("merge.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context(|| format!("opening {}", path.display()))?;
        Locked::try_new(file, Mode::Exclusive, || "the merging of this store".into())
    }

    fn open_pair(&self, merge: &Merge) -> Result<Option<(Link, Link)>> {
        // A layer may have been deleted since.
        let open = |id: &LayerId| match self.layout.layer_path(id).exists() {
            true => chain::open_link(&self.layout.layers, id.clone()).map(Some),
            false => Ok(None),
        };
        match (open(&merge.child)?, open(&merge.parent)?) {
            (Some(child), Some(parent)) if child.parent.as_ref() == Some(&parent.id) => {
                Ok(Some((child, parent)))
            }
            _ => Ok(None),
        }
    }

    /// Gives the new file the child's name, if that is the layer still that was read.
    fn put_in_place(&self, temp: TempFile, child: &Link, parent: &Link) -> Result<MergeOutcome> {
        let _names = self.layout.lock_names()?;
        for link in [child, parent] {
            if !self.is_in_place(link)? {
                return Ok(MergeOutcome::Outdated);
            }
        }
        let volumes = self.volumes_through(&child.id);
        // They are about the old file.
        checksums::forget(&self.layout, &child.id)?;
        self.layout.replace_layer(temp, &child.id)?;
        self.remove_unreachable();
        Ok(MergeOutcome::Merged { volumes })
    }

    /// Whether the file that has the layer's name is the open one.
    fn is_in_place(&self, link: &Link) -> Result<bool> {
        let looking = || format!("looking at layer {}", link.id);
        let open = link.file.metadata().context(looking)?;
        match std::fs::metadata(self.layout.layer_path(&link.id)) {
            Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(looking),
        }
    }

    /// The volumes that reach a layer; those that cannot be read are left out.
    fn volumes_through(&self, layer: &LayerId) -> Vec<VolumeId> {
        let reaches = |id: &VolumeId| {
            let top = self.volume_top(id)?;
            let below = chain::ancestors(&self.layout.layers, &top)?;
            Ok::<_, Error>(below.iter().any(|link| link.id == *layer))
        };
        let ids = layout::record_ids(&self.layout.volumes).unwrap_or_default();
        ids.into_iter()
            .flat_map(VolumeId::new)
            .filter(|id| reaches(id).unwrap_or(false))
            .collect()
    }
}
