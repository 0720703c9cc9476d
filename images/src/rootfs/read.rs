//! Bytes at an offset: a disk, or a part of one.

use crate::Disk;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Something that can be read at any offset.
pub trait ReadAt {
    /// Fills `buffer` from `offset`; an error if there is not enough.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// How much there is, in bytes.
    fn size_bytes(&self) -> io::Result<u64>;
}

impl ReadAt for Disk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buffer, offset)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(Disk::size_bytes(self))
    }
}

/// A raw image.
impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }
}

/// A raw image in memory.
impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..start.checked_add(buffer.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

/// A part of a disk.
#[derive(Clone)]
pub(super) struct Window {
    disk: Rc<dyn ReadAt>,
    start: u64,
    length: u64,
}

impl Window {
    /// The whole disk.
    pub fn whole(disk: Rc<dyn ReadAt>) -> io::Result<Window> {
        let length = disk.size_bytes()?;
        Ok(Window {
            disk,
            start: 0,
            length,
        })
    }

    /// A part of this one; `None` if it reaches beyond its end, or is empty.
    pub fn part(&self, start: u64, length: u64) -> Option<Window> {
        let inside = start
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        (inside && length > 0).then(|| Window {
            disk: self.disk.clone(),
            start: self.start + start,
            length,
        })
    }

    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fills `buffer` from `offset`; never from outside of the window.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let inside = offset
            .checked_add(buffer.len() as u64)
            .is_some_and(|end| end <= self.length);
        if !inside {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read_at(buffer, self.start + offset)
    }
}
