//! Snapshots of disks that are at work, and disks that grow at work.

mod common;

use common::{
    Rng, Scratch, assert_all_layers_are_clean, assert_same_contents, byte_at, layers, snap, vol,
    write_at,
};
use hearth_images::{Access, Disk, ErrorKind, Repair, Store, VolumeId, VolumeSource};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn new_volume(store: &Store, id: &str, size: u64) -> VolumeId {
    let id = vol(id);
    store
        .create_volume(&id, VolumeSource::Empty, Some(size))
        .expect("create");
    id
}

fn open(store: &Store, id: &VolumeId) -> Disk {
    store.open_volume(id, Access::ReadWrite).expect("open")
}

fn read(disk: &Disk, at: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    disk.read(&mut data, at).expect("read");
    data
}

#[test]
fn a_live_snapshot_holds_what_was_written_before_it_and_nothing_later() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let id = new_volume(store, "v", 64 * MIB);
    let disk = open(store, &id);
    disk.write(&[1; 100_000], 5000).expect("write");
    disk.flush().expect("flush");
    // Not flushed, and in a cluster that is allocated already.
    disk.write(&[2; 512], 5120).expect("write");
    // Not flushed, and its L2 table is in memory only.
    disk.write(&[3; 70_000], 40 * MIB).expect("write");

    let first = store
        .snapshot_disks(&[(&disk, &id, &snap("s1"))])
        .expect("snapshot");
    assert_eq!(first.snapshots[0].size_bytes, 64 * MIB);
    disk.write(&[4; 512], 5120).expect("write");
    disk.discard(40 * MIB, MIB).expect("discard");
    store
        .snapshot_disks(&[(&disk, &id, &snap("s2"))])
        .expect("snapshot");
    disk.write(&[5; 512], 0).expect("write");

    for (name, at_5120, at_40_mib) in [("s1", 2, 3), ("s2", 4, 0)] {
        let snapshot = store.open_snapshot(&snap(name)).expect("open");
        assert_eq!(read(&snapshot, 0, 1), [0], "{name}");
        assert_eq!(read(&snapshot, 5119, 1), [1], "{name}");
        assert_eq!(read(&snapshot, 5120, 512), [at_5120; 512], "{name}");
        assert_eq!(
            read(&snapshot, 40 * MIB, 70_000),
            [at_40_mib; 70_000],
            "{name}"
        );
        let refused = snapshot.write(&[9; 512], 0).expect_err("read-only");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    let in_use = store
        .open_volume(&id, Access::ReadOnly)
        .expect_err("locked");
    assert_eq!(in_use.kind(), ErrorKind::InUse);
    disk.close().expect("close");
    assert_eq!(store.volume(&id).expect("volume").chain_length, 3);
    assert_eq!(byte_at(store, &id, 0), 5);
    assert_eq!(byte_at(store, &id, 5120), 4);
    assert_eq!(byte_at(store, &id, 40 * MIB), 0);
    assert_all_layers_are_clean(store);
}

