//! What a block device asks of a disk.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

/// A disk that never gets smaller. All offsets and lengths are in bytes, within the disk, and multiples
/// of 512. May be called from several threads at once; what overlaps in time and place has no
/// order.
pub trait Storage: Send + Sync {
    /// Size of the disk.
    fn size_bytes(&self) -> u64;
    /// Fills all of `into`.
    fn read(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;
    /// Writes all of `from`.
    fn write(&self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<()>;
    /// The range reads as zeroes afterwards; with `may_unmap`, its space may be given back.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
    /// Nobody needs what is in the range.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// What has been written before is durable afterwards.
    fn flush(&self) -> io::Result<()>;
    /// As [`flush`](Self::flush), and nothing comes after it.
    fn close(&self) -> io::Result<()>;
}

/// Shared with those who do more with a disk than its guest may.
impl<T: Storage + ?Sized> Storage for Arc<T> {
    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }

    fn read(&self, into: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        (**self).read(into, offset)
    }

    fn write(&self, from: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        (**self).write(from, offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        (**self).write_zeroes(offset, len, may_unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).discard(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        (**self).flush()
    }

    fn close(&self) -> io::Result<()> {
        (**self).close()
    }
}
