//! The blocks of one snapshot.

use super::{BLOCK_BYTES, BLOCK_CLUSTERS, SPAN_BLOCKS, block_of, holds_data};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::CLUSTER_BYTES;
use crate::mapping::{ChainMap, Target};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A snapshot, open for reading block by block. Cheap to clone; stays readable after the snapshot
/// was deleted.
#[derive(Clone, Debug)]
pub struct SnapshotReader {
    map: Arc<ChainMap>,
}

/// One block's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its number; it starts at `index * BLOCK_BYTES` of the disk.
    pub index: u64,
    /// [`BLOCK_BYTES`] bytes, fewer at the end of a disk.
    pub data: Vec<u8>,
    /// SHA-256 of `data`.
    pub sha256: [u8; 32],
}

impl SnapshotReader {
    pub(crate) fn new(map: ChainMap) -> Self {
        SnapshotReader { map: Arc::new(map) }
    }

    /// Size of the disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.map.size()
    }

    /// Number of blocks of the disk.
    pub fn block_count(&self) -> u64 {
        self.map.size().div_ceil(BLOCK_BYTES)
    }

    /// The numbers of the blocks that hold data, from `start` on, rising. What was never written,
    /// or was discarded, holds none; zeroes that a guest wrote are data.
    pub fn blocks(&self, start: u64) -> SnapshotBlocks {
        SnapshotBlocks {
            map: self.map.clone(),
            next: start,
            end: self.block_count(),
            span: None,
        }
    }

    /// Reads one block, whether or not it holds data.
    ///
    /// [`ErrorKind::OutOfRange`] behind the end of the disk.
    pub fn block(&self, index: u64) -> Result<Block> {
        if index >= self.block_count() {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("block {index} of {}", self.block_count()),
            ));
        }
        let length = BLOCK_BYTES.min(self.map.size() - index * BLOCK_BYTES) as usize;
        let mut data = vec![0; length];
        let targets = self.map.resolve(index / SPAN_BLOCKS)?;
        let block = block_of(targets.as_deref(), index % SPAN_BLOCKS);
        for (target, cluster) in block.iter().zip(data.chunks_mut(CLUSTER_BYTES as usize)) {
            self.map.read_cluster(*target, cluster)?;
        }
        let sha256 = Sha256::digest(&data).into();
        Ok(Block {
            index,
            data,
            sha256,
        })
    }
}

/// The numbers of the blocks of a snapshot that hold data; see [`SnapshotReader::blocks`].
///
/// Memory does not depend on the size of the disk. After an error it ends.
#[derive(Debug)]
pub struct SnapshotBlocks {
    map: Arc<ChainMap>,
    next: u64,
    end: u64,
    span: Option<(u64, Option<Vec<Target>>)>,
}

impl Iterator for SnapshotBlocks {
    type Item = Result<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            let index = self.next;
            let span = index / SPAN_BLOCKS;
            if self.span.as_ref().is_none_or(|(at, _)| *at != span) {
                match self.map.resolve(span) {
                    Ok(targets) => self.span = Some((span, targets)),
                    Err(error) => {
                        self.next = self.end;
                        return Some(Err(error));
                    }
                }
            }
            let targets = self.span.as_ref().and_then(|(_, span)| span.as_deref());
            if targets.is_none() {
                self.next = (span + 1) * SPAN_BLOCKS;
                continue;
            }
            self.next += 1;
            if holds_data(block_of(targets, index % SPAN_BLOCKS)) {
                return Some(Ok(index));
            }
        }
        None
    }
}

const _: () = assert!(BLOCK_CLUSTERS as u64 * CLUSTER_BYTES == BLOCK_BYTES);
