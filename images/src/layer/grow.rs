//! Making a layer's virtual disk larger.
//!
//! Done by hand, on a layer that nobody has open: `imago` moves the L1 table and points the header
//! at it without a sync in between, so that a power loss could leave a volume with no table at
//! all. Here every step is on the disk before the next one relies on it.

use crate::check::{self, Repair};
use crate::crash_point;
use crate::error::{IoContext, Result};
use crate::layer::header::{Header, SIZE_OFFSET, file_len, write_dirty_bit};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Sets the size of a clean layer of ours to `size` bytes, which is not smaller than before. The
/// file must be locked and open for writing.
pub(crate) fn grow(file: &File, header: &Header, size: u64) -> Result<()> {
    let cluster = header.cluster_bytes();
    let entries = size
        .div_ceil(cluster * (cluster / 8))
        .max(header.l1_entries);
    let room = (header.l1_entries * 8).next_multiple_of(cluster) / 8;
    if entries <= room {
        grow_in_place(file, header, size, entries).context(|| "growing a layer".into())
    } else {
        move_l1_table(file, header, size, entries).context(|| "growing a layer".into())?;
        // The new table has no refcounts, and the old one is leaked.
        check::check_layer(file, Repair::Refcounts).map(drop)
    }
}

/// The last cluster of the L1 table has room for the new entries.
fn grow_in_place(file: &File, header: &Header, size: u64, entries: u64) -> io::Result<()> {
    let new_bytes = (entries - header.l1_entries) * 8;
    file.write_all_at(
        &vec![0; new_bytes as usize],
        header.l1_offset + header.l1_entries * 8,
    )?;
    file.sync_data()?;
    crash_point("grow.table-extended");
    write_size_and_table(file, size, entries, header.l1_offset)
}

/// Copies the L1 table to the end of the file.
fn move_l1_table(file: &File, header: &Header, size: u64, entries: u64) -> io::Result<()> {
    let cluster = header.cluster_bytes();
    let mut table = vec![0; (header.l1_entries * 8) as usize];
    file.read_exact_at(&mut table, header.l1_offset)?;
    // At most 1 MiB: `size` is at most 64 TiB.
    table.resize((entries * 8).next_multiple_of(cluster) as usize, 0);
    let offset = file_len(file)?.next_multiple_of(cluster);
    file.write_all_at(&table, offset)?;
    // Also makes the mark and the table durable before the header points there.
    write_dirty_bit(file, true)?;
    crash_point("grow.table-copied");
    write_size_and_table(file, size, entries, offset)
}

/// The header's fields from the size to the L1 table's offset, in one write inside of one sector.
fn write_size_and_table(file: &File, size: u64, entries: u64, l1_offset: u64) -> io::Result<()> {
    let no_encryption = 0u32;
    let mut fields = Vec::with_capacity(24);
    fields.extend_from_slice(&size.to_be_bytes());
    fields.extend_from_slice(&no_encryption.to_be_bytes());
    fields.extend_from_slice(&(entries as u32).to_be_bytes());
    fields.extend_from_slice(&l1_offset.to_be_bytes());
    file.write_all_at(&fields, SIZE_OFFSET)?;
    file.sync_data()?;
    crash_point("grow.header-written");
    Ok(())
}
