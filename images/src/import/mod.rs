//! Makes a layer from a raw or qcow2 image that nobody trusts.
//!
//! The input is never kept: its contents are copied, cluster by cluster, into a fresh layer of
//! ours, zeroes left out. A qcow2 input is judged before it is read: see `qcow2`.
//!
//! - `source`: the bytes as they come in: length, digest, end of stream
//! - `raw`: raw images, from a file or straight from a stream
//! - `qcow2`: qcow2 images, which need random access: a stream is put into a file first
//! - `writer`: the layer that is made

mod qcow2;
mod raw;
mod source;
mod writer;

use crate::crash_point;
use crate::error::{Error, ErrorKind, Result};
use crate::layer::create::check_size;
use crate::layer::header;
use crate::store::TempFile;
use source::Input;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Format of a foreign image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk, one after the other.
    Raw,
    /// qcow2, version 2 or 3.
    Qcow2,
}

/// Where a foreign image comes from.
pub enum ImportSource<'a> {
    /// A file, or a block device.
    File(&'a Path),
    /// Bytes in order, such as the body of a request.
    Stream(&'a mut dyn Read),
}

/// What is known and wanted about an import.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The format. `None` probes: qcow2 if the input starts with its magic number, else raw.
    pub format: Option<DiskFormat>,
    /// The exact length of the input in bytes; another one is
    /// [`ErrorKind::LengthMismatch`], a shorter one [`ErrorKind::Truncated`].
    pub length_bytes: Option<u64>,
    /// SHA-256 of the input in hexadecimal; another one is [`ErrorKind::DigestMismatch`].
    pub sha256: Option<String>,
    /// Makes the virtual disk larger than the image's; smaller is [`ErrorKind::InvalidSize`].
    pub grow_to_bytes: Option<u64>,
}

/// Copies a foreign image into the empty file `layer`, and syncs it.
///
/// `spool` makes a temporary file for input that has to be read at random.
pub(crate) fn import_into(
    layer: &File,
    source: ImportSource<'_>,
    options: &ImportOptions,
    spool: impl FnOnce() -> Result<TempFile>,
) -> Result<()> {
    let mut input = match source {
        ImportSource::File(path) => Input::open_file(path, options)?,
        ImportSource::Stream(stream) => Input::stream(stream, options)?,
    };
    let format = match options.format {
        Some(format) => format,
        None if input.head().starts_with(&header::MAGIC) => DiskFormat::Qcow2,
        None => DiskFormat::Raw,
    };
    match format {
        DiskFormat::Raw => raw::import(layer, input, options),
        DiskFormat::Qcow2 => {
            let spooled;
            let file = match input.verified_file()? {
                Some(file) => file,
                None => {
                    spooled = spool()?;
                    input.spool_into(&spooled.file)?;
                    crash_point("import.spooled");
                    &spooled.file
                }
            };
            qcow2::import(layer, file, options)
        }
    }
}

/// Size of the new disk for an image of `size` bytes, rounded up to whole sectors.
fn disk_size(size: u64, options: &ImportOptions) -> Result<u64> {
    let size = size
        .checked_next_multiple_of(crate::SECTOR_BYTES)
        .unwrap_or(u64::MAX);
    check_size(size)?;
    match options.grow_to_bytes {
        None => Ok(size),
        Some(wanted) => {
            check_size(wanted)?;
            if wanted < size {
                return Err(Error::new(
                    ErrorKind::InvalidSize,
                    format!("the image has {size} bytes, more than the wanted {wanted}"),
                ));
            }
            Ok(wanted)
        }
    }
}
