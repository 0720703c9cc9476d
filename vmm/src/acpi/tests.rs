//! Reads the tables back as a kernel does: from the RSDP, following addresses.

use vm_memory::{Bytes, GuestAddress};

use super::*;

const DEVICES: [VirtioMmio; 2] = [
    VirtioMmio {
        base: 0xd000_0000,
        size: 0x1000,
        gsi: 5,
        pluggable: false,
    },
    VirtioMmio {
        base: 0xd000_1000,
        size: 0x1000,
        gsi: 16,
        pluggable: true,
    },
];

fn written(vcpus: u8, devices: &[VirtioMmio]) -> (GuestMemory, u64) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let config = AcpiConfig {
        vcpus,
        devices,
        has_pic: true,
    };
    let rsdp = write_tables(&memory, &config).unwrap();
    (memory, rsdp.0)
}

fn bytes(memory: &GuestMemory, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// A table with its length and checksum as the header says.
fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
    let length = u32_at(&bytes(memory, address, 8), 4) as usize;
    let table = bytes(memory, address, length);
    assert_eq!(sum(&table), 0, "checksum of {:?}", &table[..4]);
    table
}

/// The tables that the XSDT names.
fn listed(memory: &GuestMemory, rsdp: u64) -> Vec<Vec<u8>> {
    let rsdp = bytes(memory, rsdp, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(&rsdp), 0);
    let xsdt = table(memory, u64_at(&rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    (36..xsdt.len())
        .step_by(8)
        .map(|entry| table(memory, u64_at(&xsdt, entry)))
        .collect()
}

#[test]
fn every_table_is_reached_from_the_rsdp_with_length_and_checksum_right() {
    let (memory, rsdp) = written(4, &DEVICES);
    assert_eq!(rsdp % 16, 0);
    let tables = listed(&memory, rsdp);
    let signatures: Vec<_> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC"]);
    let fadt = &tables[0];
    assert_eq!(fadt.len(), 276);
    let dsdt = table(&memory, u64_at(fadt, 140));
    assert_eq!(u64::from(u32_at(fadt, 40)), u64_at(fadt, 140));
    assert_eq!(&dsdt[..4], b"DSDT");
    let facs = u64::from(u32_at(fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(&bytes(&memory, facs, 4), b"FACS");
}

#[test]
fn the_fadt_points_to_the_ports_of_the_power_management_registers() {
    let (memory, rsdp) = written(1, &[]);
    let fadt = &listed(&memory, rsdp)[0];
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & (1 << 4), 0, "the power button is fixed hardware");
    assert_ne!(flags & (1 << 10), 0, "the reset register is there");
    assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
    assert_eq!(u32_at(fadt, 56), 0x600);
    assert_eq!(u32_at(fadt, 64), 0x604);
    assert_eq!(u64_at(fadt, 148 + 4), 0x600);
    assert_eq!(u64_at(fadt, 172 + 4), 0x604);
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0x606, 1));
    assert_eq!(u32_at(fadt, 48), 0, "no SMI command port");
}

#[test]
fn the_madt_lists_each_vcpu_and_the_io_apic() {
    for vcpus in [1, 2, 32] {
        let (memory, rsdp) = written(vcpus, &DEVICES);
        let madt = &listed(&memory, rsdp)[1];
        assert_eq!(u32_at(madt, 36), 0xfee0_0000);
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while !rest.is_empty() {
            let (entry, after) = rest.split_at(rest[1].into());
            entries.push(entry);
            rest = after;
        }
        let ids: Vec<_> = entries
            .iter()
            .filter(|e| e[0] == 0)
            .map(|e| (e[3], e[4]))
            .collect();
        assert_eq!(ids, (0..vcpus).map(|id| (id, 1)).collect::<Vec<_>>());
        let io_apics: Vec<_> = entries.iter().filter(|e| e[0] == 1).collect();
        assert_eq!(io_apics.len(), 1);
        assert_eq!(
            (u32_at(io_apics[0], 4), u32_at(io_apics[0], 8)),
            (0xfec0_0000, 0)
        );
        let sci: Vec<_> = entries.iter().filter(|e| e[0] == 2).collect();
        assert_eq!(sci.len(), 1);
        assert_eq!((sci[0][3], sci[0][4], sci[0][8]), (9, 9, 0b0101));
    }
}

#[test]
fn the_dsdt_names_each_device_with_its_place() {
    let (memory, rsdp) = written(1, &DEVICES);
    let dsdt = table(&memory, u64_at(&listed(&memory, rsdp)[0], 140));
    let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    assert!(has(b"V000") && has(b"V001") && !has(b"V002"));
    assert!(has(b"LNRO0005\0"));
    assert!(has(b"ACPI0004\0"), "what can be plugged is in a container");
    for device in &DEVICES {
        assert!(has(&(device.base as u32).to_le_bytes()));
        let mut interrupt = vec![0x89, 6, 0, 0b011, 1];
        interrupt.extend(device.gsi.to_le_bytes());
        assert!(has(&interrupt));
    }
}

#[test]
fn what_can_be_plugged_asks_its_register_and_what_can_not_is_always_there() {
    let (memory, rsdp) = written(1, &DEVICES);
    let tables = listed(&memory, rsdp);
    let dsdt = table(&memory, u64_at(&tables[0], 140));
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|w| *w == needle).count();
    // Method (_STA) { Return (S01_) }: opcode, length, name, flags, return, name.
    assert_eq!(count(b"\x14\x0b_STA\x00\xa4S01_"), 1);
    assert_eq!(count(b"_STA"), 1);
    // OperationRegion (STAR, SystemIO, 0x610, 16), with slot 1 behind eight reserved bits.
    assert_eq!(count(b"STAR\x01\x0b\x10\x06\x0a\x10"), 1);
    assert_eq!(count(b"STAR\x01\x00\x08S01_\x08"), 1);
    // Scope (_GPE) { Method (_E00) { Notify (\_SB.DISK, 0) } }
    assert_eq!(count(b"_E00\x00\x86\x5c\x2e_SB_DISK\x00"), 1);
    assert_eq!((u32_at(&tables[0], 80), tables[0][92]), (0x608, 2));
    assert_eq!(u64_at(&tables[0], 220 + 4), 0x608);

    let (memory, rsdp) = written(1, &DEVICES[..1]);
    let dsdt = table(&memory, u64_at(&listed(&memory, rsdp)[0], 140));
    assert!(!dsdt.windows(4).any(|w| w == b"_GPE" || w == b"DISK"));
}

