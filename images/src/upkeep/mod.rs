//! Looking after a whole store: who reaches what, what it takes, and whether it is still sound.
//!
//! - `graph`: all records and layers, and which record reaches which layer
//! - `usage`: own and shared bytes of volumes and snapshots
//! - `checksums`: digests of layers that nobody writes to, made in the background
//! - `sum_file`: the file that keeps the digests of one layer
//! - `check`: everything that can be wrong with a store, found and, where possible, repaired
//! - `layer_check`: the part of it that looks at one layer
//! - `report`: what a check says

mod check;
pub(crate) mod checksums;
mod graph;
mod layer_check;
mod report;
mod sum_file;
mod usage;

pub use check::{CheckOptions, CheckProgress};
pub use checksums::ChecksumsMade;
pub use report::{Finding, FindingKind, Skipped, StoreReport};
pub use usage::{Blocks, Usage};

use crate::id::{SnapshotId, VolumeId};
use std::fmt;

/// What keeps layers alive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A volume.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Volume(id) => write!(f, "volume {id}"),
            Owner::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}
