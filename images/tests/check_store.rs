//! Checks of the whole store, checksums, usage.

mod common;

use common::{Scratch, assert_all_layers_are_clean, import_bytes, snap, vol, write_at};
use hearth_images::{
    Access, Blocks, CheckOptions, ErrorKind, Finding, FindingKind, Owner, Store, StoreReport,
    VolumeSource,
};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const REPAIR: CheckOptions = CheckOptions {
    repair: true,
    checksums: true,
};

fn check(store: &Store) -> StoreReport {
    store
        .check(CheckOptions::default(), |_| true)
        .expect("check")
}

fn repair(store: &Store) -> StoreReport {
    store.check(REPAIR, |_| true).expect("check")
}

fn volume(id: &str) -> Owner {
    Owner::Volume(vol(id))
}

fn snapshot(id: &str) -> Owner {
    Owner::Snapshot(snap(id))
}

fn age(path: &Path) {
    let file = File::open(path).expect("file");
    let hour = Duration::from_secs(3600);
    file.set_modified(SystemTime::now() - hour).expect("time");
}

/// As if everything had been at rest for an hour.
fn age_all(store: &Store) {
    for path in common::layers(store) {
        age(&path);
    }
}

/// A base image, a volume on it with a snapshot, and another clone of the base.
fn sample() -> Scratch {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let base = import_bytes(store, "base", &vec![1; 9 << 20]);
    for id in ["a", "b"] {
        store
            .create_volume(&vol(id), VolumeSource::Snapshot(&base), Some(1 << 30))
            .expect("volume");
    }
    write_at(store, &vol("a"), &vec![2; 1 << 20], 512 << 20);
    store
        .snapshot_volume(&vol("a"), &snap("s"))
        .expect("snapshot");
    write_at(store, &vol("a"), &vec![3; 2 << 20], 0);
    scratch
}

fn name(path: &Path) -> String {
    format!(
        "layers/{}",
        path.file_name().expect("name").to_str().expect("UTF-8")
    )
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("layer");
    let modified = file.metadata().expect("metadata").modified().expect("time");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 4], offset).expect("write");
    file.set_modified(modified).expect("time");
}

fn only(report: &StoreReport) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    &report.findings[0]
}

fn sums(store: &Store) -> Vec<PathBuf> {
    let mut files = common::listing(&store.root().join("layers"));
    files.retain(|path| path.extension().is_some_and(|ending| ending == "sum"));
    files
}

#[test]
fn a_sound_store_has_no_findings_and_says_what_was_looked_at() {
    let scratch = sample();
    let store = &scratch.store;
    let report = check(store);
    assert_eq!(report.findings, []);
    assert_eq!((report.volumes, report.snapshots, report.layers), (2, 2, 4));
    assert_eq!(
        (report.checksums_verified, report.checksums_missing),
        (0, 4)
    );

    age_all(store);
    let made = store.seal_checksums(|_| false).expect("checksums");
    assert_eq!((made.layers, made.failed, made.stopped), (4, 0, false));
    assert_eq!(sums(store).len(), 4);
    let again = store.seal_checksums(|_| false).expect("checksums");
    assert_eq!(again.layers, 0, "nothing is missing any more");

    let mut last = None;
    let mut steps = 0;
    let report = store
        .check(CheckOptions::default(), |progress| {
            steps += 1;
            last = Some(progress);
            true
        })
        .expect("check");
    assert_eq!(report.findings, []);
    assert_eq!(
        (report.checksums_verified, report.checksums_missing),
        (4, 0)
    );
    let last = last.expect("progress");
    assert_eq!((last.layers_done, last.layers_total), (4, 4));
    assert!(
        last.bytes_read > 11 << 20 && steps > 11,
        "{last:?}, {steps}"
    );
}

#[test]
fn the_digests_are_those_that_sha256sum_prints() {
    let scratch = sample();
    let store = &scratch.store;
    store.seal_checksums(|_| false).expect("checksums");
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    for sum in sums(store) {
        let text: serde_json::Value =
            serde_json::from_slice(&fs::read(&sum).expect("sum")).expect("JSON");
        let layer = sum.with_extension("qcow2");
        assert_eq!(text["version"], 1);
        assert_eq!(text["length"], layer.metadata().expect("layer").len());
        assert_eq!(text["sha256"], common::images::sha256(&layer));
    }
}

