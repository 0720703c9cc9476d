//! What a check of a store says.

use super::Owner;
use crate::id::VolumeId;

/// What [`Store::check`](crate::Store::check) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// Volumes of the store.
    pub volumes: u64,
    /// Snapshots of the store.
    pub snapshots: u64,
    /// Layers that were looked at.
    pub layers: u64,
    /// Layers whose checksums were compared.
    pub checksums_verified: u64,
    /// Layers that have no checksums yet, or none that hold.
    pub checksums_missing: u64,
    /// What could not be looked at as a whole.
    pub skipped: Vec<Skipped>,
    /// What is wrong, or was until it was repaired.
    pub findings: Vec<Finding>,
}

impl StoreReport {
    /// Nothing was found, or all that was found is repaired.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired)
    }
}

/// A volume whose top layer was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The volume.
    pub volume: VolumeId,
    /// Why, for people.
    pub reason: String,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// The file at fault, below the root of the store.
    pub file: String,
    /// What is wrong with it, for people.
    pub detail: String,
    /// Volumes and snapshots whose contents it concerns, sorted. All others are unharmed by it.
    pub affected: Vec<Owner>,
    /// Space that is lost by it, in bytes on the host's disk.
    pub lost_bytes: u64,
    /// Whether it was repaired.
    pub repaired: bool,
}

/// Kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// A record that cannot be read. Until it is gone no layer is removed.
    Record,
    /// A layer that is missing or out of place in a chain.
    Chain,
    /// A layer whose header, tables or refcounts contradict themselves.
    Layer,
    /// A layer that differs from its checksums.
    Checksum,
    /// Checksums that cannot be read. Repaired by removing them; new ones are made.
    ChecksumFile,
    /// A volume that was not closed cleanly, as after a crash: its refcounts lag behind. Opening
    /// it repairs that too.
    NotClosed,
    /// Clusters of a layer that nothing refers to: lost space, no danger.
    LeakedClusters,
    /// A layer that no record reaches: lost space, no danger.
    UnusedLayer,
    /// An unfinished or unknown file: lost space, no danger.
    StaleFile,
}

impl FindingKind {
    /// Whether contents are at stake, rather than space.
    pub fn is_damage(self) -> bool {
        matches!(
            self,
            FindingKind::Record | FindingKind::Chain | FindingKind::Layer | FindingKind::Checksum
        )
    }
}
