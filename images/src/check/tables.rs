//! Walking L1 and L2 tables (qcow2 specification, "Cluster mapping"), with every entry checked.

use super::clusters::InsertError;
use super::{ClusterSet, Header};
use crate::error::{Error, ErrorKind, IoContext, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bit 63 of L1 and standard L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of standard L2 entries, version 3: reads as zeroes.
const ZERO: u64 = 1;
/// Bits 9 to 55 of L1 and standard L2 entries: offset in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be zero.
const L1_RESERVED: u64 = !(COPIED | OFFSET_MASK);
/// Bits of a standard L2 entry that must be zero.
const L2_RESERVED: u64 = !(COPIED | COMPRESSED | OFFSET_MASK | ZERO);

/// What an L2 entry of a layer of ours maps its cluster to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnTarget {
    /// Whatever the parent holds there.
    Parent,
    /// Zeroes, whether or not a cluster is kept for them.
    Zeroes,
    /// The cluster at this offset in the file.
    Data(u64),
}

/// What an L2 entry of a foreign image maps its cluster to.
enum Target {
    Nothing,
    Data(u64),
    Compressed { first: u64, end: u64 },
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

fn insert_error(what: &str, offset: u64, error: InsertError) -> Error {
    match error {
        InsertError::Taken => corrupt(format!("{what} at {offset:#x} is in use already")),
        InsertError::OutsideFile => Error::new(
            ErrorKind::Truncated,
            format!("{what} at {offset:#x} is behind the end of the file"),
        ),
        InsertError::TooMany => {
            Error::new(ErrorKind::InvalidFormat, "the image maps too many clusters")
        }
    }
}

/// Enters everything that a layer of ours refers to, refcount structures excepted.
pub(crate) fn collect_own_layer(
    file: &File,
    header: &Header,
    file_len: u64,
    used: &mut ClusterSet,
) -> Result<()> {
    for entry in read_table(file, header.l1_offset, header.l1_entries * 8)? {
        own_l2_table(entry)?;
    }
    collect_tables(file, header, file_len, used, |entry, used| {
        own_target(entry)?;
        match entry & OFFSET_MASK {
            0 => Ok(()),
            offset => enter_cluster("a data cluster", offset, header, used),
        }
    })
}

/// Judges one L2 entry of a layer of ours: not compressed, no reserved bit, and one owner for
/// each cluster. Whether the cluster lies in the file is for the caller to see.
pub(crate) fn own_target(entry: u64) -> Result<OwnTarget> {
    if entry & COMPRESSED != 0 {
        return Err(corrupt("a compressed cluster in a layer of ours".into()));
    }
    let offset = entry & OFFSET_MASK;
    if entry & L2_RESERVED != 0 || (offset == 0) != (entry & COPIED == 0) {
        return Err(corrupt(format!("L2 entry {entry:#018x}")));
    }
    Ok(match offset {
        _ if entry & ZERO != 0 => OwnTarget::Zeroes,
        0 => OwnTarget::Parent,
        offset => OwnTarget::Data(offset),
    })
}

/// Judges one L1 entry of a layer of ours; the offset of its L2 table, or 0.
pub(crate) fn own_l2_table(entry: u64) -> Result<u64> {
    let offset = entry & OFFSET_MASK;
    if entry & L1_RESERVED != 0 || (offset == 0) != (entry & COPIED == 0) {
        return Err(corrupt(format!("L1 entry {entry:#018x}")));
    }
    Ok(offset)
}

/// Checks that a foreign image can be read without surprise: each table and each data cluster is
/// inside of the file and has one owner, so that reading is bounded by the file's own size.
///
/// Clusters that hold compressed data may be shared, but only among compressed clusters.
pub(crate) fn check_foreign(file: &File, header: &Header, file_len: u64) -> Result<()> {
    let mut used = ClusterSet::new(header.cluster_bits, file_len);
    let mut compressed = ClusterSet::new(header.cluster_bits, file_len);
    for cluster in 0..header.refcount_table_clusters {
        let offset = header.refcount_table_offset + (cluster << header.cluster_bits);
        enter_cluster("the refcount table", offset, header, &mut used)?;
    }
    collect_tables(file, header, file_len, &mut used, |entry, used| {
        match foreign_target(entry, header)? {
            Target::Nothing => Ok(()),
            Target::Data(offset) => {
                // A file may end inside of its last data cluster.
                if compressed.contains(offset >> header.cluster_bits) {
                    return Err(corrupt(format!(
                        "the data cluster at {offset:#x} holds compressed data too"
                    )));
                }
                enter_cluster("a data cluster", offset, header, used)
            }
            Target::Compressed { first, end } => {
                for cluster in (first >> header.cluster_bits)..=((end - 1) >> header.cluster_bits) {
                    if used.contains(cluster) {
                        return Err(corrupt(format!(
                            "the compressed cluster at {first:#x} lies in another cluster"
                        )));
                    }
                    match compressed.insert(cluster) {
                        Ok(()) | Err(InsertError::Taken) => (),
                        // The length is counted in sectors and may go past the end, the start not.
                        Err(InsertError::OutsideFile) if first < file_len => (),
                        Err(error) => {
                            return Err(insert_error("a compressed cluster", first, error));
                        }
                    }
                }
                Ok(())
            }
        }
    })
}

fn foreign_target(entry: u64, header: &Header) -> Result<Target> {
    if entry & COMPRESSED != 0 {
        // "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8)
        let offset_bits = 62 - (header.cluster_bits - 8);
        let first = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let end = (first & !511) + (sectors + 1) * 512;
        if first == 0 {
            return Err(corrupt("a compressed cluster at offset 0".into()));
        }
        return Ok(Target::Compressed { first, end });
    }
    let reserved = if header.version == 2 {
        L2_RESERVED | ZERO
    } else {
        L2_RESERVED
    };
    if entry & reserved != 0 {
        return Err(corrupt(format!("L2 entry {entry:#018x}")));
    }
    match entry & OFFSET_MASK {
        0 => Ok(Target::Nothing),
        offset => Ok(Target::Data(offset)),
    }
}

fn enter_cluster(what: &str, offset: u64, header: &Header, used: &mut ClusterSet) -> Result<()> {
    if offset == 0 || !offset.is_multiple_of(header.cluster_bytes()) {
        return Err(corrupt(format!("{what} at offset {offset:#x}")));
    }
    used.insert_at(offset)
        .map_err(|error| insert_error(what, offset, error))
}

/// Enters header, L1 table and L2 tables, and calls `entry` with each L2 entry that is not zero.
fn collect_tables(
    file: &File,
    header: &Header,
    file_len: u64,
    used: &mut ClusterSet,
    mut entry: impl FnMut(u64, &mut ClusterSet) -> Result<()>,
) -> Result<()> {
    used.insert(0)
        .map_err(|error| insert_error("the header", 0, error))?;
    let l1_bytes = header.l1_entries * 8;
    for cluster in 0..l1_bytes.div_ceil(header.cluster_bytes()) {
        let offset = header.l1_offset + (cluster << header.cluster_bits);
        enter_cluster("the L1 table", offset, header, used)?;
    }
    // At most 32 MiB, and inside of the file: `Header::parse` saw to both.
    let l1 = read_table(file, header.l1_offset, l1_bytes)?;
    for l1_entry in l1 {
        if l1_entry & L1_RESERVED != 0 {
            return Err(corrupt(format!("L1 entry {l1_entry:#018x}")));
        }
        let offset = l1_entry & OFFSET_MASK;
        if offset == 0 {
            continue;
        }
        enter_cluster("an L2 table", offset, header, used)?;
        if offset + header.cluster_bytes() > file_len {
            return Err(Error::new(
                ErrorKind::Truncated,
                format!("the L2 table at {offset:#x} ends behind the end of the file"),
            ));
        }
        for l2_entry in read_table(file, offset, header.cluster_bytes())? {
            if l2_entry != 0 {
                entry(l2_entry, used)?;
            }
        }
    }
    Ok(())
}

/// Reads a table of big-endian 8-byte entries.
pub(crate) fn read_table(file: &File, offset: u64, bytes: u64) -> Result<Vec<u64>> {
    let mut buffer = vec![0u8; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact_at(&mut buffer, offset)
        .context(|| format!("reading a table at {offset:#x}"))?;
    let (entries, _) = buffer.as_chunks::<8>();
    Ok(entries
        .iter()
        .map(|entry| u64::from_be_bytes(*entry))
        .collect())
}
