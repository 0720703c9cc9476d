//! `kill -9` between the steps of a snapshot: the volume keeps its data, the snapshot is there or
//! is not, and nothing is left over.
//!
//! The process that dies is this test binary once more.

mod common;

use common::{Scratch, assert_all_layers_are_clean};
use hearth_images::{Access, CRASH_AT, ErrorKind, SnapshotId, Store, VolumeId, VolumeSource};
use std::fs;
use std::path::Path;
use std::process::Command;

const STORE_VARIABLE: &str = "HEARTH_CRASH_POINTS_STORE";

fn volume_id() -> VolumeId {
    VolumeId::new("vol").expect("id")
}

fn snapshot_id() -> SnapshotId {
    SnapshotId::new("snap").expect("id")
}

/// Does nothing unless it is the process that is to die.
#[test]
fn child() {
    let Some(root) = std::env::var_os(STORE_VARIABLE) else {
        return;
    };
    let store = Store::open(root).expect("store");
    store
        .snapshot_volume(&volume_id(), &snapshot_id())
        .expect("snapshot");
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).expect("dir").count()
}

#[test]
fn a_snapshot_cut_off_at_any_step_is_there_or_is_not() {
    for (step, there) in [
        ("layer.written", false),
        ("layer.published", false),
        ("record.written", false),
        ("record.replaced", false),
        ("record.written:2", false),
        ("record.created", true),
    ] {
        let scratch = Scratch::new();
        let root = scratch.path("store");
        let store = Store::open(&root).expect("store");
        store
            .create_volume(&volume_id(), VolumeSource::Empty, Some(16 << 20))
            .expect("volume");
        let data = vec![0x5a; 1 << 20];
        let disk = store
            .open_volume(&volume_id(), Access::ReadWrite)
            .expect("open");
        disk.write(&data, 4096).expect("write");
        disk.close().expect("close");

        let me = std::env::current_exe().expect("this test");
        let status = Command::new(me)
            .args(["child", "--exact"])
            .env(STORE_VARIABLE, &root)
            .env(CRASH_AT, step)
            .output()
            .expect("run")
            .status;
        assert_eq!(status.code(), None, "{step}: it was not killed");

        let store = Store::open(&root).expect("store after the crash");
        store.collect_garbage().expect("garbage");
        match store.snapshot(&snapshot_id()) {
            Ok(_) => assert!(there, "{step}"),
            Err(error) => {
                assert!(!there, "{step}: {error}");
                assert_eq!(error.kind(), ErrorKind::NotFound);
                // And can be made again.
                store
                    .snapshot_volume(&volume_id(), &snapshot_id())
                    .expect("again");
            }
        }
        let info = store.volume(&volume_id()).expect("volume");
        assert_eq!(count(&root.join("layers")), info.chain_length, "{step}");
        assert_eq!(count(&root.join("tmp")), 0, "{step}");
        let disk = store
            .open_volume(&volume_id(), Access::ReadOnly)
            .expect("open");
        let mut read = vec![0; data.len()];
        disk.read(&mut read, 4096).expect("read");
        assert!(read == data, "{step}: the data has changed");
        drop(disk);
        assert_all_layers_are_clean(&store);
    }
}
