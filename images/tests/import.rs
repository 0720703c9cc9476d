//! Foreign images that are read right.

mod common;

use common::images::*;

use common::{
    Rng, Scratch, assert_all_layers_are_clean, assert_check_is_clean, assert_same_contents,
    listing, qemu_img, snap, vol,
};
use hearth_images::{Access, DiskFormat, ErrorKind, ImportOptions, ImportSource, VolumeSource};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

#[test]
fn every_qcow2_that_qemu_img_makes_reads_the_same_from_a_file_and_from_a_stream() {
    let scratch = Scratch::new();
    let raw = raw_disk(&scratch, "disk.raw", 9 * MIB + 512 * 3);
    let image = scratch.path("image.qcow2");
    let variants: &[&[&str]] = &[
        &[],
        &["-c"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "refcount_bits=1"],
        &["-o", "refcount_bits=64"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=falloc"],
        &["-o", "preallocation=full"],
        &["-S", "0"],
    ];
    for (index, variant) in variants.iter().enumerate() {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend_from_slice(variant);
        args.extend_from_slice(&[text(&raw), text(&image)]);
        qemu_img(&args);

        let from_file = snap(&format!("file-{index}"));
        let options = ImportOptions {
            sha256: Some(sha256(&image)),
            length_bytes: Some(fs::metadata(&image).expect("image").len()),
            ..ImportOptions::default()
        };
        let info = scratch
            .store
            .import_snapshot(&from_file, ImportSource::File(&image), options.clone())
            .unwrap_or_else(|error| panic!("{variant:?}: {error}"));
        assert_eq!(info.size_bytes, 9 * MIB + 512 * 3, "{variant:?}");

        let from_stream = vol(&format!("stream-{index}"));
        let mut stream = Trickle {
            inner: File::open(&image).expect("image"),
            error_at_end: None,
        };
        scratch
            .store
            .import_volume(&from_stream, ImportSource::Stream(&mut stream), options)
            .unwrap_or_else(|error| panic!("{variant:?}: {error}"));

        let sealed = scratch.store.snapshot_path(&from_file).expect("path");
        let mode = fs::metadata(&sealed).expect("layer").permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        for path in [
            sealed,
            scratch.store.volume_path(&from_stream).expect("path"),
        ] {
            assert_same_contents(&path, &raw);
            let allocated = scratch
                .store
                .snapshot(&from_file)
                .expect("info")
                .allocated_bytes;
            assert!(
                allocated < 6 * MIB,
                "{variant:?}: zeroes are stored: {allocated}"
            );
        }
    }
    assert_all_layers_are_clean(&scratch.store);
    assert!(listing(&scratch.store.root().join("tmp")).is_empty());
}

#[test]
fn zero_clusters_and_internal_snapshots_of_a_qcow2_read_as_its_active_state() {
    let scratch = Scratch::new();
    let raw = raw_disk(&scratch, "disk.raw", 4 * MIB);
    let image = scratch.path("image.qcow2");
    qemu_img(&["convert", "-O", "qcow2", text(&raw), text(&image)]);
    qemu_img(&["snapshot", "-c", "before", text(&image)]);
    let io = std::process::Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            "write -z 64k 256k",
            "-c",
            "write -P 9 1M 70k",
        ])
        .arg(&image)
        .output()
        .expect("qemu-io");
    assert!(io.status.success());
    let now = scratch.path("now.raw");
    qemu_img(&["convert", "-O", "raw", text(&image), text(&now)]);
    scratch
        .store
        .import_snapshot(
            &snap("s"),
            ImportSource::File(&image),
            ImportOptions::default(),
        )
        .expect("import");
    let layer = scratch.store.snapshot_path(&snap("s")).expect("path");
    assert_same_contents(&layer, &now);
    assert_check_is_clean(&layer);
}

