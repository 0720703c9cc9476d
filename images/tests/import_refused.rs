//! Foreign images that are refused, each by its kind, with nothing left behind.

mod common;

use common::images::*;

use common::{Rng, Scratch, listing, qemu_img, snap, vol};
use hearth_images::{DiskFormat, Error, ErrorKind, ImportOptions, ImportSource};
use std::fs::{self};
use std::io::{self};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8 path")
}

/// Tries an import as file and as stream; both must fail alike and leave nothing behind.
fn expect_refusal(
    scratch: &Scratch,
    bytes: &[u8],
    options: ImportOptions,
    kind: ErrorKind,
    what: &str,
) {
    let image = scratch.path("bad.image");
    fs::write(&image, bytes).expect("image");
    let before = listing(scratch.store.root());
    let check = |error: Error, how: &str| {
        assert_eq!(error.kind(), kind, "{what}, {how}: {error}");
        assert_eq!(listing(scratch.store.root()), before, "{what}, {how}");
    };
    let result =
        scratch
            .store
            .import_snapshot(&snap("bad"), ImportSource::File(&image), options.clone());
    check(result.expect_err(what), "file");
    let mut stream = bytes;
    let result =
        scratch
            .store
            .import_volume(&vol("bad"), ImportSource::Stream(&mut stream), options);
    check(result.expect_err(what), "stream");
}

/// A small valid qcow2 image, and helpers to break it.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(scratch: &Scratch, options: &[&str]) -> Self {
        let raw = raw_disk(scratch, "small.raw", 2 * MIB);
        let image = scratch.path("small.qcow2");
        let mut args = vec!["convert", "-O", "qcow2"];
        args.extend_from_slice(options);
        args.extend_from_slice(&[text(&raw), text(&image)]);
        qemu_img(&args);
        Bytes(fs::read(image).expect("image"))
    }

    fn get(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    fn with(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut copy = self.0.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    }

    fn with64(&self, at: usize, value: u64) -> Vec<u8> {
        self.with(at, &value.to_be_bytes())
    }

    fn l1(&self) -> usize {
        self.get(40) as usize
    }

    fn l2(&self) -> usize {
        (self.get(self.l1()) & 0x00ff_ffff_ffff_fe00) as usize
    }

    /// Offset of the first L2 entries that map data.
    fn data_entries(&self) -> Vec<usize> {
        (self.l2()..self.l2() + 32 * 8)
            .step_by(8)
            .filter(|at| self.get(*at) & 0x00ff_ffff_ffff_fe00 != 0)
            .collect()
    }
}

