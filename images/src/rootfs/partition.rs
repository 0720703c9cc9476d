//! Partition tables: GPT (UEFI 2.10, chapter 5) and the four primary entries of an MBR.

use super::read::Window;
use crate::SECTOR_BYTES;
use crc::{CRC_32_ISO_HDLC, Crc};
use std::io;

/// Most entries that a GPT is read for; its own minimum is 128.
const MAX_ENTRIES: u32 = 1024;

/// Largest entry, in bytes.
const MAX_ENTRY_BYTES: u32 = 1024;

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// What a partition says it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The root file system for x86-64 (Discoverable Partitions Specification).
    Root,
    /// Boot loader entries and kernels: XBOOTLDR of the same specification.
    Boot,
    /// Linux file system data, which does not tell for what.
    Linux,
    /// EFI system partition.
    EfiSystem,
    /// Anything else.
    Other,
}

impl Purpose {
    fn of_guid(guid: &str) -> Purpose {
        match guid {
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => Purpose::Root,
            "bc13c2ff-59e6-4262-a352-b275fd6f7172" => Purpose::Boot,
            "0fc63daf-8483-4772-8e79-3d69d8477de4" => Purpose::Linux,
            "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => Purpose::EfiSystem,
            _ => Purpose::Other,
        }
    }

    fn of_mbr(kind: u8) -> Purpose {
        match kind {
            0x83 => Purpose::Linux,
            0xea => Purpose::Boot,
            0xef => Purpose::EfiSystem,
            _ => Purpose::Other,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Purpose::Root => "root for x86-64",
            Purpose::Boot => "extended boot loader",
            Purpose::Linux => "Linux file system",
            Purpose::EfiSystem => "EFI system partition",
            Purpose::Other => "another type",
        }
    }
}

/// One partition.
pub(super) struct Partition {
    /// Counted from 1, as in `/dev/vda1`.
    pub number: u32,
    pub purpose: Purpose,
    /// What `root=PARTUUID=` calls it.
    pub part_uuid: String,
    /// `None` when the table puts it outside of the disk.
    pub window: Option<Window>,
}

/// How a disk is divided.
pub(super) enum Table {
    Gpt(Vec<Partition>),
    Mbr(Vec<Partition>),
    /// No partition table.
    None,
}

/// Reads a GPT, from its copy at the end of the disk if the first one is damaged.
pub(super) fn gpt(disk: &Window) -> io::Result<Option<Vec<Partition>>> {
    let sectors = disk.length() / SECTOR_BYTES;
    if sectors < 3 {
        return Ok(None);
    }
    match gpt_at(disk, 1)? {
        Some(partitions) => Ok(Some(partitions)),
        None => gpt_at(disk, sectors - 1),
    }
}

/// Reads the primary entries of an MBR; `None` when there is none, or when it only guards a GPT.
pub(super) fn mbr(disk: &Window) -> io::Result<Option<Vec<Partition>>> {
    if disk.length() < SECTOR_BYTES {
        return Ok(None);
    }
    let mut sector = [0; SECTOR_BYTES as usize];
    disk.read(&mut sector, 0)?;
    if sector[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    let signature = u32_at(&sector, 440);
    let mut partitions = Vec::new();
    for (index, entry) in sector[446..510].chunks_exact(16).enumerate() {
        let (kind, start, sectors) = (entry[4], u32_at(entry, 8), u32_at(entry, 12));
        // 0xee: protects a GPT from tools that know only the MBR.
        if kind == 0xee {
            return Ok(None);
        }
        // The boot indicator is 0 or 0x80, or this is no table but a boot sector's code.
        if entry[0] & 0x7f != 0 {
            return Ok(None);
        }
        if kind == 0 || sectors == 0 {
            continue;
        }
        let number = index as u32 + 1;
        partitions.push(Partition {
            number,
            purpose: Purpose::of_mbr(kind),
            part_uuid: format!("{signature:08x}-{number:02x}"),
            window: disk.part(
                u64::from(start) * SECTOR_BYTES,
                u64::from(sectors) * SECTOR_BYTES,
            ),
        });
    }
    Ok((!partitions.is_empty()).then_some(partitions))
}

/// Reads the header in sector `lba`, and its entries; `None` unless both checksums are right.
fn gpt_at(disk: &Window, lba: u64) -> io::Result<Option<Vec<Partition>>> {
    let mut header = [0; SECTOR_BYTES as usize];
    disk.read(&mut header, lba * SECTOR_BYTES)?;
    let header_bytes = u32_at(&header, 12) as usize;
    if !header.starts_with(b"EFI PART") || !(92..=header.len()).contains(&header_bytes) {
        return Ok(None);
    }
    let checksum = u32_at(&header, 16);
    header[16..20].fill(0);
    if CRC32.checksum(&header[..header_bytes]) != checksum || u64_at(&header, 24) != lba {
        return Ok(None);
    }
    let (count, entry_bytes) = (u32_at(&header, 80), u32_at(&header, 84));
    if count > MAX_ENTRIES || !(128..=MAX_ENTRY_BYTES).contains(&entry_bytes) {
        return Ok(None);
    }
    let Some(at) = u64_at(&header, 72).checked_mul(SECTOR_BYTES) else {
        return Ok(None);
    };
    let mut entries = vec![0; (count * entry_bytes) as usize];
    if disk.part(at, entries.len() as u64).is_none() {
        return Ok(None);
    }
    disk.read(&mut entries, at)?;
    if CRC32.checksum(&entries) != u32_at(&header, 88) {
        return Ok(None);
    }
    let partitions = entries
        .chunks_exact(entry_bytes as usize)
        .enumerate()
        .filter(|(_, entry)| entry[..16] != [0; 16])
        .map(|(index, entry)| {
            let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
            let window = last
                .checked_sub(first)
                .and_then(|sectors| sectors.checked_add(1)?.checked_mul(SECTOR_BYTES))
                .zip(first.checked_mul(SECTOR_BYTES))
                .and_then(|(length, start)| disk.part(start, length));
            Partition {
                number: index as u32 + 1,
                purpose: Purpose::of_guid(&guid(&entry[..16])),
                part_uuid: guid(&entry[16..32]),
                window,
            }
        });
    Ok(Some(partitions.collect()))
}

/// The text of a GUID, whose first three groups are little endian (UEFI 2.10, appendix A).
fn guid(bytes: &[u8]) -> String {
    let group = |order: &[usize]| -> String {
        order.iter().map(|&i| format!("{:02x}", bytes[i])).collect()
    };
    [
        group(&[3, 2, 1, 0]),
        group(&[5, 4]),
        group(&[7, 6]),
        group(&[8, 9]),
        group(&[10, 11, 12, 13, 14, 15]),
    ]
    .join("-")
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}
