//! Doing what a request asks for: the checks of virtio 1.2 section 5.2.6.2, then the disk.

use std::io;
use std::sync::Arc;

use super::config::{MAX_ZERO_SECTORS, SECTOR_BYTES};
use super::control::BlockControl;
use super::request::{FailureStatus, ID_BYTES, InvalidRequest, Operation, ZeroSegment};
use super::storage::Storage;
use crate::devices::virtio::buffers::Buffers;

/// Executes operations on one disk; each queue has its own.
#[derive(Clone)]
pub struct Executor {
    /// Where the data is.
    pub storage: Arc<dyn Storage>,
    /// What the driver knows as the disk's size.
    pub control: BlockControl,
    /// See [`serial_bytes`].
    pub serial: [u8; ID_BYTES],
    /// The guest may not write.
    pub read_only: bool,
    /// Every write is durable before it is completed.
    pub write_through: bool,
}

/// Why an operation was not, or not wholly, done.
#[derive(Debug)]
pub enum Failure {
    /// The driver asked for what it may not.
    Refused(FailureStatus),
    /// The disk failed.
    Storage {
        /// What was tried, for messages.
        what: String,
        /// What went wrong.
        error: io::Error,
    },
}

impl Failure {
    /// What the guest gets to see of it.
    pub fn status(&self) -> FailureStatus {
        match self {
            Failure::Refused(status) => *status,
            Failure::Storage { .. } => FailureStatus::IoError,
        }
    }
}

const IO_ERROR: Failure = Failure::Refused(FailureStatus::IoError);
const UNSUPPORTED: Failure = Failure::Refused(FailureStatus::Unsupported);

/// The answer to GET_ID: padded with zeroes, and without one if it fills all 20 bytes.
pub fn serial_bytes(serial: &str) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    let len = serial.len().min(ID_BYTES);
    bytes[..len].copy_from_slice(&serial.as_bytes()[..len]);
    bytes
}

impl Executor {
    /// Executes one operation, as a whole where it succeeds.
    pub fn execute(&self, operation: &Operation<'_>) -> Result<(), Failure> {
        match operation {
            Operation::Read { sector, into } => {
                let offset = self.check_data(*sector, into)?;
                self.storage
                    .read(into.slices(), offset)
                    .map_err(failed("read", offset, into.len()))
            }
            Operation::Write { sector, from } => {
                self.check_writable()?;
                let offset = self.check_data(*sector, from)?;
                self.storage.write(from.slices(), offset).map_err(failed(
                    "write",
                    offset,
                    from.len(),
                ))?;
                self.after_write()
            }
            Operation::Flush => self.flush(),
            Operation::GetId { into } => {
                into.copy_from(&self.serial);
                Ok(())
            }
            Operation::Discard(segments) => {
                for (offset, len, _) in self.check_segments(segments)? {
                    self.storage
                        .discard(offset, len)
                        .map_err(failed("discard", offset, len))?;
                }
                self.after_write()
            }
            Operation::WriteZeroes(segments) => {
                for (offset, len, unmap) in self.check_segments(segments)? {
                    self.storage
                        .write_zeroes(offset, len, unmap)
                        .map_err(failed("write of zeroes", offset, len))?;
                }
                self.after_write()
            }
            Operation::Invalid(InvalidRequest::Unsupported) => Err(UNSUPPORTED),
            Operation::Invalid(InvalidRequest::Segments) => Err(IO_ERROR),
        }
    }

    fn check_writable(&self) -> Result<(), Failure> {
        if self.read_only {
            Err(IO_ERROR)
        } else {
            Ok(())
        }
    }

    /// Checks a read's or write's data. Returns its offset in bytes.
    fn check_data(&self, sector: u64, data: &Buffers<'_>) -> Result<u64, Failure> {
        let len = data.len() as u64;
        if !len.is_multiple_of(SECTOR_BYTES) {
            return Err(IO_ERROR);
        }
        self.check_range(sector, len / SECTOR_BYTES)
    }

    /// Checks that sectors are on the disk. Returns the offset of the first in bytes.
    fn check_range(&self, sector: u64, sectors: u64) -> Result<u64, Failure> {
        match sector.checked_add(sectors) {
            // No overflow: the number of sectors comes from a size in bytes that fits.
            Some(end) if end <= self.control.sectors() => Ok(sector * SECTOR_BYTES),
            _ => Err(IO_ERROR),
        }
    }

    /// Checks all segments before the first of them is touched. Returns offset and length in
    /// bytes, and whether to unmap, of those that aren't empty.
    fn check_segments(&self, segments: &[ZeroSegment]) -> Result<Vec<(u64, u64, bool)>, Failure> {
        self.check_writable()?;
        let mut ranges = Vec::with_capacity(segments.len());
        for segment in segments {
            if segment.sectors > MAX_ZERO_SECTORS {
                return Err(IO_ERROR);
            }
            let sectors = u64::from(segment.sectors);
            let offset = self.check_range(segment.sector, sectors)?;
            if sectors > 0 {
                ranges.push((offset, sectors * SECTOR_BYTES, segment.unmap));
            }
        }
        Ok(ranges)
    }

    fn after_write(&self) -> Result<(), Failure> {
        if self.write_through {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&self) -> Result<(), Failure> {
        if self.read_only {
            return Ok(());
        }
        self.storage.flush().map_err(|error| Failure::Storage {
            what: "flush".to_owned(),
            error,
        })
    }
}

fn failed(
    what: &'static str,
    offset: u64,
    len: impl std::fmt::Display,
) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Storage {
        what: format!("{what} of {len} bytes at {offset}"),
        error,
    }
}
