//! SMBIOS: who made the machine, and which one it is, for guests that look there. cloud-init knows a
//! machine of EC2's kind by its UUID.
//!
//! DMTF DSP0134, version 3.0: an entry point that kernels search in the BIOS area, and behind it the
//! structures. Section numbers in this module are of that version.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::layout;
use crate::memory::GuestMemory;

/// Most bytes of a text (what version 2 of the specification lets a string have).
pub const MAX_TEXT_BYTES: usize = 64;

/// What the machine says of itself. Texts have 1 to [`MAX_TEXT_BYTES`] bytes of printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemConfig {
    /// Who makes such machines (`sys_vendor` in Linux).
    pub manufacturer: String,
    /// Which kind it is (`product_name`).
    pub product: String,
    /// Which one it is (`product_serial`).
    pub serial: String,
    /// What its owner calls it (`board_asset_tag`).
    pub asset_tag: String,
    /// Which one it is (`product_uuid`), as Linux shows it.
    pub uuid: Uuid,
}

/// A text that can't be in the tables.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {text:?} is not 1 to {MAX_TEXT_BYTES} bytes of printable ASCII")]
pub struct TextError {
    /// Its field.
    pub field: &'static str,
    /// What it is.
    pub text: String,
}

impl SystemConfig {
    /// Checks every text.
    pub fn validate(&self) -> Result<(), TextError> {
        for (field, text) in [
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("serial", &self.serial),
            ("asset_tag", &self.asset_tag),
        ] {
            let printable = |byte| (b' '..=b'~').contains(&byte);
            if !(1..=MAX_TEXT_BYTES).contains(&text.len()) || !text.bytes().all(printable) {
                return Err(TextError {
                    field,
                    text: text.clone(),
                });
            }
        }
        Ok(())
    }
}

const VERSION: [u8; 3] = [3, 0, 0];

/// Bytes of the entry point (5.2.2).
const ENTRY_POINT_BYTES: usize = 24;

/// Structure types (6.3), each of which is there once; its handle is the same number.
const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const BASEBOARD: u8 = 2;
const CHASSIS: u8 = 3;
const END: u8 = 127;

/// Writes entry point and structures at [`layout::SMBIOS`]. The texts are to be valid.
pub fn write(
    memory: &GuestMemory,
    system: &SystemConfig,
) -> Result<(), vm_memory::GuestMemoryError> {
    let bytes = build(layout::SMBIOS, system);
    memory.write_slice(&bytes, GuestAddress(layout::SMBIOS))
}

