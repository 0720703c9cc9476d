//! Puts a kernel, its initrd and its arguments into guest memory, and says in which state the
//! boot vCPU has to start.

mod linux64;
mod load;
mod pvh;
mod tables;

use std::path::PathBuf;

use vm_memory::GuestAddress;

use crate::config::{BootConfig, BootProtocol};
use crate::machine::layout;
use crate::memory::GuestMemory;

pub use load::KernelKind;
pub use tables::{EntryMode, write_boot_tables};

/// Why a guest can't be booted from what it was given.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("{what} {path}: {source}")]
    File {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no kernel that can be booted.
    #[error("{path} is not a kernel that can be booted: {why}")]
    NotAKernel {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// PVH was asked for, but the kernel has no PVH entry.
    #[error("{path} has no PVH entry (ELF note 18 of Xen)")]
    NoPvhEntry {
        /// The kernel's path.
        path: PathBuf,
    },
    /// Kernel, initrd and boot structures do not fit into the memory.
    #[error("{what} of {bytes} bytes does not fit into the guest's memory")]
    NoRoom {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// Its size.
        bytes: u64,
    },
    /// The kernel arguments are too long, or hold a zero byte.
    #[error("the kernel arguments have {bytes} bytes, or hold a zero byte; the most is {most}")]
    Arguments {
        /// Their length.
        bytes: usize,
        /// The most that is possible.
        most: usize,
    },
    /// A boot structure could not be written: there is no memory where it belongs.
    #[error("a boot structure does not fit into the guest's memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The state in which the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction, guest-physical.
    pub rip: u64,
    /// The protocol's pointer to its structures, guest-physical.
    pub info: u64,
    /// CPU mode, and the register that takes `info`.
    pub mode: EntryMode,
}

/// A range of the initrd in guest memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitrdRange {
    /// Guest-physical start.
    pub start: u64,
    /// Length.
    pub length: u64,
}

/// Loads everything that `config` names. `arguments` are the complete kernel arguments; `rsdp`
/// the address of the ACPI tables, if there are any.
pub fn load(
    memory: &GuestMemory,
    memory_bytes: u64,
    config: &BootConfig,
    arguments: &str,
    rsdp: Option<GuestAddress>,
) -> Result<Entry, BootError> {
    let kernel = load::kernel(memory, &config.kernel)?;
    let initrd = match &config.initrd {
        Some(path) => Some(load::initrd(memory, memory_bytes, path, &kernel)?),
        None => None,
    };
    load::arguments(memory, arguments, kernel.cmdline_max())?;

    let pvh = match config.protocol {
        BootProtocol::Auto | BootProtocol::Linux64 => None,
        BootProtocol::Pvh => Some(kernel.pvh_entry.ok_or_else(|| BootError::NoPvhEntry {
            path: config.kernel.clone(),
        })?),
    };
    let map = memory_map(memory_bytes);
    match pvh {
        Some(entry) => {
            pvh::write_start_info(memory, &map, initrd, rsdp)?;
            Ok(Entry {
                rip: entry,
                info: layout::PVH_START_INFO,
                mode: EntryMode::Protected32,
            })
        }
        None => {
            linux64::write_boot_params(memory, &map, &kernel, initrd, arguments, rsdp)?;
            Ok(Entry {
                rip: kernel.entry64,
                info: layout::ZERO_PAGE,
                mode: EntryMode::Long64,
            })
        }
    }
}

/// Kinds of the memory map that both boot protocols share (e820 types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Free to use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One range of the memory map, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical start.
    pub start: u64,
    /// Length.
    pub length: u64,
    /// What is there.
    pub kind: MapKind,
}

/// The memory map of a guest with `memory_bytes` of RAM: the areas of the MP table and of the
/// ACPI tables are reserved.
fn memory_map(memory_bytes: u64) -> Vec<MapEntry> {
    let entry = |start, end, kind| MapEntry {
        start,
        length: end - start,
        kind,
    };
    let ranges = layout::memory_ranges(memory_bytes);
    let low_end = ranges[0].1;
    let mut map = vec![
        entry(0, layout::EBDA, MapKind::Ram),
        entry(layout::EBDA, layout::EBDA_END, MapKind::Reserved),
        entry(layout::ACPI_TABLES, layout::HIGH_MEMORY, MapKind::Reserved),
        entry(layout::HIGH_MEMORY, low_end, MapKind::Ram),
    ];
    if let Some((start, length)) = ranges.get(1) {
        map.push(entry(*start, start + length, MapKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_is_sorted_and_free_of_overlaps() {
        for bytes in [32 << 20, 3 << 30, 5 << 30] {
            let map = memory_map(bytes);
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].start + pair[0].length <= pair[1].start)
            );
        }
    }
}
