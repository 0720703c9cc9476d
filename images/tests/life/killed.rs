//! A process that works on a volume, takes snapshots of it, and is killed.
//!
//! It is this test binary once more. What it does follows from a seed, so that it tells only
//! that it begins an operation and that it has done one.

use crate::common::{Rng, snap};
use crate::model::{Contents, Op};
use hearth_images::{Access, Disk, Store, VolumeId};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const STORE: &str = "HEARTH_LIFE_TEST_STORE";
const VOLUME: &str = "HEARTH_LIFE_TEST_VOLUME";
const SEED: &str = "HEARTH_LIFE_TEST_WORKER_SEED";

const BEGIN: u8 = 0;
const DONE: u8 = 1;

fn op_count(seed: u64) -> u64 {
    Rng::new(seed).below(300)
}

fn ops(seed: u64, logical: u64) -> impl Iterator<Item = Op> {
    let mut rng = Rng::new(!seed);
    (0..op_count(seed)).map(move |_| Op::random(&mut rng, logical))
}

fn snapshot_name(seed: u64, index: usize) -> String {
    format!("k-{seed:016x}-{index}")
}

/// Not a test by itself: what the other test starts and kills.
#[test]
#[ignore = "started by the other test"]
fn worker() {
    let variable = |name| std::env::var(name).ok();
    let Some(root) = variable(STORE) else {
        return;
    };
    let seed = variable(SEED).expect(SEED).parse().expect(SEED);
    let id = VolumeId::new(variable(VOLUME).expect(VOLUME)).expect("id");
    let store = Store::open(root).expect("store");
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    let logical = Contents::new(disk.size_bytes()).logical();
    let tell = |byte| std::io::stderr().write_all(&[byte]).expect("log");
    for (index, op) in ops(seed, logical).enumerate() {
        tell(BEGIN);
        if op == Op::Snapshot {
            let name = snap(&snapshot_name(seed, index));
            store
                .snapshot_disks(&[(&disk, &id, &name)])
                .expect("snapshot");
        }
        op.perform(&disk);
        tell(DONE);
    }
    disk.close().expect("close");
}

/// What is known of a killed process.
pub struct Killed {
    /// What was durable, and what was begun after that.
    durable: Contents,
    newer: Vec<Op>,
    /// Snapshots that are there for sure, and one that may be.
    pub snapshots: BTreeMap<String, Contents>,
    pub perhaps: Option<(String, Contents)>,
}

/// Runs a process on a volume that holds `contents`, and kills it at a random moment.
pub fn run(store: &Store, id: &VolumeId, contents: &Contents, seed: u64) -> Killed {
    let log = run_and_kill(store, id, seed);
    let begun = log.iter().filter(|byte| **byte == BEGIN).count();
    let done = log.iter().filter(|byte| **byte == DONE).count();
    assert!(
        begun + done == log.len() && begun - done <= 1,
        "the worker failed: {}",
        String::from_utf8_lossy(&log)
    );
    let mut killed = Killed {
        durable: contents.clone(),
        newer: Vec::new(),
        snapshots: BTreeMap::new(),
        perhaps: None,
    };
    let mut now = contents.clone();
    for (index, op) in ops(seed, contents.logical()).take(begun).enumerate() {
        let is_done = index < done;
        now.apply(op);
        match op {
            Op::Flush | Op::Snapshot if is_done => {
                killed.durable = now.clone();
                killed.newer.clear();
            }
            Op::Flush | Op::Snapshot => (),
            _ => killed.newer.push(op),
        }
        if op == Op::Snapshot {
            let name = snapshot_name(seed, index);
            match is_done {
                true => drop(killed.snapshots.insert(name, now.clone())),
                false => killed.perhaps = Some((name, now.clone())),
            }
        }
    }
    killed
}

impl Killed {
    /// Judges what the volume holds now: each sector is what was durable or something newer.
    pub fn judge(&self, disk: &Disk, context: &str) -> Contents {
        let found = Contents::read(disk);
        assert_eq!(found.size, self.durable.size, "{context}");
        let mut allowed: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
        for (at, bytes) in self.newer.iter().filter_map(Op::bytes) {
            for (index, sector) in bytes.chunks(512).enumerate() {
                let at = at + index as u64 * 512;
                allowed.entry(at).or_default().push(sector.to_vec());
            }
        }
        for (index, sector) in found.data.chunks(512).enumerate() {
            let at = index as u64 * 512;
            let old = &self.durable.data[at as usize..][..512];
            let newer = allowed
                .get(&at)
                .is_some_and(|some| some.iter().any(|new| new == sector));
            assert!(
                sector == old || newer,
                "{context}: sector {at:#x} is neither old nor new: {:02x?}…",
                &sector[..16]
            );
        }
        found
    }
}

fn run_and_kill(store: &Store, id: &VolumeId, seed: u64) -> Vec<u8> {
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["killed::worker", "--exact", "--ignored", "--nocapture"])
        .env(STORE, store.root())
        .env(VOLUME, id.as_ref())
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("worker");
    let mut stderr = child.stderr.take().expect("pipe");
    let (at_work, working) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut log = vec![0];
        let count = stderr.read(&mut log).expect("log");
        log.truncate(count);
        let _ = at_work.send(());
        stderr.read_to_end(&mut log).expect("log");
        log
    });
    working.recv().expect("the reader");
    std::thread::sleep(Duration::from_micros(Rng::new(!seed).below(100_000)));
    child.kill().expect("kill");
    child.wait().expect("wait");
    reader.join().expect("reader")
}
