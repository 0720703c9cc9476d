//! kill -9 of a process in the middle of multi-queue writes.
//!
//! The worker is this test binary once more. It logs what it begins, what is done and what is
//! flushed; the parent kills it at a random moment and judges each sector of the disk by that.

mod common;

use common::model::{DISK, LOGICAL, Mix, Op, QUEUES, owner, place, random_op};
use common::{Rng, Scratch, assert_all_layers_are_clean, seeds};
use hearth_images::{
    Access, Disk, ErrorKind, ImportOptions, ImportSource, Repair, SnapshotId, Store, VolumeId,
    VolumeSource,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const STORE_VARIABLE: &str = "HEARTH_CRASH_TEST_STORE";
const SEED_VARIABLE: &str = "HEARTH_CRASH_TEST_SEED";
const FIRST_ID_VARIABLE: &str = "HEARTH_CRASH_TEST_FIRST_ID";
/// Set if the worker takes snapshots, too.
const SNAPSHOTS_VARIABLE: &str = "HEARTH_CRASH_TEST_SNAPSHOTS";

const ROUNDS: u64 = 12;
/// Tag of a sector that reads as zero.
const ZERO: u64 = 0;
/// Tag of what the snapshot holds.
const BASE: u64 = 1;

fn volume_id() -> VolumeId {
    VolumeId::new("vol").expect("id")
}

/// What a sector holds after the operation `tag` wrote it.
fn sector_of(tag: u64, logical: u64) -> [u8; 512] {
    let mut sector = [0; 512];
    if tag != ZERO {
        Rng::new((tag << 24) ^ (logical / 512)).fill(&mut sector);
    }
    sector
}

/// One line of the worker's log. 32 bytes, written at once, so that lines never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Begin {
        id: u64,
        at: u64,
        len: u64,
        zero: bool,
    },
    Done {
        id: u64,
    },
    FlushBegin {
        queue: u64,
    },
    FlushDone {
        queue: u64,
    },
}

impl Event {
    fn encode(self) -> [u8; 32] {
        let fields = match self {
            Event::Begin { id, at, len, zero } => [1 + u64::from(zero), id, at, len],
            Event::Done { id } => [3, id, 0, 0],
            Event::FlushBegin { queue } => [4, queue, 0, 0],
            Event::FlushDone { queue } => [5, queue, 0, 0],
        };
        let mut line = [0; 32];
        for (bytes, field) in line.chunks_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        line
    }

    fn decode(line: &[u8]) -> Option<Event> {
        let field =
            |index: usize| u64::from_le_bytes(line[index * 8..][..8].try_into().expect("8 bytes"));
        Some(match field(0) {
            kind @ (1 | 2) => Event::Begin {
                id: field(1),
                at: field(2),
                len: field(3),
                zero: kind == 2,
            },
            3 => Event::Done { id: field(1) },
            4 => Event::FlushBegin { queue: field(1) },
            5 => Event::FlushDone { queue: field(1) },
            _ => return None,
        })
    }

    fn log(self) {
        std::io::stderr().write_all(&self.encode()).expect("log");
    }
}

/// Not a test by itself: what the other test starts and kills.
#[test]
#[ignore = "started by the test below"]
fn worker() {
    let variable = |name| std::env::var(name).ok();
    let Some(root) = variable(STORE_VARIABLE) else {
        return;
    };
    let number = |name| variable(name).expect(name).parse::<u64>().expect(name);
    let seed = number(SEED_VARIABLE);
    let next_id = AtomicU64::new(number(FIRST_ID_VARIABLE));
    let store = Store::open(root).expect("store");
    let disk = store
        .open_volume(&volume_id(), Access::ReadWrite)
        .expect("open");
    // Some workers come to an end, so that closing is killed too.
    let ops = Rng::new(seed).below(3000);
    let (working, store) = (AtomicU64::new(QUEUES), &store);
    std::thread::scope(|scope| {
        for queue in 0..QUEUES {
            let (disk, next_id, working) = (&disk, &next_id, &working);
            scope.spawn(move || {
                work(disk, queue, seed ^ (queue << 56), ops, next_id);
                working.fetch_sub(1, Ordering::Release);
            });
        }
        if variable(SNAPSHOTS_VARIABLE).is_some() {
            let mut rng = Rng::new(seed);
            while working.load(Ordering::Acquire) > 0 {
                let name = SnapshotId::new(format!("live-{:x}", rng.next())).expect("id");
                store
                    .snapshot_disks(&[(&disk, &volume_id(), &name)])
                    .expect("snapshot");
                std::thread::sleep(Duration::from_micros(rng.below(20_000)));
            }
        }
    });
    disk.close().expect("close");
}

