//! 4 KiB random I/O on volumes against a raw file beside them, and what cloning costs.
//!
//! Prints ratios at the end: a volume's time divided by the raw file's, measured in the same run.

#![allow(missing_docs)] // criterion's macros make public items.

use criterion::{BenchmarkId, Criterion};
use hearth_images::{Access, Disk, SnapshotId, Store, VolumeId, VolumeSource};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// Bytes of each disk that are used.
const SPAN: u64 = 256 << 20;
const BLOCK: usize = 4096;
const LAYERS: u64 = 5;
/// Operations before it is the peer's turn.
const BATCH: usize = 64;

fn vol(id: &str) -> VolumeId {
    VolumeId::new(id).expect("id")
}

/// Offsets in an order that looks random and repeats only after all were there.
struct Offsets(Cell<u64>);

impl Offsets {
    fn next(&self) -> u64 {
        let blocks = SPAN / BLOCK as u64;
        // Full period: the increment is odd and the multiplier is 1 modulo 4.
        let next = (self.0.get().wrapping_mul(25_214_903_917) + 11) % blocks;
        self.0.set(next);
        next * BLOCK as u64
    }
}

fn fill(write: impl Fn(&[u8], u64)) {
    let data = vec![0xa5; 1 << 20];
    for at in (0..SPAN).step_by(data.len()) {
        write(&data, at);
    }
}

/// A volume of five layers; each lower one holds a fifth of the clusters.
fn layered(store: &Store) -> Disk {
    let id = vol("layered");
    store
        .create_volume(&id, VolumeSource::Empty, Some(GIB))
        .expect("create");
    for layer in 0..LAYERS - 1 {
        let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
        let data = vec![layer as u8; 64 << 10];
        for cluster in (layer..SPAN >> 16).step_by((LAYERS - 1) as usize) {
            disk.write(&data, cluster << 16).expect("write");
        }
        disk.close().expect("close");
        let name = SnapshotId::new(format!("layer-{layer}")).expect("id");
        store.snapshot_volume(&id, &name).expect("snapshot");
    }
    store.open_volume(&id, Access::ReadWrite).expect("open")
}

