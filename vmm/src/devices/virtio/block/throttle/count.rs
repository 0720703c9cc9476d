//! What a request costs: operations and bytes, as EC2 counts them.
//!
//! An operation longer than the class's unit counts as several. On the classes that are hard
//! disks, operations that go on where the one before ended count together until they have
//! filled a unit, so that a stream of small requests costs what the same stream of large ones
//! would. Flushes and the reading of the serial cost nothing; a discard or a write of zeroes is
//! one operation of no bytes, for nothing is transferred.

use crate::devices::virtio::block::config::SECTOR_BYTES;
use crate::devices::virtio::block::request::Operation;

/// Streams of one disk that are told apart.
const STREAMS: usize = 8;

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Operations.
    pub operations: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What of a request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Data is moved.
    Transfer {
        /// To the disk.
        write: bool,
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
    /// Something is done to the disk, and no data is moved.
    NoData,
}

impl Counted {
    /// What is counted of `operation`, if it is.
    pub fn of(operation: &Operation<'_>) -> Option<Self> {
        let transfer = |write, sector: u64, len: usize| Counted::Transfer {
            write,
            offset: sector.saturating_mul(SECTOR_BYTES),
            len: len as u64,
        };
        match operation {
            Operation::Read { sector, into } => Some(transfer(false, *sector, into.len())),
            Operation::Write { sector, from } => Some(transfer(true, *sector, from.len())),
            Operation::Discard(_) | Operation::WriteZeroes(_) => Some(Counted::NoData),
            Operation::Flush | Operation::GetId { .. } | Operation::Invalid(_) => None,
        }
    }
}

/// Where a stream of operations is.
#[derive(Clone, Copy, Debug)]
struct Stream {
    write: bool,
    /// Where the next operation must begin to belong to it.
    next: u64,
    /// Bytes that are left of the operation that was paid for.
    paid: u64,
}

/// Counts one disk's operations.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    unit: u64,
    merge: bool,
    streams: Vec<Stream>,
    /// Which stream gives way to a new one.
    oldest: usize,
}

impl Counter {
    /// `unit` is in bytes, 0 for no unit; with `merge`, what is in sequence counts together.
    pub fn new(unit: u64, merge: bool) -> Self {
        Self {
            unit,
            merge: merge && unit > 0,
            ..Self::default()
        }
    }

    /// What a request costs. One of no bytes is an operation, too.
    pub fn cost(&mut self, counted: Counted) -> Cost {
        let Counted::Transfer { write, offset, len } = counted else {
            return Cost {
                operations: 1,
                bytes: 0,
            };
        };
        let operations = match self.merge {
            true => self.merged(write, offset, len),
            false => self.units(len).max(1),
        };
        Cost {
            operations,
            bytes: len,
        }
    }

    fn units(&self, len: u64) -> u64 {
        match self.unit {
            0 => 1,
            unit => len.div_ceil(unit),
        }
    }

    fn merged(&mut self, write: bool, offset: u64, len: u64) -> u64 {
        let of_stream = |stream: &Stream| stream.write == write && stream.next == offset;
        let found = self.streams.iter().position(of_stream);
        let paid = found.map_or(0, |index| self.streams[index].paid);
        let operations = match len.saturating_sub(paid) {
            0 if found.is_some() => 0,
            unpaid => unpaid.div_ceil(self.unit).max(1),
        };
        let after = Stream {
            write,
            next: offset.saturating_add(len),
            paid: operations
                .saturating_mul(self.unit)
                .saturating_add(paid)
                .saturating_sub(len),
        };
        match found {
            Some(index) => self.streams[index] = after,
            None if self.streams.len() < STREAMS => self.streams.push(after),
            None => {
                self.streams[self.oldest] = after;
                self.oldest = (self.oldest + 1) % STREAMS;
            }
        }
        operations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn read(offset: u64, len: u64) -> Counted {
        Counted::Transfer {
            write: false,
            offset,
            len,
        }
    }

    fn write(offset: u64, len: u64) -> Counted {
        Counted::Transfer {
            write: true,
            offset,
            len,
        }
    }

    fn operations(counter: &mut Counter, counted: impl IntoIterator<Item = Counted>) -> u64 {
        counted
            .into_iter()
            .map(|c| counter.cost(c).operations)
            .sum()
    }

    #[test]
    fn an_operation_longer_than_the_unit_counts_as_several() {
        let mut counter = Counter::new(256 * KIB, false);
        for (len, count) in [
            (0, 1),
            (512, 1),
            (256 * KIB, 1),
            (256 * KIB + 512, 2),
            (MIB, 4),
        ] {
            let cost = counter.cost(read(0, len));
            assert_eq!((cost.operations, cost.bytes), (count, len));
        }
        assert_eq!(Counter::new(0, true).cost(read(0, 1 << 30)).operations, 1);
    }

    #[test]
    fn a_stream_of_small_operations_costs_what_a_stream_of_large_ones_does() {
        for size in [4 * KIB, 64 * KIB, 96 * KIB, MIB, 3 * MIB] {
            let mut counter = Counter::new(MIB, true);
            let stream = (0..48 * MIB / size).map(|n| read(n * size, size));
            let count = operations(&mut counter, stream);
            assert_eq!(count, (48 * MIB / size * size).div_ceil(MIB), "{size}");
        }
    }

    #[test]
    fn what_is_not_in_sequence_is_not_merged() {
        let mut counter = Counter::new(MIB, true);
        let scattered = (0..100).map(|n| read(n * 8 * KIB, 4 * KIB));
        assert_eq!(operations(&mut counter, scattered), 100);
        // The other direction is another stream.
        assert_eq!(operations(&mut counter, [write(0, KIB), read(KIB, KIB)]), 2);
        let mut no_merge = Counter::new(MIB, false);
        let stream = (0..100).map(|n| read(n * KIB, KIB));
        assert_eq!(operations(&mut no_merge, stream), 100);
    }

    #[test]
    fn streams_side_by_side_are_told_apart() {
        let mut counter = Counter::new(MIB, true);
        let count = (0..256u64)
            .flat_map(|n| (0..4u64).map(move |stream| write((stream << 40) + n * 4 * KIB, 4 * KIB)))
            .map(|counted| counter.cost(counted).operations)
            .sum::<u64>();
        assert_eq!(count, 4);
    }

    #[test]
    fn offsets_at_the_end_of_the_range_do_not_overflow() {
        let mut counter = Counter::new(1, true);
        counter.cost(read(u64::MAX, u64::MAX));
        counter.cost(read(u64::MAX, u64::MAX));
    }
}
