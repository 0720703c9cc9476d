//! The disk that the randomized tests work on, and a byte-array model of it.
//!
//! A small logical space is scattered over a large virtual disk in chunks, so that several L2
//! tables are in play. The first half of the logical space is owned in stripes of 4 KiB, each
//! by one of the queues, so that all queues work in the same clusters at the same time; in the
//! second half each queue owns pieces that are larger than a cluster and not aligned to one.

use super::Rng;

/// Number of queues, and of threads.
pub const QUEUES: u64 = 4;
/// Logical bytes.
pub const LOGICAL: u64 = 16 << 20;
/// A logical chunk stays in one piece on the virtual disk.
pub const CHUNK: u64 = 1 << 20;
/// Distance of two chunks on the virtual disk: about three chunks for each L2 table.
pub const STRIDE: u64 = 170 << 20;
/// Size of the virtual disk; not a multiple of the cluster size.
pub const DISK: u64 = (LOGICAL / CHUNK) * STRIDE + 2560;

const STRIPE: u64 = 4 << 10;
const STRIPED: u64 = LOGICAL / 2;
/// Pieces of the second half start here within each 1 MiB, and are 256 KiB long.
const SKEW: u64 = 20 << 10;
const PIECE: u64 = 256 << 10;

/// Where a logical offset is on the virtual disk.
pub fn place(logical: u64) -> u64 {
    logical / CHUNK * STRIDE + logical % CHUNK
}

/// The queue that owns a logical sector.
pub fn owner(logical: u64) -> u64 {
    if logical < STRIPED {
        // Not simply every fourth stripe, so that neighbours differ from place to place.
        Rng::new(logical / STRIPE).below(QUEUES)
    } else {
        (logical.wrapping_sub(SKEW) % CHUNK) / PIECE
    }
}

/// One operation on a range that one queue owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read { at: u64, len: u64 },
    Write { at: u64, len: u64 },
    Zero { at: u64, len: u64, unmap: bool },
    Discard { at: u64, len: u64 },
    Flush,
}

/// How often what is done.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// One of so many operations is a flush.
    pub flush_one_of: u64,
    /// One of so many is a discard or a write-zeroes.
    pub zero_one_of: u64,
}

impl Mix {
    /// Everything often.
    pub const BUSY: Mix = Mix {
        flush_one_of: 24,
        zero_one_of: 5,
    };

    /// Few flushes and discards: much is in memory only when the process is killed.
    pub const LAZY: Mix = Mix {
        flush_one_of: 400,
        zero_one_of: 60,
    };
}

/// The next operation of a queue.
pub fn random_op(rng: &mut Rng, queue: u64, mix: Mix) -> Op {
    if rng.below(mix.flush_one_of) == 0 {
        return Op::Flush;
    }
    let (at, len) = random_range(rng, queue);
    if rng.below(mix.zero_one_of) > 0 {
        return if rng.below(3) == 0 {
            Op::Read { at, len }
        } else {
            Op::Write { at, len }
        };
    }
    match rng.below(4) {
        0 => Op::Zero {
            at,
            len,
            unmap: false,
        },
        1 => Op::Zero {
            at,
            len,
            unmap: true,
        },
        _ => Op::Discard { at, len },
    }
}

/// A range of whole sectors in one chunk that the queue owns.
fn random_range(rng: &mut Rng, queue: u64) -> (u64, u64) {
    let max = if rng.below(2) == 0 { STRIPE } else { PIECE };
    loop {
        let at = rng.below(LOGICAL / 512) * 512;
        if owner(at) != queue {
            continue;
        }
        let wanted = (1 + rng.below(max / 512)) * 512;
        let chunk_end = at - at % CHUNK + CHUNK;
        let mut end = at;
        while end < chunk_end && end - at < wanted && owner(end) == queue {
            end += 512;
        }
        return (at, end - at);
    }
}

#[test]
fn every_queue_owns_a_part_of_both_halves() {
    for queue in 0..QUEUES {
        for half in [0..STRIPED, STRIPED..LOGICAL] {
            assert!(half.step_by(512).any(|at| owner(at) == queue));
        }
    }
}
