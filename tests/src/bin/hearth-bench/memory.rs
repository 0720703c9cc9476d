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
    /// Everything, pages that others map too by their share (`Pss`).
    pub shared_kib: u64,
    /// The same of the guest's memory.
    pub guest_shared_kib: u64,
}

#[derive(Clone, Copy, Default)]
struct Mapping {
    size: u64,
    rss: u64,
    pss: u64,
}

impl Memory {
    /// Of a process whose guest has this much memory: the guest's is the smallest mapping that
    /// can hold it (heaps of threads are larger), of several the one with the most pages.
    pub fn of(pid: u32, guest_mib: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).context(path)?;
        let mut mappings: Vec<Mapping> = Vec::new();
        for line in text.lines() {
            if let Some(size) = value(line, "Size:") {
                mappings.push(Mapping {
                    size,
                    ..Default::default()
                });
            } else if let Some(mapping) = mappings.last_mut() {
                if let Some(kib) = value(line, "Rss:") {
                    mapping.rss = kib;
                } else if let Some(kib) = value(line, "Pss:") {
                    mapping.pss = kib;
                }
            }
        }
        let guest = mappings
            .iter()
            .filter(|mapping| mapping.size >= guest_mib << 10 && mapping.rss > 0)
            .min_by_key(|mapping| (mapping.size, u64::MAX - mapping.rss));
        ensure!(guest.is_some(), "no mapping of {guest_mib} MiB");
        let guest = guest.copied().unwrap_or_default();
        Ok(Self {
            resident_kib: mappings.iter().map(|mapping| mapping.rss).sum(),
            guest_kib: guest.rss,
            shared_kib: mappings.iter().map(|mapping| mapping.pss).sum(),
            guest_shared_kib: guest.pss,
        })
    }
}

impl Memory {
    /// The `Pss` of a process that has no guest, in KiB.
    pub fn of_process(pid: u32) -> Result<u64> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).context(path)?;
        let pss = text.lines().find_map(|line| value(line, "Pss:"));
        pss.context("no Pss")
    }
}

fn value(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?
        .trim()
        .strip_suffix(" kB")?
        .parse()
        .ok()
}
