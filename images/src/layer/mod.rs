//! One qcow2 file of the store.
//!
//! - `header`: the header, parsed and judged by us before any library sees the file
//! - `create`: a new, empty layer, with or without a parent
//! - `grow`: a larger virtual disk
//! - `chain`: the way from a layer down to its oldest ancestor

pub(crate) mod chain;
pub(crate) mod create;
pub(crate) mod grow;
pub mod header;

/// Cluster size of the layers that we make, in bytes.
///
/// 64 KiB is qemu-img's default: one L2 table covers 512 MiB, one refcount block 2 GiB.
pub const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// log2 of [`CLUSTER_BYTES`].
pub const CLUSTER_BITS: u32 = 16;
