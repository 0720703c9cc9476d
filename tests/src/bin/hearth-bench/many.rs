//! Many idle probes at a time: what each VMM holds beside its guest, how many there is room for,
//! and how long launches take.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{
    Bench,
    launch::ms,
    machine::{MEMORY_MIB, Machine},
    memory::Memory,
    table::{Row, Section, quantile},
};

const PROBES: usize = 100;

/// Launches whose median is taken, at either end.
const END: usize = 10;

/// What the host gives, in the row of how many there is room for.
const ROOM_MIB: f64 = 4096.0;

/// What idle probes take.
struct Taken {
    /// Beside the guest's pages, the median, in MiB.
    beyond_guest: f64,
    /// The processes with all that they hold, in MiB.
    in_all: f64,
}

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let hearth = bench.hearth().await?;
    let before: Vec<u32> = hearth
        .living_instances()
        .await?
        .iter()
        .map(|instance| instance.vmm_pid)
        .collect();
    // An agent that has had a launch already.
    hearth.probe(|_| {}).await?.guest.terminate().await?;
    let agent_before = Memory::of_process(hearth.agent_pid())?;
    let (mut probes, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..PROBES {
        let start = Instant::now();
        probes.push(hearth.probe(|_| {}).await?);
        ours.push(ms(start));
    }
    let agent_grew = Memory::of_process(hearth.agent_pid())?.saturating_sub(agent_before);
    let instances = hearth.living_instances().await?;
    let pids = instances.iter().map(|instance| instance.vmm_pid);
    let pids: Vec<u32> = pids.filter(|pid| !before.contains(pid)).collect();
    ensure!(pids.len() == PROBES, "{} probes run", pids.len());
    let mut our_memory = taken(&pids)?;
    our_memory.in_all += agent_grew as f64 / 1024.0;
    for probe in probes {
        probe.guest.terminate().await?;
    }

    let kernel = bench.probe_kernel()?;
    let (mut qemu, mut machines) = (Vec::new(), Vec::new());
    for _ in 0..PROBES {
        let start = Instant::now();
        machines.push(Machine::qemu(&kernel, None)?);
        qemu.push(ms(start));
    }
    let pids: Vec<u32> = machines.iter().map(Machine::pid).collect();
    let qemu_memory = taken(&pids)?;
    drop(machines);

    let room = |taken: &Taken| ROOM_MIB * PROBES as f64 / taken.in_all;
    let rows = vec![
        Row::beside(
            "Pss beyond the guest's pages, MiB",
            our_memory.beyond_guest,
            qemu_memory.beyond_guest,
        ),
        Row::beside(
            "probes in 4 GiB, by what all of these take",
            room(&our_memory),
            room(&qemu_memory),
        ),
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
    let title = format!("{PROBES} idle probes at once, medians");
    Ok(vec![Section::new(title, rows)])
}

fn taken(pids: &[u32]) -> Result<Taken> {
    let memory: Vec<Memory> = pids
        .iter()
        .map(|pid| Memory::of(*pid, MEMORY_MIB))
        .collect::<Result<_>>()?;
    let beyond: Vec<f64> = memory
        .iter()
        .map(|memory| (memory.shared_kib - memory.guest_shared_kib) as f64 / 1024.0)
        .collect();
    let in_all: u64 = memory.iter().map(|memory| memory.shared_kib).sum();
    Ok(Taken {
        beyond_guest: quantile(&beyond, 0.5),
        in_all: in_all as f64 / 1024.0,
    })
}
