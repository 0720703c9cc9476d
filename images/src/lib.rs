//! The volume store of Hearth: sealed qcow2 layers, and volumes and snapshots that name them.
//!
//! A [`Store`] is one directory. A *layer* is a qcow2 file, a *volume* is a chain of sealed
//! layers with one writable layer on top, a *snapshot* is a name for a sealed layer. The agent
//! creates, imports, grows and deletes; a VMM process opens one volume as a [`Disk`] and reads
//! and writes it from several threads at once. `docs/volumes.md` tells the file layout and what
//! is guaranteed after a crash.
//!
//! - `store`: the directory, and every operation on whole volumes and snapshots
//! - `disk`: guest I/O on an open volume
//! - `layer`: one qcow2 file: its header, its parent, how a new one is made
//! - `check`: walks the tables of a layer, compares refcounts, repairs them after a crash
//! - `import`: makes a layer from a raw or qcow2 image that nobody trusts
//! - `rootfs`: kernel, initrd and kernel arguments from inside a disk's own file systems
//! - `crash`: named steps at which a test can end the process
//! - `upkeep`: checks of the whole store, checksums of layers, usage
//! - `export`: a volume or snapshot as a stand-alone image
//! - `mapping`: which layer of a chain holds a guest cluster, by our own reading of the tables
//! - `blocks`: what a snapshot holds, and what changed between two, in blocks of 512 KiB

pub mod blocks;
pub mod check;
mod crash;
pub mod disk;
mod error;
pub mod export;
mod id;
pub mod import;
pub mod layer;
mod mapping;
pub mod rootfs;
pub mod store;
pub mod upkeep;

pub use blocks::{BLOCK_BYTES, Block, ChangedBlock, ChangedBlocks, SnapshotBlocks, SnapshotReader};
pub use check::{CheckReport, Repair};
pub use crash::{CRASH_AT, crash_point};
pub use disk::Disk;
pub use error::{Error, ErrorKind, Result};
pub use export::{Export, Piece};
pub use id::{SnapshotId, VolumeId};
pub use import::{DiskFormat, ImportOptions, ImportSource};
pub use store::{
    Access, DiskSnapshots, MERGED_CHAIN_LENGTH, Merge, MergeOutcome, MergeProgress, SnapshotInfo,
    Store, VolumeInfo, VolumeSource,
};
pub use upkeep::{
    Blocks, CheckOptions, CheckProgress, ChecksumsMade, Finding, FindingKind, Owner, Skipped,
    StoreReport, Usage,
};

/// The largest virtual disk, in bytes: 64 TiB, the largest EBS volume.
pub const MAX_DISK_BYTES: u64 = 64 << 40;

/// The unit of every disk size and request, in bytes.
pub const SECTOR_BYTES: u64 = 512;
