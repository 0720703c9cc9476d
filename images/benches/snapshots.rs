//! How long snapshots and clones take, and how long a guest waits for a snapshot of its disk.
//!
//! Two volumes take turns: one of 1 GiB that is empty, and one of 100 GiB with data all over it;
//! the second shall take no longer than the first. `HEARTH_BENCH_DATA_MIB` says how much data
//! (1024).

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on ends")]

use hearth_images::{Access, Disk, SnapshotId, Store, VolumeId, VolumeSource};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
const ROUNDS: u64 = 100;
const CLUSTER: u64 = 64 << 10;

struct Bench {
    store: Store,
    names: AtomicU64,
}

impl Bench {
    fn snapshot_id(&self) -> SnapshotId {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        SnapshotId::new(format!("s-{number}")).unwrap()
    }

    fn volume_id(&self) -> VolumeId {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        VolumeId::new(format!("v-{number}")).unwrap()
    }

    /// An empty volume, or one that has so many MiB of data, a cluster here and there.
    fn volume(&self, size: u64, data_mib: u64) -> VolumeId {
        let id = self.volume_id();
        self.store
            .create_volume(&id, VolumeSource::Empty, Some(size))
            .unwrap();
        let disk = self.open(&id);
        let clusters = data_mib * 16;
        let data: Vec<u8> = (0..CLUSTER).map(|at| (at / 7) as u8 | 1).collect();
        for number in 0..clusters {
            // Rising, and spread over the whole disk.
            let at = size / clusters * number / CLUSTER * CLUSTER;
            disk.write(&data, at).unwrap();
        }
        disk.close().unwrap();
        id
    }

    fn open(&self, id: &VolumeId) -> Disk {
        self.store.open_volume(id, Access::ReadWrite).unwrap()
    }

    /// Removes all snapshots and what only they needed, and makes chains short.
    fn tidy(&self) {
        for id in self.store.snapshots().unwrap() {
            self.store.delete_snapshot(&id).unwrap();
        }
        while let Some(merge) = self.store.next_merge().unwrap() {
            let go_on = |_| ControlFlow::Continue(());
            self.store.merge(&merge, go_on).unwrap();
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{what:<58} median {:8.3} ms   p99 {:8.3} ms   ({})",
        ms(at(50)),
        ms(at(99)),
        times.len()
    );
}

fn snapshots_and_clones(bench: &Bench, name: &str, volume: &VolumeId) {
    let (mut at_rest, mut clones, mut live) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let id = bench.snapshot_id();
        at_rest.push(timed(|| bench.store.snapshot_volume(volume, &id).unwrap()).1);
        let clone = bench.volume_id();
        let source = VolumeSource::Snapshot(&id);
        clones.push(timed(|| bench.store.create_volume(&clone, source, None).unwrap()).1);
        bench.store.delete_volume(&clone).unwrap();
        let disk = bench.open(volume);
        disk.write(&[1; 4096], round * CLUSTER).unwrap();
        disk.flush().unwrap();
        let id = bench.snapshot_id();
        let wanted = [(&disk, volume, &id)];
        live.push(timed(|| bench.store.snapshot_disks(&wanted).unwrap()).1);
        disk.close().unwrap();
        if round % 10 == 9 {
            bench.tidy();
        }
    }
    report(&format!("{name}: snapshot, at rest"), at_rest);
    report(&format!("{name}: snapshot, open"), live);
    report(&format!("{name}: clone"), clones);
}

/// What a guest with two queues that never rest sees of snapshots. It works on the first `size`
/// bytes, so that merging in between has less to copy.
fn under_load(bench: &Bench, volume: &VolumeId, size: u64) {
    const QUEUES: u64 = 2;
    let disk = bench.open(volume);
    let end = AtomicBool::new(false);
    let (mut pauses, mut whole) = (Vec::new(), Vec::new());
    let mut longest = Duration::ZERO;
    std::thread::scope(|scope| {
        let queue = |queue: u64| {
            let (disk, end) = (&disk, &end);
            move || {
                let mut longest = Duration::ZERO;
                let mut state = queue + 1;
                let mut buffer = [queue as u8; 4096];
                while !end.load(Ordering::Relaxed) {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let at = state % (size / 4096) * 4096;
                    let (_, time) = timed(|| match state >> 60 {
                        0..6 => disk.read(&mut buffer, at).unwrap(),
                        _ => disk.write(&buffer, at).unwrap(),
                    });
                    longest = longest.max(time);
                }
                longest
            }
        };
        let queues: Vec<_> = (0..QUEUES)
            .map(|number| scope.spawn(queue(number)))
            .collect();
        for round in 0..2 * ROUNDS {
            std::thread::sleep(Duration::from_millis(20));
            let id = bench.snapshot_id();
            let (taken, time) = timed(|| {
                let wanted = [(&disk, volume, &id)];
                bench.store.snapshot_disks(&wanted).unwrap()
            });
            pauses.push(taken.pause);
            whole.push(time);
            if round % 20 == 19 {
                bench.tidy();
                bench.store.reload_disk(&disk, volume).unwrap();
            }
        }
        end.store(true, Ordering::Relaxed);
        for queue in queues {
            longest = longest.max(queue.join().unwrap());
        }
    });
    disk.close().unwrap();
    report("100 GiB under load, 2 queues: snapshot", whole);
    report("100 GiB under load, 2 queues: pause of the guest", pauses);
    println!(
        "longest read or write of the run: {:.3} ms",
        longest.as_secs_f64() * 1e3
    );
}

fn clones_on_the_disk(bench: &Bench, volume: &VolumeId) {
    let id = bench.snapshot_id();
    bench.store.snapshot_volume(volume, &id).unwrap();
    let one = bench.store.snapshot(&id).unwrap().allocated_bytes;
    let mut clones = 0;
    for _ in 0..100 {
        let source = VolumeSource::Snapshot(&id);
        let info = bench
            .store
            .create_volume(&bench.volume_id(), source, None)
            .unwrap();
        clones += info.allocated_bytes;
    }
    println!(
        "an image of {} MiB, and 100 clones of it: {} MiB more",
        one >> 20,
        clones >> 20
    );
}

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let data_mib = std::env::var("HEARTH_BENCH_DATA_MIB")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(1024);
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench {
        store: Store::open(dir.path().join("store")).unwrap(),
        names: AtomicU64::new(0),
    };
    let small = bench.volume(GIB, 0);
    snapshots_and_clones(&bench, "1 GiB, empty", &small);
    let large = bench.volume(100 * GIB, data_mib);
    snapshots_and_clones(&bench, &format!("100 GiB, {data_mib} MiB of data"), &large);
    under_load(&bench, &large, 2 * GIB);
    clones_on_the_disk(&bench, &large);
}