/// Some 500 bytes for the guest-physical address `start`, a multiple of 16.
fn build(start: u64, system: &SystemConfig) -> Vec<u8> {
    let structures = structures(system);
    let mut bytes = b"_SM3_".to_vec();
    bytes.extend([0, ENTRY_POINT_BYTES as u8]);
    bytes.extend(VERSION);
    // Revision of the entry point, and a reserved byte.
    bytes.extend([1, 0]);
    bytes.extend((structures.len() as u32).to_le_bytes());
    bytes.extend((start + ENTRY_POINT_BYTES as u64).to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[5] = sum.wrapping_neg();
    bytes.extend(structures);
    bytes
}

fn structures(system: &SystemConfig) -> Vec<u8> {
    let maker = &system.manufacturer;
    let version = env!("CARGO_PKG_VERSION");
    let mut bytes = Vec::new();

    // 7.1. It says of itself that it knows no characteristics (bit 3), and that the machine is a
    // virtual one (bit 4 of the second extension).
    let mut bios = Structure::new(BIOS);
    bios.text(maker).text(version);
    bios.bytes(&0xe000u16.to_le_bytes()).text("01/01/2026");
    bios.bytes(&[1]).bytes(&(1u64 << 3).to_le_bytes());
    bios.bytes(&[0, 1 << 4]);
    // Neither it nor the controller has a release number.
    bios.bytes(&[0xff; 4]).finish(&mut bytes);

    // 7.2. Woken by the power switch; no SKU.
    let mut table = Structure::new(SYSTEM);
    table.text(maker).text(&system.product).text(version);
    table.text(&system.serial).bytes(&system.uuid.to_bytes_le());
    table.bytes(&[6, 0]).text("Hearth").finish(&mut bytes);

    // 7.3. A motherboard in the chassis, which hosts all.
    let mut board = Structure::new(BASEBOARD);
    board.text(maker).text(&system.product).text(version);
    board.text(&system.serial).text(&system.asset_tag);
    board
        .bytes(&[1, 0])
        .bytes(&u16::from(CHASSIS).to_le_bytes());
    board.bytes(&[0x0a, 0]).finish(&mut bytes);

    // 7.4. Of another kind than those that have numbers; all is safe (3), nothing is locked (3); no
    // height, cords, elements or SKU.
    let mut chassis = Structure::new(CHASSIS);
    chassis.text(maker).bytes(&[1]).text(version);
    chassis.text(&system.serial).text(&system.asset_tag);
    chassis.bytes(&[3; 4]).bytes(&[0; 4 + 2 + 2 + 1]);
    chassis.finish(&mut bytes);

    Structure::new(END).finish(&mut bytes);
    bytes
}

/// A structure (6.1.2): a header, fields, and texts that fields name by their number.
struct Structure {
    fields: Vec<u8>,
    texts: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8) -> Self {
        Self {
            fields: vec![kind, 0, kind, 0],
            texts: Vec::new(),
            count: 0,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.fields.extend_from_slice(bytes);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.count += 1;
        self.texts.extend_from_slice(text.as_bytes());
        self.texts.push(0);
        self.bytes(&[self.count])
    }

    fn finish(&mut self, into: &mut Vec<u8>) {
        self.fields[1] = self.fields.len() as u8;
        into.append(&mut self.fields);
        // Two zeroes also where there is no text.
        let end: &[u8] = if self.texts.is_empty() { &[0, 0] } else { &[0] };
        into.append(&mut self.texts);
        into.extend(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = layout::SMBIOS;

    fn system() -> SystemConfig {
        SystemConfig {
            manufacturer: "Maker".into(),
            product: "t.small".into(),
            serial: "ec2e1916-9099-7caf-fd21-012345abcdef".into(),
            asset_tag: "i-1".into(),
            uuid: "ec2e1916-9099-7caf-fd21-012345abcdef".parse().unwrap(),
        }
    }

    /// Structures by type: their formatted area and their texts.
    fn walk(bytes: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let (mut at, mut found) = (0, Vec::new());
        while at < bytes.len() {
            let length = usize::from(bytes[at + 1]);
            let fields = bytes[at..at + length].to_vec();
            let end = (at + length..)
                .find(|&end| bytes[end] == 0 && bytes[end + 1] == 0)
                .unwrap();
            let texts = String::from_utf8(bytes[at + length..end].to_vec()).unwrap();
            let texts = texts.split('\0').map(str::to_owned);
            found.push((fields[0], fields, texts.collect()));
            at = end + 2;
        }
        assert_eq!(at, bytes.len(), "nothing is behind the last one");
        found
    }

    #[test]
    fn the_entry_point_adds_up_to_zero_and_says_where_the_structures_are() {
        let bytes = build(START, &system());
        let (entry, structures) = bytes.split_at(24);
        let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((&entry[..5], sum), (&b"_SM3_"[..], 0));
        assert_eq!(entry[6..12], [24, 3, 0, 0, 1, 0]);
        let size = u32::from_le_bytes(entry[12..16].try_into().unwrap());
        let address = u64::from_le_bytes(entry[16..].try_into().unwrap());
        assert_eq!((size as usize, address), (structures.len(), START + 24));
        // Kernels search at multiples of 16 from here to 1 MiB.
        assert_eq!((START, START % 16), (0xf0000, 0));
    }

    #[test]
    fn structures_have_the_lengths_of_their_version_and_the_last_is_the_end() {
        let kinds: Vec<_> = walk(&structures(&system()))
            .into_iter()
            .map(|(kind, fields, _)| {
                assert_eq!(fields[2..4], [kind, 0], "its handle");
                (kind, fields.len())
            })
            .collect();
        assert_eq!(
            kinds,
            [(0, 0x18), (1, 0x1b), (2, 0x0f), (3, 0x16), (127, 4)]
        );
    }

    #[test]
    fn the_system_says_who_it_is_with_the_uuid_as_linux_reads_it() {
        let found = walk(&structures(&system()));
        let (_, fields, texts) = &found[1];
        let text = |at: usize| &texts[usize::from(fields[at]) - 1];
        assert_eq!([text(4), text(5)], ["Maker", "t.small"]);
        assert_eq!(text(7), &system().serial);
        // The first three numbers are little endian (7.2.1).
        assert_eq!(
            fields[8..16],
            [0x16, 0x19, 0x2e, 0xec, 0x99, 0x90, 0xaf, 0x7c]
        );
        assert_eq!(
            fields[16..24],
            [0xfd, 0x21, 0x01, 0x23, 0x45, 0xab, 0xcd, 0xef]
        );
        let (_, fields, texts) = &found[2];
        assert_eq!(texts[usize::from(fields[8]) - 1], "i-1");
    }

    #[test]
    fn texts_that_would_break_the_tables_are_refused() {
        assert_eq!(system().validate(), Ok(()));
        for text in ["", "a\0b", "Ofen\u{e4}", &"x".repeat(65)] {
            let mut system = system();
            system.serial = text.into();
            assert_eq!(system.validate().unwrap_err().field, "serial");
        }
    }
}