#[test]
fn broken_and_hostile_qcow2_images_are_refused_by_kind_and_leave_nothing() {
    let scratch = Scratch::new();
    let good = Bytes::new(&scratch, &[]);
    let (l1, l2, data) = (good.l1(), good.l2(), good.data_entries());
    let copied = 1u64 << 63;
    let qcow2 = ImportOptions {
        format: Some(DiskFormat::Qcow2),
        ..ImportOptions::default()
    };
    let refuse = |bytes: Vec<u8>, kind, what: &str| {
        expect_refusal(&scratch, &bytes, qcow2.clone(), kind, what);
    };
    use ErrorKind::{Corrupt, InvalidFormat, InvalidSize, Truncated, UnsafeReference};

    refuse(vec![], Truncated, "nothing at all");
    refuse(good.with(0, b"nope"), InvalidFormat, "wrong magic number");
    refuse(
        good.with(4, &4u32.to_be_bytes()),
        InvalidFormat,
        "version 4",
    );
    refuse(
        good.with(20, &63u32.to_be_bytes()),
        InvalidFormat,
        "huge clusters",
    );
    refuse(
        good.with(20, &8u32.to_be_bytes()),
        InvalidFormat,
        "tiny clusters",
    );
    refuse(
        good.with(96, &200u32.to_be_bytes()),
        InvalidFormat,
        "refcount width",
    );
    refuse(
        good.with(100, &u32::MAX.to_be_bytes()),
        InvalidFormat,
        "header length",
    );
    refuse(
        good.with64(24, 1 << 60),
        InvalidSize,
        "1 EiB in a tiny file",
    );
    refuse(
        good.with64(24, u64::MAX),
        InvalidSize,
        "the largest number as size",
    );
    refuse(good.with64(24, 0), InvalidSize, "no size");
    refuse(
        good.with64(24, 64 << 40),
        Corrupt,
        "an L1 table that is too small",
    );
    refuse(
        good.with(36, &u32::MAX.to_be_bytes()),
        InvalidFormat,
        "a huge L1 table",
    );
    refuse(
        good.with(36, &(4u32 << 20).to_be_bytes()),
        Truncated,
        "an L1 table past the end",
    );
    refuse(
        good.with64(40, u64::MAX - 0xffff),
        Truncated,
        "an L1 table at the end of numbers",
    );
    refuse(
        good.with64(40, good.get(40) + 512),
        Corrupt,
        "an L1 table that is not aligned",
    );
    refuse(good.with64(40, 0), Corrupt, "an L1 table in the header");
    refuse(
        good.with64(40, good.get(48)),
        Corrupt,
        "an L1 table in the refcount table",
    );
    refuse(
        good.with64(48, 1 << 50),
        Truncated,
        "a refcount table past the end",
    );
    refuse(
        good.with(56, &u32::MAX.to_be_bytes()),
        InvalidFormat,
        "a huge refcount table",
    );
    refuse(
        good.with64(l1, copied | l1 as u64),
        Corrupt,
        "an L2 table that is the L1 table",
    );
    refuse(
        good.with64(l1, copied | (1 << 40)),
        Truncated,
        "an L2 table past the end",
    );
    refuse(
        good.with64(l1, good.get(l1) | 1 << 60),
        Corrupt,
        "reserved bits in L1",
    );
    refuse(
        good.with64(l1, good.get(l1) + 512),
        Corrupt,
        "an L2 table that is not aligned",
    );
    refuse(
        good.with64(data[0], good.get(data[1])),
        Corrupt,
        "two guest clusters in one place",
    );
    refuse(
        good.with64(data[0], copied | l2 as u64),
        Corrupt,
        "a guest cluster in its L2 table",
    );
    refuse(
        good.with64(data[0], copied | (1 << 50)),
        Truncated,
        "data past the end",
    );
    refuse(
        good.with64(data[0], good.get(data[0]) | 1 << 58),
        Corrupt,
        "reserved bits in L2",
    );
    refuse(
        good.with64(data[0], 1 << 62 | 1 << 45),
        Truncated,
        "compressed data past the end",
    );
    refuse(
        good.with64(data[0], 1 << 62 | l2 as u64),
        Corrupt,
        "compressed data in a table",
    );
    refuse(good.with64(72, 1), InvalidFormat, "dirty");
    refuse(good.with64(72, 2), Corrupt, "marked as corrupt");
    refuse(good.with64(72, 4), UnsafeReference, "an external data file");
    refuse(
        good.with64(72, 1 << 40),
        InvalidFormat,
        "an unknown feature",
    );
    refuse(
        good.with(32, &1u32.to_be_bytes()),
        InvalidFormat,
        "encrypted",
    );
    for cut in [4, 71, 100, l1 + 4, l2 + 100, good.0.len() - 70_000] {
        let kind = if cut < 8 { InvalidFormat } else { Truncated };
        refuse(
            good.0[..cut].to_vec(),
            kind,
            &format!("cut off after {cut} bytes"),
        );
    }

    // Two L1 entries with the same L2 table: the second half mirrors the first, or worse.
    let large = scratch.path("large.qcow2");
    qemu_img(&["create", "-f", "qcow2", text(&large), "2G"]);
    let io = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 9 0 64k"])
        .arg(&large)
        .output()
        .expect("qemu-io");
    assert!(io.status.success());
    let large = Bytes(fs::read(large).expect("image"));
    refuse(
        large.with64(large.l1() + 8, large.get(large.l1())),
        Corrupt,
        "L2 tables that loop",
    );
}

#[test]
fn images_that_name_other_files_are_refused() {
    let scratch = Scratch::new();
    let secret = scratch.path("secret.raw");
    fs::write(&secret, [0x53; 70_000]).expect("secret");
    let kind = ErrorKind::UnsafeReference;

    let overlay = scratch.path("overlay.qcow2");
    for name in [text(&secret), "/etc/passwd", "secret.raw"] {
        qemu_img(&[
            "create",
            "-u",
            "-f",
            "qcow2",
            "-b",
            name,
            "-F",
            "raw",
            text(&overlay),
            "1M",
        ]);
        let bytes = fs::read(&overlay).expect("image");
        expect_refusal(&scratch, &bytes, ImportOptions::default(), kind, name);
    }

    let outside = scratch.path("outside.qcow2");
    let data_file = format!("data_file={}", text(&scratch.path("data.raw")));
    for raw in ["data_file_raw=on", "data_file_raw=off"] {
        let option = format!("{data_file},{raw}");
        qemu_img(&["create", "-f", "qcow2", "-o", &option, text(&outside), "1M"]);
        let bytes = fs::read(&outside).expect("image");
        expect_refusal(&scratch, &bytes, ImportOptions::default(), kind, raw);
    }
}

#[test]
fn features_that_the_reader_lacks_are_refused() {
    let scratch = Scratch::new();
    for options in ["extended_l2=on", "compression_type=zstd"] {
        let image = Bytes::new(&scratch, &["-c", "-o", options]);
        let kind = ErrorKind::InvalidFormat;
        expect_refusal(&scratch, &image.0, ImportOptions::default(), kind, options);
    }
}

