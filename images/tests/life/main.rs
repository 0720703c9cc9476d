//! The life of a store: everything that can be done to volumes and snapshots, in any order,
//! processes that are killed included, against byte arrays.
//!
//! `HEARTH_LIFE_TEST_SEED` runs one seed; `HEARTH_LIFE_TEST_SECONDS` goes on with new ones for so
//! long.

#[path = "../common/mod.rs"]
mod common;
mod killed;
mod model;
mod world;

use common::Rng;
use std::time::{Duration, Instant};
use world::World;

const STEPS: u64 = 120;
const SECONDS: u64 = 40;

fn run(seed: u64) {
    println!("HEARTH_LIFE_TEST_SEED={seed}");
    let mut world = World::new(seed);
    for step in 0..STEPS {
        world.step(&format!("seed {seed} step {step}"));
        world.verify();
        if step % 30 == 29 {
            world.verify_with_qemu();
        }
    }
    world.end();
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn any_sequence_of_operations_leaves_what_byte_arrays_hold() {
    if let Some(seed) = number("HEARTH_LIFE_TEST_SEED") {
        return run(seed);
    }
    let budget = Duration::from_secs(number("HEARTH_LIFE_TEST_SECONDS").unwrap_or(SECONDS));
    let start = Instant::now();
    let mut seeds = vec![1, 2];
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).expect("random numbers");
    let mut rng = Rng::new(u64::from_le_bytes(random));
    while start.elapsed() < budget || !seeds.is_empty() {
        run(seeds.pop().unwrap_or_else(|| rng.next()));
    }
}
