//! The VMM alone, with a kernel of eleven bytes, in turns: from the start of the process to the
//! guest's first instruction, and how much memory the process holds beyond the guest's pages.

use std::fs;

use anyhow::{Context, Result};
use hearth_tests::tiny;

use crate::{
    Bench,
    peers::{MEMORY_MIB, Measured, Peer},
    table::{Row, Section, quantile},
};

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let kernel = bench.folder().join("kernel");
    fs::write(&kernel, tiny::one_byte())?;
    let peers = [Peer::hearth(&kernel)?, Peer::qemu(&kernel)?];
    let mut measured: [Vec<Measured>; 2] = [Vec::new(), Vec::new()];
    // One round more, which only warms the caches.
    for round in 0..=bench.rounds {
        for (peer, measured) in peers.iter().zip(&mut measured) {
            let run_dir = tempfile::tempdir_in(bench.folder())?;
            let one = peer
                .measure(run_dir.path())
                .with_context(|| peer.name.to_owned())?;
            if round > 0 {
                measured.push(one);
            }
        }
    }
    let row = |what: &str, of: fn(&Measured) -> f64| {
        let [ours, qemu] = [&measured[0], &measured[1]].map(|measured| {
            let values: Vec<f64> = measured.iter().map(of).collect();
            quantile(&values, 0.5)
        });
        Row::beside(what, ours, qemu)
    };
    let rows = vec![
        row("process start to the guest's first byte, ms", |m| {
            m.start_to_guest.as_secs_f64() * 1000.0
        }),
        row("resident beyond the guest's pages, MiB", |m| {
            (m.memory.resident_kib - m.memory.guest_kib) as f64 / 1024.0
        }),
        row("resident in all, MiB", |m| {
            m.memory.resident_kib as f64 / 1024.0
        }),
        row("of it the guest's own pages, MiB", |m| {
            m.memory.guest_kib as f64 / 1024.0
        }),
    ];
    let rounds = bench.rounds;
    let title = format!("VMM, {MEMORY_MIB} MiB, medians of {rounds} rounds");
    Ok(vec![Section::new(title, rows)])
}
