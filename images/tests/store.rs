//! The store's directory: left-overs of a crash, damaged and hostile files, several processes.

mod common;

use common::{Rng, Scratch, byte_at, import_bytes, layers, listing, qemu_img, snap, vol, write_at};
use hearth_images::{
    Access, ErrorKind, ImportOptions, ImportSource, Repair, Store, VolumeId, VolumeSource,
};
use std::fs;

const MIB: u64 = 1 << 20;

#[test]
fn left_overs_of_a_crash_between_two_steps_are_removed() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let snapshot = import_bytes(store, "s", &[1; 1000]);
    store
        .create_volume(&vol("v"), VolumeSource::Snapshot(&snapshot), None)
        .expect("clone");
    let good = listing(store.root());

    // Killed while a file was unfinished: nobody holds its lock any more.
    fs::write(store.root().join("tmp").join("0".repeat(32)), b"half").expect("left-over");
    // Killed after the layer had its name and before a record named it, or between the two
    // steps of a deletion.
    let unused = store
        .root()
        .join("layers")
        .join(format!("{}.qcow2", "0".repeat(32)));
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        unused.to_str().expect("UTF-8"),
        "1M",
    ]);
    assert_ne!(listing(store.root()), good);

    let reopened = Store::open(store.root()).expect("open");
    assert_eq!(reopened.collect_garbage().expect("collect"), 1);
    assert_eq!(listing(store.root()), good);
    assert_eq!(reopened.collect_garbage().expect("collect"), 0);
}

#[test]
fn opening_a_store_leaves_the_unfinished_files_of_the_living_alone() {
    let scratch = Scratch::new();
    let store = scratch.store.clone();
    let (mut reader, mut writer) = std::io::pipe().expect("pipe");
    let import = std::thread::spawn(move || {
        let source = ImportSource::Stream(&mut reader);
        store
            .import_volume(&vol("v"), source, ImportOptions::default())
            .expect("import")
    });
    use std::io::Write;
    writer.write_all(&[3; 3 << 20]).expect("first part");
    Store::open(scratch.store.root()).expect("open");
    assert_eq!(listing(&scratch.store.root().join("tmp")).len(), 1);
    writer.write_all(&[4; 512]).expect("second part");
    drop(writer);
    assert_eq!(import.join().expect("import").size_bytes, 3 * MIB + 512);
}

#[test]
fn nothing_is_collected_while_a_record_or_a_layer_cannot_be_read() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let keep = import_bytes(store, "keep", &[1; 1000]);
    let snapshot = import_bytes(store, "s", &[2; 1000]);
    store
        .create_volume(&vol("v"), VolumeSource::Snapshot(&snapshot), None)
        .expect("clone");
    let record = store.root().join("volumes/v.json");
    let good = fs::read(&record).expect("record");
    let huge = vec![b' '; 1 << 20];
    let other_layer = br#"{"version":1,"layer":"../../etc/passwd"}"#;
    let missing = format!(r#"{{"version":1,"layer":"{}"}}"#, "0".repeat(32));
    for bad in [
        &b""[..],
        b"{",
        &huge,
        br#"{"version":2,"layer":""}"#,
        other_layer,
        missing.as_bytes(),
    ] {
        fs::write(&record, bad).expect("record");
        let before = layers(store);
        let error = store.collect_garbage().expect_err("unreadable");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert_eq!(layers(store), before);
        assert!(store.volume(&vol("v")).is_err());
        assert!(store.open_volume(&vol("v"), Access::ReadWrite).is_err());
        assert!(store.snapshot(&keep).is_ok(), "the others go on");
    }
    // A deletion does what it was asked for and leaves the rest for later.
    store.delete_snapshot(&keep).expect("delete");
    assert_eq!(layers(store).len(), 3);
    fs::write(&record, good).expect("record");
    assert_eq!(store.collect_garbage().expect("collect"), 1);
    assert_eq!(layers(store).len(), 2);
}

/// Rewrites the backing file name of a volume's top layer.
fn rename_parent(store: &Store, id: &VolumeId, name: &str) {
    let path = store.volume_path(id).expect("path");
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        name,
        path.to_str().expect("UTF-8"),
    ]);
}

#[test]
fn a_layer_whose_parent_is_not_a_layer_of_the_store_is_never_followed() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let snapshot = import_bytes(store, "s", &[1; 1000]);
    let outside = scratch.path("outside.qcow2");
    qemu_img(&[
        "create",
        "-f",
        "qcow2",
        outside.to_str().expect("UTF-8"),
        "1M",
    ]);
    let id = vol("v");
    store
        .create_volume(&id, VolumeSource::Snapshot(&snapshot), None)
        .expect("clone");
    let own = store.volume_path(&id).expect("path");
    let own = own
        .file_name()
        .and_then(|name| name.to_str())
        .expect("name")
        .to_owned();
    let outside = outside.to_str().expect("UTF-8").to_owned();
    let zeros = "0".repeat(32);
    for (name, kind) in [
        (outside.as_str(), ErrorKind::UnsafeReference),
        ("../../outside.qcow2", ErrorKind::UnsafeReference),
        ("/etc/passwd", ErrorKind::UnsafeReference),
        ("json:{\"driver\":\"file\"}", ErrorKind::UnsafeReference),
        ("nbd://localhost/x", ErrorKind::UnsafeReference),
        (&format!("./{zeros}.qcow2"), ErrorKind::UnsafeReference),
        (&format!("{zeros}.qcow2"), ErrorKind::Corrupt),
        (&own, ErrorKind::Corrupt),
    ] {
        rename_parent(store, &id, name);
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let error = store.open_volume(&id, access).expect_err(name);
            assert_eq!(error.kind(), kind, "{name}: {error}");
        }
        assert_eq!(store.volume(&id).expect_err(name).kind(), kind);
    }
}

