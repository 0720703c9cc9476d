//! Single flipped bits and cut-off ends in layer files, sealed ones and tops.
//!
//! Each must be found by the check, be an error to whoever reads, or do no harm; none may be a
//! panic or a hang; and what does not reach the layer must be well and not be accused.

mod common;

use common::{Rng, Scratch, import_bytes, snap, vol};
use hearth_images::{Access, CheckOptions, Owner, Store, StoreReport, VolumeSource};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Faults for each of two threads.
const FAULTS: u64 = 510;
/// Size of the disks, over two L2 tables.
const DISK: u64 = (513 << 20) + 512;
/// Where the disks hold data; small, so that each fault costs little.
const AREAS: [u64; 2] = [0, 512 << 20];
const AREA: u64 = 384 << 10;

type Contents = HashMap<Owner, [u8; 32]>;

struct Fixture {
    scratch: Scratch,
    /// The files as they should be.
    files: Vec<(PathBuf, Vec<u8>)>,
    contents: Contents,
    /// Who reaches which layer file.
    reach: HashMap<String, Vec<Owner>>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Flip { offset: u64, bit: u8 },
    Cut { length: u64 },
}

fn scribble(store: &Store, volume: &str, rng: &mut Rng) {
    let disk = store
        .open_volume(&vol(volume), Access::ReadWrite)
        .expect("open");
    for area in AREAS {
        let end = (area + AREA).min(DISK);
        for _ in 0..3 {
            let at = area + rng.below((end - area) / 512) * 512;
            let length = (512 * (1 + rng.below(150))).min(end - at);
            if rng.below(4) == 0 {
                disk.discard(at, length).expect("discard");
            } else {
                let mut data = vec![0; length as usize];
                rng.fill(&mut data);
                disk.write(&data, at).expect("write");
            }
        }
    }
    disk.close().expect("close");
}

/// The layer that a record names.
fn layer_of(path: PathBuf) -> String {
    let name = path.file_name().expect("name");
    name.to_str().expect("UTF-8").to_owned()
}

impl Fixture {
    /// A base with two clones, one of them with two snapshots, and a volume of its own.
    fn new(seed: u64) -> Fixture {
        let rng = &mut Rng::new(seed);
        let scratch = Scratch::new();
        let store = &scratch.store;
        let mut base = vec![0; 200 << 10];
        rng.fill(&mut base);
        let base = import_bytes(store, "base", &base);
        let mut reach: HashMap<String, Vec<Owner>> = HashMap::new();
        for (name, source) in [
            ("chain", VolumeSource::Snapshot(&base)),
            ("clone", VolumeSource::Snapshot(&base)),
            ("alone", VolumeSource::Empty),
        ] {
            store
                .create_volume(&vol(name), source, Some(DISK))
                .expect("volume");
            scribble(store, name, rng);
        }
        let volume = |id: &str| Owner::Volume(vol(id));
        let snapshot = |id: &str| Owner::Snapshot(snap(id));
        let path = |id: &str| store.snapshot_path(&snap(id)).expect("path");
        for id in ["s1", "s2"] {
            store
                .snapshot_volume(&vol("chain"), &snap(id))
                .expect("snapshot");
            scribble(store, "chain", rng);
        }
        let chain = [
            volume("chain"),
            snapshot("s2"),
            snapshot("s1"),
            snapshot("base"),
        ];
        reach.insert(
            layer_of(store.volume_path(&vol("chain")).expect("path")),
            chain[..1].to_vec(),
        );
        reach.insert(layer_of(path("s2")), chain[..2].to_vec());
        reach.insert(layer_of(path("s1")), chain[..3].to_vec());
        let mut all = chain.to_vec();
        all.push(volume("clone"));
        reach.insert(layer_of(path("base")), all);
        for id in ["clone", "alone"] {
            let top = layer_of(store.volume_path(&vol(id)).expect("path"));
            reach.insert(top, vec![volume(id)]);
        }

        // As if all had been at rest for a while.
        for path in common::layers(store) {
            let file = File::open(&path).expect("layer");
            file.set_modified(long_ago()).expect("time");
        }
        let made = store.seal_checksums(|_| false).expect("checksums");
        assert_eq!((made.layers, made.failed), (6, 0));
        let files: Vec<_> = common::layers(store)
            .into_iter()
            .map(|path| (path.clone(), fs::read(path).expect("layer")))
            .collect();
        assert_eq!(files.len(), reach.len());
        let contents = read_all(store)
            .into_iter()
            .map(|(owner, digest)| (owner, digest.expect("readable")))
            .collect();
        Fixture {
            scratch,
            files,
            contents,
            reach,
        }
    }

