//! Reads kernel and initrd files into guest memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{BootError, InitrdRange};
use crate::machine::layout;
use crate::memory::GuestMemory;

/// Kernel files that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelKind {
    /// `vmlinux`: a 64-bit x86 ELF executable.
    Elf,
    /// Linux' compressed image with its own decompressor.
    BzImage,
}

/// Offset of the 64-bit entry point in a bzImage's protected-mode code (boot.rst, "64-bit boot
/// protocol").
const BZIMAGE_ENTRY64: u64 = 0x200;
/// Oldest boot protocol with a 64-bit entry point (`xloadflags`).
const BZIMAGE_VERSION: u16 = 0x020c;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// Highest address of an initrd where the kernel names none.
const INITRD_MAX: u64 = 0x7fff_ffff;
const PAGE: u64 = 0x1000;

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct LoadedKernel {
    /// 64-bit entry point, guest-physical.
    pub entry64: u64,
    /// PVH entry point, guest-physical.
    pub pvh_entry: Option<u64>,
    /// First byte after the kernel and what it needs to unpack itself.
    pub end: u64,
    /// From a bzImage; an ELF kernel has none.
    pub header: Option<setup_header>,
}

impl LoadedKernel {
    /// The most bytes of arguments that the kernel takes.
    pub fn cmdline_max(&self) -> usize {
        let asked = self.header.map_or(0, |header| header.cmdline_size as usize);
        match asked {
            0 => layout::CMDLINE_MAX - 1,
            size => size.min(layout::CMDLINE_MAX - 1),
        }
    }
}

/// Tells from the first bytes which kind of kernel a file is; `Err` says in words why it is none.
pub(super) fn kind(file: &mut (impl Read + Seek)) -> Result<KernelKind, String> {
    let mut head = [0u8; 0x206];
    let mut filled = 0;
    file.rewind().map_err(|error| error.to_string())?;
    while filled < head.len() {
        match file.read(&mut head[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) => return Err(error.to_string()),
        }
    }
    if head.starts_with(b"\x7fELF") {
        // e_ident[EI_CLASS] = 2 (64-bit), e_ident[EI_DATA] = 1 (little), e_machine = 62 (x86-64).
        if filled < 64 || head[4] != 2 || head[5] != 1 || head[18..20] != [62, 0] {
            return Err("an ELF file, but not a 64-bit x86 one".into());
        }
        return Ok(KernelKind::Elf);
    }
    if &head[0x202..0x206] == b"HdrS" {
        return Ok(KernelKind::BzImage);
    }
    Err("neither an ELF file nor a bzImage".into())
}

fn file_error(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BootError {
    let path = PathBuf::from(path);
    move |source| BootError::File { what, path, source }
}

pub(super) fn kernel(memory: &GuestMemory, path: &Path) -> Result<LoadedKernel, BootError> {
    let mut file = File::open(path).map_err(file_error("kernel", path))?;
    let bytes = file.metadata().map_err(file_error("kernel", path))?.len();
    let not_a_kernel = |why: String| BootError::NotAKernel {
        path: path.into(),
        why,
    };
    let kind = kind(&mut file).map_err(not_a_kernel)?;
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = match kind {
        KernelKind::Elf => Elf::load(memory, None, &mut file, high),
        KernelKind::BzImage => BzImage::load(memory, None, &mut file, high),
    }
    .map_err(|error| match kernel_fits(memory, bytes) {
        true => not_a_kernel(error.to_string()),
        false => BootError::NoRoom {
            what: "kernel",
            bytes,
        },
    })?;
    match kind {
        KernelKind::Elf => elf_entry(&loaded, memory).map_err(not_a_kernel),
        KernelKind::BzImage => bzimage_entry(&loaded).map_err(not_a_kernel),
    }
}

fn kernel_fits(memory: &GuestMemory, bytes: u64) -> bool {
    bytes < memory.last_addr().0.saturating_sub(layout::HIGH_MEMORY)
}

fn elf_entry(loaded: &KernelLoaderResult, memory: &GuestMemory) -> Result<LoadedKernel, String> {
    if !memory.address_in_range(loaded.kernel_load) {
        return Err(format!(
            "its entry {:#x} is outside memory",
            loaded.kernel_load.0
        ));
    }
    let pvh_entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Some(entry.0),
        _ => None,
    };
    Ok(LoadedKernel {
        entry64: loaded.kernel_load.0,
        pvh_entry,
        end: loaded.kernel_end,
        header: None,
    })
}

