//! What the tests share: a scratch store, `qemu-img` as a judge, and repeatable random numbers.

#![allow(dead_code)] // Each test binary uses its own part.

pub mod distributions;
pub mod images;
pub mod model;

use hearth_images::{Access, ImportOptions, ImportSource, SnapshotId, Store, VolumeId};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A store in a directory that goes away with the value.
pub struct Scratch {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path().join("store")).expect("a new store");
        Scratch { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A volume id.
pub fn vol(id: &str) -> VolumeId {
    VolumeId::new(id).expect("id")
}

/// A snapshot id.
pub fn snap(id: &str) -> SnapshotId {
    SnapshotId::new(id).expect("id")
}

/// The layer files of a store.
pub fn layers(store: &Store) -> Vec<PathBuf> {
    let mut files = listing(&store.root().join("layers"));
    files.retain(|path| path.extension().is_some_and(|ending| ending == "qcow2"));
    files
}

/// Imports a raw image.
pub fn import_bytes(store: &Store, id: &str, mut bytes: &[u8]) -> SnapshotId {
    let id = snap(id);
    store
        .import_snapshot(
            &id,
            ImportSource::Stream(&mut bytes),
            ImportOptions::default(),
        )
        .expect("import");
    id
}

/// Opens a volume, writes, closes it.
pub fn write_at(store: &Store, id: &VolumeId, data: &[u8], offset: u64) {
    let disk = store.open_volume(id, Access::ReadWrite).expect("open");
    disk.write(data, offset).expect("write");
    disk.close().expect("close");
}

/// Opens a volume and reads one byte.
pub fn byte_at(store: &Store, id: &VolumeId, offset: u64) -> u8 {
    let disk = store.open_volume(id, Access::ReadOnly).expect("open");
    let mut byte = [0];
    disk.read(&mut byte, offset).expect("read");
    byte[0]
}

fn run_qemu_img(args: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(args)
        .output()
        .expect("these tests need qemu-img (Debian: apt-get install qemu-utils)")
}

/// Runs `qemu-img` and fails the test if it fails.
pub fn qemu_img(args: &[&str]) -> String {
    let output = run_qemu_img(args);
    assert!(
        output.status.success(),
        "qemu-img {args:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails the test unless `qemu-img check` finds nothing at all.
pub fn assert_check_is_clean(path: &Path) {
    let path = path.to_str().expect("UTF-8 path");
    let output = run_qemu_img(&["check", "-f", "qcow2", path]);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("No errors were found on the image."),
        "qemu-img check {path}: {}\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
}

/// Checks every layer file of a store.
pub fn assert_all_layers_are_clean(store: &Store) {
    for path in layers(store) {
        assert_check_is_clean(&path);
    }
}

/// Fails the test unless the qcow2 file reads like the raw file, bit for bit.
pub fn assert_same_contents(qcow2: &Path, raw: &Path) {
    qemu_img(&[
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        qcow2.to_str().expect("UTF-8 path"),
        raw.to_str().expect("UTF-8 path"),
    ]);
}

/// Every file of a directory tree, sorted, for comparing before and after.
pub fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                dirs.push(path.clone());
            }
            files.push(path);
        }
    }
    files.sort();
    files
}

/// SplitMix64: small, repeatable, good enough to choose what a test does.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.next().to_le_bytes()[..piece.len()]);
        }
    }
}

/// The fixed seeds of a randomized test and one that differs each time; print it when it is used.
pub fn seeds() -> Vec<u64> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).expect("random numbers");
    vec![1, 2, 3, u64::from_le_bytes(random)]
}
