//! The CPU mode in which each boot protocol wants the boot vCPU: descriptor table, page tables,
//! control registers.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Entry};
use crate::machine::layout;
use crate::memory::GuestMemory;

/// CPU mode at the kernel's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// Long mode, paging on, the first 4 GiB mapped one to one; `boot_params` in RSI.
    Long64,
    /// Protected mode, flat, paging off; `hvm_start_info` in EBX.
    Protected32,
}

/// Selectors `__BOOT_CS` and `__BOOT_DS` of the boot protocol.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Where the third PVH-only segment, a task state segment, would be.
const TSS_SELECTOR: u16 = 0x20;

const CODE64: u64 = 0x00af_9b00_0000_ffff;
const CODE32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TSS: u64 = 0x0000_8b00_0000_0067;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;

/// Writes descriptor and page tables, and changes `sregs` to the state that `entry` wants.
/// Returns the general registers.
pub fn write_boot_tables(
    memory: &GuestMemory,
    entry: &Entry,
    sregs: &mut kvm_sregs,
) -> Result<kvm_regs, BootError> {
    let code = match entry.mode {
        EntryMode::Long64 => CODE64,
        EntryMode::Protected32 => CODE32,
    };
    let gdt = [0, 0, code, DATA, TSS];
    for (index, descriptor) in gdt.iter().enumerate() {
        memory.write_obj(
            *descriptor,
            GuestAddress(layout::BOOT_GDT + 8 * index as u64),
        )?;
    }
    memory.write_obj(0u64, GuestAddress(layout::BOOT_IDT))?;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = size_of_val(&gdt) as u16 - 1;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 7;

    let long = entry.mode == EntryMode::Long64;
    sregs.cs = flat_segment(CODE_SELECTOR, 11);
    sregs.cs.l = u8::from(long);
    sregs.cs.db = u8::from(!long);
    let data = flat_segment(DATA_SELECTOR, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TSS_SELECTOR,
        limit: 0x67,
        type_: 11,
        present: 1,
        ..Default::default()
    };

    let mut regs = kvm_regs {
        rip: entry.rip,
        rflags: RFLAGS,
        ..Default::default()
    };
    if long {
        write_page_tables(memory)?;
        sregs.cr3 = layout::BOOT_PML4;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
        regs.rsp = layout::BOOT_STACK;
        regs.rsi = entry.info;
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
        sregs.cr4 = 0;
        sregs.efer = 0;
        regs.rbx = entry.info;
    }
    Ok(regs)
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    }
}

/// Maps the first 4 GiB one to one with pages of 2 MiB.
fn write_page_tables(memory: &GuestMemory) -> Result<(), BootError> {
    const TABLE: u64 = 0x1000;
    const PDS: u64 = 4;
    let pdpt = layout::BOOT_PML4 + TABLE;
    let first_pd = pdpt + TABLE;
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(layout::BOOT_PML4))?;
    for index in 0..PDS {
        let pd = first_pd + index * TABLE;
        memory.write_obj(pd | PRESENT_WRITABLE, GuestAddress(pdpt + 8 * index))?;
    }
    let mut entries = Vec::with_capacity((PDS * TABLE) as usize);
    for page in 0..PDS * TABLE / 8 {
        entries.extend_from_slice(&((page << 21) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(first_pd))?;
    Ok(())
}