fn bzimage_entry(loaded: &KernelLoaderResult) -> Result<LoadedKernel, String> {
    let header = loaded.setup_header.ok_or("it has no setup header")?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < BZIMAGE_VERSION || flags & XLF_KERNEL_64 == 0 {
        return Err(format!(
            "its boot protocol {version:#x} has no 64-bit entry point"
        ));
    }
    // The decompressor works in `init_size` bytes from where it is, or from the preferred
    // address, whichever is higher.
    let work = loaded.kernel_load.0.max(header.pref_address) + u64::from(header.init_size);
    Ok(LoadedKernel {
        entry64: loaded.kernel_load.0 + BZIMAGE_ENTRY64,
        pvh_entry: None,
        end: loaded.kernel_end.max(work),
        header: Some(header),
    })
}

/// Puts the initrd as high as the kernel can reach it.
pub(super) fn initrd(
    memory: &GuestMemory,
    memory_bytes: u64,
    path: &Path,
    kernel: &LoadedKernel,
) -> Result<InitrdRange, BootError> {
    let mut file = File::open(path).map_err(file_error("initrd", path))?;
    let length = file
        .seek(SeekFrom::End(0))
        .map_err(file_error("initrd", path))?;
    file.rewind().map_err(file_error("initrd", path))?;
    let no_room = || BootError::NoRoom {
        what: "initrd",
        bytes: length,
    };

    let highest = match kernel.header.map(|header| header.initrd_addr_max) {
        Some(0) | None => INITRD_MAX,
        Some(most) => u64::from(most),
    };
    let top = layout::memory_ranges(memory_bytes)[0].1.min(highest + 1);
    let start = top.checked_sub(length).ok_or_else(no_room)? & !(PAGE - 1);
    if start < kernel.end {
        return Err(no_room());
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, length as usize)
        .map_err(|error| file_error("initrd", path)(std::io::Error::other(error)))?;
    Ok(InitrdRange { start, length })
}

pub(super) fn arguments(memory: &GuestMemory, text: &str, most: usize) -> Result<(), BootError> {
    let bytes = text.as_bytes();
    if bytes.len() > most || bytes.contains(&0) {
        return Err(BootError::Arguments {
            bytes: bytes.len(),
            most,
        });
    }
    memory.write_slice(bytes, GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + bytes.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;

    fn memory() -> std::sync::Arc<GuestMemory> {
        crate::memory::allocate(32 << 20).unwrap()
    }

    #[test]
    fn files_that_are_no_kernel_are_refused_with_the_reason() {
        for (content, reason) in [
            (&b""[..], "neither"),
            (&[0u8; 4096][..], "neither"),
            (b"\x7fELF\x01\x01", "not a 64-bit"),
            (b"#!/bin/sh\necho not a kernel\n", "neither"),
        ] {
            let why = kind(&mut Cursor::new(content)).unwrap_err();
            assert!(why.contains(reason), "{why}");
        }
    }

    #[test]
    fn a_truncated_elf_kernel_is_refused_and_no_panic() {
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        elf[56] = 9;
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&elf).unwrap();
        let error = kernel(&memory(), file.path()).unwrap_err();
        assert!(matches!(error, BootError::NotAKernel { .. }), "{error}");
    }

    #[test]
    fn an_initrd_that_would_overlap_the_kernel_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![1u8; 1 << 20]).unwrap();
        let kernel = LoadedKernel {
            entry64: 0,
            pvh_entry: None,
            end: 31 << 20,
            header: None,
        };
        let range = initrd(&memory(), 32 << 20, file.path(), &kernel).unwrap();
        assert_eq!(range.start, 31 << 20);
        let kernel = LoadedKernel {
            end: (31 << 20) + 1,
            ..kernel
        };
        let error = initrd(&memory(), 32 << 20, file.path(), &kernel).unwrap_err();
        assert!(
            matches!(error, BootError::NoRoom { what: "initrd", .. }),
            "{error}"
        );
    }

    #[test]
    fn arguments_with_a_zero_byte_or_too_many_bytes_are_refused() {
        assert!(arguments(&memory(), "quiet", 5).is_ok());
        assert!(arguments(&memory(), "quiet", 4).is_err());
        assert!(arguments(&memory(), "qu\0et", 100).is_err());
    }
}
