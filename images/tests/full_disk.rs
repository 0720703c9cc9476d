//! A host file system that is full. Needs root for a small file system of its own, in a mount
//! namespace that nobody else sees and that ends with the process.

mod common;

use common::{
    Rng, assert_all_layers_are_clean, assert_check_is_clean, byte_at, snap, vol, write_at,
};
use hearth_images::{
    Access, ErrorKind, ImportOptions, ImportSource, MergeOutcome, SnapshotId, Store, VolumeId,
    VolumeSource,
};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

const VARIABLE: &str = "HEARTH_FULL_DISK_TEST_DIRECTORY";
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Not a test by itself: runs with a small file system at the directory.
#[test]
#[ignore = "started by the test below"]
fn inside_of_a_small_file_system() {
    let Ok(directory) = std::env::var(VARIABLE) else {
        return;
    };
    let directory = Path::new(&directory);
    let store = Store::open(directory.join("store")).expect("store");
    let ballast = directory.join("ballast");
    fs::write(&ballast, vec![1; 8 << 20]).expect("ballast");

    let before = common::listing(store.root());
    let mut endless = io::repeat(7);
    let error = store
        .import_snapshot(
            &SnapshotId::new("s").expect("id"),
            ImportSource::Stream(&mut endless),
            ImportOptions::default(),
        )
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let after: Vec<_> = common::listing(store.root())
        .into_iter()
        .filter(|path| !path.ends_with("lock"))
        .collect();
    assert_eq!(after, before);

    // A chain that is to be merged.
    let long = vol("long");
    store
        .create_volume(&long, VolumeSource::Empty, Some(MIB))
        .expect("create");
    for number in 0..10u64 {
        write_at(&store, &long, &[number as u8; 100_000], number * 80_896);
        let name = snap(&format!("long-{number}"));
        store.snapshot_volume(&long, &name).expect("snapshot");
    }
    let merge = store.next_merge().expect("plan").expect("a long chain");

    let id = VolumeId::new("vol").expect("id");
    store
        .create_volume(&id, VolumeSource::Empty, Some(4 * GIB))
        .expect("create");
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    // Scattered over several L2 tables, so that tables have to be made on the full disk too.
    let place = |index: u64| index * 97 % 4096 * (1 << 20);
    let block = |index: u64| {
        let mut data = vec![0; 40_000];
        Rng::new(index).fill(&mut data);
        data
    };
    let mut written = 0;
    let error = loop {
        match disk.write(&block(written), place(written)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    for attempt in 0..20 {
        let error = disk
            .write(&block(1), place(written + attempt))
            .expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        let _ = disk.flush();
    }
    let mut data = vec![0; 40_000];
    for index in 0..written {
        disk.read(&mut data, place(index)).expect("read");
        assert!(data == block(index), "block {index} of {written}");
    }

    fill_up(&directory.join("filler"));
    let before = common::listing(store.root());
    let wanted = [(&disk, &id, &snap("live"))];
    let error = store.snapshot_disks(&wanted).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let error = store
        .snapshot_volume(&long, &snap("rest"))
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let error = store
        .merge(&merge, |_| ControlFlow::Continue(()))
        .expect_err("full");
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let after: Vec<_> = common::listing(store.root())
        .into_iter()
        .filter(|path| !path.ends_with("merge.lock"))
        .collect();
    assert_eq!(after, before);
    disk.read(&mut data, place(1)).expect("read");
    assert!(data == block(1));
    fs::remove_file(directory.join("filler")).expect("filler");

    fs::remove_file(&ballast).expect("ballast");
    store.snapshot_disks(&wanted).expect("snapshot");
    let outcome = store
        .merge(&merge, |_| ControlFlow::Continue(()))
        .expect("merge");
    assert!(matches!(outcome, MergeOutcome::Merged { .. }));
    for number in 0..10u64 {
        assert_eq!(byte_at(&store, &long, number * 80_896), number as u8);
    }
    for index in written..written + 40 {
        disk.write(&block(index), place(index))
            .expect("space again");
    }
    disk.flush().expect("flush");
    disk.close().expect("close");
    assert_all_layers_are_clean(&store);
    let disk = store.open_volume(&id, Access::ReadOnly).expect("open");
    for index in 0..written + 40 {
        disk.read(&mut data, place(index)).expect("read");
        assert!(data == block(index), "block {index} of {written}");
    }
    assert_check_is_clean(&store.volume_path(&id).expect("path"));
}

/// Takes the last bytes of the file system.
fn fill_up(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).expect("filler");
    for size in [65_536, 4096] {
        while file
            .write_all(&vec![1; size])
            .and_then(|()| file.sync_all())
            .is_ok()
        {}
    }
}

#[test]
fn a_full_disk_is_an_error_to_the_writer_and_damages_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making a small file system needs root");
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let image = directory.path().join("image");
    fs::File::create(&image)
        .and_then(|file| file.set_len(48 << 20))
        .expect("image");
    let mount = directory.path().join("mount");
    fs::create_dir(&mount).expect("mount point");
    let test = std::env::current_exe().expect("own path");
    for file_system in ["tmpfs", "ext4"] {
        let make = match file_system {
            "tmpfs" => "mount -t tmpfs -o size=24m none \"$1\"",
            _ => "mkfs.ext4 -q -F \"$2\" && mount -o loop \"$2\" \"$1\"",
        };
        let script = format!(
            "mount --make-rprivate / && {make} && \"$3\" --exact --ignored --nocapture \
             inside_of_a_small_file_system; status=$?; umount \"$1\"; exit $status"
        );
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script, "sh"])
            .args([&mount, &image, &test])
            .env(VARIABLE, &mount)
            .output()
            .expect("unshare");
        assert!(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"),
            "{file_system}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
}
