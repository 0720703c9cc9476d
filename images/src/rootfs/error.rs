//! What can go wrong while a kernel is looked for.

use std::io;
use thiserror::Error;

/// Why no kernel could be taken from a disk.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// No partition has a file system that can be read.
    #[error("no ext2, ext3 or ext4 file system; {looked}")]
    NoFileSystem {
        /// What was looked at.
        looked: String,
    },
    /// There are file systems, but no kernel that could be booted.
    #[error(
        "no kernel: neither boot loader entries (loader/entries/*.conf), nor a grub.cfg, nor \
         boot/vmlinuz-*; {looked}"
    )]
    NoKernel {
        /// What was looked at, and why it did not do.
        looked: String,
    },
    /// A kernel was found whose arguments can't be used.
    #[error("the kernel arguments of {from} {what}")]
    Arguments {
        /// Where they come from.
        from: String,
        /// What is wrong.
        what: String,
    },
    /// A file of the file system.
    #[error("{place}: {source}")]
    File {
        /// The partition.
        place: String,
        /// What is wrong with it.
        source: FileError,
    },
    /// The disk can't be read.
    #[error("reading the disk: {0}")]
    Disk(io::Error),
    /// What was found can't be written down.
    #[error("writing what was found: {0}")]
    Output(io::Error),
    /// The reader of the file system gave up in a way that it should not.
    #[error("the file system is broken in a way that its reader can't cope with: {0}")]
    Panicked(String),
}

/// Why a file could not be taken from a file system.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file system contradicts itself, or has a feature that can't be read.
    #[error("{path}: {what}")]
    Broken {
        /// Where.
        path: String,
        /// What.
        what: String,
    },
    /// Larger than anything that belongs there.
    #[error("{path} has more than {most} {unit}")]
    TooLarge {
        /// What.
        path: String,
        /// Of what it has too many.
        unit: &'static str,
        /// The limit.
        most: u64,
    },
    /// The disk can't be read.
    #[error("reading the disk: {0}")]
    Disk(io::Error),
    /// What was found can't be written down.
    #[error("writing what was found: {0}")]
    Output(io::Error),
}

impl FileError {
    /// With the partition's name.
    pub(super) fn of(self, place: &str) -> RootfsError {
        match self {
            FileError::Disk(source) => RootfsError::Disk(source),
            FileError::Output(source) => RootfsError::Output(source),
            source => RootfsError::File {
                place: place.to_owned(),
                source,
            },
        }
    }
}