#[test]
fn a_flipped_bit_is_named_with_whom_it_concerns() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    let path = store.snapshot_path(&snap("s")).expect("path");
    let length = path.metadata().expect("layer").len();
    flip(&path, length - 70_000);

    let report = check(store);
    let finding = only(&report);
    assert_eq!(finding.kind, FindingKind::Checksum);
    assert_eq!(finding.file, name(&path));
    assert_eq!(finding.affected, [volume("a"), snapshot("s")]);
    assert!(finding.detail.contains("offset 0x0"), "{}", finding.detail);
    assert!(!report.is_clean());
    // No repair makes it undone, or hides it.
    assert!(!repair(store).is_clean());
    store.seal_checksums(|_| false).expect("checksums");
    assert_eq!(only(&check(store)).kind, FindingKind::Checksum);

    flip(&path, length - 70_000);
    assert_eq!(check(store).findings, []);
    // Of the base, in its second chunk of 4 MiB; and a top at rest.
    let base = store.snapshot_path(&snap("base")).expect("path");
    flip(&base, 6 << 20);
    let top = store.volume_path(&vol("a")).expect("path");
    flip(&top, 1 << 20);
    let mut findings = check(store).findings;
    findings.sort_by_key(|finding| finding.affected.len());
    assert_eq!(findings.len(), 2, "{findings:#?}");
    assert_eq!(findings[0].affected, [volume("a")]);
    assert_eq!(
        findings[1].affected,
        [volume("a"), volume("b"), snapshot("base"), snapshot("s")]
    );
    assert!(
        findings[1]
            .detail
            .contains("4194304 bytes at offset 0x400000")
    );
}

#[test]
fn a_stray_write_to_a_sealed_layer_is_found_though_it_shows_its_time() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    let path = store.snapshot_path(&snap("base")).expect("path");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("mode");
    let file = OpenOptions::new().write(true).open(&path).expect("layer");
    file.write_all_at(b"oops", 5 << 20).expect("write");
    assert_eq!(only(&check(store)).kind, FindingKind::Checksum);
}

#[test]
fn writing_to_a_volume_ends_the_digests_of_its_top_and_of_nothing_else() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    write_at(store, &vol("a"), &[9; 512], 1 << 20);
    let report = check(store);
    assert_eq!(report.findings, []);
    assert_eq!(
        (report.checksums_verified, report.checksums_missing),
        (3, 1)
    );
    // Written to a moment ago: not yet.
    assert_eq!(
        store.seal_checksums(|_| false).expect("checksums").layers,
        0
    );
    let top = store.volume_path(&vol("a")).expect("path");
    age(&top);
    assert_eq!(
        store.seal_checksums(|_| false).expect("checksums").layers,
        1
    );
    assert_eq!(check(store).checksums_verified, 4);
    // Sealed without a write in between: the digests are confirmed for good.
    store
        .snapshot_volume(&vol("a"), &snap("t"))
        .expect("snapshot");
    age(&top);
    age(&store.volume_path(&vol("a")).expect("path"));
    assert_eq!(
        store.seal_checksums(|_| false).expect("checksums").layers,
        2
    );
    assert_eq!(check(store).checksums_verified, 5);
    assert_eq!(
        store.seal_checksums(|_| false).expect("checksums").layers,
        0
    );
}

#[test]
fn making_checksums_and_checking_stop_when_told_to() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    let made = store.seal_checksums(|_| true).expect("checksums");
    assert!(made.stopped);
    assert_eq!((made.layers, sums(store).len()), (0, 0));
    let error = store
        .check(CheckOptions::default(), |_| false)
        .expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert_eq!(check(store).findings, []);
}

#[test]
fn a_volume_in_use_is_skipped_and_said_so_and_its_layers_below_are_looked_at() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    let disk = store
        .open_volume(&vol("a"), Access::ReadWrite)
        .expect("open");
    disk.write(&[7; 512], 700 << 20).expect("write");
    let base = store.snapshot_path(&snap("base")).expect("path");
    flip(&base, 6 << 20);
    for report in [check(store), repair(store)] {
        assert_eq!(report.skipped.len(), 1, "{report:#?}");
        assert_eq!(report.skipped[0].volume, vol("a"));
        assert_eq!(only(&report).kind, FindingKind::Checksum);
    }
    disk.write(&[8; 512], 701 << 20).expect("write");
    disk.close().expect("close");
    flip(&base, 6 << 20);
    let report = check(store);
    assert_eq!((report.skipped.len(), report.findings.len()), (0, 0));
}

