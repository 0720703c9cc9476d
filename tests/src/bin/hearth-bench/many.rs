//! Many idle probes at a time: what each VMM holds beside its guest, and how long launches take.

use std::{path::Path, time::Instant};

use anyhow::Result;
use hearth_tests::Hearth;

use crate::{
    launch::ms,
    machine::{MEMORY_MIB, Machine},
    memory::Memory,
    table::{Row, Section, quantile},
};

const PROBES: usize = 50;

/// Launches whose median is taken, at either end.
const END: usize = 10;

/// Leaves the instances to whoever finishes the agent.
pub async fn measure(hearth: &Hearth, kernel: &Path) -> Result<Section> {
    let before = hearth.living_instances().await?.len();
    let mut ours = Vec::new();
    for _ in 0..PROBES {
        let start = Instant::now();
        hearth.probe(|_| {}).await?;
        ours.push(ms(start));
    }
    let instances = hearth.living_instances().await?;
    anyhow::ensure!(instances.len() == before + PROBES);
    let our_memory = beyond(instances.iter().map(|instance| instance.vmm_pid))?;

    let (mut qemu, mut machines) = (Vec::new(), Vec::new());
    for _ in 0..PROBES {
        let start = Instant::now();
        machines.push(Machine::qemu(kernel, None)?);
        qemu.push(ms(start));
    }
    let qemu_memory = beyond(machines.iter().map(Machine::pid))?;

    let rows = vec![
        Row::beside("Pss beyond the guest's pages, MiB", our_memory, qemu_memory),
        Row::beside(
            format!("launch to first line, probes 1 to {END}, ms"),
            quantile(&ours[..END], 0.5),
            quantile(&qemu[..END], 0.5),
        ),
        Row::beside(
            format!("launch to first line, {} to {PROBES}, ms", PROBES - END + 1),
            quantile(&ours[PROBES - END..], 0.5),
            quantile(&qemu[PROBES - END..], 0.5),
        ),
    ];
    Ok(Section::new(
        format!("{PROBES} idle probes at once, medians"),
        rows,
    ))
}

/// The median, in MiB.
fn beyond(pids: impl Iterator<Item = u32>) -> Result<f64> {
    let memory: Vec<f64> = pids
        .map(|pid| {
            let memory = Memory::of(pid, MEMORY_MIB)?;
            Ok((memory.shared_kib - memory.guest_shared_kib) as f64 / 1024.0)
        })
        .collect::<Result<_>>()?;
    Ok(quantile(&memory, 0.5))
}