fn main() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Store::open(dir.path().join("store")).expect("store");
    let raw = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("raw"))
        .expect("raw");
    fill(|data, at| raw.write_all_at(data, at).expect("raw"));

    store
        .create_volume(&vol("full"), VolumeSource::Empty, Some(GIB))
        .expect("create");
    let full = store
        .open_volume(&vol("full"), Access::ReadWrite)
        .expect("open");
    fill(|data, at| full.write(data, at).expect("write"));
    full.flush().expect("flush");
    store
        .create_volume(&vol("fresh"), VolumeSource::Empty, Some(GIB))
        .expect("create");
    let fresh = store
        .open_volume(&vol("fresh"), Access::ReadWrite)
        .expect("open");
    let layered = layered(&store);
    // Nothing of the preparation is still on its way to the disk.
    raw.sync_all().expect("sync");

    let results = RefCell::new(Vec::new());
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(10)
        .without_plots()
        .configure_from_args();

    let offsets = Offsets(Cell::new(1));
    let buffer = RefCell::new(vec![0x5a; BLOCK]);
    let read_raw = || {
        raw.read_exact_at(&mut buffer.borrow_mut(), offsets.next())
            .expect("read")
    };
    let write_raw = || {
        raw.write_all_at(&buffer.borrow(), offsets.next())
            .expect("write")
    };
    let read = |disk: &Disk| {
        disk.read(&mut buffer.borrow_mut(), offsets.next())
            .expect("read")
    };
    let write = |disk: &Disk| disk.write(&buffer.borrow(), offsets.next()).expect("write");

    // Reads first: a write copies clusters up, and the layered volume would be none any more.
    let mut run = |group: &str, name: &str, operation: &dyn Fn(), peer: Option<&dyn Fn()>| {
        let mut group = criterion.benchmark_group(group);
        let times = RefCell::new(Vec::new());
        let ratios = RefCell::new(Vec::new());
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|iterations| {
                // The peer takes turns with the operation, so that both see the same machine.
                let mut took = Duration::ZERO;
                let mut peer_took = Duration::ZERO;
                for start in (0..iterations).step_by(BATCH) {
                    let batch = (BATCH as u64).min(iterations - start);
                    took += time(batch, operation);
                    peer_took += peer.map_or(Duration::ZERO, |peer| time(batch, peer));
                }
                times
                    .borrow_mut()
                    .push(took.as_secs_f64() / iterations as f64);
                ratios
                    .borrow_mut()
                    .push(took.as_secs_f64() / peer_took.as_secs_f64());
                took
            });
        });
        group.finish();
        results.borrow_mut().push(Row {
            name: name.to_owned(),
            micros: median(times.into_inner()) * 1e6,
            ratio: median(ratios.into_inner()),
        });
    };
    run(
        "read 4 KiB",
        "read, fresh volume",
        &|| read(black_box(&fresh)),
        Some(&read_raw),
    );
    run(
        "read 4 KiB",
        "read, full volume",
        &|| read(black_box(&full)),
        Some(&read_raw),
    );
    run(
        "read 4 KiB",
        "read, 5 layers",
        &|| read(black_box(&layered)),
        Some(&read_raw),
    );
    run(
        "write 4 KiB",
        "write, full volume",
        &|| write(black_box(&full)),
        Some(&write_raw),
    );
    let snapshot = SnapshotId::new("layer-0").expect("id");
    let (empty, clone) = (VolumeSource::Empty, VolumeSource::Snapshot(&snapshot));
    let small = || create(&store, empty, GIB);
    run("create and delete", "empty, 1 GiB", &small, None);
    run(
        "create and delete",
        "empty, 100 GiB ÷ 1 GiB",
        &|| create(&store, empty, 100 * GIB),
        Some(&small),
    );
    let small = || create(&store, clone, GIB);
    run("create and delete", "clone, 1 GiB", &small, None);
    run(
        "create and delete",
        "clone, 100 GiB ÷ 1 GiB",
        &|| create(&store, clone, 100 * GIB),
        Some(&small),
    );

    // The first write to each cluster allocates it, and copies what is below.
    for (name, disk) in [
        ("first write, fresh volume", &fresh),
        ("first write, 5 layers", &layered),
    ] {
        let mut took = Duration::ZERO;
        let mut peer_took = Duration::ZERO;
        let clusters = SPAN >> 16;
        for index in 0..clusters {
            let at = (((index * 1021) % clusters) << 16) + BLOCK as u64;
            took += time(1, &|| disk.write(&buffer.borrow(), at).expect("write"));
            peer_took += time(1, &write_raw);
        }
        results.borrow_mut().push(Row {
            name: name.to_owned(),
            micros: took.as_secs_f64() * 1e6 / clusters as f64,
            ratio: took.as_secs_f64() / peer_took.as_secs_f64(),
        });
    }

    println!("\n{:<32}{:>12}{:>10}", "", "µs", "ratio");
    for Row {
        name,
        micros,
        ratio,
    } in results.into_inner()
    {
        match ratio.is_finite() {
            true => println!("{name:<32}{micros:>12.2}{ratio:>10.2}"),
            false => println!("{name:<32}{micros:>12.2}"),
        }
    }
}

/// One line of the table at the end.
struct Row {
    name: String,
    micros: f64,
    /// Time of the operation divided by its peer's: the raw file, or the smaller size.
    ratio: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time(count: u64, operation: &dyn Fn()) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        operation();
    }
    start.elapsed()
}

fn create(store: &Store, source: VolumeSource<'_>, size: u64) {
    let id = vol("created");
    store
        .create_volume(&id, source, Some(size))
        .expect("create");
    store.delete_volume(&id).expect("delete");
}
