//! Is a file a kernel that the VMM could boot? Only headers are looked at; what is behind them
//! is the guest's affair.
//!
//! - ELF: gABI chapters 4 ("ELF header") and 5 ("Program header"); `e_machine` 62 is x86-64.
//! - bzImage: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// What is wrong with a would-be kernel, in words for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAKernel(pub String);

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;

/// Offsets in a bzImage.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const XLOADFLAGS: usize = 0x236;
/// End of what is looked at.
const SETUP_HEADER: usize = 0x268;

/// Looks at a file.
///
/// # Errors
/// The outer one when the file can't be read.
pub fn check(path: &Path) -> io::Result<Result<(), NotAKernel>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    (&mut file).take(4096).read_to_end(&mut head)?;
    if head.starts_with(&ELF_MAGIC) {
        let table = match elf_header(&head) {
            Ok(table) => table,
            Err(problem) => return Ok(Err(problem)),
        };
        if table.end() > length {
            return Ok(not(
                "is a truncated ELF file: its program headers are beyond its end",
            ));
        }
        file.seek(SeekFrom::Start(table.offset))?;
        let mut headers = vec![0u8; usize::from(table.count) * PROGRAM_HEADER];
        file.read_exact(&mut headers)?;
        return Ok(program_headers(&headers, length));
    }
    Ok(other(&head, length))
}

fn not<T>(what: impl Into<String>) -> Result<T, NotAKernel> {
    Err(NotAKernel(what.into()))
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(bytes, offset)) | u32::from(u16_at(bytes, offset + 2)) << 16
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

/// Where the program headers are.
struct ProgramTable {
    offset: u64,
    count: u16,
}

impl ProgramTable {
    fn end(&self) -> u64 {
        self.offset
            .saturating_add(u64::from(self.count) * PROGRAM_HEADER as u64)
    }
}

fn elf_header(head: &[u8]) -> Result<ProgramTable, NotAKernel> {
    if head.len() < ELF_HEADER {
        return not("is a truncated ELF file");
    }
    // e_ident[EI_CLASS], e_ident[EI_DATA]: 64 bits, little endian.
    if head[4] != 2 || head[5] != 1 {
        return not("is an ELF file, but not a 64-bit little-endian one");
    }
    let (kind, machine) = (u16_at(head, 16), u16_at(head, 18));
    if machine != 62 {
        return not(format!(
            "is an ELF file for machine {machine}, not for x86-64 (62)"
        ));
    }
    // ET_EXEC or ET_DYN (a position-independent kernel).
    if kind != 2 && kind != 3 {
        return not(format!(
            "is an ELF file of type {kind}, not an executable (2 or 3)"
        ));
    }
    let (size, count) = (u16_at(head, 54), u16_at(head, 56));
    if usize::from(size) != PROGRAM_HEADER || count == 0 {
        return not("is an ELF file without program headers");
    }
    Ok(ProgramTable {
        offset: u64_at(head, 32),
        count,
    })
}

fn program_headers(headers: &[u8], length: u64) -> Result<(), NotAKernel> {
    let mut loadable = false;
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        if u32_at(header, 0) != PT_LOAD {
            continue;
        }
        loadable = true;
        let (offset, in_file, in_memory) =
            (u64_at(header, 8), u64_at(header, 32), u64_at(header, 40));
        if offset.checked_add(in_file).is_none_or(|end| end > length) {
            return not("is a truncated ELF file: a segment reaches beyond its end");
        }
        if in_memory < in_file {
            return not("is a broken ELF file: a segment is smaller in memory than in the file");
        }
    }
    if loadable {
        Ok(())
    } else {
        not("is an ELF file with nothing to load")
    }
}

