//! Merging: chains get short, contents stay, nobody waits, and nothing is lost on the way.

mod common;

use common::{
    Rng, Scratch, assert_all_layers_are_clean, assert_same_contents, layers, listing, snap, vol,
    write_at,
};
use hearth_images::{
    Access, ErrorKind, MERGED_CHAIN_LENGTH, Merge, MergeOutcome, SnapshotId, Store, VolumeId,
    VolumeSource,
};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

const MIB: u64 = 1 << 20;

fn go_on<T>(_: T) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Merges until no chain is too long. Returns how many merges that took.
fn merge_all(store: &Store) -> usize {
    let mut merges = 0;
    while let Some(merge) = store.next_merge().expect("plan") {
        let outcome = store.merge(&merge, go_on).expect("merge");
        assert!(
            matches!(outcome, MergeOutcome::Merged { .. }),
            "{outcome:?}"
        );
        merges += 1;
        assert!(merges < 1000, "merging comes to no end");
    }
    merges
}

fn next_merge(store: &Store) -> Merge {
    store
        .next_merge()
        .expect("plan")
        .expect("a chain is too long")
}

/// A volume with so many snapshots `s0`, `s1`, ..., and what each of them and, last, the volume
/// holds.
fn volume_with_snapshots(store: &Store, count: u64) -> (VolumeId, Vec<Vec<u8>>) {
    let id = vol("v");
    let mut rng = Rng::new(count);
    // Neither is a multiple of the cluster size.
    let mut size = 3 * MIB + 512 * 3;
    store
        .create_volume(&id, VolumeSource::Empty, Some(size))
        .expect("create");
    let mut contents = vec![0; size as usize];
    let mut states = Vec::new();
    for number in 0..=count {
        if number % 5 == 3 {
            size += 100 * 1024 + 512;
            store.grow_volume(&id, size).expect("grow");
            contents.resize(size as usize, 0);
        }
        let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
        for _ in 0..6 {
            let at = rng.below(size / 512) * 512;
            let length = (1 + rng.below(300)) * 512;
            let range = at as usize..(at + length).min(size) as usize;
            if rng.below(3) == 0 {
                disk.discard(at, range.len() as u64).expect("discard");
                contents[range].fill(0);
            } else {
                rng.fill(&mut contents[range.clone()]);
                disk.write(&contents[range], at).expect("write");
            }
        }
        disk.close().expect("close");
        states.push(contents.clone());
        if number < count {
            store
                .snapshot_volume(&id, &snap(&format!("s{number}")))
                .expect("snapshot");
        }
    }
    (id, states)
}

fn assert_contents(scratch: &Scratch, id: &VolumeId, states: &[Vec<u8>], gone: &[u64]) {
    let raw = scratch.path("raw");
    for (number, state) in (0..).zip(states) {
        if gone.contains(&number) {
            continue;
        }
        std::fs::write(&raw, state).expect("raw");
        let path = if number as usize == states.len() - 1 {
            scratch.store.volume_path(id)
        } else {
            scratch.store.snapshot_path(&snap(&format!("s{number}")))
        };
        assert_same_contents(&path.expect("path"), &raw);
    }
}

#[test]
fn chains_get_short_and_every_snapshot_keeps_its_contents() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, states) = volume_with_snapshots(store, 30);
    assert_eq!(store.volume(&id).expect("volume").chain_length, 31);
    let merges = merge_all(store);
    println!("{merges} merges");
    assert!(store.volume(&id).expect("volume").chain_length <= MERGED_CHAIN_LENGTH);
    assert_contents(&scratch, &id, &states, &[]);
    assert_all_layers_are_clean(store);
    // A clone of any snapshot has no longer chain.
    for number in 0..30 {
        let clone = vol(&format!("clone-{number}"));
        let source = snap(&format!("s{number}"));
        let info = store
            .create_volume(&clone, VolumeSource::Snapshot(&source), None)
            .expect("clone");
        assert!(info.chain_length <= MERGED_CHAIN_LENGTH, "{number}");
    }
    assert!(store.next_merge().expect("plan").is_none());
    assert_eq!(store.collect_garbage().expect("collect"), 0);
}

