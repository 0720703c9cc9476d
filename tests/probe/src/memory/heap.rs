//! The heap: what is behind the image, touched only where it is used.

use linked_list_allocator::LockedHeap;

use crate::boot::information::{self, USABLE};

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// The heap takes half of the memory behind the image, at most this.
const HEAP_MAX: u64 = 64 << 20;

unsafe extern "C" {
    static image_end: u8;
}

/// First byte behind the image.
fn start() -> u64 {
    &raw const image_end as u64
}

/// Range of the heap: first byte, bytes.
pub fn range() -> (u64, u64) {
    let mut end = 0;
    information::memory_map(|range| {
        let range_end = range.start.saturating_add(range.length);
        if range.kind == USABLE && (range.start..range_end).contains(&start()) {
            end = range_end;
        }
    });
    (start(), (end.saturating_sub(start()) / 2).min(HEAP_MAX))
}

/// Makes the heap usable.
pub fn init() {
    let (start, bytes) = range();
    assert!(
        bytes >= 1 << 20,
        "the memory map shows no memory behind the image"
    );
    // SAFETY: usable memory behind the image that nobody else uses; called once.
    unsafe { HEAP.lock().init(start as *mut u8, bytes as usize) };
}
