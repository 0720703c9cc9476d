//! The resident memory of a process, the guest's pages apart.

use std::fs;

use anyhow::{Context, Result, ensure};

/// In KiB.
#[derive(Clone, Copy)]
pub struct Memory {
    /// Everything (`Rss`).
    pub resident_kib: u64,
    /// The mapping that is the guest's memory.
    pub guest_kib: u64,
}

impl Memory {
    /// Of a process whose guest has this much memory: the guest's is the mapping that large, or
    /// else the largest one.
    pub fn of(pid: u32, guest_mib: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).context(path)?;
        let mut resident_kib = 0;
        let mut guest = (0, 0);
        let mut size = 0;
        for line in text.lines() {
            if let Some(kib) = value(line, "Size:") {
                size = kib;
            } else if let Some(kib) = value(line, "Rss:") {
                resident_kib += kib;
                guest = guest.max((size, kib));
            }
        }
        ensure!(guest.0 >= guest_mib << 10, "no mapping of {guest_mib} MiB");
        Ok(Self {
            resident_kib,
            guest_kib: guest.1,
        })
    }
}

fn value(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}
