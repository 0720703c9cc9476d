//! Refcount table and refcount blocks of a layer of ours (qcow2 specification, "Host cluster
//! management"): 16-bit refcounts, each 0 or 1.

use super::clusters::InsertError;
use super::{CheckReport, ClusterSet, Header, tables};
use crate::error::{Error, ErrorKind, IoContext, Result};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bits of a refcount table entry that must be zero.
const RESERVED: u64 = 511;

/// Host clusters that one refcount block covers.
fn block_entries(header: &Header) -> u64 {
    header.cluster_bytes() / 2
}

/// Reads the refcount table, and enters it and its blocks into `used`.
pub(super) fn read_table(file: &File, header: &Header, used: &mut ClusterSet) -> Result<Vec<u64>> {
    let bytes = header.refcount_table_clusters << header.cluster_bits;
    for cluster in 0..header.refcount_table_clusters {
        enter(
            used,
            header.refcount_table_offset + (cluster << header.cluster_bits),
            header,
        )?;
    }
    let table = tables::read_table(file, header.refcount_table_offset, bytes)?;
    for offset in table.iter().copied().filter(|offset| *offset != 0) {
        enter(used, offset, header)?;
    }
    Ok(table)
}

/// Every part of the file must have its refcount block.
pub(super) fn check_coverage(header: &Header, table: &[u64], file: &ClusterSet) -> Result<()> {
    let needed = file.file_clusters().div_ceil(block_entries(header));
    let covered = table.iter().take_while(|offset| **offset != 0).count() as u64;
    if covered < needed {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("refcount block {covered} of {needed} is missing"),
        ));
    }
    Ok(())
}

fn enter(used: &mut ClusterSet, offset: u64, header: &Header) -> Result<()> {
    if offset & RESERVED != 0 || offset == 0 || !offset.is_multiple_of(header.cluster_bytes()) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("a refcount block at offset {offset:#x}"),
        ));
    }
    used.insert_at(offset).map_err(|error| match error {
        InsertError::OutsideFile => Error::new(
            ErrorKind::Truncated,
            format!("the refcount block at {offset:#x} is behind the end of the file"),
        ),
        _ => Error::new(
            ErrorKind::Corrupt,
            format!("the refcount block at {offset:#x} is in use already"),
        ),
    })
}

fn read_block(file: &File, header: &Header, offset: u64) -> Result<Vec<u8>> {
    let mut block = vec![0u8; header.cluster_bytes() as usize];
    file.read_exact_at(&mut block, offset)
        .context(|| format!("reading the refcount block at {offset:#x}"))?;
    Ok(block)
}

/// Counts what differs between the refcounts and the clusters in use.
pub(super) fn compare(
    file: &File,
    header: &Header,
    table: &[u64],
    used: &ClusterSet,
) -> Result<CheckReport> {
    let mut report = CheckReport {
        used_clusters: used.len(),
        ..CheckReport::default()
    };
    let entries = block_entries(header);
    let mut accounted = 0;
    for (index, offset) in table.iter().enumerate() {
        if *offset == 0 {
            continue;
        }
        let first = index as u64 * entries;
        let block = read_block(file, header, *offset)?;
        let (counts, _) = block.as_chunks::<2>();
        for (cluster, count) in (first..).zip(counts) {
            let is_used = used.contains(cluster);
            match (u16::from_be_bytes(*count), is_used) {
                (0, false) => (),
                (1, true) => accounted += 1,
                (0, true) => (),
                (_, false) => report.leaked_clusters += 1,
                // More than one owner is claimed, one is there.
                (_, true) => {
                    accounted += 1;
                    report.leaked_clusters += 1;
                }
            }
        }
    }
    report.unaccounted_clusters = used.len() - accounted;
    Ok(report)
}

/// Writes every refcount anew: 1 for what is used, 0 for the rest. Blocks that are missing are
/// added.
pub(super) fn rewrite(
    file: &File,
    header: &Header,
    mut table: Vec<u64>,
    used: &mut ClusterSet,
) -> Result<()> {
    add_missing_blocks(file, header, &mut table, used)?;
    let entries = block_entries(header);
    for (index, offset) in table.iter().enumerate() {
        if *offset == 0 {
            continue;
        }
        let first = index as u64 * entries;
        let old = read_block(file, header, *offset)?;
        let mut new = Vec::with_capacity(old.len());
        for cluster in first..first + entries {
            new.extend_from_slice(&u16::from(used.contains(cluster)).to_be_bytes());
        }
        if new != old {
            file.write_all_at(&new, *offset)
                .context(|| format!("writing the refcount block at {offset:#x}"))?;
            give_back_leaks(file, header, first, &old, &new);
        }
    }
    Ok(())
}

/// A used cluster that no block covers: only a power loss can do that, because a block is written
/// before the first cluster that it covers.
fn add_missing_blocks(
    file: &File,
    header: &Header,
    table: &mut [u64],
    used: &mut ClusterSet,
) -> Result<()> {
    let entries = block_entries(header);
    let covered = table.len() as u64 * entries;
    if used.file_clusters() > covered && used.count(covered, used.file_clusters()) > 0 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the refcount table does not reach the end of the file",
        ));
    }
    for (index, block) in table.iter_mut().enumerate() {
        let first = index as u64 * entries;
        if first >= used.file_clusters() {
            break;
        }
        if *block != 0 || used.count(first, first + entries) == 0 {
            continue;
        }
        // A free cluster that the new block covers itself: then nothing else has to change.
        let free = (first..first + entries)
            .find(|cluster| !used.contains(*cluster))
            .ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, "no room for a missing refcount block")
            })?;
        used.grow_to(free + 1);
        let offset = free << header.cluster_bits;
        enter(used, offset, header)?;
        file.write_all_at(&vec![0u8; header.cluster_bytes() as usize], offset)
            .and_then(|()| file.sync_data())
            .context(|| format!("writing a refcount block at {offset:#x}"))?;
        *block = offset;
        file.write_all_at(
            &offset.to_be_bytes(),
            header.refcount_table_offset + index as u64 * 8,
        )
        .context(|| "writing the refcount table".into())?;
    }
    Ok(())
}

/// Gives the space of leaked clusters back to the host; only an optimization.
fn give_back_leaks(file: &File, header: &Header, first: u64, old: &[u8], new: &[u8]) {
    let (old, _) = old.as_chunks::<2>();
    let (new, _) = new.as_chunks::<2>();
    for (cluster, (old, new)) in (first..).zip(old.iter().zip(new)) {
        if *old != [0, 0] && *new == [0, 0] {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let offset = cluster << header.cluster_bits;
            if let Err(error) = fallocate(file, flags, offset, header.cluster_bytes()) {
                tracing::debug!("cannot give back space at {offset:#x}: {error}");
                return;
            }
        }
    }
}
