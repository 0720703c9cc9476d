//! Where things are in the guest's physical address space, its I/O ports and interrupt lines.
//!
//! Below 1 MiB follows the PC's conventions (Documentation/arch/x86/boot.rst): boot structures in
//! low memory, the extended BIOS data area at 639 KiB, the BIOS area above 896 KiB.

/// Global descriptor table that the boot vCPU starts with.
pub const BOOT_GDT: u64 = 0x500;
/// Empty interrupt descriptor table that the boot vCPU starts with.
pub const BOOT_IDT: u64 = 0x520;
/// `hvm_start_info` of the PVH boot protocol; its module list and memory map follow it.
pub const PVH_START_INFO: u64 = 0x6000;
/// `hvm_modlist_entry` of the initrd.
pub const PVH_MODLIST: u64 = 0x6040;
/// `hvm_memmap_table_entry` array.
pub const PVH_MEMMAP: u64 = 0x6100;
/// `setup_data` of the Linux boot protocol: the seed of the random number generator.
pub const SETUP_DATA: u64 = 0x6800;
/// `boot_params` of the Linux boot protocol ("zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB one to one: PML4, PDPT, four PDs.
pub const BOOT_PML4: u64 = 0x9000;
/// Kernel arguments.
pub const CMDLINE: u64 = 0x20000;
/// Bytes that the kernel arguments may take, with the zero at their end.
pub const CMDLINE_MAX: usize = 0x10000;

/// End of usable low memory; the MP table starts here (extended BIOS data area).
pub const EBDA: u64 = 0x9fc00;
/// End of the extended BIOS data area.
pub const EBDA_END: u64 = 0xa0000;
/// ACPI tables: RSDP first, in the area that kernels search for it.
pub const ACPI_TABLES: u64 = 0xe0000;
/// SMBIOS: the entry point first, in the area that kernels search for it.
pub const SMBIOS: u64 = 0xf0000;
/// Start of high memory: kernels are loaded at or above.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// End of memory below the hole for devices (3 GiB); what is more goes above 4 GiB.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Start of memory above the hole.
pub const ABOVE_4G: u64 = 0x1_0000_0000;

/// First virtio-mmio device; the others follow at [`VIRTIO_MMIO_STRIDE`].
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Distance, and size, of virtio-mmio windows.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of the I/O APIC's registers.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APICs.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM needs on Intel CPUs (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on Intel CPUs (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First port of COM1; eight ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of COM1.
pub const SERIAL_GSI: u32 = 4;
/// First port of the ACPI power-management block.
pub const ACPI_PM_PORT: u16 = 0x600;
/// First port of the ACPI registers for disks that come and go.
pub const ACPI_HOTPLUG_PORT: u16 = 0x608;
/// Interrupt line of ACPI events (SCI).
pub const ACPI_SCI_GSI: u32 = 9;
/// Command port of the keyboard controller; only its reset command is there.
pub const I8042_COMMAND_PORT: u16 = 0x64;

/// Interrupt lines for virtio-mmio devices, in the order in which they are given out: none that a
/// PC's fixed devices use (timer, cascade, COM1 and COM2, clock, SCI, FPU). The I/O APIC has 24.
pub const VIRTIO_GSIS: [u32; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

/// Memory ranges `(start, length)` in bytes of a guest with `memory_bytes` of RAM.
pub fn memory_ranges(memory_bytes: u64) -> Vec<(u64, u64)> {
    if memory_bytes <= LOW_MEMORY_END {
        vec![(0, memory_bytes)]
    } else {
        vec![
            (0, LOW_MEMORY_END),
            (ABOVE_4G, memory_bytes - LOW_MEMORY_END),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_past_three_gib_goes_above_the_hole_and_none_is_lost() {
        assert_eq!(memory_ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(
            memory_ranges((3 << 30) + (2 << 20)),
            [(0, 3 << 30), (4 << 30, 2 << 20)]
        );
        let total: u64 = memory_ranges(16 << 30).iter().map(|range| range.1).sum();
        assert_eq!(total, 16 << 30);
    }
}
