//! The kernel, the initrd and the kernel arguments of an ordinary distribution's disk, found
//! inside its own file systems: such a disk boots without any firmware.
//!
//! Everything on the disk is a stranger's. Nothing is mounted; what is read has limits, and links
//! are followed only inside the file system that they are in. A disk may still keep its reader
//! busy or make it end: [`find`] catches panics, and who calls it for strangers does so in a
//! process of its own, with limits on time and memory (`hearthd` does).
//!
//! - `read`: bytes at an offset
//! - `partition`: GPT and MBR
//! - `ext4`: a file system, with limits
//! - `layout`: which file system is the root, which one holds the boot files
//! - `candidates`: what those say about how to boot: `bls`, `grub`, `kernels`
//! - `arguments`: kernel arguments that mount the root
//! - `version`: which kernel is the newest

mod arguments;
mod bls;
mod candidates;
mod error;
mod ext4;
mod grub;
mod kernels;
mod layout;
mod partition;
mod read;
mod version;

use candidates::Candidate;
use layout::{BootPlace, Layout};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

pub use error::{FileError, RootfsError};
pub use read::ReadAt;

/// Largest kernel, and largest initrd (all parts together), in bytes.
pub const MAX_BOOT_FILE: u64 = 512 << 20;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel: where it lies, for people: `/boot/vmlinuz-6.1 of partition 1`.
    pub kernel: String,
    /// The initrd's parts, in their order; empty if it has none.
    pub initrds: Vec<String>,
    /// Kernel arguments.
    pub kernel_args: String,
    /// What named the kernel: `boot loader entry …`, `grub.cfg`, `the newest kernel`.
    pub named_by: String,
}

/// Finds what a disk boots with, and writes kernel and initrd to `kernel` and `initrd`. Nothing is
/// written to `initrd` if it has none.
///
/// # Errors
/// [`RootfsError`], which tells what was looked at. Something may have been written then.
pub fn find(
    disk: Rc<dyn ReadAt>,
    kernel: &mut dyn Write,
    initrd: &mut dyn Write,
) -> Result<BootFiles, RootfsError> {
    let search = || {
        let layout = Layout::read(disk)?;
        let (place, candidate) = choose(&layout)?;
        extract(&layout, place, &candidate, kernel, initrd)
    };
    // The file system's reader holds nothing that outlives this.
    catch_unwind(AssertUnwindSafe(search)).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(RootfsError::Panicked(words.unwrap_or("?").to_owned()))
    })
}

/// The first candidate whose files are all there.
fn choose(layout: &Layout) -> Result<(&BootPlace, Candidate), RootfsError> {
    let mut looked = layout.looked();
    for place in layout.boot_places() {
        let found = match candidates::of(place).map_err(|error| error.of(&place.name())) {
            Ok(found) => found,
            // One broken file system does not hide the others.
            Err(error @ RootfsError::File { .. }) => {
                looked.push(error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        if found.is_empty() {
            looked.push(format!("no boot files in {}", place.name()));
        }
        for candidate in found {
            match missing(place, &candidate)? {
                None => return Ok((place, candidate)),
                Some(path) => looked.push(format!(
                    "{} of {} names {path}, which is not there",
                    candidate.named_by,
                    place.name()
                )),
            }
        }
    }
    Err(RootfsError::NoKernel {
        looked: looked.join("; "),
    })
}

/// The first file of a candidate that is not there.
fn missing(place: &BootPlace, candidate: &Candidate) -> Result<Option<String>, RootfsError> {
    for path in std::iter::once(&candidate.linux).chain(&candidate.initrds) {
        let found = place.file(path).map_err(|error| error.of(&place.name()))?;
        if found.is_none() {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

fn extract(
    layout: &Layout,
    place: &BootPlace,
    candidate: &Candidate,
    kernel: &mut dyn Write,
    initrd: &mut dyn Write,
) -> Result<BootFiles, RootfsError> {
    let of_place = |error: FileError| error.of(&place.name());
    let (options, from) = match &candidate.options {
        Some(options) => (options.clone(), candidate.named_by.clone()),
        None => layout.configured_arguments()?,
    };
    let has_initrd = !candidate.initrds.is_empty();
    let kernel_args = arguments::arguments(&options, layout.root_names().as_ref(), has_initrd)
        .map_err(|what| RootfsError::Arguments { from, what })?;

    let copy = |path: &str, most: u64, to: &mut dyn Write| {
        let found = place.file(path)?.ok_or_else(|| FileError::Broken {
            path: path.to_owned(),
            what: "it was there a moment ago".to_owned(),
        })?;
        let length = place.copy(&found, most, to)?;
        Ok((format!("{} of {}", found.path, place.partition), length))
    };
    let (kernel, _) = copy(&candidate.linux, MAX_BOOT_FILE, kernel).map_err(of_place)?;
    let mut initrds = Vec::new();
    let mut written: u64 = 0;
    for path in &candidate.initrds {
        // The kernel looks for the next archive at a multiple of 4
        // (Documentation/driver-api/early-userspace/buffer-format.rst).
        let padding = written.next_multiple_of(4) - written;
        initrd
            .write_all(&[0; 4][..padding as usize])
            .map_err(RootfsError::Output)?;
        written += padding;
        let (path, length) =
            copy(path, MAX_BOOT_FILE.saturating_sub(written), initrd).map_err(of_place)?;
        written += length;
        initrds.push(path);
    }
    Ok(BootFiles {
        kernel,
        initrds,
        kernel_args,
        named_by: candidate.named_by.clone(),
    })
}
