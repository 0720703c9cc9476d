//! Exported images, judged by `qemu-img`.

mod common;

use common::{Rng, Scratch, assert_check_is_clean, images, qemu_img, snap, vol};
use hearth_images::{
    Access, DiskFormat, ErrorKind, Export, ImportOptions, ImportSource, Piece, VolumeSource,
};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Writes an export into a file, and checks length and digest.
fn write(mut export: Export, path: &Path) {
    let file = File::create(path).expect("target");
    let length = export.length_bytes();
    file.set_len(length).expect("length");
    let mut at = 0;
    while let Some(piece) = export.next_piece().expect("piece") {
        assert!(!piece.is_empty());
        if let Piece::Data(data) = &piece {
            assert!(data.len() <= hearth_images::export::MAX_PIECE_BYTES);
            file.write_all_at(data, at).expect("write");
        }
        at += piece.len();
    }
    assert_eq!(at, length, "the length was right from the start");
    let sha256: String = export.sha256().map(|b| format!("{b:02x}")).concat();
    assert_eq!(sha256, images::sha256(path));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Fails the test unless two qcow2 files read alike.
fn compare(one: &Path, other: &Path) {
    let args = ["compare", "-f", "qcow2", "-F", "qcow2"];
    qemu_img(&[&args[..], &[text(one), text(other)]].concat());
}

/// A chain of four layers with overwrites, discards, stored zeroes and a grown disk.
fn chain(scratch: &Scratch, seed: u64) {
    let store = &scratch.store;
    let raw = images::raw_disk(scratch, "base.raw", (40 << 20) + 1536);
    store
        .import_snapshot(
            &snap("base"),
            ImportSource::File(&raw),
            ImportOptions::default(),
        )
        .expect("import");
    let size = (1200 << 20) + 512;
    store
        .create_volume(&vol("v"), VolumeSource::Snapshot(&snap("base")), Some(size))
        .expect("volume");
    let mut rng = Rng::new(seed);
    for round in 0..3 {
        let disk = store
            .open_volume(&vol("v"), Access::ReadWrite)
            .expect("open");
        for _ in 0..40 {
            let area = [0, 30 << 20, 530 << 20, size - (20 << 20)][rng.below(4) as usize];
            let at = area + rng.below((20 << 20) / 512) * 512;
            let length = (512 * (1 + rng.below(900))).min(size - at);
            if rng.below(3) == 0 {
                disk.write_zeroes(at, length, rng.below(2) == 0)
                    .expect("zero");
            } else {
                let mut data = vec![0; length as usize];
                rng.fill(&mut data);
                disk.write(&data, at).expect("write");
            }
        }
        disk.close().expect("close");
        if round < 2 {
            store
                .snapshot_volume(&vol("v"), &snap(&format!("s{round}")))
                .expect("snapshot");
        }
    }
}

#[test]
fn exports_of_a_chain_hold_what_the_chain_holds() {
    for seed in common::seeds() {
        println!("seed {seed}");
        let scratch = Scratch::new();
        chain(&scratch, seed);
        let store = &scratch.store;
        for (export, original) in [
            (
                store.export_snapshot(&snap("s1"), DiskFormat::Qcow2),
                store.snapshot_path(&snap("s1")),
            ),
            (
                store.export_volume(&vol("v"), DiskFormat::Qcow2),
                store.volume_path(&vol("v")),
            ),
        ] {
            let path = scratch.path("out.qcow2");
            write(export.expect("export"), &path);
            assert_check_is_clean(&path);
            let info = qemu_img(&["info", text(&path)]);
            assert!(!info.contains("backing"), "{info}");
            let original = original.expect("path");
            compare(&path, &original);
        }
        let path = scratch.path("out.raw");
        let export = store
            .export_volume(&vol("v"), DiskFormat::Raw)
            .expect("raw");
        assert_eq!(export.length_bytes(), export.size_bytes());
        write(export, &path);
        common::assert_same_contents(&store.volume_path(&vol("v")).expect("path"), &path);
        let blocks = path.metadata().expect("metadata").blocks() * 512;
        assert!(blocks < 200 << 20, "{blocks} bytes of a sparse file");
    }
}

#[test]
fn an_export_can_be_imported_again() {
    let scratch = Scratch::new();
    chain(&scratch, 7);
    let store = &scratch.store;
    let path = scratch.path("out.qcow2");
    let export = store
        .export_volume(&vol("v"), DiskFormat::Qcow2)
        .expect("export");
    write(export, &path);
    store
        .import_volume(
            &vol("again"),
            ImportSource::File(&path),
            ImportOptions::default(),
        )
        .expect("import");
    let original = store.volume_path(&vol("v")).expect("path");
    let again = store.volume_path(&vol("again")).expect("path");
    compare(&original, &again);
}

#[test]
fn empty_and_huge_disks_export_to_tables_only() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    for (name, size, most) in [("small", 512, 5 << 16), ("huge", 64 << 40, 3 << 20)] {
        store
            .create_volume(&vol(name), VolumeSource::Empty, Some(size))
            .expect("volume");
        let export = store
            .export_volume(&vol(name), DiskFormat::Qcow2)
            .expect("export");
        assert!(export.length_bytes() < most, "{}", export.length_bytes());
        let path = scratch.path(name);
        write(export, &path);
        assert_check_is_clean(&path);
        let info = qemu_img(&["info", "--output", "json", text(&path)]);
        assert!(
            info.contains(&format!("\"virtual-size\": {size}")),
            "{info}"
        );
    }
    // The last sector of the largest disk.
    common::write_at(store, &vol("huge"), &[5; 512], (64 << 40) - 512);
    let path = scratch.path("huge");
    let export = store
        .export_volume(&vol("huge"), DiskFormat::Qcow2)
        .expect("export");
    write(export, &path);
    assert_check_is_clean(&path);
    store
        .import_volume(
            &vol("again"),
            ImportSource::File(&path),
            ImportOptions::default(),
        )
        .expect("import");
    assert_eq!(common::byte_at(store, &vol("again"), (64 << 40) - 1), 5);
}

#[test]
fn a_volume_in_use_is_not_exported_and_one_in_export_is_not_opened() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    store
        .create_volume(&vol("v"), VolumeSource::Empty, Some(1 << 20))
        .expect("volume");
    let disk = store
        .open_volume(&vol("v"), Access::ReadWrite)
        .expect("open");
    let error = store
        .export_volume(&vol("v"), DiskFormat::Raw)
        .expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::InUse);
    disk.close().expect("close");
    let export = store
        .export_volume(&vol("v"), DiskFormat::Raw)
        .expect("export");
    let error = store
        .open_volume(&vol("v"), Access::ReadWrite)
        .expect_err("in export");
    assert_eq!(error.kind(), ErrorKind::InUse);
    drop(export);
    store
        .open_volume(&vol("v"), Access::ReadWrite)
        .expect("open");
    let error = store
        .export_snapshot(&snap("none"), DiskFormat::Raw)
        .expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
