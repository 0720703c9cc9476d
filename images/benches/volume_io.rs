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
    let mut run = |group: &str, name: &str, operation: &dyn Fn()| {
        let mut group = criterion.benchmark_group(group);
        let times = RefCell::new(Vec::new());
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations {
                    operation();
                }
                let took = start.elapsed();
                times
                    .borrow_mut()
                    .push(took.as_secs_f64() / iterations as f64);
                took
            });
        });
        results
            .borrow_mut()
            .push((name.to_owned(), best.get() * 1e6));
        group.finish();
    };
    run("read 4 KiB", "raw file read", &read_raw);
    run("read 4 KiB", "fresh volume read", &|| {
        read(black_box(&fresh))
    });
    run("read 4 KiB", "full volume read", &|| read(black_box(&full)));
    run("read 4 KiB", "5 layers read", &|| read(black_box(&layered)));
    run("write 4 KiB", "raw file write", &write_raw);
    run("write 4 KiB", "full volume write", &|| {
        write(black_box(&full))
    });
    run("create", "empty volume of 1 GiB", &|| {
        create(&store, VolumeSource::Empty, GIB)
    });
    run("create", "empty volume of 100 GiB", &|| {
        create(&store, VolumeSource::Empty, 100 * GIB)
    });
    let snapshot = SnapshotId::new("layer-0").expect("id");
    let source = VolumeSource::Snapshot(&snapshot);
    run("create", "clone of 1 GiB", &|| create(&store, source, GIB));
    run("create", "clone of 100 GiB", &|| {
        create(&store, source, 100 * GIB)
    });

    // Each offset once: the first write of each cluster allocates it.
    let first_writes = |disk: &Disk| {
        let count = 1024;
        let start = Instant::now();
        for index in 0..count {
            let cluster = index * 1021 % (SPAN >> 16);
            disk.write(&buffer.borrow(), (cluster << 16) + BLOCK as u64)
                .expect("write");
        }
        start.elapsed().as_secs_f64() * 1e6 / count as f64
    };
    let allocate_fresh = first_writes(&fresh);
    let copy_up = first_writes(&layered);

    let results = results.into_inner();
    let time = |name: &str| {
        results
            .iter()
            .find(|(found, _)| found == name)
            .map_or(f64::NAN, |(_, time)| *time)
    };
    println!("\n{:<28}{:>12}{:>12}", "", "µs", "÷ raw file");
    for (name, micros) in &results {
        let peer = match name {
            name if name.ends_with("read") => time("raw file read"),
            name if name.ends_with("write") => time("raw file write"),
            _ => f64::NAN,
        };
        print_row(name, *micros, micros / peer);
    }
    let raw_write = time("raw file write");
    print_row(
        "first write, fresh volume",
        allocate_fresh,
        allocate_fresh / raw_write,
    );
    print_row("first write, 5 layers", copy_up, copy_up / raw_write);
    print!("clone, 100 GiB ÷ 1 GiB: ");
    println!("{:.2}", time("clone of 100 GiB") / time("clone of 1 GiB"));
}

fn print_row(name: &str, micros: f64, ratio: f64) {
    if ratio.is_nan() {
        println!("{name:<28}{micros:>12.2}{:>12}", "");
    } else {
        println!("{name:<28}{micros:>12.2}{ratio:>12.2}");
    }
}

fn create(store: &Store, source: VolumeSource<'_>, size: u64) {
    let id = vol("created");
    store
        .create_volume(&id, source, Some(size))
        .expect("create");
    store.delete_volume(&id).expect("delete");
}
