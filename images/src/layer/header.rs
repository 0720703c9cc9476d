//! The qcow2 header (qcow2 specification, sections "Header" and "Header extensions").
//!
//! Parsed here, strictly and without allocating by a number from the file, before the file is
//! given to anything else. Every check has the error kind that a caller can act on.

use crate::MAX_DISK_BYTES;
use crate::error::{Error, ErrorKind, IoContext, Result};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// `QFI\xfb`
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Incompatible feature bit 0: the refcounts may be wrong and must be rebuilt before use.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature bit 1: do not write to this image.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature bit 2: guest data is in another file.
pub const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Incompatible feature bit 3: compression other than deflate.
pub const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Incompatible feature bit 4: extended L2 entries (subclusters).
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// Offset of the last byte of `incompatible_features` (big endian, bytes 72 to 79): it holds the
/// bits 0 to 7, so that the dirty bit is changed by writing one byte.
pub const INCOMPATIBLE_LAST_BYTE: u64 = 79;

/// Offset of the virtual disk's size, 8 bytes, big endian.
pub const SIZE_OFFSET: u64 = 24;

/// Largest L1 table, in bytes; QEMU's limit.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table, in bytes; QEMU's limit.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

const V2_HEADER_BYTES: usize = 72;
const V3_HEADER_BYTES: usize = 104;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What a qcow2 header says, after the checks of [`Header::parse`].
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Size of the virtual disk in bytes, at most [`MAX_DISK_BYTES`].
    pub size: u64,
    /// Offset of the L1 table in the file, cluster-aligned.
    pub l1_offset: u64,
    /// Number of 8-byte L1 entries; enough for `size`.
    pub l1_entries: u64,
    /// Offset of the refcount table in the file, cluster-aligned.
    pub refcount_table_offset: u64,
    /// Length of the refcount table in clusters.
    pub refcount_table_clusters: u64,
    /// log2 of the refcount width in bits, 0 to 6.
    pub refcount_order: u32,
    /// Feature bits that a reader must know.
    pub incompatible_features: u64,
    /// Feature bits that may be ignored.
    pub compatible_features: u64,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Name of the backing file, if one is named; bytes as they are in the file.
    pub backing_file: Option<Vec<u8>>,
    /// Format of the backing file, if given.
    pub backing_format: Option<Vec<u8>>,
    /// Encrypted in any way.
    pub encrypted: bool,
    /// Names an external data file, by feature bit or by header extension.
    pub data_file: bool,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    (u64::from(be32(bytes, at)) << 32) | u64::from(be32(bytes, at + 4))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidFormat, message)
}

fn truncated(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Truncated, message)
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

impl Header {
    /// Reads and parses the header of an open file.
    pub fn read(file: &File) -> Result<Header> {
        // A header and its extensions must be inside the first cluster, at most 2 MiB; the
        // 64 KiB that our own files use are enough for every image that a tool writes.
        const HEAD_BYTES: usize = 64 << 10;
        let file_len = file_len(file)?;
        let mut head = vec![0u8; HEAD_BYTES.min(usize::try_from(file_len).unwrap_or(HEAD_BYTES))];
        file.read_exact_at(&mut head, 0)
            .context(|| "reading the image header".into())?;
        Header::parse(&head, file_len)
    }

    /// Parses the first bytes of a qcow2 file of `file_len` bytes.
    ///
    /// - [`ErrorKind::InvalidFormat`]: no qcow2, an unknown version, or impossible parameters
    /// - [`ErrorKind::Truncated`]: the header or a table that it names ends behind the file's end
    /// - [`ErrorKind::InvalidSize`]: a virtual size of zero or above [`MAX_DISK_BYTES`]
    /// - [`ErrorKind::Corrupt`]: tables where none can be
    pub fn parse(head: &[u8], file_len: u64) -> Result<Header> {
        if head.len() < 8 || head[..4] != MAGIC {
            return Err(invalid("not a qcow2 image: wrong magic number"));
        }
        let version = be32(head, 4);
        if !(2..=3).contains(&version) {
            return Err(invalid(format!("qcow2 version {version} is not supported")));
        }
        let fixed_bytes = if version == 2 {
            V2_HEADER_BYTES
        } else {
            V3_HEADER_BYTES
        };
        if head.len() < fixed_bytes {
            return Err(truncated("the file ends inside the qcow2 header"));
        }

        let cluster_bits = be32(head, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(invalid(format!("cluster size of 2^{cluster_bits} bytes")));
        }
        let cluster_bytes = 1u64 << cluster_bits;

        let (incompatible_features, compatible_features, refcount_order, header_bytes) =
            if version == 2 {
                (0, 0, 4, V2_HEADER_BYTES as u64)
            } else {
                (
                    be64(head, 72),
                    be64(head, 80),
                    be32(head, 96),
                    u64::from(be32(head, 100)),
                )
            };
        if refcount_order > 6 {
            return Err(invalid(format!(
                "refcount width of 2^{refcount_order} bits"
            )));
        }
        if header_bytes < fixed_bytes as u64
            || header_bytes > cluster_bytes
            || !header_bytes.is_multiple_of(8)
        {
            return Err(invalid(format!("header length of {header_bytes} bytes")));
        }

        let size = be64(head, 24);
        if size == 0 || size > MAX_DISK_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("virtual size of {size} bytes; 1 to {MAX_DISK_BYTES} are allowed"),
            ));
        }

        let l1_entries = u64::from(be32(head, 36));
        let l1_offset = be64(head, 40);
        // Each L2 table is one cluster of 8-byte entries.
        let bytes_per_l1_entry = cluster_bytes * (cluster_bytes / 8);
        if l1_entries * 8 > MAX_L1_BYTES {
            return Err(invalid(format!("L1 table of {l1_entries} entries")));
        }
        if l1_entries < size.div_ceil(bytes_per_l1_entry) {
            return Err(corrupt(format!(
                "L1 table of {l1_entries} entries is too small for {size} bytes"
            )));
        }
        check_table(
            "L1 table",
            l1_offset,
            l1_entries * 8,
            cluster_bytes,
            file_len,
        )?;

        let refcount_table_offset = be64(head, 48);
        let refcount_table_clusters = u64::from(be32(head, 56));
        let refcount_table_bytes = refcount_table_clusters << cluster_bits;
        if refcount_table_bytes > MAX_REFCOUNT_TABLE_BYTES || refcount_table_bytes == 0 {
            return Err(invalid(format!(
                "refcount table of {refcount_table_bytes} bytes"
            )));
        }
        check_table(
            "refcount table",
            refcount_table_offset,
            refcount_table_bytes,
            cluster_bytes,
            file_len,
        )?;

        let backing_file = parse_backing_file(head, cluster_bytes)?;
        let extensions = parse_extensions(head, header_bytes, cluster_bytes)?;

        Ok(Header {
            version,
            cluster_bits,
            size,
            l1_offset,
            l1_entries,
            refcount_table_offset,
            refcount_table_clusters,
            refcount_order,
            incompatible_features,
            compatible_features,
            snapshots: be32(head, 60),
            backing_file,
            backing_format: extensions.backing_format,
            encrypted: be32(head, 32) != 0 || extensions.encryption,
            data_file: incompatible_features & INCOMPATIBLE_DATA_FILE != 0 || extensions.data_file,
        })
    }

    /// Cluster size in bytes.
    pub fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Not closed cleanly: the refcounts must be rebuilt before use.
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }
}