#[test]
fn the_largest_machine_fits_below_one_mebibyte() {
    let devices: Vec<_> = (0..256)
        .map(|n| VirtioMmio {
            base: 0xd000_0000 + n * 0x1000,
            size: 0x1000,
            gsi: 23,
            pluggable: n < 16,
        })
        .collect();
    written(255, &devices);
}

#[test]
fn devices_that_cannot_be_described_are_refused() {
    let refused = |devices: &[VirtioMmio]| {
        build_tables(
            0xe0000,
            &AcpiConfig {
                vcpus: 1,
                devices,
                has_pic: false,
            },
        )
        .unwrap_err()
    };
    for (base, size) in [
        (u64::MAX, 1),
        (1 << 32, 0x1000),
        (0xffff_f000, 0x1001),
        (0, 0),
    ] {
        let device = VirtioMmio {
            base,
            size,
            gsi: 5,
            pluggable: false,
        };
        assert!(matches!(refused(&[device]), AcpiError::Device { .. }));
    }
    assert!(matches!(refused(&[DEVICES[1]; 17]), AcpiError::Slot(16)));
    assert!(matches!(
        refused(&[DEVICES[0]; 257]),
        AcpiError::TooManyDevices(257)
    ));
}

#[test]
fn a_guest_without_memory_at_the_tables_gets_an_error() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let config = AcpiConfig {
        vcpus: 1,
        devices: &[],
        has_pic: true,
    };
    assert!(matches!(
        write_tables(&memory, &config),
        Err(AcpiError::Memory(_))
    ));
}