fn work(disk: &Disk, queue: u64, seed: u64, ops: u64, next_id: &AtomicU64) {
    let mix = if ops.is_multiple_of(2) {
        Mix::BUSY
    } else {
        Mix::LAZY
    };
    let mut rng = Rng::new(seed);
    for _ in 0..ops {
        let op = random_op(&mut rng, queue, mix);
        let (at, len) = match op {
            Op::Flush => {
                Event::FlushBegin { queue }.log();
                disk.flush().expect("flush");
                Event::FlushDone { queue }.log();
                continue;
            }
            Op::Read { .. } => continue,
            Op::Write { at, len } | Op::Zero { at, len, .. } | Op::Discard { at, len } => (at, len),
        };
        let id = next_id.fetch_add(1, Ordering::Relaxed);
        let zero = !matches!(op, Op::Write { .. });
        Event::Begin { id, at, len, zero }.log();
        match op {
            Op::Write { .. } => {
                let data: Vec<u8> = (at..at + len)
                    .step_by(512)
                    .flat_map(|at| sector_of(id, at))
                    .collect();
                disk.write(&data, place(at)).expect("write");
            }
            Op::Zero { unmap, .. } => disk.write_zeroes(place(at), len, unmap).expect("zero"),
            _ => disk.discard(place(at), len).expect("discard"),
        }
        Event::Done { id }.log();
    }
}

/// What each logical sector may hold.
struct Expected {
    /// Tag that was durable last, and those that were begun after it.
    sectors: Vec<(u64, Vec<u64>)>,
}

impl Expected {
    fn replay(&mut self, log: &[u8]) -> u64 {
        let mut begun = HashMap::new();
        let mut done = Vec::new();
        let mut durable = 0;
        let mut flushing = HashMap::new();
        let mut last_id = 0;
        for line in log.chunks_exact(32) {
            let Some(event) = Event::decode(line) else {
                panic!("the worker failed: {}", String::from_utf8_lossy(log));
            };
            match event {
                Event::Begin { id, at, len, zero } => {
                    last_id = last_id.max(id);
                    let tag = if zero { ZERO } else { id };
                    begun.insert(id, (at, len, tag));
                    for sector in at / 512..(at + len) / 512 {
                        self.sectors[sector as usize].1.push(tag);
                    }
                }
                Event::Done { id } => done.push(id),
                Event::FlushBegin { queue } => {
                    flushing.insert(queue, done.len());
                }
                Event::FlushDone { queue } => {
                    let upto = flushing.remove(&queue).expect("a flush that began");
                    for id in done.iter().take(upto).skip(durable) {
                        let (at, len, tag) = begun[id];
                        for sector in at / 512..(at + len) / 512 {
                            let (old, newer) = &mut self.sectors[sector as usize];
                            *old = tag;
                            // One queue owns the sector: its operations are durable in order.
                            let first = newer.iter().position(|newer| *newer == tag);
                            newer.drain(..=first.expect("begun"));
                        }
                    }
                    durable = durable.max(upto);
                }
            }
        }
        last_id
    }

    /// Judges the disk, and takes what it holds as the new state.
    fn judge(&mut self, disk: &Disk, context: &str) {
        let mut chunk = vec![0; 1 << 20];
        for at in (0..LOGICAL).step_by(chunk.len()) {
            disk.read(&mut chunk, place(at)).expect("read");
            for (index, found) in chunk.chunks_exact(512).enumerate() {
                let logical = at + index as u64 * 512;
                let (durable, newer) = &mut self.sectors[(logical / 512) as usize];
                let matching = std::iter::once(&*durable)
                    .chain(newer.iter())
                    .find(|tag| sector_of(**tag, logical) == found);
                match matching {
                    Some(tag) => *durable = *tag,
                    None => panic!(
                        "{context}: sector {logical:#x} of queue {} is neither {durable} nor one \
                         of {newer:?}: {:02x?}…",
                        owner(logical),
                        &found[..16]
                    ),
                }
                newer.clear();
            }
        }
    }
}

