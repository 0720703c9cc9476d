//! Volumes and snapshots as a whole: making, cloning, growing, deleting.

mod common;

use common::{
    Rng, Scratch, assert_all_layers_are_clean, assert_check_is_clean, assert_same_contents,
    byte_at, import_bytes, layers, listing, snap, vol, write_at,
};
use hearth_images::{Access, ErrorKind, Repair, VolumeSource};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn what_is_written_is_read_again_after_closing_and_opening() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("vol-1"));
    let info = store
        .create_volume(&id, VolumeSource::Empty, Some(GIB))
        .expect("create");
    assert_eq!((info.size_bytes, info.chain_length), (GIB, 1));
    write_at(store, &id, &[7; 5000], 123_456_789);

    let disk = store.open_volume(&id, Access::ReadOnly).expect("open");
    let also = store
        .open_volume(&id, Access::ReadOnly)
        .expect("readers share");
    let mut data = [1; 5002];
    disk.read(&mut data, 123_456_788).expect("read");
    assert_eq!(data[0], 0);
    assert!(data[1..5001].iter().all(|byte| *byte == 7));
    assert_eq!(data[5001], 0);
    assert!(disk.write(&[0; 512], 0).is_err());
    assert!(disk.discard(0, 512).is_err());
    assert!(disk.flush().is_ok());
    drop(also);
    assert_check_is_clean(&store.volume_path(&id).expect("path"));
}

#[test]
fn requests_outside_of_the_disk_fail_and_change_nothing() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    let size = MIB + 512;
    store
        .create_volume(&id, VolumeSource::Empty, Some(size))
        .expect("create");
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    for (offset, length) in [
        (size, 1),
        (size - 511, 512),
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
    ] {
        let mut data = vec![0; length as usize];
        assert!(disk.read(&mut data, offset).is_err(), "{offset}");
        assert!(disk.write(&data, offset).is_err(), "{offset}");
        assert!(disk.discard(offset, length).is_err(), "{offset}");
        assert!(
            disk.write_zeroes(offset, length, false).is_err(),
            "{offset}"
        );
    }
    disk.write(&[9; 512], size - 512).expect("the last sector");
    disk.discard(0, 0).expect("nothing");
    disk.discard(size - 512, 512).expect("the last sector");
    let mut last = [1; 512];
    disk.read(&mut last, size - 512).expect("read");
    assert_eq!(last, [0; 512]);
    disk.close().expect("close");
    disk.close().expect("closing twice does nothing");
    assert!(disk.read(&mut last, 0).is_err(), "closed");
    assert!(disk.write(&last, 0).is_err(), "closed");
    assert!(disk.flush().is_err(), "closed");
    assert_all_layers_are_clean(store);
}

#[test]
fn sizes_that_no_disk_may_have_are_refused_and_leave_nothing() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    // The lock file appears with the first change.
    store
        .create_volume(&vol("first"), VolumeSource::Empty, Some(MIB))
        .expect("create");
    let before = listing(store.root());
    for size in [
        None,
        Some(0),
        Some(1),
        Some(1000),
        Some((64 << 40) + 512),
        Some(u64::MAX),
    ] {
        let error = store
            .create_volume(&vol("v"), VolumeSource::Empty, size)
            .expect_err("size");
        assert_eq!(error.kind(), ErrorKind::InvalidSize, "{size:?}");
    }
    let source = VolumeSource::Snapshot(&snap("none"));
    let error = store
        .create_volume(&vol("v"), source, None)
        .expect_err("no snapshot");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = store
        .create_volume(&vol("first"), VolumeSource::Empty, Some(MIB))
        .expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(listing(store.root()), before);
    store
        .create_volume(&vol("max"), VolumeSource::Empty, Some(64 << 40))
        .expect("64 TiB");
    write_at(store, &vol("max"), &[1; 512], (64 << 40) - 512);
    assert_all_layers_are_clean(store);
}

#[test]
fn clones_share_the_snapshot_and_are_independent_of_each_other() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let mut content = vec![0; 3 * MIB as usize + 512];
    Rng::new(5).fill(&mut content);
    let snapshot = import_bytes(store, "s", &content);
    let sealed = fs::read(store.snapshot_path(&snapshot).expect("path")).expect("layer");
    for id in ["a", "b", "c"] {
        let info = store
            .create_volume(&vol(id), VolumeSource::Snapshot(&snapshot), None)
            .expect("clone");
        assert_eq!(info.size_bytes, content.len() as u64);
        assert_eq!(info.chain_length, 2);
        assert!(
            info.allocated_bytes <= 512 << 10,
            "{}",
            info.allocated_bytes
        );
    }
    write_at(store, &vol("a"), &[1; 70_000], 1000);
    write_at(store, &vol("b"), &[2; 70_000], 1000);
    let raw = scratch.path("model.raw");
    for (id, fill) in [("a", Some(1)), ("b", Some(2)), ("c", None)] {
        let mut expected = content.clone();
        if let Some(byte) = fill {
            expected[1000..71_000].fill(byte);
        }
        fs::write(&raw, expected).expect("raw");
        assert_same_contents(&store.volume_path(&vol(id)).expect("path"), &raw);
    }
    let after = fs::read(store.snapshot_path(&snapshot).expect("path")).expect("layer");
    assert!(sealed == after, "the sealed layer was written");
    let smaller = store
        .create_volume(&vol("d"), VolumeSource::Snapshot(&snapshot), Some(MIB))
        .expect_err("smaller");
    assert_eq!(smaller.kind(), ErrorKind::InvalidSize);
    let larger = store
        .create_volume(&vol("d"), VolumeSource::Snapshot(&snapshot), Some(GIB))
        .expect("larger");
    assert_eq!(larger.size_bytes, GIB);
    assert_eq!(byte_at(store, &vol("d"), GIB - 1), 0);
    assert_eq!(byte_at(store, &vol("d"), content.len() as u64), 0);
    assert_all_layers_are_clean(store);
}

