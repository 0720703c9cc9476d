//! What a disk should hold, as a byte array.
//!
//! The array is scattered in chunks over a large virtual disk, so that several L2 tables are in
//! play, and a disk that grows gets more chunks.

use crate::common::Rng;
use hearth_images::{Disk, SECTOR_BYTES};

pub const CHUNK: u64 = 192 << 10;
pub const CHUNKS: u64 = 8;
/// Distance of two chunks on the virtual disk: not a multiple of an L2 table's range, nor of a
/// cluster.
const STRIDE: u64 = (300 << 20) + 512 * 9;

/// Where a logical offset is on the virtual disk.
pub fn place(logical: u64) -> u64 {
    logical / CHUNK * STRIDE + logical % CHUNK
}

/// A size with so many chunks, of which the last may end with the disk.
pub fn size_of(chunks: u64, tail_sectors: u64) -> u64 {
    (chunks - 1) * STRIDE + CHUNK + tail_sectors * SECTOR_BYTES
}

/// A disk's size and the bytes of its chunks.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    pub size: u64,
    pub data: Vec<u8>,
}

impl Contents {
    pub fn new(size: u64) -> Self {
        let data = vec![0; (CHUNK * CHUNKS) as usize];
        Contents { size, data }
    }

    /// Bytes of `data` that are on the disk.
    pub fn logical(&self) -> u64 {
        (1..=CHUNKS)
            .take_while(|chunks| size_of(*chunks, 0) <= self.size)
            .last()
            .unwrap_or(0)
            * CHUNK
    }

    pub fn apply(&mut self, op: Op) {
        let Some((at, bytes)) = op.bytes() else {
            return;
        };
        self.data[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }

    /// Reads the disk as these bytes.
    pub fn read(disk: &Disk) -> Self {
        let mut found = Contents::new(disk.size_bytes());
        for at in (0..found.logical()).step_by(CHUNK as usize) {
            let chunk = &mut found.data[at as usize..][..CHUNK as usize];
            disk.read(chunk, place(at)).expect("read");
        }
        found
    }

    /// Fails the test if the disk differs.
    pub fn assert_same(&self, disk: &Disk, context: &str) {
        let found = Contents::read(disk);
        assert_eq!(found.size, self.size, "{context}");
        if let Some(at) = (0..self.data.len()).find(|at| self.data[*at] != found.data[*at]) {
            panic!(
                "{context}: byte {at:#x} is {:#04x}, not {:#04x}",
                found.data[at], self.data[at]
            );
        }
    }
}

/// What is done to an open disk; offsets are logical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        at: u64,
        len: u64,
        seed: u64,
    },
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
    },
    Discard {
        at: u64,
        len: u64,
    },
    Flush,
    /// A snapshot while the disk is open.
    Snapshot,
}

impl Op {
    /// The next operation on a disk of so many logical bytes.
    pub fn random(rng: &mut Rng, logical: u64) -> Op {
        let at = rng.below(logical / SECTOR_BYTES) * SECTOR_BYTES;
        let most = (CHUNK - at % CHUNK) / SECTOR_BYTES;
        let len = (1 + rng.below(most.min(200))) * SECTOR_BYTES;
        let seed = rng.next();
        match rng.below(16) {
            0 | 1 => Op::Flush,
            2 => Op::Zero {
                at,
                len,
                unmap: seed.is_multiple_of(2),
            },
            3 | 4 => Op::Discard { at, len },
            5 => Op::Snapshot,
            _ => Op::Write { at, len, seed },
        }
    }

    /// What the operation leaves, and where.
    pub fn bytes(&self) -> Option<(u64, Vec<u8>)> {
        match *self {
            Op::Write { at, len, seed } => {
                let mut bytes = vec![0; len as usize];
                Rng::new(seed).fill(&mut bytes);
                Some((at, bytes))
            }
            Op::Zero { at, len, .. } | Op::Discard { at, len } => Some((at, vec![0; len as usize])),
            Op::Flush | Op::Snapshot => None,
        }
    }

    /// Does it, unless it is a snapshot.
    pub fn perform(&self, disk: &Disk) {
        match *self {
            Op::Write { at, .. } => {
                let (_, bytes) = self.bytes().expect("a write has bytes");
                disk.write(&bytes, place(at)).expect("write");
            }
            Op::Zero { at, len, unmap } => {
                disk.write_zeroes(place(at), len, unmap).expect("zero");
            }
            Op::Discard { at, len } => disk.discard(place(at), len).expect("discard"),
            Op::Flush => disk.flush().expect("flush"),
            Op::Snapshot => (),
        }
    }
}