fn check_table(
    name: &str,
    offset: u64,
    bytes: u64,
    cluster_bytes: u64,
    file_len: u64,
) -> Result<()> {
    // Cluster 0 is the header's.
    if offset == 0 || !offset.is_multiple_of(cluster_bytes) {
        return Err(corrupt(format!("{name} at offset {offset:#x}")));
    }
    match offset.checked_add(bytes) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(truncated(format!(
            "{name} at {offset:#x} ends behind the end of the file ({file_len:#x})"
        ))),
    }
}

fn parse_backing_file(head: &[u8], cluster_bytes: u64) -> Result<Option<Vec<u8>>> {
    let offset = be64(head, 8);
    let length = be32(head, 16);
    if offset == 0 {
        return Ok(None);
    }
    // The specification allows 1023 bytes, inside the first cluster.
    if length > 1023 {
        return Err(invalid(format!("backing file name of {length} bytes")));
    }
    let end = offset.saturating_add(u64::from(length));
    if end > cluster_bytes {
        return Err(invalid("backing file name outside of the first cluster"));
    }
    let range =
        usize::try_from(offset).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
    match head.get(range) {
        Some(name) => Ok(Some(name.to_vec())),
        None => Err(truncated("the file ends inside the backing file name")),
    }
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<Vec<u8>>,
    encryption: bool,
    data_file: bool,
}

fn parse_extensions(head: &[u8], header_bytes: u64, cluster_bytes: u64) -> Result<Extensions> {
    let mut extensions = Extensions::default();
    let limit = head
        .len()
        .min(usize::try_from(cluster_bytes).unwrap_or(usize::MAX));
    let mut at = usize::try_from(header_bytes).unwrap_or(usize::MAX);
    loop {
        // A file may end right after its header when no extension follows.
        if at.saturating_add(8) > limit {
            return Ok(extensions);
        }
        let kind = be32(head, at);
        let length = be32(head, at + 4) as usize;
        if kind == EXTENSION_END {
            return Ok(extensions);
        }
        at += 8;
        let Some(data) = at
            .checked_add(length)
            .and_then(|end| (end <= limit).then(|| &head[at..end]))
        else {
            return Err(invalid(format!(
                "header extension {kind:#x} of {length} bytes does not fit the first cluster"
            )));
        };
        match kind {
            EXTENSION_BACKING_FORMAT => extensions.backing_format = Some(data.to_vec()),
            EXTENSION_ENCRYPTION => extensions.encryption = true,
            EXTENSION_DATA_FILE => extensions.data_file = true,
            _ => (),
        }
        at += length.next_multiple_of(8);
    }
}

/// Length of a file or a block device, in bytes.
pub(crate) fn file_len(mut file: &File) -> Result<u64> {
    // The metadata of a block device says 0.
    file.seek(SeekFrom::End(0))
        .context(|| "length of the image".into())
}

/// Sets or clears the dirty bit in the file, durably.
///
/// The file must be a version 3 layer of ours, opened for writing and locked by the caller.
pub(crate) fn write_dirty_bit(file: &File, dirty: bool) -> std::io::Result<()> {
    set_dirty_bit(file, dirty)?;
    file.sync_data()
}

/// The same without a sync.
pub(crate) fn set_dirty_bit(file: &File, dirty: bool) -> std::io::Result<()> {
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, INCOMPATIBLE_LAST_BYTE)?;
    let bit = INCOMPATIBLE_DIRTY as u8;
    byte[0] = if dirty { byte[0] | bit } else { byte[0] & !bit };
    file.write_all_at(&byte, INCOMPATIBLE_LAST_BYTE)
}
