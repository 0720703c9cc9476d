//! A volume of `hearth-images` as the [`Storage`] of a block device.

use std::io;

use hearth_images::Disk;
use vm_memory::VolatileSlice;

use super::storage::Storage;

impl Storage for Disk {
    fn size_bytes(&self) -> u64 {
        Disk::size_bytes(self)
    }

    fn read(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.read_volatile(into, offset)
    }

    fn write(&self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        self.write_volatile(from, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        Disk::write_zeroes(self, offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Disk::discard(self, offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        Disk::flush(self)
    }

    fn close(&self) -> io::Result<()> {
        Ok(Disk::close(self)?)
    }
}