    fn restore(&self) {
        for (path, bytes) in &self.files {
            let length = path.metadata().expect("layer").len();
            // A write through a damaged entry may have made it huge.
            if length != bytes.len() as u64 || fs::read(path).expect("layer") != *bytes {
                let file = OpenOptions::new().write(true).open(path).expect("layer");
                file.set_len(bytes.len() as u64).expect("length");
                file.write_all_at(bytes, 0).expect("restore");
            }
            let file = File::open(path).expect("layer");
            file.set_modified(long_ago()).expect("time");
        }
    }
}

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn random_fault(rng: &mut Rng, length: u64) -> Fault {
    let offset = match rng.below(8) {
        0 => {
            let length = match rng.below(3) {
                0 => rng.below(length >> 16) << 16,
                1 => length - 1 - rng.below(length.min(70_000)),
                _ => rng.below(length),
            };
            return Fault::Cut { length };
        }
        // The header, with its extensions and the name of the parent.
        1 | 2 => rng.below(600),
        // Tables: their first entries are the ones in use.
        3 | 4 => (rng.below(length.div_ceil(1 << 16)) << 16) + rng.below(256),
        _ => rng.below(length),
    };
    Fault::Flip {
        offset: offset.min(length - 1),
        bit: rng.below(8) as u8,
    }
}

/// Damages a file behind everybody's back: its times stay as they were.
fn apply(fault: Fault, path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("layer");
    match fault {
        Fault::Flip { offset, bit } => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).expect("read");
            file.write_all_at(&[byte[0] ^ (1 << bit)], offset)
                .expect("write");
        }
        Fault::Cut { length } => file.set_len(length).expect("cut"),
    }
    file.set_modified(long_ago()).expect("time");
}

fn digest(
    size: u64,
    mut read: impl FnMut(&mut [u8], u64) -> std::io::Result<()>,
) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let mut buffer = vec![0; 128 << 10];
    for area in AREAS {
        let mut at = area;
        let end = (area + AREA).min(size);
        while at < end {
            let some = &mut buffer[..(128 << 10).min((end - at) as usize)];
            read(some, at)?;
            hash.update(&*some);
            at += some.len() as u64;
        }
    }
    Ok(hash.finalize().into())
}

/// What everybody reads: volumes as a guest would, snapshots block by block.
fn read_all(store: &Store) -> HashMap<Owner, Result<[u8; 32], String>> {
    let mut all = HashMap::new();
    for id in store.volumes().expect("volumes") {
        let contents = store
            .open_volume(&id, Access::ReadOnly)
            .map_err(|error| error.to_string())
            .and_then(|disk| {
                digest(disk.size_bytes(), |buffer, at| disk.read(buffer, at))
                    .map_err(|error| error.to_string())
            });
        all.insert(Owner::Volume(id), contents);
    }
    for id in store.snapshots().expect("snapshots") {
        let contents = store.read_snapshot(&id).map_err(|error| error.to_string());
        let contents = contents.and_then(|reader| {
            let mut hash = Sha256::new();
            hash.update(reader.size_bytes().to_le_bytes());
            for index in reader.blocks(0) {
                let index = index.map_err(|error| error.to_string())?;
                let block = reader.block(index).map_err(|error| error.to_string())?;
                hash.update(index.to_le_bytes());
                hash.update(&block.data);
            }
            Ok(hash.finalize().into())
        });
        all.insert(Owner::Snapshot(id), contents);
    }
    all
}

fn accused(report: &StoreReport, name: &str) -> bool {
    let file = format!("layers/{name}");
    let findings = report.findings.iter();
    findings.filter(|finding| finding.file == file).count() > 0
}

/// A guest on a volume with a damaged top: whatever comes of it, it ends.
fn use_volume(store: &Store, volume: &hearth_images::VolumeId, rng: &mut Rng) {
    let Ok(disk) = store.open_volume(volume, Access::ReadWrite) else {
        return;
    };
    let mut buffer = vec![0x5a; 70_000 / 512 * 512];
    for _ in 0..6 {
        let area = AREAS[rng.below(2) as usize];
        let end = (area + AREA).min(disk.size_bytes());
        if end <= area {
            continue;
        }
        let at = area + rng.below((end - area) / 512) * 512;
        let length = (buffer.len() as u64).min(end - at);
        let some = &mut buffer[..length as usize];
        let _ = match rng.below(5) {
            0 => disk.discard(at, length),
            1 => disk.read(some, at),
            2 => disk.flush(),
            _ => disk.write(some, at),
        };
    }
    let _ = disk.close();
}