#[test]
fn snapshots_of_several_disks_are_of_one_point_in_time_and_nobody_who_writes_gets_an_error() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let ids: Vec<_> = ["a", "b", "c"]
        .map(|name| new_volume(store, name, 64 * MIB))
        .into();
    let disks: Vec<Disk> = ids.iter().map(|id| open(store, id)).collect();
    let (end, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    const SNAPSHOTS: usize = 20;

    std::thread::scope(|scope| {
        // Writes a number to each disk, one after the other: at any point in time the first disk
        // has the highest, and the last at most one less.
        scope.spawn(|| {
            for number in 1u64.. {
                for disk in &disks {
                    let at = number * 997 % 1000 * 64 * 1024;
                    disk.write(&number.to_le_bytes().repeat(64), at)
                        .expect("write");
                    disk.write(&number.to_le_bytes().repeat(64), 0)
                        .expect("write");
                }
                steps.store(number, Ordering::Release);
                if end.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        // Readers, flushes and discards of places that are not looked at.
        scope.spawn(|| {
            let mut rng = Rng::new(7);
            while !end.load(Ordering::Acquire) {
                let disk = &disks[rng.below(3) as usize];
                match rng.below(3) {
                    0 => disk.flush().expect("flush"),
                    1 => disk.discard(63 * MIB, MIB).expect("discard"),
                    _ => drop(read(disk, rng.below(60) * MIB, 4096)),
                }
            }
        });
        for number in 0..SNAPSHOTS {
            let seen = steps.load(Ordering::Acquire);
            while steps.load(Ordering::Acquire) < seen + 3 {
                std::thread::yield_now();
            }
            let names: Vec<_> = (0..3)
                .map(|disk| snap(&format!("s{number}-{disk}")))
                .collect();
            // In another order than that of the ids.
            let wanted: Vec<_> = [2, 0, 1]
                .map(|index: usize| (&disks[index], &ids[index], &names[index]))
                .into();
            let done = store.snapshot_disks(&wanted).expect("snapshot");
            let order: Vec<_> = done.snapshots.iter().map(|info| info.id.clone()).collect();
            assert_eq!(order, [2, 0, 1].map(|index: usize| names[index].clone()));
        }
        end.store(true, Ordering::Release);
    });

    let mut last = 0;
    for number in 0..SNAPSHOTS {
        let found: Vec<u64> = (0..3)
            .map(|disk| {
                let snapshot = store
                    .open_snapshot(&snap(&format!("s{number}-{disk}")))
                    .expect("open");
                u64::from_le_bytes(read(&snapshot, 0, 8).try_into().expect("8 bytes"))
            })
            .collect();
        let sorted = found.is_sorted_by(|a, b| a >= b);
        assert!(sorted && found[0] - found[2] <= 1, "{number}: {found:?}");
        assert!(found[0] > last, "{number}: {found:?}");
        last = found[0];
    }
    for disk in &disks {
        disk.close().expect("close");
    }
    assert_all_layers_are_clean(store);
    for id in &ids {
        assert_eq!(
            store.volume(id).expect("volume").chain_length,
            SNAPSHOTS + 1
        );
    }
}

#[test]
fn a_refused_request_for_several_snapshots_makes_none_and_may_be_tried_again() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (a, b) = (new_volume(store, "a", MIB), new_volume(store, "b", MIB));
    let taken = snap("taken");
    store.snapshot_volume(&a, &taken).expect("snapshot");
    let before = layers(store);

    let (disk_a, disk_b) = (open(store, &a), open(store, &b));
    let (one, two) = (snap("one"), snap("two"));
    let refusals = [
        (
            vec![(&disk_a, &a, &one), (&disk_b, &b, &taken)],
            ErrorKind::AlreadyExists,
        ),
        (
            vec![(&disk_a, &a, &one), (&disk_b, &b, &one)],
            ErrorKind::InvalidId,
        ),
        (
            vec![(&disk_a, &a, &one), (&disk_a, &a, &two)],
            ErrorKind::InvalidId,
        ),
        (
            vec![(&disk_a, &a, &one), (&disk_a, &b, &two)],
            ErrorKind::InvalidId,
        ),
    ];
    for (wanted, kind) in refusals {
        let error = store.snapshot_disks(&wanted).expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(layers(store), before, "{kind:?}");
        assert_eq!(
            store.snapshots().expect("snapshots"),
            std::slice::from_ref(&taken)
        );
    }
    disk_a.write(&[7; 512], 0).expect("write");
    store
        .snapshot_disks(&[(&disk_a, &a, &one), (&disk_b, &b, &two)])
        .expect("snapshots");
    assert_eq!(
        store.snapshots().expect("snapshots"),
        [one.clone(), taken, two]
    );
    let snapshot = store.open_snapshot(&one).expect("open");
    assert_eq!(read(&snapshot, 0, 1), [7]);

    let reader = new_volume(store, "reader", MIB);
    let reading = store.open_volume(&reader, Access::ReadOnly).expect("open");
    let error = store
        .snapshot_disks(&[(&reading, &reader, &snap("three"))])
        .expect_err("read-only");
    assert_eq!(error.kind(), ErrorKind::InUse);
    disk_a.close().expect("close");
    store
        .snapshot_disks(&[(&disk_a, &a, &snap("three"))])
        .expect_err("closed");
    assert_eq!(store.snapshots().expect("snapshots").len(), 3);
}

#[test]
fn snapshots_of_several_volumes_at_rest_are_all_or_none() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (a, b) = (new_volume(store, "a", MIB), new_volume(store, "b", MIB));
    write_at(store, &a, &[1; 512], 0);
    write_at(store, &b, &[2; 512], 0);
    let (one, two) = (snap("one"), snap("two"));
    let open_b = open(store, &b);
    let error = store
        .snapshot_volumes(&[(&a, &one), (&b, &two)])
        .expect_err("open");
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(store.snapshots().expect("snapshots").is_empty());
    drop(open_b);
    let infos = store
        .snapshot_volumes(&[(&b, &two), (&a, &one)])
        .expect("snapshots");
    assert_eq!(infos[0].id, two);
    write_at(store, &a, &[3; 512], 0);
    for (id, byte) in [(&one, 1), (&two, 2)] {
        assert_eq!(read(&store.open_snapshot(id).expect("open"), 0, 1), [byte]);
    }
    assert_all_layers_are_clean(store);
}

#[test]
fn a_disk_grows_while_it_is_written_to() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let base = new_volume(store, "base", 4 * MIB);
    write_at(store, &base, &[6; 4096], MIB);
    store.snapshot_volume(&base, &snap("s")).expect("snapshot");
    let id = vol("v");
    store
        .create_volume(&id, VolumeSource::Snapshot(&snap("s")), None)
        .expect("clone");
    let disk = open(store, &id);
    let end = AtomicBool::new(false);
    // The last two need another L1 table: one cluster has 8192 entries, for 4 TiB.
    let sizes = [8 * MIB, 3 * GIB + 512, 5 << 40, 64 << 40];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0u64.. {
                let at = round % 100 * 512;
                disk.write(&[round as u8; 512], at).expect("write");
                assert_eq!(read(&disk, at, 512), [round as u8; 512]);
                assert_eq!(read(&disk, MIB, 4096), [6; 4096]);
                if end.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        for size in sizes {
            disk.write(&[1; 512], size).expect_err("outside");
            let info = store.grow_disk(&disk, &id, size).expect("grow");
            assert_eq!((info.size_bytes, disk.size_bytes()), (size, size));
            disk.write(&[8; 512], size - 512).expect("write");
            assert_eq!(read(&disk, size - 1024, 1024)[511..513], [0, 8]);
        }
        end.store(true, Ordering::Release);
    });
    let smaller = store.grow_disk(&disk, &id, MIB).expect_err("smaller");
    assert_eq!(smaller.kind(), ErrorKind::InvalidSize);
    let odd = store
        .grow_disk(&disk, &id, (64 << 40) + 512)
        .expect_err("too large");
    assert_eq!(odd.kind(), ErrorKind::InvalidSize);
    store
        .snapshot_disks(&[(&disk, &id, &snap("large"))])
        .expect("snapshot");
    disk.close().expect("close");
    assert_all_layers_are_clean(store);
    let snapshot = store.open_snapshot(&snap("large")).expect("open");
    for size in sizes {
        assert_eq!(read(&snapshot, size - 512, 512), [8; 512], "{size}");
    }
    let report = store.check_volume(&id, Repair::No).expect("check");
    assert!(report.is_clean());
}

#[test]
fn a_snapshot_outlives_everything_that_it_was_taken_from() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let id = new_volume(store, "v", 8 * MIB);
    let disk = open(store, &id);
    let mut contents = vec![0; 8 * MIB as usize];
    Rng::new(1).fill(&mut contents[MIB as usize..5 * MIB as usize]);
    disk.write(&contents, 0).expect("write");
    store
        .snapshot_disks(&[(&disk, &id, &snap("s"))])
        .expect("snapshot");
    disk.write(&vec![0; 8 * MIB as usize], 0).expect("write");
    let opened = store.open_snapshot(&snap("s")).expect("open");
    drop(disk);
    store.delete_volume(&id).expect("delete");
    let raw = scratch.path("raw");
    std::fs::write(&raw, &contents).expect("raw");
    assert_same_contents(&store.snapshot_path(&snap("s")).expect("path"), &raw);
    store.delete_snapshot(&snap("s")).expect("delete");
    assert!(layers(store).is_empty());
    assert!(read(&opened, 0, contents.len()) == contents);
}