#[test]
fn layers_that_nothing_else_reaches_go() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, states) = volume_with_snapshots(store, 30);
    let gone: Vec<u64> = (0..30).filter(|number| number % 10 != 5).collect();
    for number in &gone {
        store
            .delete_snapshot(&snap(&format!("s{number}")))
            .expect("delete");
    }
    assert_eq!(layers(store).len(), 31, "the chain holds all of them");
    merge_all(store);
    assert_eq!(layers(store).len(), MERGED_CHAIN_LENGTH);
    assert_contents(&scratch, &id, &states, &gone);
    assert_all_layers_are_clean(store);
}

#[test]
fn a_disk_at_work_goes_on_and_goes_over_to_the_new_files() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, states) = volume_with_snapshots(store, 20);
    for number in 0..20 {
        store
            .delete_snapshot(&snap(&format!("s{number}")))
            .expect("delete");
    }
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    let end = AtomicBool::new(false);
    let expected = states.last().expect("a state");
    std::thread::scope(|scope| {
        let worker = |part: u64| {
            let (disk, end) = (&disk, &end);
            // Each worker has sectors of its own.
            move || {
                let mut model = expected.clone();
                let mut rng = Rng::new(part);
                let sectors = model.len() as u64 / 1024;
                while !end.load(Ordering::Acquire) {
                    let at = (rng.below(sectors) * 2 + part) * 512;
                    let range = at as usize..at as usize + 512;
                    let mut found = [0; 512];
                    disk.read(&mut found, at).expect("read");
                    assert!(found == model[range.clone()], "sector at {at:#x}");
                    rng.fill(&mut model[range.clone()]);
                    disk.write(&model[range], at).expect("write");
                }
                for at in (part * 512..model.len() as u64).step_by(1024) {
                    let mut found = [0; 512];
                    disk.read(&mut found, at).expect("read");
                    assert!(found == model[at as usize..][..512], "sector at {at:#x}");
                }
            }
        };
        scope.spawn(worker(0));
        scope.spawn(worker(1));
        assert!(
            !store.reload_disk(&disk, &id).expect("reload"),
            "nothing to do"
        );
        let mut number = 0;
        while let Some(merge) = store.next_merge().expect("plan") {
            let outcome = store.merge(&merge, go_on).expect("merge");
            let volumes = vec![id.clone()];
            assert_eq!(outcome, MergeOutcome::Merged { volumes });
            if number % 3 == 0 {
                assert!(store.reload_disk(&disk, &id).expect("reload"));
            }
            if number == 4 {
                store
                    .snapshot_disks(&[(&disk, &id, &snap("live"))])
                    .expect("snapshot");
            }
            number += 1;
        }
        store.reload_disk(&disk, &id).expect("reload");
        assert!(
            !store.reload_disk(&disk, &id).expect("reload"),
            "done already"
        );
        end.store(true, Ordering::Release);
    });
    // Nothing has the old files open any more: their space is free.
    let open = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    let deleted: Vec<_> = open
        .flat_map(|entry| std::fs::read_link(entry.expect("entry").path()))
        .filter(|path| path.starts_with(store.root()))
        .filter(|path| path.to_string_lossy().ends_with("(deleted)"))
        .collect();
    assert!(deleted.is_empty(), "{deleted:?}");
    disk.close().expect("close");
    assert!(store.volume(&id).expect("volume").chain_length <= MERGED_CHAIN_LENGTH);
    assert_all_layers_are_clean(store);
}