/// Ends the process with a message if it hangs.
fn watch(done: &AtomicBool, steps: &AtomicU64) {
    let mut last = (u64::MAX, 0);
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(500));
        let now = steps.load(Ordering::Relaxed);
        last = if now == last.0 {
            (now, last.1 + 1)
        } else {
            (now, 0)
        };
        if last.1 > 240 {
            eprintln!("fault {now} hangs");
            std::process::abort();
        }
    }
}

fn run(seed: u64, steps: &AtomicU64) -> (u64, u64, u64) {
    let fixture = Fixture::new(seed);
    let store = &fixture.scratch.store;
    let rng = &mut Rng::new(seed);
    let (mut found, mut failed, mut harmless) = (0, 0, 0);
    for number in 0..FAULTS {
        let (path, bytes) = &fixture.files[rng.below(fixture.files.len() as u64) as usize];
        let name = layer_of(path.clone());
        let fault = random_fault(rng, bytes.len() as u64);
        let what = format!("seed {seed}, fault {number}: {fault:?} in {name}");
        apply(fault, path);

        let report = store
            .check(CheckOptions::default(), |_| true)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let is_found = accused(&report, &name)
            || report
                .findings
                .iter()
                .any(|finding| finding.kind.is_damage());
        let now = read_all(store);
        let users = &fixture.reach[&name];
        for finding in &report.findings {
            for owner in &finding.affected {
                assert!(
                    users.contains(owner),
                    "{what}: accuses {owner}: {finding:?}"
                );
            }
        }
        let mut same = true;
        let mut errors = false;
        for (owner, expected) in &fixture.contents {
            match &now[owner] {
                Ok(contents) if contents == expected => (),
                Ok(_) if users.contains(owner) => same = false,
                Err(_) if users.contains(owner) => errors = true,
                other => panic!("{what}: {owner} is harmed: {other:?}"),
            }
        }
        match (is_found, same) {
            (true, _) => found += 1,
            (false, true) if errors => failed += 1,
            (false, true) => harmless += 1,
            (false, false) => panic!("{what}: wrong contents and nothing found"),
        }
        // What a guest makes of it, and whether a repair ends.
        if let [Owner::Volume(volume)] = &users[..] {
            use_volume(store, volume, rng);
        } else if number % 4 == 0 {
            use_volume(store, &vol("chain"), rng);
        }
        let options = CheckOptions {
            repair: true,
            checksums: false,
        };
        store
            .check(options, |_| true)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        fixture.restore();
        for id in ["chain", "clone", "alone"] {
            assert!(store.volume(&vol(id)).is_ok(), "{what}: {id} is gone");
        }
        // Where a repair or a guest came by, there are none.
        let made = store.seal_checksums(|_| false).expect("checksums");
        assert_eq!(made.failed, 0, "{what}");
        steps.fetch_add(1, Ordering::Relaxed);
    }
    let report = store
        .check(CheckOptions::default(), |_| true)
        .expect("check");
    assert_eq!(report.findings, [], "seed {seed}: all is as it was");
    (found, failed, harmless)
}

#[test]
fn a_flipped_bit_or_a_cut_is_found_or_harmless_and_harms_nobody_else() {
    let mut random = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .expect("random");
    let seeds = [1, u64::from_le_bytes(random)];
    println!("seeds {seeds:?}");
    let (done, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&done, &steps));
        let steps = &steps;
        let runs = seeds.map(|seed| scope.spawn(move || run(seed, steps)));
        let results = runs.map(|run| run.join());
        done.store(true, Ordering::Relaxed);
        for result in results {
            let (found, failed, harmless) =
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            println!("{found} found by the check, {failed} errors when read, {harmless} harmless");
            assert!(found > FAULTS / 2, "most faults are found");
        }
    });
}

/// Without any check: the library alone, on tables that nobody looked at.
#[test]
#[ignore = "long; run it by name after a change of the qcow2 library"]
fn no_fault_makes_a_guest_s_requests_panic_or_hang() {
    let mut random = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .expect("random");
    let seed = u64::from_le_bytes(random);
    let fixture = Fixture::new(seed);
    let store = &fixture.scratch.store;
    let rng = &mut Rng::new(seed);
    let (done, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&done, &steps));
        for number in 0..20_000 {
            let (path, bytes) = &fixture.files[rng.below(fixture.files.len() as u64) as usize];
            let fault = random_fault(rng, bytes.len() as u64);
            apply(fault, path);
            let volume = ["chain", "clone", "alone"][rng.below(3) as usize];
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                read_all(store);
                use_volume(store, &vol(volume), rng);
            }));
            if result.is_err() {
                done.store(true, Ordering::Relaxed);
                panic!(
                    "seed {seed}, fault {number}: {fault:?} in {}",
                    path.display()
                );
            }
            fixture.restore();
            steps.fetch_add(1, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
}