#[test]
fn chains_that_are_too_long_or_come_back_to_themselves_are_refused() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(MIB))
        .expect("create");
    let mut count = 0;
    let error = loop {
        match store.snapshot_volume(&id, &snap(&format!("s{count}"))) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 200);
    };
    assert_eq!(error.kind(), ErrorKind::InvalidFormat);
    assert_eq!(store.volume(&id).expect("info").chain_length, 64);
    write_at(store, &id, &[1; 512], 0);
    assert_eq!(byte_at(store, &id, 0), 1);

    // The oldest layer gets the youngest sealed one as its parent.
    let oldest = store.snapshot_path(&snap("s0")).expect("path");
    let youngest = store.snapshot_path(&snap("s3")).expect("path");
    let youngest = youngest
        .file_name()
        .and_then(|name| name.to_str())
        .expect("name")
        .to_owned();
    qemu_img(&[
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        &youngest,
        oldest.to_str().expect("UTF-8"),
    ]);
    let source = snap("s3");
    let error = store
        .create_volume(&vol("w"), VolumeSource::Snapshot(&source), None)
        .expect_err("loop");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(
        store
            .open_volume(&id, Access::ReadWrite)
            .expect_err("loop")
            .kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(store.collect_garbage().expect("ends"), 0);
}

#[test]
fn no_single_broken_bit_of_a_layer_makes_the_store_panic() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let snapshot = import_bytes(store, "s", &[1; 300_000]);
    let id = vol("v");
    store
        .create_volume(&id, VolumeSource::Snapshot(&snapshot), Some(8 * MIB))
        .expect("clone");
    write_at(store, &id, &[2; 200_000], 100_000);
    let path = store.volume_path(&id).expect("path");
    let good = fs::read(&path).expect("layer");
    let at = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().expect("8 bytes")) as usize;
    let l1 = at(40);
    let l2 = at(l1) & 0x00ff_ffff_ffff_fe00;
    let refcount_table = at(48);
    let refcount_block = at(refcount_table);
    let tables = [
        0..700,
        l1..l1 + 16,
        l2..l2 + 256,
        refcount_table..refcount_table + 16,
        refcount_block..refcount_block + 64,
    ];
    let mut rng = Rng::new(12);
    let mut readable = 0;
    for round in 0..300 {
        let range = tables[round % tables.len()].clone();
        let mut bytes = good.clone();
        bytes[range.start + rng.below(range.len() as u64) as usize] ^= 1 << rng.below(8);
        if rng.below(10) == 0 {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        }
        fs::write(&path, &bytes).expect("layer");
        let _ = store.volume(&id);
        let _ = store.check_volume(&id, Repair::No);
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let Ok(disk) = store.open_volume(&id, access) else {
                continue;
            };
            readable += 1;
            let mut data = vec![0; 4096];
            for offset in (0..disk.size_bytes().min(MIB)).step_by(50_000) {
                let _ = disk.read(&mut data, offset);
                let _ = disk.write(&data, offset);
            }
            let _ = disk.discard(0, 200_000);
            let _ = disk.close();
        }
        let _ = store.check_volume(&id, Repair::Refcounts);
        let _ = store.recover_volume(&id);
    }
    assert!(readable > 0);
}

#[test]
fn two_stores_on_one_directory_keep_each_other_out() {
    let scratch = Scratch::new();
    let other = Store::open(scratch.store.root()).expect("open");
    let id = vol("v");
    scratch
        .store
        .create_volume(&id, VolumeSource::Empty, Some(MIB))
        .expect("create");
    let disk = other.open_volume(&id, Access::ReadWrite).expect("open");
    let error = scratch
        .store
        .open_volume(&id, Access::ReadWrite)
        .expect_err("locked");
    assert_eq!(error.kind(), ErrorKind::InUse);
    drop(disk);
    scratch
        .store
        .open_volume(&id, Access::ReadWrite)
        .expect("free again");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = if thread % 2 == 0 {
                &scratch.store
            } else {
                &other
            };
            scope.spawn(move || {
                for round in 0..10 {
                    let id = vol(&format!("t-{thread}-{round}"));
                    store
                        .create_volume(&id, VolumeSource::Empty, Some(MIB))
                        .expect("create");
                    if round % 2 == 0 {
                        store.delete_volume(&id).expect("delete");
                    }
                }
            });
        }
    });
    assert_eq!(other.volumes().expect("list").len(), 21);
    assert_eq!(layers(&other).len(), 21);
}
