//! A volume or snapshot as a stand-alone image, made while it is read: nothing is put on the disk.
//!
//! The chain is flattened. What comes out is a sequence of [`Piece`]s whose total length is known
//! before the first one, so that it can be sent over a connection as it is made.
//!
//! - `walk`: the runs of a disk: data, and what reads as zeroes
//! - `raw`: the bytes of the disk
//! - `qcow2`: header and refcounts, then tables, then data, in the order of the file

mod qcow2;
mod raw;
mod walk;

use crate::error::Result;
use crate::import::DiskFormat;
use crate::mapping::ChainMap;
use sha2::{Digest, Sha256};

/// Largest [`Piece::Data`], in bytes.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// Largest [`Piece::Zeroes`], in bytes: small enough that whoever waits for one can stop.
const MAX_ZEROES: u64 = 64 << 20;

/// The next bytes of an exported image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes, at most [`MAX_PIECE_BYTES`].
    Data(Vec<u8>),
    /// So many zeroes: a hole, where the target can have one.
    Zeroes(u64),
}

impl Piece {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Piece::Data(data) => data.len() as u64,
            Piece::Zeroes(length) => *length,
        }
    }

    /// Never: there is no empty piece.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An export in progress. A volume stays locked against writers meanwhile.
#[derive(Debug)]
pub struct Export {
    format: DiskFormat,
    size: u64,
    length: u64,
    writer: Writer,
    digest: Sha256,
}

#[derive(Debug)]
enum Writer {
    Raw(raw::Raw),
    Qcow2(Box<qcow2::Qcow2>),
}

impl Export {
    pub(crate) fn new(map: ChainMap, format: DiskFormat) -> Result<Export> {
        let size = map.size();
        let (length, writer) = match format {
            DiskFormat::Raw => (size, Writer::Raw(raw::Raw::new(map))),
            DiskFormat::Qcow2 => {
                let qcow2 = qcow2::Qcow2::new(map)?;
                (qcow2.length(), Writer::Qcow2(Box::new(qcow2)))
            }
        };
        Ok(Export {
            format,
            size,
            length,
            writer,
            digest: Sha256::new(),
        })
    }

    /// Format of the image.
    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// Size of the virtual disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size
    }

    /// Length of the whole image in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.length
    }

    /// The next bytes; `None` after the last.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        let piece = match &mut self.writer {
            Writer::Raw(raw) => raw.next_piece()?,
            Writer::Qcow2(qcow2) => qcow2.next_piece()?,
        };
        match &piece {
            Some(Piece::Data(data)) => self.digest.update(data),
            Some(Piece::Zeroes(length)) => update_with_zeroes(&mut self.digest, *length),
            None => (),
        }
        Ok(piece)
    }

    /// SHA-256 of all pieces that were given out, holes as zeroes: after the last one, that of the
    /// image.
    pub fn sha256(self) -> [u8; 32] {
        self.digest.finalize().into()
    }
}

/// What is added to a digest for zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Adds zeroes to a digest.
pub fn update_with_zeroes(digest: &mut Sha256, length: u64) {
    let mut left = length;
    while left > 0 {
        let some = left.min(ZEROES.len() as u64);
        digest.update(&ZEROES[..some as usize]);
        left -= some;
    }
}
