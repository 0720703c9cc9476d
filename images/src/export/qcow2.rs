//! qcow2 version 3 with no backing file (qcow2 specification, "Header", "Cluster mapping", "Host
//! cluster management").
//!
//! The file is laid out before its first byte is made: header, refcount table, refcount blocks,
//! L1 table, L2 tables, data clusters in the order of the disk. For that the number of data
//! clusters of each L2 table is counted first; the tables are then resolved anew, a span at a
//! time, when they and the data are written. Clusters that read as zeroes by the tables are left
//! out. Every cluster of the file is used once, so that all refcounts are 1.

use super::walk::{Run, Walk};
use super::{MAX_PIECE_BYTES, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::header::MAGIC;
use crate::layer::{CLUSTER_BITS, CLUSTER_BYTES};
use crate::mapping::{ChainMap, Target};

/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// log2 of the refcount width in bits.
const REFCOUNT_ORDER: u32 = 4;
/// Host clusters that one refcount block covers.
const BLOCK_ENTRIES: u64 = CLUSTER_BYTES / 2;
const HEADER_BYTES: u32 = 104;

/// Where everything is, in clusters of the file.
#[derive(Debug)]
struct Layout {
    refcount_table: u64,
    refcount_blocks: u64,
    l1: u64,
    l2: u64,
    data: u64,
    end: u64,
}

impl Layout {
    fn new(l1_entries: u64, l2_tables: u64, data_clusters: u64) -> Self {
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
        let others = 1 + l1_clusters + l2_tables + data_clusters;
        // The refcount blocks cover themselves and their table too. Each round adds what the
        // last one was short of; a block covers 32768 clusters, so that this ends at once.
        let (mut table, mut blocks) = (1, 1);
        loop {
            let needed_blocks = (others + table + blocks).div_ceil(BLOCK_ENTRIES);
            let needed_table = (needed_blocks * 8).div_ceil(CLUSTER_BYTES);
            if needed_blocks <= blocks && needed_table <= table {
                break;
            }
            (table, blocks) = (needed_table.max(table), needed_blocks.max(blocks));
        }
        let refcount_blocks = 1 + table;
        let l1 = refcount_blocks + blocks;
        let l2 = l1 + l1_clusters;
        let data = l2 + l2_tables;
        Layout {
            refcount_table: 1,
            refcount_blocks,
            l1,
            l2,
            data,
            end: data + data_clusters,
        }
    }
}

#[derive(Debug)]
pub(super) struct Qcow2 {
    walk: Walk,
    layout: Layout,
    /// Data clusters of each span.
    counts: Vec<u32>,
    /// Next cluster of the file.
    at: u64,
    /// Next span whose L2 table is written, if it has one.
    span: usize,
    /// Next data cluster that an L2 table refers to.
    next_data: u64,
}

fn is_data(target: &Target) -> bool {
    *target != Target::Zeroes
}

impl Qcow2 {
    /// Counts the data clusters.
    pub fn new(map: ChainMap) -> Result<Self> {
        let counts = (0..map.spans())
            .map(|span| {
                let targets = map.resolve(span)?.unwrap_or_default();
                Ok(targets.iter().filter(|target| is_data(target)).count() as u32)
            })
            .collect::<Result<Vec<_>>>()?;
        let l2_tables = counts.iter().filter(|count| **count > 0).count() as u64;
        let data_clusters = counts.iter().map(|count| u64::from(*count)).sum();
        let layout = Layout::new(map.spans(), l2_tables, data_clusters);
        Ok(Qcow2 {
            next_data: layout.data,
            walk: Walk::new(map),
            layout,
            counts,
            at: 0,
            span: 0,
        })
    }

    /// Length of the file in bytes.
    pub fn length(&self) -> u64 {
        self.layout.end * CLUSTER_BYTES
    }

    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        let layout = &self.layout;
        let bytes = match self.at {
            0 => self.header(),
            at if at < layout.refcount_blocks => self.refcount_table(at - layout.refcount_table),
            at if at < layout.l1 => self.refcount_block(at - layout.refcount_blocks),
            at if at < layout.l2 => self.l1_table(at - layout.l1),
            at if at < layout.data => self.l2_table()?,
            at if at < layout.end => return self.data().map(Some),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(Piece::Data(bytes)))
    }

    fn header(&self) -> Vec<u8> {
        let layout = &self.layout;
        let mut header = Vec::with_capacity(CLUSTER_BYTES as usize);
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&MAGIC);
        put(&3u32.to_be_bytes());
        put(&[0; 12]); // no backing file
        put(&CLUSTER_BITS.to_be_bytes());
        put(&self.walk.map().size().to_be_bytes());
        put(&[0; 4]); // no encryption
        put(&(self.counts.len() as u32).to_be_bytes());
        put(&(layout.l1 * CLUSTER_BYTES).to_be_bytes());
        put(&(layout.refcount_table * CLUSTER_BYTES).to_be_bytes());
        put(&((layout.refcount_blocks - layout.refcount_table) as u32).to_be_bytes());
        put(&[0; 12]); // no internal snapshots
        put(&[0; 24]); // no feature bits
        put(&REFCOUNT_ORDER.to_be_bytes());
        put(&HEADER_BYTES.to_be_bytes());
        // Zeroes are the end of the header extensions too.
        header.resize(CLUSTER_BYTES as usize, 0);
        header
    }

    /// A cluster of the refcount table.
    fn refcount_table(&self, number: u64) -> Vec<u8> {
        let first = self.layout.refcount_blocks + number * (CLUSTER_BYTES / 8);
        table((first..self.layout.l1).map(|cluster| cluster * CLUSTER_BYTES))
    }

    fn refcount_block(&self, number: u64) -> Vec<u8> {
        let covered = (self.layout.end - (number * BLOCK_ENTRIES).min(self.layout.end))
            .min(BLOCK_ENTRIES) as usize;
        let mut block = 1u16.to_be_bytes().repeat(covered);
        block.resize(CLUSTER_BYTES as usize, 0);
        block
    }

    /// A cluster of the L1 table.
    fn l1_table(&self, number: u64) -> Vec<u8> {
        let first = (number * (CLUSTER_BYTES / 8)) as usize;
        let before = self.counts[..first].iter().filter(|count| **count > 0);
        let mut next = self.layout.l2 + before.count() as u64;
        table(self.counts[first..].iter().map(|count| {
            if *count == 0 {
                return 0;
            }
            next += 1;
            COPIED | ((next - 1) * CLUSTER_BYTES)
        }))
    }

    /// The L2 table of the next span that has one.
    fn l2_table(&mut self) -> Result<Vec<u8>> {
        while self.counts.get(self.span) == Some(&0) {
            self.span += 1;
        }
        let targets = self.walk.map().resolve(self.span as u64)?;
        let mut next = self.next_data;
        let bytes = table(targets.iter().flatten().map(|target| {
            if !is_data(target) {
                return 0;
            }
            next += 1;
            COPIED | ((next - 1) * CLUSTER_BYTES)
        }));
        self.next_data = next;
        self.span += 1;
        Ok(bytes)
    }

    fn data(&mut self) -> Result<Piece> {
        loop {
            match self.walk.next_run()? {
                Some(Run::Zeroes(_)) => (),
                Some(Run::Data(data)) => {
                    self.at += data.len() as u64 / CLUSTER_BYTES;
                    return Ok(Piece::Data(data));
                }
                None => {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "the tables changed while they were read",
                    ));
                }
            }
        }
    }
}

/// One cluster of big-endian entries, zeroes behind them.
fn table(entries: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CLUSTER_BYTES as usize);
    for entry in entries.take((CLUSTER_BYTES / 8) as usize) {
        bytes.extend_from_slice(&entry.to_be_bytes());
    }
    bytes.resize(CLUSTER_BYTES as usize, 0);
    bytes
}

const _: () = assert!(MAX_PIECE_BYTES as u64 >= CLUSTER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn refcount_blocks_cover_the_whole_file_and_hardly_more(
            l1 in 1u64..131_073, l2 in 0u64..131_073, data in 0u64..1 << 30
        ) {
            let layout = Layout::new(l1, l2, data);
            let blocks = layout.l1 - layout.refcount_blocks;
            prop_assert!(blocks * BLOCK_ENTRIES >= layout.end);
            prop_assert!((blocks - 1) * BLOCK_ENTRIES <= layout.end);
            let table = (layout.refcount_blocks - layout.refcount_table) * CLUSTER_BYTES;
            prop_assert!(table / 8 >= blocks && table <= 8 << 20);
        }
    }
}