#[test]
fn a_discard_on_a_clone_hides_what_the_layers_below_hold() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let snapshot = import_bytes(store, "s", &vec![7; 2 * MIB as usize + 1536]);
    let id = vol("v");
    store
        .create_volume(&id, VolumeSource::Snapshot(&snapshot), Some(4 * MIB))
        .expect("clone");
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    let mut expected = vec![0; 4 * MIB as usize];
    expected[..2 * MIB as usize + 1536].fill(7);
    for (offset, length) in [
        (100u64, 50_000u64),
        (65_536, 131_072),
        (2 * MIB - 100, MIB),
        (700_001, 3),
    ] {
        disk.discard(offset, length).expect("discard");
        expected[offset as usize..(offset + length) as usize].fill(0);
        let mut data = vec![1; expected.len()];
        disk.read(&mut data, 0).expect("read");
        assert!(data == expected, "{length} bytes at {offset}");
    }
    disk.close().expect("close");
    assert_all_layers_are_clean(store);
}

#[test]
fn discarded_space_goes_back_to_the_host_and_write_zeroes_keeps_it() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(GIB))
        .expect("create");
    write_at(store, &id, &vec![1; 8 * MIB as usize], 600 * MIB);
    let full = store.volume(&id).expect("info").allocated_bytes;

    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    disk.write_zeroes(600 * MIB, 4 * MIB, false).expect("zero");
    disk.flush().expect("flush");
    assert_eq!(store.volume(&id).expect("info").allocated_bytes, full);
    disk.discard(0, GIB).expect("discard everything");
    disk.close().expect("close");
    assert!(store.volume(&id).expect("info").allocated_bytes < full - 7 * MIB);
    assert_eq!(byte_at(store, &id, 601 * MIB), 0);
    assert_eq!(
        store
            .check_volume(&id, Repair::No)
            .expect("check")
            .leaked_clusters,
        0
    );
    assert_all_layers_are_clean(store);
}

#[test]
fn a_volume_grows_only_while_nobody_has_it_open() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(MIB))
        .expect("create");
    write_at(store, &id, &[5; 512], MIB - 512);
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    for error in [
        store.grow_volume(&id, GIB).map(drop),
        store.delete_volume(&id),
        store.recover_volume(&id).map(drop),
        store.check_volume(&id, Repair::No).map(drop),
        store.open_volume(&id, Access::ReadOnly).map(drop),
    ] {
        assert_eq!(error.expect_err("open").kind(), ErrorKind::InUse);
    }
    disk.close().expect("close");
    for size in [2 * MIB, GIB, 100 * GIB, 64 << 40] {
        assert_eq!(store.grow_volume(&id, size).expect("grow").size_bytes, size);
        assert_eq!(byte_at(store, &id, MIB - 1), 5);
        assert_eq!(byte_at(store, &id, size - 1), 0);
        write_at(store, &id, &[6; 512], size - 512);
        assert_all_layers_are_clean(store);
    }
    let smaller = store.grow_volume(&id, GIB).expect_err("smaller");
    assert_eq!(smaller.kind(), ErrorKind::InvalidSize);
    assert_all_layers_are_clean(store);
}