fn import_base(scratch: &Scratch) -> (SnapshotId, Expected) {
    let path = scratch.path("base.raw");
    let raw = File::create(&path).expect("raw");
    let size = DISK / 2 + 1536;
    raw.set_len(size).expect("size");
    let mut sectors = vec![(ZERO, Vec::new()); (LOGICAL / 512) as usize];
    for at in (0..LOGICAL).step_by(512) {
        if place(at) + 512 <= size && at / (80 << 10) % 3 > 0 {
            raw.write_all_at(&sector_of(BASE, at), place(at))
                .expect("raw");
            sectors[(at / 512) as usize].0 = BASE;
        }
    }
    let snapshot = SnapshotId::new("snap").expect("id");
    scratch
        .store
        .import_snapshot(
            &snapshot,
            ImportSource::File(&path),
            ImportOptions::default(),
        )
        .expect("import");
    (snapshot, Expected { sectors })
}

/// Runs a worker, kills it at a random moment, and returns its log.
fn run_and_kill(store: &Store, seed: u64, first_id: u64, snapshots: bool) -> Vec<u8> {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .envs(snapshots.then_some((SNAPSHOTS_VARIABLE, "1")))
        .args(["worker", "--exact", "--ignored", "--nocapture"])
        .env(STORE_VARIABLE, store.root())
        .env(SEED_VARIABLE, seed.to_string())
        .env(FIRST_ID_VARIABLE, first_id.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("worker");
    let mut stderr = child.stderr.take().expect("pipe");
    let reader = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).expect("log");
        log
    });
    let moment = Rng::new(!seed).below(400_000);
    std::thread::sleep(Duration::from_micros(moment));
    child.kill().expect("kill");
    child.wait().expect("wait");
    reader.join().expect("reader")
}

fn run(seed: u64, rounds: u64, snapshots: bool) {
    println!("seed {seed:#x}, snapshots: {snapshots}");
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (snapshot, mut expected) = import_base(&scratch);
    let id = volume_id();
    store
        .create_volume(&id, VolumeSource::Snapshot(&snapshot), Some(DISK))
        .expect("clone");

    let mut rng = Rng::new(seed);
    let mut first_id = BASE + 1;
    for round in 0..rounds {
        let context = format!("seed {seed:#x} round {round}");
        let log = run_and_kill(store, rng.next(), first_id, snapshots);
        first_id = first_id.max(expected.replay(&log) + 1);

        let chain = store.volume(&id).expect("volume").chain_length;
        let found = store.check_volume(&id, Repair::No).unwrap_or_else(|error| {
            panic!("{context}: {error}");
        });
        println!(
            "{context}: {} events, {chain} layers, {} leaked, {} unaccounted",
            log.len() / 32,
            found.leaked_clusters,
            found.unaccounted_clusters
        );
        if round.is_multiple_of(2) {
            store.recover_volume(&id).expect("recover");
        } else {
            let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
            let second = store
                .open_volume(&id, Access::ReadWrite)
                .expect_err("locked");
            assert_eq!(second.kind(), ErrorKind::InUse);
            disk.close().expect("close");
        }
        assert_all_layers_are_clean(store);
        let disk = store.open_volume(&id, Access::ReadOnly).expect("open");
        expected.judge(&disk, &context);
        drop(disk);
        for name in store.snapshots().expect("snapshots") {
            if name != snapshot {
                store.delete_snapshot(&name).expect("delete");
            }
        }
        while let Some(merge) = store.next_merge().expect("plan") {
            store
                .merge(&merge, |_| ControlFlow::Continue(()))
                .expect("merge");
        }
    }
}

fn rounds() -> u64 {
    std::env::var("HEARTH_CRASH_TEST_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(ROUNDS)
}

#[test]
fn flushed_data_survives_kill_nine_and_the_file_is_clean_after_recovery() {
    for seed in seeds() {
        run(seed, rounds(), false);
    }
}

#[test]
fn flushed_data_survives_kill_nine_in_the_middle_of_live_snapshots() {
    for seed in seeds() {
        run(seed, rounds(), true);
    }
}
