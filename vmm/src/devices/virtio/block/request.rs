//! What a driver asks of a block device (virtio 1.2 section 5.2.6), read from a descriptor chain.
//!
//! Nothing here knows the disk: whether a request can be served is decided in
//! [`execute`](super::execute).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::config::MAX_ZERO_SEGMENTS;
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::queue::{Chain, QueueError};

/// Type, reserved, sector: `struct virtio_blk_req` up to its data.
const HEADER_BYTES: usize = 16;

/// Length of the answer to GET_ID.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Sector, number of sectors, flags: `struct virtio_blk_discard_write_zeroes`.
const ZERO_SEGMENT_BYTES: usize = 16;

/// A request and where its answer goes.
pub struct Request<'m> {
    /// What to do.
    pub operation: Operation<'m>,
    /// The one byte of the status.
    status: Buffers<'m>,
    /// Writable bytes before it.
    data_bytes: usize,
}

/// What to do.
pub enum Operation<'m> {
    /// Read from the disk into `into`.
    Read {
        /// First sector.
        sector: u64,
        /// Where to; any length.
        into: Buffers<'m>,
    },
    /// Write `from` to the disk.
    Write {
        /// First sector.
        sector: u64,
        /// What; any length.
        from: Buffers<'m>,
    },
    /// Make all completed writes durable.
    Flush,
    /// Write the serial into `into`.
    GetId {
        /// Where to; any length.
        into: Buffers<'m>,
    },
    /// The driver needs these sectors no more.
    Discard(Vec<ZeroSegment>),
    /// These sectors shall read as zeroes.
    WriteZeroes(Vec<ZeroSegment>),
    /// A well-formed chain, but what it asks for can't be done.
    Invalid(InvalidRequest),
}

/// One segment of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroSegment {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// The space may be given back.
    pub unmap: bool,
}

/// Why a request can't be done by any disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRequest {
    /// A type that isn't served, or a reserved flag.
    Unsupported,
    /// No segments, too many, or a part of one.
    Segments,
}

/// The status byte of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureStatus {
    /// `VIRTIO_BLK_S_IOERR`.
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

impl<'m> Request<'m> {
    /// Reads a request. The layout of descriptors doesn't matter (section 2.7.4): the first 16
    /// readable bytes are the header, the last writable byte is the status, and what is between
    /// is data. An error means that there is no header to obey or no place for an answer.
    pub fn parse(chain: Chain<'m>) -> Result<Self, QueueError> {
        let Chain {
            head,
            readable: mut header,
            writable: mut data_in,
        } = chain;
        let bad = |what| QueueError::BadRequest { head, what };

        let data_bytes = data_in
            .len()
            .checked_sub(1)
            .ok_or_else(|| bad("no room for the status"))?;
        let status = data_in.split_off(data_bytes);

        let data_out = header.split_off(HEADER_BYTES);
        let mut bytes = [0; HEADER_BYTES];
        if header.copy_to(&mut bytes) < HEADER_BYTES {
            return Err(bad("the request's header is cut off"));
        }
        let sector = u64_at(&bytes, 8);
        let operation = match u32_at(&bytes, 0) {
            VIRTIO_BLK_T_IN => Operation::Read {
                sector,
                into: data_in,
            },
            VIRTIO_BLK_T_OUT => Operation::Write {
                sector,
                from: data_out,
            },
            VIRTIO_BLK_T_FLUSH => Operation::Flush,
            VIRTIO_BLK_T_GET_ID => Operation::GetId { into: data_in },
            VIRTIO_BLK_T_DISCARD => match read_segments(&data_out, 0) {
                Ok(segments) => Operation::Discard(segments),
                Err(invalid) => Operation::Invalid(invalid),
            },
            VIRTIO_BLK_T_WRITE_ZEROES => {
                match read_segments(&data_out, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) {
                    Ok(segments) => Operation::WriteZeroes(segments),
                    Err(invalid) => Operation::Invalid(invalid),
                }
            }
            _ => Operation::Invalid(InvalidRequest::Unsupported),
        };
        Ok(Request {
            operation,
            status,
            data_bytes,
        })
    }

    /// Writes the status. Returns the length for the used ring: how many bytes from the start of
    /// the chain's writable part are surely written (section 2.7.8.2). The status is the last of
    /// them, so after a failure that is none but where there is no data before it.
    pub fn finish(self, failure: Option<FailureStatus>) -> u32 {
        let status = match failure {
            None => VIRTIO_BLK_S_OK,
            Some(FailureStatus::IoError) => VIRTIO_BLK_S_IOERR,
            Some(FailureStatus::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        self.status.copy_from(&[status as u8]);
        let data_written = match (self.operation, failure) {
            (Operation::Read { .. }, None) => self.data_bytes,
            (Operation::GetId { .. }, None) => self.data_bytes.min(ID_BYTES),
            _ => 0,
        };
        let written = if data_written == self.data_bytes {
            self.data_bytes + 1
        } else {
            data_written
        };
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}

/// Reads the data of a discard or write-zeroes request. Section 5.2.6.2: an unknown flag is
/// answered with UNSUPP, and so is `unmap` in a discard.
fn read_segments(data: &Buffers<'_>, known_flags: u32) -> Result<Vec<ZeroSegment>, InvalidRequest> {
    let count = data.len() / ZERO_SEGMENT_BYTES;
    if count == 0
        || count > MAX_ZERO_SEGMENTS as usize
        || !data.len().is_multiple_of(ZERO_SEGMENT_BYTES)
    {
        return Err(InvalidRequest::Segments);
    }
    let mut bytes = vec![0; data.len()];
    data.copy_to(&mut bytes);
    bytes
        .chunks_exact(ZERO_SEGMENT_BYTES)
        .map(|segment| {
            let flags = u32_at(segment, 12);
            if flags & !known_flags != 0 {
                return Err(InvalidRequest::Unsupported);
            }
            Ok(ZeroSegment {
                sector: u64_at(segment, 0),
                sectors: u32_at(segment, 8),
                unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            })
        })
        .collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests;
