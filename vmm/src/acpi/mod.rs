//! ACPI: the tables that describe the machine, and the registers they point to.
//!
//! # Fixed hardware, not hardware-reduced
//!
//! The machine has the fixed registers that every PC has (PM1a event and control block, reset
//! register, an SCI on line 9), not the newer "hardware-reduced" model with a generic event
//! device. Both boot Linux; fixed hardware was chosen because
//!
//! - `PM1_EN` tells whether the guest listens to the power button, and `PM1_STS` keeps a press
//!   until it does; a generic event device has neither, so a graceful stop could only guess;
//! - every kernel with ACPI drives it, BSDs included, without a driver for event devices and with
//!   no AML to interpret when the button is pressed;
//! - initialising it takes Linux about thirty port accesses, 1 ms even where each is emulated.
//!
//! A general-purpose event block tells of disks that come and go ([`hotplug`]), for the same
//! reasons: what happens while the guest boots waits until it listens.
//!
//! There is no PM timer, no SMI command port (the machine is always in ACPI mode), and no processor
//! objects: Linux takes its CPUs from the MADT, and objects would only start the C-state and P-state
//! drivers for states that aren't there.
//!
//! # Where the tables are
//!
//! ```text
//! 0xE0000 RSDP -> XSDT -> FADT -> FACS, DSDT
//!                      -> MADT
//! ```
//!
//! all in the BIOS area below 1 MiB that every boot protocol reserves, and that kernels without a
//! pointer to the RSDP search. Section numbers in this module are those of ACPI 6.5.

mod dsdt;
mod fixed;
pub mod hotplug;
pub mod pm;
#[cfg(test)]
mod tests;

use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use vm_memory::{Bytes, GuestAddress};

use crate::machine::layout;
use crate::memory::GuestMemory;

const OEM_ID: [u8; 6] = *b"HEARTH";
const OEM_TABLE_ID: [u8; 8] = *b"HEARTHVM";
const OEM_REVISION: u32 = 1;

/// What is in the BIOS area behind the tables.
const TABLES_END: u64 = layout::SMBIOS;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiConfig<'a> {
    /// Their local APIC ids are 0 to `vcpus - 1`.
    pub vcpus: u8,
    /// One for each slot. The guest finds those that can be plugged first, then the others, both in
    /// this order.
    pub devices: &'a [VirtioMmio],
    /// There is a pair of 8259 interrupt controllers (`KVM_CREATE_IRQCHIP`; the split one has
    /// none).
    pub has_pic: bool,
}

/// The place of one virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical start of its registers; below 4 GiB.
    pub base: u64,
    /// Bytes of its registers.
    pub size: u64,
    /// Interrupt line: edge-triggered, active high.
    pub gsi: u32,
    /// It may come and go while the guest runs: [`HotPlugRegisters`](hotplug::HotPlugRegisters)
    /// has a byte for it, of its index.
    pub pluggable: bool,
}

/// Why the tables could not be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// A device does not lie below 4 GiB.
    #[error("ACPI: the device at {base:#x} with {size:#x} bytes is not below 4 GiB")]
    Device {
        /// [`VirtioMmio::base`].
        base: u64,
        /// [`VirtioMmio::size`].
        size: u64,
    },
    /// More devices than the tables have names for.
    #[error("ACPI: {0} virtio-mmio devices are too many")]
    TooManyDevices(usize),
    /// A pluggable device for which there is no register.
    #[error("ACPI: slot {0} can't be plugged")]
    Slot(usize),
    /// The tables don't fit before the SMBIOS structures.
    #[error("ACPI: tables of {0} bytes don't fit into 64 KiB")]
    TooLarge(usize),
    /// The guest has no memory there.
    #[error("ACPI: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes all tables and returns the address of the RSDP, [`layout::ACPI_TABLES`].
pub fn write_tables(memory: &GuestMemory, config: &AcpiConfig) -> Result<GuestAddress, AcpiError> {
    let start = layout::ACPI_TABLES;
    let tables = build_tables(start, config)?;
    if start + tables.len() as u64 > TABLES_END {
        return Err(AcpiError::TooLarge(tables.len()));
    }
    memory.write_slice(&tables, GuestAddress(start))?;
    Ok(GuestAddress(start))
}

/// The bytes of all tables, RSDP first, for the guest-physical address `start` (a multiple of 64).
fn build_tables(start: u64, config: &AcpiConfig) -> Result<Vec<u8>, AcpiError> {
    let mut tables = Tables {
        start,
        bytes: vec![0; Rsdp::len()],
    };
    let facs = tables.append(&acpi_tables::facs::FACS::new());
    let dsdt = tables.append(&dsdt::build(config.devices)?);
    let fadt = tables.append(&fixed::fadt(facs, dsdt));
    let madt = tables.append(&fixed::madt(config));

    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.append(&xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Ok(tables.bytes)
}

/// Tables one after the other. The FACS must be aligned to 64 bytes (5.2.10); so all are.
struct Tables {
    start: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Returns the guest-physical address of `table`.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        let address = self.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// A table of which only the header is there.
fn header(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER_LENGTH: u32 = 36;
    Sdt::new(
        signature,
        HEADER_LENGTH,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}
