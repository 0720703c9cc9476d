//! From the call to the first answer: a probe through the agent, beside one that QEMU starts.

use std::time::Instant;

use anyhow::Result;

use crate::{
    Bench,
    machine::Machine,
    table::{Row, Section, quantile},
};

/// How often.
const LAUNCHES: usize = 20;

/// Any command will do.
const COMMAND: &str = "echo text=1";

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let hearth = bench.hearth().await?;
    let kernel = bench.probe_kernel()?;
    let (mut ours, mut qemu) = (Vec::new(), Vec::new());
    // One round more, which only warms the caches.
    for round in 0..=LAUNCHES {
        let start = Instant::now();
        let mut probe = hearth.probe(|_| {}).await?;
        probe.expect_ok(COMMAND).await?;
        let our_ms = ms(start);
        probe.guest.terminate().await?;

        let start = Instant::now();
        Machine::qemu(&kernel, None)?.ask(COMMAND)?;
        let qemu_ms = ms(start);
        if round > 0 {
            ours.push(our_ms);
            qemu.push(qemu_ms);
        }
    }
    let row = |what: &str, part| {
        Row::beside(
            format!("{what} of {LAUNCHES} launches, ms"),
            quantile(&ours, part),
            quantile(&qemu, part),
        )
    };
    Ok(vec![Section::new(
        "RunInstances (QEMU: process) to first answer",
        vec![row("median", 0.5), row("p90", 0.9)],
    )])
}

pub fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