#[test]
fn what_a_crash_leaves_is_found_and_repaired() {
    let scratch = sample();
    let store = &scratch.store;
    // A volume that was not closed: its dirty bit is set.
    let top = store.volume_path(&vol("b")).expect("path");
    let file = OpenOptions::new().write(true).open(&top).expect("layer");
    file.write_all_at(&[1], 79).expect("dirty");
    // A layer that nothing reaches, the checksums of one that is gone, an unfinished file.
    let layers = store.root().join("layers");
    let orphan = "00112233445566778899aabbccddeeff";
    fs::copy(&top, layers.join(format!("{orphan}.qcow2"))).expect("copy");
    fs::write(layers.join("ffeeddccbbaa99887766554433221100.sum"), "{}").expect("sum");
    let unfinished = store.root().join("tmp/unfinished");
    fs::write(&unfinished, vec![1; 100_000]).expect("tmp");
    age(&unfinished);
    // And one that is not ours to remove.
    fs::write(layers.join("README"), "hello").expect("other");

    let kinds = |report: &StoreReport| {
        let mut kinds: Vec<_> = report
            .findings
            .iter()
            .map(|finding| (format!("{:?}", finding.kind), finding.repaired))
            .collect();
        kinds.sort();
        kinds
    };
    let expected = |repaired| {
        [
            ("NotClosed", repaired),
            ("StaleFile", false),
            ("StaleFile", repaired),
            ("StaleFile", repaired),
            ("UnusedLayer", repaired),
        ]
        .map(|(kind, repaired)| (kind.to_owned(), repaired))
    };
    let report = check(store);
    assert_eq!(kinds(&report), expected(false), "{report:#?}");
    assert!(report.findings.iter().map(|f| f.lost_bytes).sum::<u64>() >= 100_000);
    assert_eq!(kinds(&repair(store)), expected(true));
    let rest = check(store);
    assert_eq!(only(&rest).file, "layers/README");
    assert!(!unfinished.exists());
    assert_eq!(common::byte_at(store, &vol("b"), 0), 1);
    fs::remove_file(layers.join("README")).expect("remove");
    assert_all_layers_are_clean(store);
}

#[test]
fn leaked_and_missing_refcounts_are_repaired_also_in_a_sealed_layer() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    for path in [
        store.snapshot_path(&snap("s")).expect("path"),
        store.volume_path(&vol("a")).expect("path"),
    ] {
        // A cluster behind the end, refcounted; the refcount of one in use, gone.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("layer");
        let mut table = [0; 8];
        file.read_exact_at(&mut table, 48).expect("header");
        let mut block = [0; 8];
        file.read_exact_at(&mut block, u64::from_be_bytes(table))
            .expect("table");
        let block = u64::from_be_bytes(block);
        let clusters = file.metadata().expect("layer").len() >> 16;
        file.write_all_at(&[0, 1], block + 2 * (clusters + 5))
            .expect("leak");
        file.write_all_at(&[0, 0], block + 2 * (clusters - 1))
            .expect("missing");
        // Without this the sealed layer's digests would find it first, as damage.
        fs::remove_file(path.with_extension("sum")).expect("sum");
    }
    let report = check(store);
    assert_eq!(report.findings.len(), 4, "{report:#?}");
    let lost: u64 = report.findings.iter().map(|f| f.lost_bytes).sum();
    assert_eq!(lost, 2 << 16);
    let report = repair(store);
    assert_eq!(report.findings.len(), 4, "{report:#?}");
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(check(store).findings, []);
    assert_all_layers_are_clean(store);
    assert_eq!(common::byte_at(store, &vol("a"), 512 << 20), 2);
}

