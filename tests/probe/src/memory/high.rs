//! Maps memory above 4 GiB, which the page tables in the image leave out, and hands out buffers
//! in it.

use alloc::alloc::{Layout, alloc_zeroed};

use crate::boot::information::{self, MemoryRange, USABLE};
use crate::cell::Global;

const FOUR_GIB: u64 = 4 << 30;
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Entries of the page directory pointer table: 512 GiB.
const POINTERS: u64 = 512;
/// Present, writable, user, accessed; and for pages: dirty, large.
const TABLE_FLAGS: u64 = 0x27;
const PAGE_FLAGS: u64 = 0xe7;

unsafe extern "C" {
    static mut page_pointers: [u64; POINTERS as usize];
}

static MAPPED: Global<bool> = Global::new(false);

/// Maps all memory above 4 GiB that the memory map shows. Page tables are writable in user mode.
pub fn map() {
    let mut mapped = MAPPED.borrow();
    if *mapped {
        return;
    }
    *mapped = true;
    information::memory_map(|range| {
        let first = range.start.max(FOUR_GIB) / GIB;
        let end = range
            .start
            .saturating_add(range.length)
            .div_ceil(GIB)
            .min(POINTERS);
        for gib in first..end {
            map_gib(gib);
        }
    });
}

fn map_gib(gib: u64) {
    // SAFETY: the table is ours; nothing but this function writes it, and an entry that was not
    // present needs no TLB flush.
    unsafe {
        let pointer = (&raw mut page_pointers).cast::<u64>().add(gib as usize);
        if pointer.read_volatile() != 0 {
            return;
        }
        let layout = Layout::from_size_align(4096, 4096).expect("a page");
        let table = alloc_zeroed(layout).cast::<u64>();
        assert!(!table.is_null(), "no memory for a page table");
        for entry in 0..512 {
            let address = gib * GIB + entry * LARGE_PAGE;
            table
                .add(entry as usize)
                .write_volatile(address | PAGE_FLAGS);
        }
        pointer.write_volatile(table as u64 | TABLE_FLAGS);
    }
}

/// The largest range of usable memory above 4 GiB, mapped.
pub fn range() -> Option<MemoryRange> {
    let mut best: Option<MemoryRange> = None;
    information::memory_map(|range| {
        let larger = best.is_none_or(|other| other.length < range.length);
        if range.kind == USABLE && range.start >= FOUR_GIB && larger {
            best = Some(range);
        }
    });
    map();
    best
}
