//! `hearth-bench`: our VMM beside `qemu-system-x86_64 -M microvm`, in turns, in the same run,
//! with the same kernel of eleven bytes: from the start of the process to the guest's first
//! instruction, and how much memory the process holds beyond the guest's own pages.
//!
//! usage: hearth-bench [ROUNDS]      prints a table; writes bench.json to the target directory

mod memory;
mod peers;
mod serial_file;

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use hearth_tests::{programs, tiny};
use serde::Serialize;

use crate::peers::{Measured, Peer};

const ROUNDS: usize = 15;

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
    peers: Vec<Medians>,
    /// Hearth's figure divided by QEMU's: below 1 is better.
    ratio_start: f64,
    ratio_memory: f64,
}

fn main() -> Result<()> {
    let rounds = match env::args().nth(1) {
        Some(text) => text.parse().context("ROUNDS is a number")?,
        None => ROUNDS,
    };
    ensure!(rounds > 0, "at least one round");
    ensure!(programs::kvm(), "no /dev/kvm that we may write to");
    let folder = tempfile::Builder::new().prefix("hearth-bench.").tempdir()?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, tiny::one_byte())?;

    let peers = [Peer::hearth(&kernel)?, Peer::qemu(&kernel)?];
    let mut measured: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    // One round more, which only warms the caches.
    for round in 0..=rounds {
        for (peer, measured) in peers.iter().zip(&mut measured) {
            let run_dir = tempfile::tempdir_in(folder.path())?;
            let one = peer
                .measure(run_dir.path())
                .with_context(|| peer.name.to_owned())?;
            if round > 0 {
                measured.push(one);
            }
        }
    }

    let [ours, theirs] = [0, 1].map(|index| medians(peers[index].name, &measured[index]));
    let report = Report {
        memory_mib: peers::MEMORY_MIB,
        rounds,
        kvm: kind_of_kvm(),
        ratio_start: ours.start_to_guest_ms / theirs.start_to_guest_ms,
        ratio_memory: ours.beyond_guest_kib / theirs.beyond_guest_kib,
        peers: vec![ours, theirs],
    };
    print(&report);
    let path = target_folder()?.join("bench.json");
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

fn print(report: &Report) {
    println!(
        "1 vCPU, {} MiB, {} KVM, medians of {} rounds",
        report.memory_mib, report.kvm, report.rounds
    );
    println!(
        "\n{:<44}{:>12}{:>12}{:>8}",
        "", "hearth-vmm", "QEMU", "ratio"
    );
    let [ours, theirs] = &report.peers[..] else {
        return;
    };
    let row = |what: &str, ours: f64, theirs: f64| {
        println!("{what:<44}{ours:>12.1}{theirs:>12.1}{:>8.3}", ours / theirs);
    };
    row(
        "process start to the guest's first byte, ms",
        ours.start_to_guest_ms,
        theirs.start_to_guest_ms,
    );
    let mib = |kib: f64| kib / 1024.0;
    row(
        "resident beyond the guest's pages, MiB",
        mib(ours.beyond_guest_kib),
        mib(theirs.beyond_guest_kib),
    );
    row(
        "resident in all, MiB",
        mib(ours.resident_kib),
        mib(theirs.resident_kib),
    );
    row(
        "of it the guest's own pages, MiB",
        mib(ours.guest_resident_kib),
        mib(theirs.guest_resident_kib),
    );
}

fn medians(name: &'static str, measured: &[Measured]) -> Medians {
    let median = |of: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = measured.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        }
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