#[test]
fn a_merge_that_is_stopped_or_overtaken_changes_nothing() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, states) = volume_with_snapshots(store, 10);
    let before = listing(&store.root().join("layers"));
    let merge = next_merge(store);
    let stopped = store
        .merge(&merge, |_| ControlFlow::Break(()))
        .expect("stopped");
    assert_eq!(stopped, MergeOutcome::Stopped);
    let mut last = 0;
    let outcome = store
        .merge(&merge, |progress| {
            assert!(progress.copied_bytes >= last, "{progress:?}");
            last = progress.copied_bytes;
            let second = store.merge(&merge, go_on).expect_err("one at a time");
            assert_eq!(second.kind(), ErrorKind::InUse);
            // Volumes and snapshots are made meanwhile.
            let other = vol(&format!("other-{last}"));
            if let Ok(info) = store.create_volume(&other, VolumeSource::Snapshot(&snap("s9")), None)
            {
                store.delete_volume(&info.id).expect("delete");
            }
            match last {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        })
        .expect("stopped");
    assert_eq!(outcome, MergeOutcome::Stopped);
    assert_eq!(listing(&store.root().join("layers")), before);
    assert_contents(&scratch, &id, &states, &[]);

    // The volume and all snapshots go while their layers are merged.
    let outcome = store
        .merge(&merge, |_| {
            if store.delete_volume(&id).is_ok() {
                for number in 0..10 {
                    store
                        .delete_snapshot(&snap(&format!("s{number}")))
                        .expect("delete");
                }
            }
            ControlFlow::Continue(())
        })
        .expect("overtaken");
    assert_eq!(outcome, MergeOutcome::Outdated);
    let again = store.merge(&merge, go_on).expect("overtaken");
    assert_eq!(again, MergeOutcome::Outdated);
    assert!(layers(store).is_empty());
    assert!(listing(&store.root().join("tmp")).is_empty());
}

#[test]
fn volumes_and_snapshots_open_at_any_moment_of_a_merge() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, states) = volume_with_snapshots(store, 40);
    for number in (0..40).filter(|number| number % 4 > 0) {
        store
            .delete_snapshot(&snap(&format!("s{number}")))
            .expect("delete");
    }
    let end = AtomicBool::new(false);
    let same = |disk: hearth_images::Disk, state: &[u8]| {
        let mut found = vec![0; state.len()];
        disk.read(&mut found, 0).expect("read");
        assert!(found == state);
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (end, id, states) = (&end, &id, &states);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                while !end.load(Ordering::Acquire) {
                    let disk = store.open_volume(id, Access::ReadOnly).expect("open");
                    same(disk, &states[40]);
                    let number = rng.below(10) * 4;
                    let name: SnapshotId = snap(&format!("s{number}"));
                    let disk = store.open_snapshot(&name).expect("open");
                    same(disk, &states[number as usize]);
                    store.volume(id).expect("volume");
                }
            });
        }
        merge_all(store);
        end.store(true, Ordering::Release);
    });
}

#[test]
fn a_damaged_layer_stops_only_the_merges_that_need_it() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let (id, _) = volume_with_snapshots(store, 12);
    let other = vol("other");
    store
        .create_volume(&other, VolumeSource::Empty, Some(MIB))
        .expect("create");
    for number in 0..12u64 {
        write_at(store, &other, &[number as u8; 512], number * 512);
        store
            .snapshot_volume(&other, &snap(&format!("o{number}")))
            .expect("snapshot");
    }
    // A record of the first volume names a layer that is not there.
    let path = store.snapshot_path(&snap("s3")).expect("path");
    let hidden = path.with_extension("hidden");
    std::fs::rename(&path, &hidden).expect("hide");
    let count = layers(store).len();
    merge_all(store);
    assert!(store.volume(&other).expect("volume").chain_length <= MERGED_CHAIN_LENGTH);
    assert_eq!(
        layers(store).len(),
        count,
        "what cannot be read may reach anything"
    );
    std::fs::rename(&hidden, &path).expect("back");
    merge_all(store);
    assert!(store.volume(&id).expect("volume").chain_length <= MERGED_CHAIN_LENGTH);
    assert_all_layers_are_clean(store);
}
