//! The 64-bit Linux boot protocol: `boot_params` (Documentation/arch/x86/boot.rst and
//! zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress};

use super::load::LoadedKernel;
use super::{BootError, InitrdRange, MapEntry};
use crate::machine::layout;
use crate::memory::GuestMemory;

/// `boot_flag` and `header` of a valid setup header.
const BOOT_FLAG: u16 = 0xaa55;
const HDRS: u32 = 0x5372_6448;
/// `type_of_loader`: a loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// `kernel_alignment` for ELF kernels, which have no header that names one.
const ALIGNMENT: u32 = 0x100_0000;

/// `SETUP_RNG_SEED`.
const RNG_SEED: u32 = 9;
const SEED_BYTES: usize = 32;

pub(super) fn write_boot_params(
    memory: &GuestMemory,
    map: &[MapEntry],
    kernel: &LoadedKernel,
    initrd: Option<InitrdRange>,
    arguments: &str,
    rsdp: Option<GuestAddress>,
) -> Result<(), BootError> {
    let mut params = boot_params::default();
    if let Some(header) = kernel.header {
        params.hdr = header;
    } else {
        params.hdr.kernel_alignment = ALIGNMENT;
    }
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HDRS;
    params.hdr.type_of_loader = LOADER_OTHER;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = arguments.len() as u32 + 1;
    params.hdr.setup_data = write_rng_seed(memory)?;
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.length as u32;
    }
    if let Some(rsdp) = rsdp {
        params.acpi_rsdp_addr = rsdp.0;
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.length,
            r#type: entry.kind as u32,
        };
    }
    params.e820_entries = map.len() as u8;
    memory.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
    Ok(())
}

/// Writes a `struct setup_data` with a seed, so that the kernel has good random numbers from its
/// first moment; wiped by the kernel. Returns its address, or 0 if the host has no entropy yet.
fn write_rng_seed(memory: &GuestMemory) -> Result<u64, BootError> {
    let mut seed = [0; SEED_BYTES];
    if getrandom::fill(&mut seed).is_err() {
        return Ok(0);
    }
    let header = [0u64, u64::from(RNG_SEED) | (SEED_BYTES as u64) << 32];
    memory.write_obj(header, GuestAddress(layout::SETUP_DATA))?;
    let data = layout::SETUP_DATA + size_of_val(&header) as u64;
    memory.write_slice(&seed, GuestAddress(data))?;
    Ok(layout::SETUP_DATA)
}