fn other(head: &[u8], length: u64) -> Result<(), NotAKernel> {
    if head.starts_with(&[0x1f, 0x8b]) {
        return not("is compressed with gzip; send an uncompressed ELF kernel or a bzImage");
    }
    if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || head.starts_with(b"\xfd7zXZ\0") {
        return not("is compressed; send an uncompressed ELF kernel or a bzImage");
    }
    let magic = head.len() >= SETUP_HEADER
        && u16_at(head, BOOT_FLAG) == 0xaa55
        && head[HEADER_MAGIC..HEADER_MAGIC + 4] == *b"HdrS";
    if !magic {
        return not("is neither an ELF executable for x86-64 nor a bzImage");
    }
    // 2.12 brought xloadflags.
    if u16_at(head, VERSION) < 0x020c {
        return not("is a bzImage of a boot protocol before 2.12 (Linux 3.8)");
    }
    if head[LOADFLAGS] & 1 == 0 {
        return not("is a zImage; only a bzImage can be loaded");
    }
    if u16_at(head, XLOADFLAGS) & 1 == 0 {
        return not("is a bzImage without a 64-bit entry point");
    }
    let setup = match head[SETUP_SECTS] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    // syszize counts paragraphs, the last of which may be cut short.
    let least = (setup + 1) * 512 + (u64::from(u32_at(head, SYSSIZE)) * 16).saturating_sub(15);
    if length < least {
        return not("is a truncated bzImage");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_bytes(bytes: &[u8]) -> Result<(), NotAKernel> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), bytes).expect("write");
        check(file.path()).expect("readable")
    }

    fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// A header, one program header that loads the last 16 bytes.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0u8; ELF_HEADER + PROGRAM_HEADER + 16];
        put(&mut elf, 0, b"\x7fELF\x02\x01\x01");
        put(&mut elf, 16, &[2, 0, 62, 0]);
        put(&mut elf, 32, &(ELF_HEADER as u64).to_le_bytes());
        put(&mut elf, 54, &[PROGRAM_HEADER as u8, 0, 1, 0]);
        let header = ELF_HEADER;
        put(&mut elf, header, &1u32.to_le_bytes());
        put(
            &mut elf,
            header + 8,
            &((ELF_HEADER + PROGRAM_HEADER) as u64).to_le_bytes(),
        );
        put(&mut elf, header + 32, &16u64.to_le_bytes());
        put(&mut elf, header + 40, &32u64.to_le_bytes());
        elf
    }

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 32];
        image[SETUP_SECTS] = 1;
        put(&mut image, SYSSIZE, &2u32.to_le_bytes());
        put(&mut image, BOOT_FLAG, &[0x55, 0xaa]);
        put(&mut image, HEADER_MAGIC, b"HdrS");
        put(&mut image, VERSION, &[0x0f, 0x02]);
        image[LOADFLAGS] = 1;
        image[XLOADFLAGS] = 1;
        image
    }

    #[test]
    fn elf_kernels_and_bzimages_pass() {
        assert_eq!(check_bytes(&elf()), Ok(()));
        assert_eq!(check_bytes(&bzimage()), Ok(()));
    }

    #[test]
    fn every_truncation_of_a_kernel_is_refused() {
        for good in [elf(), bzimage()] {
            for length in 0..good.len() - 16 {
                assert!(
                    check_bytes(&good[..length]).is_err(),
                    "{length} of {}",
                    good.len()
                );
            }
        }
    }

    #[test]
    fn no_change_of_one_byte_makes_the_check_panic() {
        for good in [elf(), bzimage()] {
            for index in 0..good.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut bad = good.clone();
                    bad[index] = value;
                    // Either verdict is fine.
                    let _ = check_bytes(&bad);
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_kernel_is_told_what_it_is() {
        let mut arm = elf();
        arm[18] = 183;
        let mut object = elf();
        object[16] = 1;
        let mut beyond = elf();
        put(&mut beyond, ELF_HEADER + 8, &u64::MAX.to_le_bytes());
        for (bytes, words) in [
            (arm, "machine 183"),
            (object, "type 1"),
            (beyond, "beyond its end"),
            (vec![0x1f, 0x8b, 8, 0], "gzip"),
            (b"#!/bin/sh\n".to_vec(), "neither"),
            (Vec::new(), "neither"),
        ] {
            let NotAKernel(message) = check_bytes(&bytes).expect_err(words);
            assert!(message.contains(words), "{message:?} should say {words:?}");
        }
    }
}
