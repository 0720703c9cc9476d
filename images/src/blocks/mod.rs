//! What a snapshot holds, and what changed between two, in blocks of 512 KiB: the EBS direct
//! APIs.
//!
//! Which blocks hold data follows from the tables alone. Two snapshots are compared by their
//! chains first: what both see in the same cluster of the same layer is the same, and is not
//! read; the rest is compared byte by byte, so that the result is exact.

mod changed;
mod reader;

pub use changed::{ChangedBlock, ChangedBlocks};
pub use reader::{Block, SnapshotBlocks, SnapshotReader};

use crate::layer::CLUSTER_BYTES;
use crate::mapping::Target;

/// Size of a block in bytes; the last one of a disk may be shorter.
pub const BLOCK_BYTES: u64 = 512 << 10;

/// Clusters of one block.
const BLOCK_CLUSTERS: usize = (BLOCK_BYTES / CLUSTER_BYTES) as usize;

/// Blocks of one span.
const SPAN_BLOCKS: u64 = crate::mapping::SPAN_BYTES / BLOCK_BYTES;

/// The clusters of one block of a span; none behind the end of the disk.
fn block_of(targets: Option<&[Target]>, block_in_span: u64) -> &[Target] {
    let first = block_in_span as usize * BLOCK_CLUSTERS;
    targets
        .and_then(|targets| targets.get(first..targets.len().min(first + BLOCK_CLUSTERS)))
        .unwrap_or_default()
}

fn holds_data(block: &[Target]) -> bool {
    block.iter().any(|target| *target != Target::Zeroes)
}
