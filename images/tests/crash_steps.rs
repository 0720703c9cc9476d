//! kill -9 at each named step of a live snapshot and of a merge.
//!
//! The process that is killed is this test binary once more; it ends itself at the step
//! (`hearth_images::crash_point`).

mod common;

use common::{Rng, Scratch, assert_all_layers_are_clean, layers, listing, snap, vol};
use hearth_images::{
    Access, CRASH_AT, MERGED_CHAIN_LENGTH, MergeOutcome, Store, VolumeId, VolumeSource,
};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

const STORE: &str = "HEARTH_CRASH_STEPS_STORE";
const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

fn go_on<T>(_: T) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Runs one of the workers below until it crashes at the step.
fn crash(store: &Store, worker: &str, step: &str) {
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args([worker, "--exact", "--ignored", "--nocapture"])
        .env(STORE, store.root())
        .env(CRASH_AT, step)
        .stdout(Stdio::null())
        .output()
        .expect("worker");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(9), "{step}: {said}");
    let name = step.split(':').next().expect("a name");
    assert!(said.contains(name), "{step}: {said}");
}

fn store_of_worker() -> Option<Store> {
    let root = std::env::var(STORE).ok()?;
    Some(Store::open(root).expect("store"))
}

#[test]
#[ignore = "started by the test below"]
fn takes_two_snapshots() {
    let Some(store) = store_of_worker() else {
        return;
    };
    let ids = [vol("a"), vol("b")];
    let disks = ids
        .each_ref()
        .map(|id| store.open_volume(id, Access::ReadWrite).expect("open"));
    for disk in &disks {
        disk.write(&[1; 100_000], MIB).expect("write");
        disk.flush().expect("flush");
        // Over flushed data, and in a new cluster; neither is flushed.
        disk.write(&[2; 4096], MIB).expect("write");
        disk.write(&[2; 4096], 4 * MIB).expect("write");
    }
    let names = [snap("s-a"), snap("s-b")];
    let wanted = [
        (&disks[0], &ids[0], &names[0]),
        (&disks[1], &ids[1], &names[1]),
    ];
    store.snapshot_disks(&wanted).expect("snapshots");
}

#[test]
fn a_crash_at_any_step_of_a_live_snapshot_loses_nothing_that_was_flushed() {
    for step in [
        "snapshot.renamed",
        "snapshot.renamed:2",
        "snapshot.switched",
        "snapshot.written",
        "snapshot.written:2",
        "snapshot.sealed",
        "record.created",
        "record.created:2",
    ] {
        let scratch = Scratch::new();
        let store = &scratch.store;
        for id in [vol("a"), vol("b")] {
            store
                .create_volume(&id, VolumeSource::Empty, Some(SIZE))
                .expect("create");
        }
        crash(store, "takes_two_snapshots", step);
        let store = Store::open(store.root()).expect("store");
        assert!(listing(&store.root().join("tmp")).is_empty(), "{step}");

        // Every second time the repair happens at the opening.
        let recover = step.len().is_multiple_of(2);
        for id in [vol("a"), vol("b")] {
            if recover {
                store.recover_volume(&id).expect("recover");
            }
            let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
            let mut found = vec![0; 100_000];
            disk.read(&mut found, MIB).expect("read");
            assert!(found[4096..].iter().all(|byte| *byte == 1), "{step}: {id}");
            for sector in found[..4096].chunks(512) {
                assert!(sector == [1; 512] || sector == [2; 512], "{step}: {id}");
            }
            disk.read(&mut found[..4096], 4 * MIB).expect("read");
            for sector in found[..4096].chunks(512) {
                assert!(sector == [0; 512] || sector == [2; 512], "{step}: {id}");
            }
            disk.write(&[3; 4096], 4 * MIB).expect("write");
            disk.close().expect("close");
        }
        // A snapshot that is there is whole.
        let there = store.snapshots().expect("snapshots");
        let expected = match step {
            "record.created" => 1,
            "record.created:2" => 2,
            _ => 0,
        };
        assert_eq!(there.len(), expected, "{step}");
        for name in &there {
            let snapshot = store.open_snapshot(name).expect("open");
            let mut byte = [0];
            for (at, value) in [(MIB, 2), (MIB + 4096, 1), (4 * MIB, 2)] {
                snapshot.read(&mut byte, at).expect("read");
                assert_eq!(byte, [value], "{step}: {name}");
            }
            store.delete_snapshot(name).expect("delete");
        }
        assert_all_layers_are_clean(&store);
        // The same ids may be used again.
        store
            .snapshot_volumes(&[(&vol("a"), &snap("s-a")), (&vol("b"), &snap("s-b"))])
            .expect("snapshots");
        assert_all_layers_are_clean(&store);
        store.collect_garbage().expect("collect");
        assert_eq!(store.collect_garbage().expect("collect"), 0, "{step}");
    }
}

#[test]
#[ignore = "started by the test below"]
fn merges() {
    let Some(store) = store_of_worker() else {
        return;
    };
    let merge = store.next_merge().expect("plan").expect("a long chain");
    let outcome = store.merge(&merge, go_on).expect("merge");
    assert!(matches!(outcome, MergeOutcome::Merged { .. }));
}

fn read_all(store: &Store, id: &VolumeId) -> Vec<u8> {
    let disk = store.open_volume(id, Access::ReadOnly).expect("open");
    let mut found = vec![0; SIZE as usize];
    disk.read(&mut found, 0).expect("read");
    found
}

#[test]
fn a_crash_at_any_step_of_a_merge_changes_no_contents_and_leaves_nothing_behind() {
    for step in ["merge.copied", "merge.replaced", "layer.removed"] {
        let scratch = Scratch::new();
        let store = &scratch.store;
        let id = vol("v");
        store
            .create_volume(&id, VolumeSource::Empty, Some(SIZE))
            .expect("create");
        let mut model = vec![0; SIZE as usize];
        let mut rng = Rng::new(1);
        for _ in 0..10 {
            let at = rng.below(SIZE / 512 - 400) as usize * 512;
            rng.fill(&mut model[at..at + 200 * 512]);
            common::write_at(store, &id, &model[at..at + 200 * 512], at as u64);
            store.snapshot_volume(&id, &snap("s")).expect("snapshot");
            // Only the volume reaches the layer then, so that it can go.
            store.delete_snapshot(&snap("s")).expect("delete");
        }
        crash(store, "merges", step);
        let store = Store::open(store.root()).expect("store");
        assert!(listing(&store.root().join("tmp")).is_empty(), "{step}");
        assert!(read_all(&store, &id) == model, "{step}");
        assert_all_layers_are_clean(&store);
        while let Some(merge) = store.next_merge().expect("plan") {
            store.merge(&merge, go_on).expect("merge");
        }
        assert!(read_all(&store, &id) == model, "{step}");
        store.collect_garbage().expect("collect");
        assert_eq!(layers(&store).len(), MERGED_CHAIN_LENGTH, "{step}");
        assert_all_layers_are_clean(&store);
    }
}