#[test]
fn records_and_chains_that_lead_nowhere_are_named_and_nothing_is_removed() {
    let scratch = sample();
    let store = &scratch.store;
    let before = common::layers(store).len();
    let orphan = "00112233445566778899aabbccddeeff";
    let layers = store.root().join("layers");
    let top = store.volume_path(&vol("b")).expect("path");
    fs::copy(&top, layers.join(format!("{orphan}.qcow2"))).expect("copy");
    fs::write(store.root().join("snapshots/s.json"), "{\"version\":1,").expect("record");
    fs::write(
        store.root().join("volumes/x.json"),
        format!("{{\"version\":1,\"layer\":\"{}\"}}", "a".repeat(32)),
    )
    .expect("record");

    let report = repair(store);
    let mut kinds: Vec<_> = report
        .findings
        .iter()
        .map(|f| (f.kind, f.affected.clone()))
        .collect();
    kinds.sort_by_key(|(_, affected)| affected.clone());
    assert_eq!(
        kinds,
        [
            (FindingKind::UnusedLayer, vec![]),
            (FindingKind::Chain, vec![volume("x")]),
            (FindingKind::Record, vec![snapshot("s")]),
        ]
    );
    assert!(report.findings.iter().all(|finding| !finding.repaired));
    assert_eq!(common::layers(store).len(), before + 1);

    // A missing layer in the middle concerns all above it.
    fs::remove_file(store.root().join("snapshots/s.json")).expect("remove");
    fs::remove_file(store.root().join("volumes/x.json")).expect("remove");
    let base = store.snapshot_path(&snap("base")).expect("path");
    fs::rename(&base, scratch.path("base.qcow2")).expect("hide");
    let report = check(store);
    let chain = report
        .findings
        .iter()
        .find(|f| f.kind == FindingKind::Chain);
    let chain = chain.expect("found");
    assert_eq!(chain.affected, [volume("a"), volume("b"), snapshot("base")]);
    assert_eq!(chain.file, name(&base));
}

#[test]
fn usage_tells_own_from_shared_and_sets_count_each_layer_once() {
    let scratch = sample();
    let store = &scratch.store;
    let usage = store.usage().expect("usage");
    let one = |owner: Owner| usage.one(&owner).expect("there");
    let near = |bytes: u64, mib: u64| {
        let slack = 1 << 20;
        assert!(
            bytes.abs_diff(mib << 20) < slack,
            "{bytes} is not about {mib} MiB"
        );
    };
    let (a, b) = (one(volume("a")), one(volume("b")));
    near(a.own_bytes, 2);
    near(a.shared_bytes, 10);
    near(b.own_bytes, 0);
    near(b.shared_bytes, 9);
    let (s, base) = (one(snapshot("s")), one(snapshot("base")));
    near(s.own_bytes, 0);
    near(s.shared_bytes, 10);
    near(base.own_bytes, 0);
    near(base.shared_bytes, 9);
    // A set owns what only its members reach.
    let set = usage.of(&[volume("a"), snapshot("s")]);
    near(set.own_bytes, 3);
    near(set.shared_bytes, 9);
    let owners = [
        volume("a"),
        volume("b"),
        snapshot("s"),
        snapshot("base"),
        volume("a"),
    ];
    let all = usage.of(&owners);
    assert_eq!(all.shared_bytes, 0);
    assert_eq!(all.own_bytes, usage.total_bytes());
    assert_eq!(usage.of(&[volume("none")]), Blocks::default());
    assert_eq!(usage.volume(&vol("none")), None);
    assert_eq!(usage.owners().len(), 4);

    // What is deleted gives back what was its own.
    store.delete_volume(&vol("a")).expect("delete");
    store.delete_snapshot(&snap("s")).expect("delete");
    let after = store.usage().expect("usage");
    assert_eq!(usage.total_bytes() - after.total_bytes(), set.own_bytes);
}

#[test]
fn deleting_removes_the_checksums_with_the_layers() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    store.delete_snapshot(&snap("s")).expect("delete");
    store.delete_volume(&vol("a")).expect("delete");
    assert_eq!((common::layers(store).len(), sums(store).len()), (2, 2));
    store.delete_volume(&vol("b")).expect("delete");
    store.delete_snapshot(&snap("base")).expect("delete");
    let rest = common::listing(&store.root().join("layers"));
    assert_eq!(rest, Vec::<PathBuf>::new());
}

#[test]
fn damaged_checksums_are_removed_and_made_anew() {
    let scratch = sample();
    let store = &scratch.store;
    age_all(store);
    store.seal_checksums(|_| false).expect("checksums");
    let sum = store
        .snapshot_path(&snap("base"))
        .expect("path")
        .with_extension("sum");
    fs::write(&sum, "{").expect("damage");
    let report = check(store);
    assert_eq!(only(&report).kind, FindingKind::ChecksumFile);
    assert_eq!(only(&report).file, name(&sum));
    assert!(repair(store).is_clean());
    assert_eq!(
        store.seal_checksums(|_| false).expect("checksums").layers,
        1
    );
    assert_eq!(check(store).checksums_verified, 4);
}
