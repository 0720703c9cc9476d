//! The PVH boot protocol: `hvm_start_info` version 1 (Xen, docs/misc/pvh.pandoc).

use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, InitrdRange, MapEntry};
use crate::machine::layout;
use crate::memory::GuestMemory;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

pub(super) fn write_start_info(
    memory: &GuestMemory,
    map: &[MapEntry],
    initrd: Option<InitrdRange>,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp.map_or(0, |address| address.0),
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODLIST;
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.length,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(layout::PVH_MODLIST))?;
    }
    for (index, entry) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.length,
            type_: entry.kind as u32,
            reserved: 0,
        };
        let address = layout::PVH_MEMMAP + (index * size_of_val(&entry)) as u64;
        memory.write_obj(entry, GuestAddress(address))?;
    }
    memory.write_obj(info, GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}
