//! What the host has: memory for guests, KVM, the VMM program.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::error::{ApiError, ApiResult, Reason};

/// Memory that guests never get: 512 MiB, or a twentieth where that is more.
fn reserve(total: u64) -> u64 {
    (total / 20).max(512 << 20).min(total / 4)
}

/// Memory of the host, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// `MemTotal`.
    pub total: u64,
    /// `MemAvailable`.
    pub available: u64,
}

impl Memory {
    /// Reads `/proc/meminfo`.
    pub fn read() -> ApiResult<Self> {
        let text = fs::read_to_string("/proc/meminfo")
            .map_err(|error| ApiError::internal("reading the host's memory", error))?;
        Self::parse(&text)
            .ok_or_else(|| ApiError::internal("reading the host's memory", "unknown form"))
    }

    fn parse(text: &str) -> Option<Self> {
        let kib = |name: &str| -> Option<u64> {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()?
                .checked_mul(1024)
        };
        Some(Self {
            total: kib("MemTotal")?,
            available: kib("MemAvailable")?,
        })
    }

    /// How many guests of `each` bytes still fit, when `committed` bytes are promised to guests
    /// already. Promises count against all of the host's memory, because a guest touches its
    /// memory only by and by; what is free right now counts too, because others use it.
    pub fn room_for(&self, each: u64, committed: u64) -> u64 {
        let promised = self
            .total
            .saturating_sub(reserve(self.total))
            .saturating_sub(committed);
        promised.min(self.available) / each.max(1)
    }

    /// The error when there is no room; `field` is the one that set the guest's size.
    pub fn no_room(&self, field: &str, each: u64, committed: u64) -> ApiError {
        let mib = |bytes: u64| bytes >> 20;
        ApiError::field(
            Reason::InsufficientInstanceCapacity,
            field,
            format!(
                "no room for a guest with {} MiB: the host has {} MiB ({} MiB reserved, {} MiB \
                 promised to guests, {} MiB free now)",
                mib(each),
                mib(self.total),
                mib(reserve(self.total)),
                mib(committed),
                mib(self.available)
            ),
        )
    }
}

/// Where the things are that every guest needs.
#[derive(Clone, Debug)]
pub struct Host {
    vmm: PathBuf,
    kvm: PathBuf,
}

impl Host {
    /// With this VMM program.
    pub fn new(vmm: &Path) -> Self {
        Self {
            vmm: vmm.to_owned(),
            kvm: PathBuf::from("/dev/kvm"),
        }
    }

    /// The VMM program.
    pub fn vmm(&self) -> &Path {
        &self.vmm
    }

    /// Whether a guest can run here at all.
    ///
    /// # Errors
    /// `Unsupported`, saying what is missing.
    pub fn check(&self) -> ApiResult<()> {
        let unsupported = |message: String| ApiError::new(Reason::Unsupported, message);
        match fs::metadata(&self.vmm) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {}
            Ok(_) => {
                return Err(unsupported(format!(
                    "the VMM {} is not a program; start hearthd with --vmm",
                    self.vmm.display()
                )));
            }
            Err(error) => {
                return Err(unsupported(format!(
                    "the VMM {} cannot be used ({error}); start hearthd with --vmm",
                    self.vmm.display()
                )));
            }
        }
        self.open_kvm().map(drop).map_err(|error| {
            let help = match error.kind() {
                io::ErrorKind::PermissionDenied => "hearthd may not open it",
                _ => "is the KVM module loaded, and virtualization on in the firmware?",
            };
            unsupported(format!(
                "{} cannot be used ({error}); {help}",
                self.kvm.display()
            ))
        })
    }

    fn open_kvm(&self) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(&self.kvm)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::other("not a character device"));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_read_from_meminfo() {
        let text = "MemTotal:       24683000 kB\nMemFree:  1 kB\nMemAvailable:   24012000 kB\n";
        let memory = Memory::parse(text).expect("parsed");
        assert_eq!(memory.total, 24_683_000 * 1024);
        assert_eq!(Memory::parse("MemTotal: x kB\n"), None);
        Memory::read().expect("this host's own");
    }

    #[test]
    fn guests_fit_into_what_is_neither_reserved_nor_promised_nor_in_use() {
        let memory = Memory {
            total: 16 * GIB,
            available: 16 * GIB,
        };
        assert_eq!(memory.room_for(GIB, 0), 15);
        assert_eq!(memory.room_for(GIB, 14 * GIB), 1);
        assert_eq!(memory.room_for(GIB, 16 * GIB), 0);
        assert_eq!(memory.room_for(u64::MAX, 0), 0);
        let busy = Memory {
            total: 16 * GIB,
            available: 3 * GIB,
        };
        assert_eq!(busy.room_for(2 * GIB, 0), 1);
    }

    #[test]
    fn a_host_without_vmm_or_kvm_says_which() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut host = Host {
            vmm: dir.path().join("hearth-vmm"),
            kvm: dir.path().join("kvm"),
        };
        let missing_vmm = host.check().expect_err("no VMM");
        assert!(
            missing_vmm.message().contains("hearth-vmm"),
            "{missing_vmm}"
        );
        host.vmm = std::env::current_exe().expect("this test");
        let missing_kvm = host.check().expect_err("no KVM");
        assert_eq!(missing_kvm.reason(), Reason::Unsupported);
        assert!(
            missing_kvm.message().contains("KVM module"),
            "{missing_kvm}"
        );
    }
}
