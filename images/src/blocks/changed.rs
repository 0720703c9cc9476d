//! What changed from one snapshot to another.

use super::{BLOCK_BYTES, SPAN_BLOCKS, block_of, holds_data};
use crate::error::{Error, ErrorKind, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BYTES;
use crate::mapping::{ChainMap, Target};
use std::collections::HashSet;

/// A block whose contents differ between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedBlock {
    /// Its number; it starts at `index * BLOCK_BYTES` of the disk.
    pub index: u64,
    /// The first snapshot holds data there; else it reads as zeroes, or its disk ends before.
    pub in_first: bool,
    /// The second snapshot holds data there.
    pub in_second: bool,
}

/// The blocks that changed from one snapshot to another, rising; see
/// [`Store::changed_blocks`](crate::Store::changed_blocks).
///
/// Memory does not depend on the size of the disks. After an error it ends.
#[derive(Debug)]
pub struct ChangedBlocks {
    first: ChainMap,
    second: ChainMap,
    /// Layers of one of the chains only.
    distinct: HashSet<LayerId>,
    next: u64,
    end: u64,
    span: Option<Span>,
    buffers: [Vec<u8>; 2],
}

#[derive(Debug)]
struct Span {
    number: u64,
    first: Option<Vec<Target>>,
    second: Option<Vec<Target>>,
}

impl ChangedBlocks {
    /// [`ErrorKind::Unrelated`] if the two have no layer in common.
    pub(crate) fn new(first: ChainMap, second: ChainMap, start: u64) -> Result<Self> {
        let of_first: HashSet<_> = first.layer_ids().cloned().collect();
        let of_second: HashSet<_> = second.layer_ids().cloned().collect();
        if of_first.is_disjoint(&of_second) {
            return Err(Error::new(
                ErrorKind::Unrelated,
                "the snapshots have no common ancestor",
            ));
        }
        Ok(ChangedBlocks {
            distinct: of_first.symmetric_difference(&of_second).cloned().collect(),
            end: first.size().max(second.size()).div_ceil(BLOCK_BYTES),
            first,
            second,
            next: start,
            span: None,
            buffers: [(); 2].map(|()| vec![0; CLUSTER_BYTES as usize]),
        })
    }

    /// Size of the larger disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.first.size().max(self.second.size())
    }

    fn enter_span(&mut self, number: u64) -> Result<()> {
        if self.span.as_ref().is_some_and(|span| span.number == number) {
            return Ok(());
        }
        let differs = |id: &LayerId| self.distinct.contains(id);
        let (first, second) =
            if self.first.has_table(number, differs) || self.second.has_table(number, differs) {
                (self.first.resolve(number)?, self.second.resolve(number)?)
            } else {
                // Both see it through the same layers.
                (None, None)
            };
        self.span = Some(Span {
            number,
            first,
            second,
        });
        Ok(())
    }

    fn is_same_cluster(&mut self, first: Target, second: Target) -> Result<bool> {
        let place = |map: &ChainMap, target| match target {
            Target::Zeroes => None,
            Target::Data {
                layer,
                offset,
                length,
            } => Some((map.layer_id(layer).clone(), offset, length)),
        };
        if place(&self.first, first) == place(&self.second, second) {
            return Ok(true);
        }
        let [one, other] = &mut self.buffers;
        self.first.read_cluster(first, one)?;
        self.second.read_cluster(second, other)?;
        Ok(one == other)
    }

    /// The block, if its contents differ.
    fn compare(&mut self, index: u64) -> Result<Option<ChangedBlock>> {
        let block = |targets: &Option<Vec<Target>>| {
            block_of(targets.as_deref(), index % SPAN_BLOCKS).to_vec()
        };
        let (first, second) = match &self.span {
            Some(span) => (block(&span.first), block(&span.second)),
            None => return Ok(None),
        };
        let at = |targets: &[Target], cluster| targets.get(cluster).copied();
        for cluster in 0..first.len().max(second.len()) {
            let one = at(&first, cluster).unwrap_or(Target::Zeroes);
            let other = at(&second, cluster).unwrap_or(Target::Zeroes);
            if !self.is_same_cluster(one, other)? {
                return Ok(Some(ChangedBlock {
                    index,
                    in_first: holds_data(&first),
                    in_second: holds_data(&second),
                }));
            }
        }
        Ok(None)
    }

    fn step(&mut self) -> Result<Option<ChangedBlock>> {
        let index = self.next;
        let span = index / SPAN_BLOCKS;
        self.enter_span(span)?;
        if matches!(&self.span, Some(span) if span.first.is_none() && span.second.is_none()) {
            self.next = (span + 1) * SPAN_BLOCKS;
            return Ok(None);
        }
        self.next += 1;
        self.compare(index)
    }
}

impl Iterator for ChangedBlocks {
    type Item = Result<ChangedBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.end {
            match self.step() {
                Ok(None) => (),
                Ok(Some(block)) => return Some(Ok(block)),
                Err(error) => {
                    self.next = self.end;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
