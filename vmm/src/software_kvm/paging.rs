//! From a linear to a guest-physical address, with the guest's own page tables.
//!
//! `KVM_TRANSLATE` would be shorter but doesn't tell whether a page may be written: a write to a
//! page that the guest shares copy-on-write would then go through.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::cpu::{Control, Exception, Stop, control};
use crate::memory::GuestMemory;

pub(super) const PAGE_SIZE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Bits of a page-table entry (Intel SDM volume 3, 4.5.4).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Error code of a page fault (4.7).
const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;

/// Where `linear` lies for an access at privilege level 0. `may_touch_user` is EFLAGS.AC, which
/// matters under SMAP. Sets accessed and dirty bits as the CPU does.
pub(super) fn translate(
    memory: &GuestMemory,
    control: &Control,
    linear: u64,
    access: Access,
    may_touch_user: bool,
) -> Result<u64, Stop> {
    if control.cr0 & control::CR0_PAGING == 0 {
        return Ok(linear & 0xffff_ffff);
    }
    if control.efer & control::EFER_LONG_MODE_ACTIVE == 0 {
        return Err(Stop::Unsupported("a memory operand under 32-bit paging"));
    }
    let levels = if control.cr4 & control::CR4_LA57 == 0 {
        4
    } else {
        5
    };
    let unused_bits = 64 - (12 + 9 * levels);
    if (linear as i64) << unused_bits >> unused_bits != linear as i64 {
        return Err(Exception::GENERAL_PROTECTION.into());
    }

    let fault = |present: bool| {
        let mut code = if present { FAULT_PRESENT } else { 0 };
        if access == Access::Write {
            code |= FAULT_WRITE;
        }
        Stop::Exception(Exception {
            vector: 14,
            error_code: Some(code),
            address: Some(linear),
        })
    };
    let mut permissions = WRITABLE | USER;
    let mut table = control.cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let place = table + (linear >> shift & 0x1ff) * 8;
        let entry: u64 = memory
            .read_obj(GuestAddress(place))
            .map_err(|_| Stop::Unsupported("a page table outside the guest's memory"))?;
        if entry & PRESENT == 0 {
            return Err(fault(false));
        }
        permissions &= entry;
        let is_last = level == 0 || (level <= 2 && entry & LARGE != 0);
        if !is_last {
            set_bits(memory, place, entry, ACCESSED);
            table = entry & ADDRESS;
            continue;
        }
        let is_write = access == Access::Write;
        let is_protected = control.cr0 & control::CR0_WRITE_PROTECT != 0;
        if is_write && permissions & WRITABLE == 0 && is_protected {
            return Err(fault(true));
        }
        let has_smap = control.cr4 & control::CR4_SMAP != 0;
        if permissions & USER != 0 && has_smap && !may_touch_user {
            return Err(fault(true));
        }
        set_bits(
            memory,
            place,
            entry,
            if is_write { ACCESSED | DIRTY } else { ACCESSED },
        );
        let offset = (1 << shift) - 1;
        return Ok((entry & ADDRESS & !offset) | (linear & offset));
    }
    Err(Stop::Unsupported("paging without levels"))
}

fn set_bits(memory: &GuestMemory, place: u64, entry: u64, bits: u64) {
    if entry & bits == bits {
        return;
    }
    let Ok(slice) = memory.get_slice(GuestAddress(place), 8) else {
        return;
    };
    let guard = slice.ptr_guard_mut();
    // SAFETY: the pointer is to eight mapped bytes of guest memory, aligned because page-table
    // entries are; the guard keeps them mapped; whoever else writes there is the guest, by its own
    // atomic instructions or by races that it has without us.
    let entry = unsafe { AtomicU64::from_ptr(guard.as_ptr().cast()) };
    entry.fetch_or(bits, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PML4: u64 = 0x1000;
    const PAGES: [u64; 3] = [0x2000, 0x3000, 0x4000];

    /// Maps linear 0x40_0000 (4 KiB pages) and 0x60_0000 (a 2 MiB page).
    fn guest(leaf: u64) -> (GuestMemory, Control) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let write = |place, entry: u64| memory.write_obj(entry, GuestAddress(place)).unwrap();
        let all = PRESENT | WRITABLE | USER;
        write(PML4, PAGES[0] | all);
        write(PAGES[0], PAGES[1] | all);
        write(PAGES[1] + 2 * 8, PAGES[2] | all);
        write(PAGES[1] + 3 * 8, 0x80_0000 | LARGE | leaf);
        write(PAGES[2], 0x5000 | leaf);
        let control = Control {
            cr0: control::CR0_PAGING | control::CR0_WRITE_PROTECT,
            cr3: PML4,
            efer: control::EFER_LONG_MODE_ACTIVE,
            ..Default::default()
        };
        (memory, control)
    }

    fn fault(result: Result<u64, Stop>) -> Exception {
        match result {
            Err(Stop::Exception(exception)) => exception,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn small_and_large_pages_translate_and_are_marked() {
        let (memory, control) = guest(PRESENT | WRITABLE);
        let read = translate(&memory, &control, 0x40_0123, Access::Read, false).unwrap();
        assert_eq!(read, 0x5123);
        let entry = |place| memory.read_obj::<u64>(GuestAddress(place)).unwrap();
        assert_eq!(entry(PAGES[2]) & (ACCESSED | DIRTY), ACCESSED);
        let written = translate(&memory, &control, 0x61_2345, Access::Write, false).unwrap();
        assert_eq!(written, 0x81_2345);
        assert_eq!(entry(PAGES[1] + 24) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    }

    #[test]
    fn a_missing_page_faults_with_its_address() {
        let (memory, control) = guest(PRESENT);
        let exception = fault(translate(
            &memory,
            &control,
            0x40_1008,
            Access::Write,
            false,
        ));
        assert_eq!(
            (exception.vector, exception.error_code),
            (14, Some(FAULT_WRITE))
        );
        assert_eq!(exception.address, Some(0x40_1008));
    }

    #[test]
    fn a_read_only_page_can_be_written_only_without_write_protection() {
        let (memory, mut control) = guest(PRESENT);
        let exception = fault(translate(
            &memory,
            &control,
            0x40_0000,
            Access::Write,
            false,
        ));
        assert_eq!(exception.error_code, Some(FAULT_WRITE | FAULT_PRESENT));
        control.cr0 &= !control::CR0_WRITE_PROTECT;
        translate(&memory, &control, 0x40_0000, Access::Write, false).unwrap();
    }

    #[test]
    fn smap_keeps_the_kernel_from_user_pages_until_it_says_so() {
        let (memory, mut control) = guest(PRESENT | WRITABLE | USER);
        control.cr4 = control::CR4_SMAP;
        fault(translate(&memory, &control, 0x40_0000, Access::Read, false));
        translate(&memory, &control, 0x40_0000, Access::Read, true).unwrap();
    }

    #[test]
    fn addresses_that_are_not_canonical_are_a_protection_fault() {
        let (memory, control) = guest(PRESENT);
        let exception = fault(translate(&memory, &control, 1 << 47, Access::Read, false));
        assert_eq!(exception, Exception::GENERAL_PROTECTION);
    }

    #[test]
    fn a_page_table_outside_memory_is_no_crash() {
        let (memory, mut control) = guest(PRESENT);
        control.cr3 = 0xffff_ffff_f000;
        let result = translate(&memory, &control, 0, Access::Read, false);
        assert!(matches!(result, Err(Stop::Unsupported(_))));
    }
}
