//! SMBIOS (DMTF DSP0134, version 3): what the machine says of itself, read as Linux does.

use core::fmt::{self, Display};
use core::ops::Range;

/// Where the entry point is searched (5.2).
const AREA: Range<usize> = 0xf0000..0x10_0000;
const STEP: usize = 16;

const SYSTEM: u8 = 1;
const BASEBOARD: u8 = 2;
const END: u8 = 127;

/// What is read of it. Texts that are not there are empty.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct System {
    pub manufacturer: &'static str,
    pub product: &'static str,
    pub serial: &'static str,
    pub asset_tag: &'static str,
    pub uuid: Uuid,
}

/// A UUID, shown with its first three numbers little endian (7.2.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct Uuid([u8; 16]);

impl Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        for (at, byte) in order.into_iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{:02x}", self.0[byte])?;
        }
        Ok(())
    }
}

/// Bytes of the area below 1 MiB.
fn area() -> &'static [u8] {
    // SAFETY: memory of the firmware's, mapped one to one; nobody writes to it.
    unsafe { core::slice::from_raw_parts(AREA.start as *const u8, AREA.len()) }
}

/// What the machine says, if it says anything; an error if that makes no sense.
pub fn system() -> Result<Option<System>, &'static str> {
    let area = area();
    let entry = area
        .chunks_exact(STEP)
        .position(|chunk| chunk.starts_with(b"_SM3_"));
    let Some(at) = entry.map(|index| index * STEP) else {
        return Ok(None);
    };
    let entry = area.get(at..at + 24).ok_or("the entry point is cut off")?;
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if entry[6] != 24 || sum != 0 {
        return Err("the entry point's checksum is wrong");
    }
    let number = |at: usize, bytes: usize| {
        let bytes = entry[at..at + bytes].iter().rev();
        bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte)) as usize
    };
    let (size, start) = (number(12, 4), number(16, 8));
    let start = start
        .checked_sub(AREA.start)
        .ok_or("the table is elsewhere")?;
    let table = area
        .get(start..start + size)
        .ok_or("the table is cut off")?;
    walk(table).map(Some)
}

fn walk(mut table: &'static [u8]) -> Result<System, &'static str> {
    let mut system = System::default();
    loop {
        let (&kind, &length) = match table {
            [kind, length, ..] => (kind, length),
            _ => return Err("the table has no end"),
        };
        let (fields, rest) = table
            .split_at_checked(length.into())
            .ok_or("a structure is cut off")?;
        let end = rest
            .windows(2)
            .position(|pair| pair == [0, 0])
            .ok_or("texts are cut off")?;
        let text = |at: usize| {
            let number = fields.get(at).copied().unwrap_or(0);
            let index = usize::from(number.checked_sub(1)?);
            let bytes = rest[..end].split(|byte| *byte == 0).nth(index)?;
            core::str::from_utf8(bytes).ok()
        };
        match kind {
            SYSTEM => {
                system.manufacturer = text(4).unwrap_or("");
                system.product = text(5).unwrap_or("");
                system.serial = text(7).unwrap_or("");
                let uuid = fields.get(8..24).ok_or("there is no UUID")?;
                system.uuid.0.copy_from_slice(uuid);
            }
            BASEBOARD => system.asset_tag = text(8).unwrap_or(""),
            END => return Ok(system),
            _ => {}
        }
        table = &rest[end + 2..];
    }
}