#[test]
fn what_is_deleted_in_any_order_leaves_no_layer() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let orders: [[usize; 4]; 6] = [
        [0, 1, 2, 3],
        [3, 2, 1, 0],
        [1, 3, 0, 2],
        [2, 0, 3, 1],
        [0, 2, 1, 3],
        [3, 0, 2, 1],
    ];
    for order in orders {
        // base <- a (sealed as "mid") <- a's top; base <- b; mid <- c
        let base = import_bytes(store, "base", &[1; 100_000]);
        store
            .create_volume(&vol("a"), VolumeSource::Snapshot(&base), Some(MIB))
            .expect("a");
        write_at(store, &vol("a"), &[2; 512], 0);
        store.snapshot_volume(&vol("a"), &snap("mid")).expect("mid");
        store
            .create_volume(&vol("c"), VolumeSource::Snapshot(&snap("mid")), None)
            .expect("c");
        assert_eq!(store.volume(&vol("c")).expect("c").chain_length, 3);
        assert_eq!(layers(store).len(), 4);
        let survivor = vol("c");
        for step in order {
            match step {
                0 => store.delete_snapshot(&base),
                1 => store.delete_volume(&vol("a")),
                2 => store.delete_snapshot(&snap("mid")),
                _ => store.delete_volume(&survivor),
            }
            .expect("delete");
            if store.volume(&survivor).is_ok() {
                assert_eq!(byte_at(store, &survivor, 511), 2);
                assert_eq!(byte_at(store, &survivor, 512), 1);
            }
        }
        assert_eq!(layers(store), Vec::<PathBuf>::new(), "{order:?}");
        for error in [store.delete_volume(&vol("a")), store.delete_snapshot(&base)] {
            assert_eq!(error.expect_err("gone").kind(), ErrorKind::NotFound);
        }
    }
    assert!(store.volumes().expect("list").is_empty());
    assert!(store.snapshots().expect("list").is_empty());
}

#[test]
fn a_snapshot_keeps_what_its_volume_overwrites_later() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(GIB))
        .expect("create");
    for generation in 1..=5u8 {
        write_at(store, &id, &[generation; 100], 0);
        store
            .snapshot_volume(&id, &snap(&format!("s{generation}")))
            .expect("snapshot");
    }
    assert_eq!(store.volume(&id).expect("info").chain_length, 6);
    assert_eq!(store.snapshots().expect("list").len(), 5);
    write_at(store, &id, &[99; 100], 0);
    for generation in 1..=5u8 {
        let clone = vol(&format!("clone-{generation}"));
        let source = snap(&format!("s{generation}"));
        store
            .create_volume(&clone, VolumeSource::Snapshot(&source), None)
            .expect("clone");
        assert_eq!(byte_at(store, &clone, 50), generation);
    }
    assert_eq!(byte_at(store, &id, 50), 99);
    let taken = store.snapshot_volume(&id, &snap("s1")).expect_err("taken");
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    assert_all_layers_are_clean(store);
}

#[test]
fn a_file_with_data_behind_the_disks_end_is_not_made_by_a_write_to_the_last_sector() {
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(512))
        .expect("create");
    write_at(store, &id, &[8; 512], 0);
    let raw = scratch.path("raw");
    let file = fs::File::create(&raw).expect("raw");
    file.write_all_at(&[8; 512], 0).expect("raw");
    assert_same_contents(&store.volume_path(&id).expect("path"), &raw);
    assert_all_layers_are_clean(store);
}

#[test]
fn a_layer_with_more_than_one_refcount_block_is_clean_and_keeps_its_data() {
    // One block of refcounts covers 2 GiB of the file.
    let scratch = Scratch::new();
    let (store, id) = (&scratch.store, vol("v"));
    store
        .create_volume(&id, VolumeSource::Empty, Some(8 * GIB))
        .expect("create");
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    let mut data = vec![1; 4 * MIB as usize];
    for index in 0..520 {
        data[..8].copy_from_slice(&u64::to_le_bytes(index));
        disk.write(&data, index * 13 * MIB + 4096).expect("write");
        // The space is given back, the refcounts stay a matter of this moment.
        if (8..512).contains(&index) && index % 4 == 0 {
            disk.discard((index - 8) * 13 * MIB + MIB, MIB)
                .expect("discard");
        }
    }
    disk.close().expect("close");
    assert_eq!(
        store
            .check_volume(&id, Repair::No)
            .expect("check")
            .leaked_clusters,
        0
    );
    assert_check_is_clean(&store.volume_path(&id).expect("path"));
    let disk = store.open_volume(&id, Access::ReadOnly).expect("open");
    let mut start = [0; 8];
    for index in 0..520 {
        disk.read(&mut start, index * 13 * MIB + 4096)
            .expect("read");
        assert_eq!(u64::from_le_bytes(start), index);
    }
}

#[test]
fn a_copy_of_a_snapshot_takes_no_room_and_outlives_it() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let snapshot = import_bytes(store, "s", &[7; 1000]);
    let layers = layers(store).len();
    let copy = store.copy_snapshot(&snapshot, &snap("copy")).expect("copy");
    assert_eq!(
        copy.size_bytes,
        store.snapshot(&snapshot).expect("s").size_bytes
    );
    assert_eq!(common::layers(store).len(), layers);
    let again = store.copy_snapshot(&snapshot, &snap("copy"));
    assert_eq!(again.expect_err("taken").kind(), ErrorKind::AlreadyExists);
    let nobody = store.copy_snapshot(&snap("nobody"), &snap("other"));
    assert_eq!(nobody.expect_err("none").kind(), ErrorKind::NotFound);
    store.delete_snapshot(&snapshot).expect("delete");
    let block = store
        .read_snapshot(&copy.id)
        .and_then(|reader| reader.block(0))
        .expect("read");
    assert_eq!(block.data[..1000], [7; 1000]);
    store.delete_snapshot(&copy.id).expect("delete");
    assert!(common::layers(store).is_empty());
}
