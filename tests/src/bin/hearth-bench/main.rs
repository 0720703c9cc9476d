//! `hearth-bench`: Hearth beside `qemu-system-x86_64 -M microvm`, in the same run.
//!
//! - The VMM alone, with a kernel of eleven bytes, in turns: from the start of the process to the
//!   guest's first instruction, and how much memory the process holds beyond the guest's pages.
//! - With the probe (`tests/probe`): launches through the agent, disk loads, fifty at once.
//! - Calls of the API.
//!
//! - Limits of volume classes, also alone: `hearth-bench limits`.
//!
//! usage: hearth-bench [ROUNDS]      prints tables; writes bench.json to the target directory

mod api;
mod disk;
mod host_file;
mod launch;
mod machine;
mod many;
mod memory;
mod peers;
mod serial_file;
mod table;
mod throttle;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use hearth_tests::{Hearth, probe, programs, tiny};
use serde::Serialize;

use crate::{
    peers::{Measured, Peer},
    table::{Row, Section, quantile},
};

const ROUNDS: usize = 15;

/// Launches through the agent.
const LAUNCHES: usize = 20;

/// Of each disk load.
const LOAD_SECONDS: f64 = 2.0;

/// Of each load that meets a limit.
const LIMIT_SECONDS: f64 = 10.0;

/// The medians of one program.
#[derive(Serialize)]
struct Medians {
    name: &'static str,
    start_to_guest_ms: f64,
    resident_kib: f64,
    guest_resident_kib: f64,
    beyond_guest_kib: f64,
}

#[derive(Serialize)]
struct Report {
    memory_mib: u64,
    rounds: usize,
    kvm: &'static str,
    kernel: String,
    cpus: usize,
    peers: Vec<Medians>,
    sections: Vec<Section>,
}

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().nth(1).as_deref() == Some("limits") {
        return limits().await;
    }
    let rounds = match env::args().nth(1) {
        Some(text) => text.parse().context("ROUNDS is a number")?,
        None => ROUNDS,
    };
    ensure!(rounds > 0, "at least one round");
    ensure!(programs::kvm(), "no /dev/kvm that we may write to");
    let folder = tempfile::Builder::new().prefix("hearth-bench.").tempdir()?;
    let folder = folder.path();
    let mut report = Report {
        memory_mib: peers::MEMORY_MIB,
        rounds,
        kvm: kind_of_kvm(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        peers: start(folder, rounds)?,
        sections: Vec::new(),
    };
    println!(
        "{} CPUs, {} KVM, Linux {}; guests have 1 vCPU",
        report.cpus, report.kvm, report.kernel
    );
    report.add(start_section(&report));

    let kernel = folder.join("probe");
    fs::write(&kernel, probe::kernel()?)?;
    let hearth = Hearth::start().await?;
    report.add(launch::measure(&hearth, &kernel, LAUNCHES).await?);
    for section in disk::measure(&kernel, folder, LOAD_SECONDS)? {
        report.add(section);
    }
    for section in throttle::measure(&hearth, &kernel, folder, LIMIT_SECONDS).await? {
        report.add(section);
    }
    report.add(many::measure(&hearth, &kernel).await?);
    report.add(api::measure(&hearth).await?);
    drop(hearth);

    let path = target_folder()?.join("bench.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// Only the limits of volume classes.
async fn limits() -> Result<()> {
    ensure!(programs::kvm(), "no /dev/kvm that we may write to");
    let folder = tempfile::Builder::new().prefix("hearth-bench.").tempdir()?;
    let kernel = folder.path().join("probe");
    fs::write(&kernel, probe::kernel()?)?;
    let hearth = Hearth::start().await?;
    for section in throttle::measure(&hearth, &kernel, folder.path(), LIMIT_SECONDS).await? {
        section.print();
    }
    hearth.finish().await
}

impl Report {
    fn add(&mut self, section: Section) {
        section.print();
        self.sections.push(section);
    }
}

/// Ours, then QEMU's.
fn start(folder: &Path, rounds: usize) -> Result<Vec<Medians>> {
    let kernel = folder.join("kernel");
    fs::write(&kernel, tiny::one_byte())?;
    let peers = [Peer::hearth(&kernel)?, Peer::qemu(&kernel)?];
    let mut measured: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    // One round more, which only warms the caches.
    for round in 0..=rounds {
        for (peer, measured) in peers.iter().zip(&mut measured) {
            let run_dir = tempfile::tempdir_in(folder)?;
            let one = peer
                .measure(run_dir.path())
                .with_context(|| peer.name.to_owned())?;
            if round > 0 {
                measured.push(one);
            }
        }
    }
    let medians = peers.iter().zip(&measured);
    Ok(medians
        .map(|(peer, measured)| medians_of(peer.name, measured))
        .collect())
}

fn start_section(report: &Report) -> Section {
    let [ours, qemu] = [&report.peers[0], &report.peers[1]];
    let row = |what: &str, of: fn(&Medians) -> f64| Row::beside(what, of(ours), of(qemu));
    let rows = vec![
        row("process start to the guest's first byte, ms", |m| {
            m.start_to_guest_ms
        }),
        row("resident beyond the guest's pages, MiB", |m| {
            m.beyond_guest_kib / 1024.0
        }),
        row("resident in all, MiB", |m| m.resident_kib / 1024.0),
        row("of it the guest's own pages, MiB", |m| {
            m.guest_resident_kib / 1024.0
        }),
    ];
    let title = format!(
        "VMM, {} MiB, medians of {} rounds",
        report.memory_mib, report.rounds
    );
    Section::new(title, rows)
}

fn medians_of(name: &'static str, measured: &[Measured]) -> Medians {
    let median = |of: fn(&Measured) -> f64| {
        let values: Vec<f64> = measured.iter().map(of).collect();
        quantile(&values, 0.5)
    };
    Medians {
        name,
        start_to_guest_ms: median(|m| m.start_to_guest.as_secs_f64() * 1000.0),
        resident_kib: median(|m| m.memory.resident_kib as f64),
        guest_resident_kib: median(|m| m.memory.guest_kib as f64),
        beyond_guest_kib: median(|m| (m.memory.resident_kib - m.memory.guest_kib) as f64),
    }
}

fn kind_of_kvm() -> &'static str {
    let loaded = |name| PathBuf::from("/sys/module").join(name).exists();
    match (loaded("kvm_intel"), loaded("kvm_amd"), loaded("kvm_pvm")) {
        (true, _, _) => "Intel",
        (_, true, _) => "AMD",
        (_, _, true) => "software",
        _ => "unknown",
    }
}

/// `target`, from `target/release/hearth-bench`.
fn target_folder() -> Result<PathBuf> {
    let me = env::current_exe()?;
    Ok(me
        .ancestors()
        .nth(2)
        .context("this program is not in target/release")?
        .to_owned())
}
