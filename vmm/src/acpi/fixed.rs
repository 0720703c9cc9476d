//! The tables without AML: FADT (fixed hardware) and MADT (interrupt controllers).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::hotplug::HotPlugRegisters;
use super::pm::PowerManagement;
use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID, header};
use crate::machine::layout;

/// IAPC_BOOT_ARCH (5.2.9.3): no VGA, no CMOS clock. Bits that are clear say that there is no
/// keyboard controller and nothing else on an ISA bus but what the DSDT names.
const BOOT_ARCHITECTURE: u16 = VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT;
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Latencies beyond 100 and 1000 µs say that C2 and C3 don't exist (5.2.9).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// FADT, revision 6 (5.2.9), for a FACS and a DSDT at guest-physical addresses below 4 GiB.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let port = |offset: u64| u64::from(layout::ACPI_PM_PORT) + offset;
    let register =
        |bits, access, offset| GAS::new(AddressSpace::SystemIo, bits, 0, access, port(offset));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // These two say that there is *no* fixed sleep button and no clock that wakes. The bit of
        // the power button is clear: it is fixed hardware.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (layout::ACPI_SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = (port(PowerManagement::PM1_EVENT) as u32).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = register(32, AccessSize::WordAccess, PowerManagement::PM1_EVENT);
    fadt.pm1a_cnt_blk = (port(PowerManagement::PM1_CONTROL) as u32).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = register(16, AccessSize::WordAccess, PowerManagement::PM1_CONTROL);
    let gpe0 = u64::from(layout::ACPI_HOTPLUG_PORT) + HotPlugRegisters::GPE0;
    fadt.gpe0_blk = (gpe0 as u32).into();
    fadt.gpe0_blk_len = HotPlugRegisters::GPE0_LENGTH;
    fadt.x_gpe0_blk = GAS::new(
        AddressSpace::SystemIo,
        HotPlugRegisters::GPE0_LENGTH * 8,
        0,
        AccessSize::ByteAccess,
        gpe0,
    );
    fadt.reset_reg = register(8, AccessSize::ByteAccess, PowerManagement::RESET);
    fadt.reset_value = PowerManagement::RESET_VALUE;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.finalize()
}

/// MADT, revision 5 (5.2.12).
pub(super) fn madt(config: &AcpiConfig) -> Sdt {
    let mut table = header(*b"APIC", 5);
    table.append_slice(&(layout::LAPIC as u32).to_le_bytes());
    // PCAT_COMPAT. When it is clear, Linux probes for the controllers, finds none and goes on.
    table.append_slice(&u32::from(config.has_pic).to_le_bytes());
    for id in 0..config.vcpus {
        table.append_slice(&local_apic(id));
    }
    table.append_slice(&io_apic(config.vcpus));
    table.append_slice(&sci_override());
    table.append_slice(&nmi_on_lint1());
    table
}

/// Processor Local APIC (5.2.12.2); enabled. The processor's uid is its APIC id.
fn local_apic(id: u8) -> [u8; 8] {
    [0, 8, id, id, 1, 0, 0, 0]
}

/// I/O APIC (5.2.12.3) whose first input is interrupt line 0.
fn io_apic(id: u8) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..3].copy_from_slice(&[1, 12, id]);
    entry[4..8].copy_from_slice(&(layout::IOAPIC as u32).to_le_bytes());
    entry
}

/// Interrupt Source Override (5.2.12.5): the SCI is edge-triggered and active high, for it is an
/// irqfd, which pulses its line. (Without this entry it would be level-triggered, active low.)
fn sci_override() -> [u8; 10] {
    const ACTIVE_HIGH_EDGE: u8 = 0b0101;
    let gsi = layout::ACPI_SCI_GSI as u8;
    [2, 10, 0, gsi, gsi, 0, 0, 0, ACTIVE_HIGH_EDGE, 0]
}

/// Local APIC NMI (5.2.12.7): LINT1 of all processors.
fn nmi_on_lint1() -> [u8; 6] {
    [4, 6, 0xff, 0, 0, 1]
}
