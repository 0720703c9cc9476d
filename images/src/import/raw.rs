//! Raw images: every byte of the input is a byte of the disk.

use super::source::{CHUNK_BYTES, Input};
use super::writer::LayerWriter;
use super::{ImportOptions, disk_size};
use crate::error::{Error, ErrorKind, Result};
use crate::layer::CLUSTER_BYTES;
use crate::{MAX_DISK_BYTES, SECTOR_BYTES};
use std::fs::File;

/// First guess at the size of a stream of unknown length.
const FIRST_GUESS: u64 = 1 << 30;

/// Copies a raw image. The size of a stream may show only at its end.
pub(super) fn import(layer: &File, mut input: Input<'_>, options: &ImportOptions) -> Result<()> {
    if input.head().is_empty() {
        return Err(Error::new(ErrorKind::Truncated, "the image is empty"));
    }
    let known = input.known_length();
    let size = match known {
        Some(length) => disk_size(length, options)?,
        None => FIRST_GUESS,
    };
    let mut writer = LayerWriter::new(layer, size)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let length = input.read(&mut buffer)?;
        // Behind the end, zeroes fill the last sector.
        let padded = length.next_multiple_of(SECTOR_BYTES as usize);
        buffer[length..padded].fill(0);
        let end = at + padded as u64;
        if end > writer.size() {
            if known.is_some() {
                return Err(Error::new(
                    ErrorKind::LengthMismatch,
                    "the image grew while it was read",
                ));
            }
            writer.grow((writer.size() * 2).min(MAX_DISK_BYTES))?;
        }
        writer.write(&buffer[..padded], at)?;
        at += length as u64;
        if length < buffer.len() {
            break;
        }
        at += input.skip_hole(CLUSTER_BYTES)?;
    }
    input.finish()?;
    writer.finish(disk_size(at, options)?)
}
