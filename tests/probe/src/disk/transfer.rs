//! Reads, writes and the like of a range of any length, in requests of a given size.

use alloc::format;

use super::{Disk, Request, SECTOR, operation};
use crate::command::Failure;
use crate::memory::dma::Buffer;
use crate::pattern;

/// A range of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of a request; the last may have less.
    pub request_bytes: u64,
}

/// What a range is expected to hold.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// The pattern of a seed.
    Pattern(u64),
    /// Zeroes.
    Zeroes,
}

/// The first byte that is not as expected.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Mismatch {
    pub offset: u64,
    pub found: u8,
    pub expected: u8,
}

impl Range {
    /// Calls `each` with the offset and the length of one request after the other.
    fn requests(
        self,
        mut each: impl FnMut(u64, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if !self.offset.is_multiple_of(SECTOR) || !self.length.is_multiple_of(SECTOR) {
            return Err("offset and length must be multiples of 512".into());
        }
        let step = self.request_bytes / SECTOR * SECTOR;
        if step == 0 || step > 1 << 30 {
            return Err("a request has 512 bytes to 1 GiB".into());
        }
        let mut done = 0;
        while done < self.length {
            let count = step.min(self.length - done);
            let offset = self
                .offset
                .checked_add(done)
                .ok_or("the range has no end")?;
            each(offset, count as usize)?;
            done += count;
        }
        Ok(())
    }
}

fn transfer(
    disk: &mut Disk,
    operation: u32,
    offset: u64,
    address: u64,
    count: usize,
) -> Result<(), Failure> {
    let request = Request {
        operation,
        sector: offset / SECTOR,
        data: Some((address, count as u32)),
    };
    disk.run(&request)
        .map_err(|Failure(error)| format!("at offset {offset}: {error}").into())
}

/// Reads; `visit` gets offset and bytes of each request.
pub fn read(
    disk: &mut Disk,
    range: Range,
    buffer: &mut Buffer,
    mut visit: impl FnMut(u64, &[u8]),
) -> Result<(), Failure> {
    range.requests(|offset, count| {
        transfer(disk, operation::READ, offset, buffer.address(), count)?;
        visit(offset, &buffer.bytes()[..count]);
        Ok(())
    })
}

/// Writes the pattern of a seed, or zeroes as data.
pub fn write(
    disk: &mut Disk,
    range: Range,
    what: Expected,
    buffer: &mut Buffer,
) -> Result<(), Failure> {
    range.requests(|offset, count| {
        let bytes = &mut buffer.bytes()[..count];
        match what {
            Expected::Pattern(seed) => pattern::fill(seed, offset, bytes),
            Expected::Zeroes => bytes.fill(0),
        }
        transfer(disk, operation::WRITE, offset, buffer.address(), count)
    })
}

/// Reads and compares. Returns the first mismatch and how many sectors have one.
pub fn verify(
    disk: &mut Disk,
    range: Range,
    expected: Expected,
    buffer: &mut Buffer,
) -> Result<(Option<Mismatch>, u64), Failure> {
    let (mut first, mut bad_sectors) = (None, 0);
    read(disk, range, buffer, |offset, bytes| {
        for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            let start = offset + index as u64 * SECTOR;
            let at = match expected {
                Expected::Pattern(seed) => pattern::first_mismatch(seed, start, sector),
                Expected::Zeroes => sector.iter().position(|&byte| byte != 0),
            };
            if let Some(at) = at {
                bad_sectors += 1;
                let offset = start + at as u64;
                let byte = match expected {
                    Expected::Pattern(seed) => pattern::byte(seed, offset),
                    Expected::Zeroes => 0,
                };
                first.get_or_insert(Mismatch {
                    offset,
                    found: sector[at],
                    expected: byte,
                });
            }
        }
    })?;
    Ok((first, bad_sectors))
}

/// Discards, or writes zeroes: `operation` says which. `unmap` is for write-zeroes only.
pub fn zero(disk: &mut Disk, range: Range, operation: u32, unmap: bool) -> Result<(), Failure> {
    // `struct virtio_blk_discard_write_zeroes`: sector, number of sectors, flags.
    let mut segment = Buffer::new(16).ok_or("no memory")?;
    range.requests(|offset, count| {
        let bytes = segment.bytes();
        bytes[..8].copy_from_slice(&(offset / SECTOR).to_le_bytes());
        bytes[8..12].copy_from_slice(&((count as u64 / SECTOR) as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(unmap).to_le_bytes());
        let request = Request {
            operation,
            sector: 0,
            data: Some((segment.address(), 16)),
        };
        disk.run(&request)
            .map_err(|Failure(error)| format!("at offset {offset}: {error}").into())
    })
}
