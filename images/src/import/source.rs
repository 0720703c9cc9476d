//! The bytes of an import as they come in: length, digest, end of stream.

use super::ImportOptions;
use crate::MAX_DISK_BYTES;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::layer::header::file_len;
use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

/// Bytes that are looked at to tell the format.
const HEAD_BYTES: usize = 8;

/// Bytes that are read at once.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// The input of one import.
pub(super) struct Input<'a> {
    reader: Reader<'a>,
    head: Vec<u8>,
    /// Bytes of `head` that were handed out again.
    head_used: usize,
    /// Bytes read from the reader so far.
    position: u64,
    digest: Option<(Sha256, [u8; 32])>,
    expected_length: Option<u64>,
}

enum Reader<'a> {
    File { file: File, length: u64 },
    Stream(&'a mut dyn Read),
}

impl<'a> Input<'a> {
    pub fn open_file(path: &Path, options: &ImportOptions) -> Result<Self> {
        let context = || format!("opening the image {}", path.display());
        let mut file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::new(ErrorKind::NotFound, format!("no image {}", path.display()))
            }
            _ => Error::io(context(), error),
        })?;
        let kind = file.metadata().context(context)?.file_type();
        use std::os::unix::fs::FileTypeExt;
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::new(
                ErrorKind::InvalidFormat,
                format!("{} is neither a file nor a block device", path.display()),
            ));
        }
        let length = file_len(&file)?;
        file.rewind().context(context)?;
        if let Some(expected) = options.length_bytes
            && expected != length
        {
            return Err(wrong_length(length, expected));
        }
        Input::new(Reader::File { file, length }, options)
    }

    pub fn stream(stream: &'a mut dyn Read, options: &ImportOptions) -> Result<Self> {
        Input::new(Reader::Stream(stream), options)
    }

    fn new(reader: Reader<'a>, options: &ImportOptions) -> Result<Self> {
        let digest = match &options.sha256 {
            None => None,
            Some(hex) => Some((Sha256::new(), parse_sha256(hex)?)),
        };
        let mut input = Input {
            reader,
            head: Vec::new(),
            head_used: 0,
            position: 0,
            digest,
            expected_length: options.length_bytes,
        };
        let mut head = vec![0; HEAD_BYTES];
        let length = input.fill(&mut head)?;
        head.truncate(length);
        input.head = head;
        Ok(input)
    }

    /// The first bytes.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Fills `buffer` from the input; less only at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let from_head = (self.head.len() - self.head_used).min(buffer.len());
        buffer[..from_head].copy_from_slice(&self.head[self.head_used..][..from_head]);
        self.head_used += from_head;
        Ok(from_head + self.fill(&mut buffer[from_head..])?)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            let read = match &mut self.reader {
                Reader::File { file, .. } => file.read(&mut buffer[filled..]),
                Reader::Stream(stream) => stream.read(&mut buffer[filled..]),
            };
            match read {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                // How a cut connection shows itself in most readers.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Error::new(
                        ErrorKind::Truncated,
                        format!("the input was cut off after {} bytes", self.position),
                    ));
                }
                Err(error) => return Err(Error::io("reading the image", error)),
            }
        }
        self.position += filled as u64;
        if let Some((digest, _)) = &mut self.digest {
            digest.update(&buffer[..filled]);
        }
        if self.position > MAX_DISK_BYTES {
            return Err(Error::new(
                ErrorKind::InvalidSize,
                format!("the image has more than {MAX_DISK_BYTES} bytes"),
            ));
        }
        if let Some(expected) = self.expected_length
            && self.position > expected
        {
            return Err(Error::new(
                ErrorKind::LengthMismatch,
                format!("the image has more than the expected {expected} bytes"),
            ));
        }
        Ok(filled)
    }

    /// The length of the input, if it is known before the end.
    pub fn known_length(&self) -> Option<u64> {
        match &self.reader {
            Reader::File { length, .. } => Some(*length),
            Reader::Stream(_) => self.expected_length,
        }
    }

    /// Skips a hole of a sparse file at the current position, if nobody needs its zeroes, and
    /// returns its length: a multiple of `step`, or all up to the end.
    pub fn skip_hole(&mut self, step: u64) -> Result<u64> {
        let Reader::File { file, length } = &mut self.reader else {
            return Ok(0);
        };
        if self.digest.is_some() || self.head_used < self.head.len() {
            return Ok(0);
        }
        let hole = match rustix::fs::seek(&*file, SeekFrom::Data(self.position)) {
            Ok(data) if data < *length => data.saturating_sub(self.position) / step * step,
            // Nothing but a hole up to the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => length.saturating_sub(self.position),
            // Not every file system can tell.
            Err(_) => 0,
        };
        self.position += hole;
        file.seek(io::SeekFrom::Start(self.position))
            .context(|| "skipping a hole of the image".into())?;
        Ok(hole)
    }

    /// After the last byte: judges length and digest.
    pub fn finish(self) -> Result<()> {
        let expected = match &self.reader {
            Reader::File { length, .. } => Some(*length),
            Reader::Stream(_) => self.expected_length,
        };
        if let Some(expected) = expected
            && self.position < expected
        {
            return Err(Error::new(
                ErrorKind::Truncated,
                format!(
                    "the image ended after {} of {expected} bytes",
                    self.position
                ),
            ));
        }
        if let Some((digest, expected)) = self.digest
            && digest.finalize()[..] != expected[..]
        {
            return Err(Error::new(
                ErrorKind::DigestMismatch,
                "the SHA-256 of the image is not the expected one",
            ));
        }
        Ok(())
    }

    /// The input as a file that can be read at random, digest checked; `None` for a stream.
    pub fn verified_file(&mut self) -> Result<Option<&File>> {
        if !matches!(self.reader, Reader::File { .. }) {
            return Ok(None);
        }
        if self.digest.is_some() {
            self.head_used = self.head.len();
            let mut buffer = vec![0; CHUNK_BYTES];
            while self.fill(&mut buffer)? > 0 {}
            if let Some((digest, expected)) = self.digest.take()
                && digest.finalize()[..] != expected[..]
            {
                return Err(Error::new(
                    ErrorKind::DigestMismatch,
                    "the SHA-256 of the image is not the expected one",
                ));
            }
        }
        match &self.reader {
            Reader::File { file, .. } => Ok(Some(file)),
            Reader::Stream(_) => Ok(None),
        }
    }

    /// Copies all of the input into a file, and judges length and digest.
    pub fn spool_into(mut self, file: &File) -> Result<()> {
        let mut file = file;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let length = self.read(&mut buffer)?;
            if length == 0 {
                return self.finish();
            }
            file.write_all(&buffer[..length])
                .context(|| "storing the image".into())?;
        }
    }
}

fn wrong_length(length: u64, expected: u64) -> Error {
    let kind = if length < expected {
        ErrorKind::Truncated
    } else {
        ErrorKind::LengthMismatch
    };
    Error::new(
        kind,
        format!("the image has {length} bytes, not the expected {expected}"),
    )
}

fn parse_sha256(hex: &str) -> Result<[u8; 32]> {
    let error = || {
        Error::new(
            ErrorKind::DigestMismatch,
            "the expected SHA-256 is not 64 hexadecimal digits",
        )
    };
    let (pairs, rest) = hex.as_bytes().as_chunks::<2>();
    if pairs.len() != 32 || !rest.is_empty() {
        return Err(error());
    }
    let mut digest = [0; 32];
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        let digit = |c: u8| (c as char).to_digit(16).ok_or_else(error);
        *byte = (digit(*high)? * 16 + digit(*low)?) as u8;
    }
    Ok(digest)
}
