//! Guest I/O on an open volume.
//!
//! Reads and writes go to `imago` from any number of threads. What would invalidate the mappings
//! that those threads use (discards, zeroing, flushing of metadata) waits for them and keeps new
//! ones out for a moment: see `zero` and `flush`. `docs/volumes.md` lists what `imago` does
//! not promise after a crash, and how this module and `check` make up for it.

mod flush;
mod image;
pub(crate) mod live;
mod zero;

use crate::error::{IoContext, Result};
use crate::layer::chain::Link;
use crate::layer::header::write_dirty_bit;
use crate::store::{Access, Locked};
use image::{Image, Top, open_below, open_layer};
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::{FormatAccess, StorageExt};
use live::Sealing;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Buffers of one request that are handed to the kernel at once; it takes up to 1024.
const MAX_BUFFERS: usize = 512;

/// An open volume. All methods may be called from several threads at once.
///
/// The volume stays locked until [`Disk::close`] or until the value is dropped. Dropping closes
/// too, but cannot report an error.
#[derive(Debug)]
pub struct Disk {
    /// Ordinary I/O holds this shared; see the module's documentation for who holds it alone.
    image: RwLock<Image>,
    /// Layers that were the top and are not sealed yet; nothing may be called durable before they
    /// are. Held shared by who promises that, alone from before the layers change until the
    /// change is durable. Taken before `image`.
    unsealed: RwLock<Vec<Sealing>>,
    access: Access,
    size: AtomicU64,
    /// A sync failed: the kernel may have dropped data, so that no later one can be believed.
    sync_failed: AtomicBool,
}

impl Disk {
    /// Builds the chain. `file` is the one of `top`, locked, clean, and open for writing if
    /// `access` says so.
    pub(crate) fn open(
        top: Link,
        file: Locked,
        ancestors: &[Link],
        access: Access,
    ) -> Result<Disk> {
        let backing = open_below(ancestors)?;
        let writable = access == Access::ReadWrite;
        let layer = open_layer(&top.id, &top.file, writable, backing.clone())?;
        if writable {
            // From here until it is closed, the refcounts on the disk may lag behind.
            write_dirty_bit(&file, true).context(|| format!("marking layer {}", top.id))?;
        }
        let format = Arc::new(FormatAccess::new(layer));
        Ok(Disk {
            size: AtomicU64::new(format.size()),
            image: RwLock::new(Image {
                format,
                backing,
                top: Arc::new(Top::new(top.id, file)),
                closed: false,
            }),
            unsealed: RwLock::new(Vec::new()),
            access,
            sync_failed: AtomicBool::new(false),
        })
    }

    /// Size of the virtual disk in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Whether the volume was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// Fills `slices`, one after the other, with the disk's contents from `offset`.
    pub fn read_volatile<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        offset: u64,
    ) -> io::Result<()> {
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        self.check_range(offset, length)?;
        let image = self.image()?;
        let mut at = offset;
        for some in slices.chunks(MAX_BUFFERS) {
            let (buffers, _guard) = IoVectorMut::from_volatile_slice(some);
            let length = buffers.len();
            image.format.readv(buffers, at)?;
            at += length;
        }
        Ok(())
    }

    /// Writes `slices`, one after the other, to the disk from `offset`.
    pub fn write_volatile<B: BitmapSlice>(
        &self,
        slices: &[VolatileSlice<'_, B>],
        offset: u64,
    ) -> io::Result<()> {
        let length = slices.iter().map(|slice| slice.len() as u64).sum();
        self.check_range(offset, length)?;
        let image = self.image_for_writing()?;
        let mut at = offset;
        for some in slices.chunks(MAX_BUFFERS) {
            let (buffers, _guard) = IoVector::from_volatile_slice(some);
            let length = buffers.len();
            self.write_buffers(&image, buffers, at)?;
            at += length;
        }
        Ok(())
    }

    /// Fills `buffer` with the disk's contents from `offset`.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        self.image()?.format.read(buffer, offset)
    }

    /// Writes `buffer` to the disk from `offset`.
    pub fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.check_range(offset, buffer.len() as u64)?;
        let image = self.image_for_writing()?;
        self.write_buffers(&image, buffer.into(), offset)
    }

    /// Writes back everything, marks the volume as closed cleanly and lets go of its lock.
    ///
    /// After an error the volume stays open and marked; it may be tried again. Other calls fail
    /// once it is closed; closing twice does nothing.
    pub fn close(&self) -> Result<()> {
        let top = self.mark_clean()?;
        top.file.unlock().context(|| "unlocking a volume".into())
    }

    /// Closes for I/O, but keeps the lock, which is that of the returned layer.
    fn mark_clean(&self) -> Result<Arc<Top>> {
        let closing = || "closing a volume".into();
        // A change of layers is finished first: it may have data to write back, too.
        let mut settling = self.settling().context(closing)?;
        settling.finish()?;
        let mut image = self
            .image
            .write()
            .map_err(|_| poisoned())
            .context(closing)?;
        let top = Arc::clone(&image.top);
        if image.closed {
            return Ok(top);
        }
        if self.access == Access::ReadWrite {
            self.write_back(&image)
                .and_then(|()| self.sync(&top))
                .and_then(|()| write_dirty_bit(&top.file, false))
                .context(|| "writing back a volume".into())?;
        }
        image.closed = true;
        Ok(top)
    }

    fn write_buffers(
        &self,
        image: &Image,
        mut buffers: IoVector<'_>,
        mut at: u64,
    ) -> io::Result<()> {
        self.settle_freed(image, at, buffers.len())?;
        while !buffers.is_empty() {
            let mapping = image.format.prepare_data_mapping(at, buffers.len(), true)?;
            if !mapping.is_nonblocking() {
                image.top.allocated.store(true, Ordering::Release);
            }
            let length = mapping.length();
            let (now, later) = buffers.split_at(length);
            // If this fails, dropping the mapping frees the clusters again.
            mapping.storage().writev(now, mapping.offset())?;
            image.format.commit_data_mapping(mapping)?;
            buffers = later;
            at += length;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, length: u64) -> io::Result<()> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size_bytes() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{length} bytes at {offset} are outside of a disk of {} bytes",
                    self.size_bytes()
                ),
            )),
        }
    }

    /// The image, shared with other requests.
    fn image(&self) -> io::Result<RwLockReadGuard<'_, Image>> {
        let image = self.image.read().map_err(|_| poisoned())?;
        if image.closed {
            Err(closed())
        } else {
            Ok(image)
        }
    }

    fn image_for_writing(&self) -> io::Result<RwLockReadGuard<'_, Image>> {
        self.refuse_read_only()?;
        self.image()
    }

    /// The image, with no other request in flight.
    fn image_alone(&self) -> io::Result<RwLockWriteGuard<'_, Image>> {
        let image = self.image.write().map_err(|_| poisoned())?;
        if image.closed {
            Err(closed())
        } else {
            Ok(image)
        }
    }

    fn refuse_read_only(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(io::Error::new(
                io::ErrorKind::ReadOnlyFilesystem,
                "the volume is open for reading only",
            )),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A volume that cannot be closed keeps its mark, and is repaired when it is opened next.
        if let Err(error) = self.mark_clean() {
            tracing::error!("a volume was not closed cleanly: {error}");
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the volume is closed")
}

fn poisoned() -> io::Error {
    io::Error::other("an earlier request on this volume panicked")
}