#[test]
fn a_wrong_digest_or_length_and_a_cut_off_stream_leave_nothing() {
    let scratch = Scratch::new();
    let image = Bytes::new(&scratch, &[]).0;
    let raw = vec![5; 300_000];
    for bytes in [&image, &raw] {
        let length = bytes.len() as u64;
        let digest = |sha256: &str| ImportOptions {
            sha256: Some(sha256.into()),
            ..ImportOptions::default()
        };
        let expect_length = |length| ImportOptions {
            length_bytes: Some(length),
            ..ImportOptions::default()
        };
        let kind = ErrorKind::DigestMismatch;
        expect_refusal(&scratch, bytes, digest(&"0".repeat(64)), kind, "digest");
        expect_refusal(&scratch, bytes, digest("abc"), kind, "no digest");
        expect_refusal(
            &scratch,
            bytes,
            digest(&"é".repeat(32)),
            kind,
            "no hexadecimal digest",
        );
        let kind = ErrorKind::LengthMismatch;
        expect_refusal(&scratch, bytes, expect_length(length - 1), kind, "too long");
        let kind = ErrorKind::Truncated;
        expect_refusal(
            &scratch,
            bytes,
            expect_length(length + 1),
            kind,
            "too short",
        );

        for (broken, kind) in [
            (io::ErrorKind::UnexpectedEof, ErrorKind::Truncated),
            (io::ErrorKind::ConnectionReset, ErrorKind::Io),
        ] {
            let before = listing(scratch.store.root());
            let mut stream = Trickle {
                inner: &bytes[..100_000],
                error_at_end: Some(broken),
            };
            let error = scratch
                .store
                .import_snapshot(
                    &snap("cut"),
                    ImportSource::Stream(&mut stream),
                    ImportOptions::default(),
                )
                .expect_err("cut off");
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!(listing(scratch.store.root()), before);
        }
    }
    expect_refusal(
        &scratch,
        &[],
        ImportOptions::default(),
        ErrorKind::Truncated,
        "empty",
    );
}

#[test]
fn files_that_are_no_images_are_refused() {
    let scratch = Scratch::new();
    let import = |path: &Path| {
        let source = ImportSource::File(path);
        let result = scratch
            .store
            .import_volume(&vol("v"), source, ImportOptions::default());
        result.expect_err("no image").kind()
    };
    assert_eq!(import(&scratch.path("missing")), ErrorKind::NotFound);
    assert_eq!(import(scratch.dir.path()), ErrorKind::InvalidFormat);
    assert_eq!(import(Path::new("/dev/zero")), ErrorKind::InvalidFormat);
}

#[test]
fn no_single_broken_bit_of_a_header_or_table_makes_an_import_panic() {
    let scratch = Scratch::new();
    let mut rng = Rng::new(11);
    for options in [&["-c"][..], &["-o", "cluster_size=512"][..]] {
        let good = Bytes::new(&scratch, options);
        let tables = [
            0..600,
            good.l1()..good.l1() + 64,
            good.l2()..good.l2() + 512,
        ];
        for round in 0..400 {
            let range = tables[round % tables.len()].clone();
            let at = range.start + rng.below(range.len() as u64) as usize;
            let mut bytes = good.0.clone();
            bytes[at] ^= 1 << rng.below(8);
            if rng.below(8) == 0 {
                bytes.truncate(1 + rng.below(bytes.len() as u64) as usize);
            }
            let mut stream = &bytes[..];
            let options = ImportOptions {
                format: Some(DiskFormat::Qcow2),
                ..ImportOptions::default()
            };
            let source = ImportSource::Stream(&mut stream);
            if scratch
                .store
                .import_volume(&vol("v"), source, options)
                .is_ok()
            {
                scratch.store.delete_volume(&vol("v")).expect("delete");
            }
        }
    }
    assert!(listing(&scratch.store.root().join("layers")).is_empty());
    assert!(listing(&scratch.store.root().join("tmp")).is_empty());
}

#[test]
fn a_feature_name_table_that_ends_inside_of_an_entry_is_refused() {
    let scratch = Scratch::new();
    let mut image = Bytes::new(&scratch, &[]);
    let kind = 0x6803_f857u32.to_be_bytes();
    let found = image.0[..4096].windows(4).position(|bytes| bytes == kind);
    let at = found.expect("QEMU writes one");
    let length = image.0[at + 7];
    for more in [1, 5] {
        image.0[at + 7] = length + more;
        expect_refusal(
            &scratch,
            &image.0,
            ImportOptions::default(),
            ErrorKind::InvalidFormat,
            "feature names",
        );
    }
}
