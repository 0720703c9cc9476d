//! Memory that devices reach: any memory, as addresses are physical ones.

use alloc::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use core::ptr::NonNull;

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

use super::high;

/// For the drivers of `virtio-drivers`.
pub struct Identity;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("a few pages")
}

// SAFETY: pages come from the heap, zeroed, aligned, owned by the caller; physical addresses are
// virtual ones.
unsafe impl Hal for Identity {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the size isn't zero: no driver asks for no page.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout(pages.max(1))) });
        let pointer = pointer.expect("the heap is full");
        (pointer.as_ptr() as PhysAddr, pointer)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: it came from `dma_alloc` with the same number of pages.
        unsafe { dealloc(vaddr.as_ptr(), layout(pages.max(1))) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.cast::<u8>().as_ptr() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Bytes that a device may read and write while we look elsewhere. They are given back when it is
/// dropped, which must not be before the device is done with them.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
    from_heap: bool,
}

impl Buffer {
    /// A zeroed buffer on the heap, aligned to a page; `None` if there is no room.
    pub fn new(length: usize) -> Option<Self> {
        // SAFETY: the size isn't zero.
        let start = NonNull::new(unsafe { alloc_zeroed(Self::layout(length)?) })?;
        Some(Self {
            start,
            length,
            from_heap: true,
        })
    }

    /// A buffer with whatever was there before, which spares the time to touch it all: the first
    /// touch of a page is dear on software KVM.
    pub fn uncleared(length: usize) -> Option<Self> {
        // SAFETY: the size isn't zero. What is in the pages is somebody's bytes, not undefined
        // ones, once the compiler no longer knows where they come from.
        let start = core::hint::black_box(unsafe { alloc(Self::layout(length)?) });
        let start = NonNull::new(start)?;
        Some(Self {
            start,
            length,
            from_heap: true,
        })
    }

    /// A buffer above 4 GiB; there is only one, used by one command at a time.
    pub fn above_4_gib(length: usize) -> Option<Self> {
        let range = high::range().filter(|range| range.length >= length as u64)?;
        let start = NonNull::new(range.start as *mut u8)?;
        Some(Self {
            start,
            length,
            from_heap: false,
        })
    }

    fn layout(length: usize) -> Option<Layout> {
        Layout::from_size_align(length.max(1), PAGE_SIZE).ok()
    }

    /// Physical address.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// The bytes. No device may be writing them.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: ours alone, of this length; the caller sees to the device.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.from_heap
            && let Some(layout) = Self::layout(self.length)
        {
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}
