//! The MP table (Intel MultiProcessor Specification 1.4): CPUs and interrupt lines for kernels
//! that run without ACPI.

use vm_memory::{Bytes, GuestAddress};

use crate::machine::layout;
use crate::memory::GuestMemory;

/// Version 1.4.
const SPECIFICATION: u8 = 4;
/// Version of the APICs, as KVM's registers tell it.
const APIC_VERSION: u8 = 0x14;
/// Bus 0 is the ISA bus; all lines belong to it.
const ISA_BUS: u8 = 0;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;
/// Active high, edge-triggered (4.3.4).
const FLAGS_EDGE: u16 = 0b0101;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Why the MP table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum MpTableError {
    /// The table doesn't fit into the extended BIOS data area.
    #[error("MP table: {0} bytes don't fit into the extended BIOS data area")]
    TooLarge(usize),
    /// A line has a number that an I/O APIC can't have.
    #[error("MP table: no I/O APIC has an interrupt line {0}")]
    Line(u32),
    /// The guest has no memory there.
    #[error("MP table: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Writes the floating pointer structure and the table at [`layout::EBDA`]. `lines` are the I/O
/// APIC's inputs that have a device; each is the ISA interrupt of the same number.
pub fn write(memory: &GuestMemory, vcpus: u8, lines: &[u32]) -> Result<(), MpTableError> {
    let bytes = build(layout::EBDA, vcpus, lines)?;
    if layout::EBDA + bytes.len() as u64 > layout::EBDA_END {
        return Err(MpTableError::TooLarge(bytes.len()));
    }
    memory.write_slice(&bytes, GuestAddress(layout::EBDA))?;
    Ok(())
}

fn build(start: u64, vcpus: u8, lines: &[u32]) -> Result<Vec<u8>, MpTableError> {
    let io_apic = vcpus;
    let mut entries = Vec::new();
    for id in 0..vcpus {
        entries.push(processor(id));
    }
    entries.push([&[ENTRY_BUS, ISA_BUS][..], b"ISA   "].concat());
    let address = (layout::IOAPIC as u32).to_le_bytes();
    entries.push([&[ENTRY_IO_APIC, io_apic, APIC_VERSION, 1][..], &address].concat());
    for &line in lines {
        let line = u8::try_from(line).map_err(|_| MpTableError::Line(line))?;
        entries.push(interrupt(
            ENTRY_IO_INTERRUPT,
            INTERRUPT_INT,
            FLAGS_EDGE,
            line,
            [io_apic, line],
        ));
    }
    // LINT0 and LINT1, as after a PC's firmware.
    let local = |kind, destination| interrupt(ENTRY_LOCAL_INTERRUPT, kind, 0, 0, destination);
    entries.push(local(INTERRUPT_EXTINT, [0, 0]));
    entries.push(local(INTERRUPT_NMI, [ALL_LOCAL_APICS, 1]));

    let mut bytes = floating_pointer(start);
    bytes.extend(configuration(&entries));
    Ok(bytes)
}

/// MP floating pointer structure (4.1); the table follows it.
fn floating_pointer(start: u64) -> Vec<u8> {
    let table = start as u32 + 16;
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    // Length in units of 16 bytes; no default configuration, no IMCR.
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// MP configuration table (4.2).
fn configuration(entries: &[Vec<u8>]) -> Vec<u8> {
    const HEADER: usize = 44;
    let length = HEADER + entries.iter().map(Vec::len).sum::<usize>();
    let mut bytes = b"PCMP".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend([SPECIFICATION, 0]);
    bytes.extend(b"HEARTH  MICRO-VM    ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend((layout::LAPIC as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(entries.concat());
    bytes[7] = checksum(&bytes);
    bytes
}

/// Processor entry (4.3.1).
fn processor(id: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    let flags = if id == 0 {
        ENABLED | BOOTSTRAP
    } else {
        ENABLED
    };
    let mut entry = vec![ENTRY_PROCESSOR, id, APIC_VERSION, flags];
    // Signature: family 6. Features: FPU, MSR, APIC. Kernels ask CPUID instead.
    entry.extend(0x600u32.to_le_bytes());
    entry.extend(0x221u32.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// I/O or local interrupt assignment entry (4.3.4, 4.3.5); `destination` is an APIC and its pin.
fn interrupt(entry: u8, kind: u8, flags: u16, source: u8, destination: [u8; 2]) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    vec![
        entry,
        kind,
        low,
        high,
        ISA_BUS,
        source,
        destination[0],
        destination[1],
    ]
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Entries by their type, as a kernel walks them.
    fn parse(bytes: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(&bytes[..4], b"_MP_");
        assert_eq!(sum(&bytes[..16]), 0);
        let pointer = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        assert_eq!(u64::from(pointer), layout::EBDA + 16);
        let table = &bytes[16..];
        assert_eq!(&table[..4], b"PCMP");
        let length = u16::from_le_bytes(table[4..6].try_into().unwrap());
        assert_eq!(usize::from(length), table.len());
        assert_eq!(sum(table), 0);
        let mut entries = Vec::new();
        let mut rest = &table[44..];
        while !rest.is_empty() {
            let (entry, after) = rest.split_at(if rest[0] == ENTRY_PROCESSOR { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = after;
        }
        let count = u16::from_le_bytes(table[34..36].try_into().unwrap());
        assert_eq!(usize::from(count), entries.len());
        entries
    }

    #[test]
    fn the_table_lists_each_vcpu_once_and_the_first_boots() {
        let entries = parse(&build(layout::EBDA, 3, &[0, 4]).unwrap());
        let processors: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == ENTRY_PROCESSOR)
            .map(|e| (e[1], e[3]))
            .collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1)]);
    }

    #[test]
    fn each_line_goes_to_the_pin_of_the_same_number() {
        let entries = parse(&build(layout::EBDA, 2, &[0, 4, 5, 23]).unwrap());
        let lines: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == ENTRY_IO_INTERRUPT)
            .map(|e| (e[5], e[6], e[7]))
            .collect();
        assert_eq!(lines, [(0, 2, 0), (4, 2, 4), (5, 2, 5), (23, 2, 23)]);
    }

    #[test]
    fn the_largest_guest_fits_into_the_extended_bios_data_area() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0xa0000)]).unwrap();
        let lines: Vec<u32> = (0..24).collect();
        write(&memory, crate::config::MAX_VCPUS, &lines).unwrap();
        let refused = write(&memory, 255, &lines).unwrap_err();
        assert!(matches!(refused, MpTableError::TooLarge(_)));
    }

    #[test]
    fn a_line_that_no_io_apic_has_is_refused() {
        let refused = build(layout::EBDA, 1, &[256]).unwrap_err();
        assert!(matches!(refused, MpTableError::Line(256)));
    }
}