#[test]
fn raw_images_of_any_size_come_in_from_a_file_and_from_a_stream() {
    let scratch = Scratch::new();
    for (index, size) in [1, 511, 512, 65_536, 65_537, 3 * MIB, 5 * MIB + 700]
        .into_iter()
        .enumerate()
    {
        let raw = scratch.path("disk.raw");
        let mut data = vec![0; size as usize];
        Rng::new(size).fill(&mut data[(size / 2) as usize..]);
        fs::write(&raw, &data).expect("raw");
        for known_length in [false, true] {
            let options = || ImportOptions {
                format: Some(DiskFormat::Raw),
                length_bytes: known_length.then_some(size),
                sha256: known_length.then(|| sha256(&raw).to_uppercase()),
                ..ImportOptions::default()
            };
            let from_file = vol(&format!("file-{index}-{known_length}"));
            let info = scratch
                .store
                .import_volume(&from_file, ImportSource::File(&raw), options())
                .expect("import");
            assert_eq!(info.size_bytes, size.next_multiple_of(512));
            let from_stream = vol(&format!("stream-{index}-{known_length}"));
            let mut stream = Trickle {
                inner: &data[..],
                error_at_end: None,
            };
            let info = scratch
                .store
                .import_volume(&from_stream, ImportSource::Stream(&mut stream), options())
                .expect("import");
            assert_eq!(info.size_bytes, size.next_multiple_of(512));
            for id in [from_file, from_stream] {
                assert_same_contents(&scratch.store.volume_path(&id).expect("path"), &raw);
            }
        }
    }
    assert_all_layers_are_clean(&scratch.store);
}

#[test]
fn a_sparse_raw_file_of_sixty_four_tebibytes_is_imported_by_its_data() {
    let scratch = Scratch::new();
    let raw = scratch.path("disk.raw");
    let file = File::create(&raw).expect("raw");
    // ext4 ends at 16 TiB; whatever the file system allows will do.
    let size = [64u64 << 40, 15 << 40]
        .into_iter()
        .find(|size| file.set_len(*size).is_ok())
        .expect("a large file");
    file.write_all_at(&[3; 1000], size / 3).expect("raw");
    let info = scratch
        .store
        .import_volume(
            &vol("v"),
            ImportSource::File(&raw),
            ImportOptions::default(),
        )
        .expect("import");
    assert_eq!(info.size_bytes, size);
    assert!(info.allocated_bytes < 4 * MIB);
    let disk = scratch
        .store
        .open_volume(&vol("v"), Access::ReadOnly)
        .expect("open");
    let mut data = [0; 1002];
    disk.read(&mut data, size / 3 - 1).expect("read");
    assert!(data[0] == 0 && data[1..1001] == [3; 1000] && data[1001] == 0);
}

#[test]
fn an_import_can_be_grown_but_not_shrunk() {
    let scratch = Scratch::new();
    let raw = raw_disk(&scratch, "disk.raw", 2 * MIB);
    let grow = |to: u64| ImportOptions {
        grow_to_bytes: Some(to),
        ..ImportOptions::default()
    };
    let info = scratch
        .store
        .import_volume(&vol("v"), ImportSource::File(&raw), grow(3 << 40))
        .expect("import");
    assert_eq!(info.size_bytes, 3 << 40);
    let error = scratch
        .store
        .import_volume(&vol("w"), ImportSource::File(&raw), grow(MIB))
        .expect_err("smaller");
    assert_eq!(error.kind(), ErrorKind::InvalidSize);
    assert_all_layers_are_clean(&scratch.store);
}

#[test]
fn an_id_that_is_taken_is_refused_before_anything_is_read() {
    let scratch = Scratch::new();
    let raw = raw_disk(&scratch, "disk.raw", MIB);
    let import = |store: &hearth_images::Store| {
        store.import_snapshot(
            &snap("s"),
            ImportSource::File(&raw),
            ImportOptions::default(),
        )
    };
    import(&scratch.store).expect("first");
    assert_eq!(
        import(&scratch.store).expect_err("second").kind(),
        ErrorKind::AlreadyExists
    );
    let source = VolumeSource::Snapshot(&snap("s"));
    scratch
        .store
        .create_volume(&vol("v"), source, None)
        .expect("clone");
    let layer = scratch.store.volume_path(&vol("v")).expect("path");
    assert_same_contents(&layer, &raw);
}
