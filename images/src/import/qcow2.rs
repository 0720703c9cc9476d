//! qcow2 images, judged before they are read.
//!
//! What is refused, and how: another file named in the image
//! ([`ErrorKind::UnsafeReference`]); encryption and features that are not known
//! ([`ErrorKind::InvalidFormat`]); tables that loop, overlap, or are marked as damaged
//! ([`ErrorKind::Corrupt`]); tables or data behind the end of the file
//! ([`ErrorKind::Truncated`]). Internal snapshots are left behind: the active state is copied.

use super::source::CHUNK_BYTES;
use super::writer::LayerWriter;
use super::{ImportOptions, disk_size};
use crate::check::tables;
use crate::error::{Error, ErrorKind, IoContext, Result};
use crate::layer::chain::imago_storage;
use crate::layer::header::{
    Header, INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_EXTENDED_L2, file_len,
};
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};
use std::fs::File;

/// Copies the disk that a qcow2 file holds.
pub(super) fn import(layer: &File, file: &File, options: &ImportOptions) -> Result<()> {
    let file_len = file_len(file)?;
    if file_len == 0 {
        return Err(Error::new(ErrorKind::Truncated, "the image is empty"));
    }
    let header = Header::read(file)?;
    refuse_unsafe(&header)?;
    tables::check_foreign(file, &header, file_len)?;

    let image = Qcow2::<imago::file::File>::builder(imago_storage(file)?)
        .backing(None)
        .data_file(None)
        .open(DenyImplicitOpenGate::default())
        .map_err(|error| Error::new(ErrorKind::InvalidFormat, error.to_string()))?;
    let image = FormatAccess::new(image);
    let size = disk_size(header.size, options)?;
    let writer = LayerWriter::new(layer, size)?;
    copy(&image, header.size, &writer)?;
    writer.finish(size)
}

fn copy(
    image: &FormatAccess<imago::file::File>,
    size: u64,
    writer: &LayerWriter<'_>,
) -> Result<()> {
    let chunk = CHUNK_BYTES as u64;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < size {
        let (mapping, length) = image
            .get_mapping(at, size - at)
            .context(|| format!("the image's tables at {at:#x}"))?;
        if length == 0 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the image ends at {at:#x} of {size:#x}"),
            ));
        }
        let is_zero = matches!(mapping, Mapping::Zero { .. });
        // Whole chunks are copied, so that small clusters of the input are put together to the
        // larger ones of the layer; a stretch of zeroes is skipped up to the next chunk.
        let end = (at + chunk).min(size);
        let mapped_end = at + length;
        if is_zero && mapped_end >= end {
            at = end.max(mapped_end - mapped_end % chunk);
            continue;
        }
        let data = &mut buffer[..(end - at) as usize];
        image
            .read(&mut *data, at)
            .map_err(|error| match error.raw_os_error() {
                Some(_) => Error::io("reading the image", error),
                None => Error::new(
                    ErrorKind::Corrupt,
                    format!("the image's contents at {at:#x}: {error}"),
                ),
            })?;
        writer.write(data, at)?;
        at = end;
    }
    Ok(())
}

fn refuse_unsafe(header: &Header) -> Result<()> {
    let invalid = |what: &str| Err(Error::new(ErrorKind::InvalidFormat, what));
    let unsafe_reference = |what: String| Err(Error::new(ErrorKind::UnsafeReference, what));
    if let Some(name) = &header.backing_file {
        return unsafe_reference(format!(
            "the image is only complete with its backing file {:?}; flatten it first \
             (qemu-img convert)",
            String::from_utf8_lossy(name)
        ));
    }
    if header.data_file {
        return unsafe_reference("the image keeps its data in another file".into());
    }
    if header.encrypted {
        return invalid("the image is encrypted");
    }
    let features = header.incompatible_features;
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            "the image is marked as corrupt",
        ));
    }
    if features & INCOMPATIBLE_DIRTY != 0 {
        return invalid(
            "the image was not closed cleanly; repair it first (qemu-img check -r all)",
        );
    }
    if features & INCOMPATIBLE_COMPRESSION != 0 {
        return invalid("the image is compressed by another method than deflate");
    }
    if features & INCOMPATIBLE_EXTENDED_L2 != 0 {
        return invalid("the image has extended L2 entries (subclusters)");
    }
    if features != 0 {
        return invalid("the image has an unknown incompatible feature");
    }
    Ok(())
}
