//! Blocks of snapshots, against a model of byte arrays.

mod common;

use common::{Rng, Scratch, import_bytes, snap, vol};
use hearth_images::{
    Access, BLOCK_BYTES, ChangedBlock, ErrorKind, SnapshotId, Store, VolumeId, VolumeSource,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// Not a multiple of a block, nor of a cluster; over two L2 tables.
const DISK: u64 = (600 << 20) + 2560;

/// What a disk holds: the stretches where anything is written in this test.
#[derive(Clone)]
struct Model {
    bytes: Vec<u8>,
}

/// The places that are written, so that the model stays small: two areas, one at each end.
const AREA: u64 = 6 << 20;

impl Model {
    fn new() -> Self {
        Model {
            bytes: vec![0; 2 * AREA as usize],
        }
    }

    fn place(model_offset: u64) -> u64 {
        if model_offset < AREA {
            model_offset
        } else {
            DISK - AREA + (model_offset - AREA)
        }
    }

    fn block(&self, index: u64) -> Vec<u8> {
        let start = index * BLOCK_BYTES;
        let end = (start + BLOCK_BYTES).min(DISK);
        (start..end)
            .map(|at| {
                if at < AREA {
                    self.bytes[at as usize]
                } else if at >= DISK - AREA {
                    self.bytes[(at - (DISK - AREA) + AREA) as usize]
                } else {
                    0
                }
            })
            .collect()
    }
}

fn blocks() -> u64 {
    DISK.div_ceil(BLOCK_BYTES)
}

/// Writes, discards and snapshots a volume a few times.
fn history(store: &Store, volume: &VolumeId, rng: &mut Rng) -> Vec<(SnapshotId, Model)> {
    let mut model = Model::new();
    let mut all = Vec::new();
    for round in 0..5 {
        let disk = store.open_volume(volume, Access::ReadWrite).expect("open");
        for _ in 0..6 {
            let at = rng.below(2 * AREA / 512) * 512;
            let area_end = if at < AREA { AREA } else { 2 * AREA };
            let length = ((1 + rng.below(600)) * 512).min(area_end - at) as usize;
            let range = at as usize..at as usize + length;
            match rng.below(4) {
                0 => {
                    disk.discard(Model::place(at), length as u64)
                        .expect("discard");
                    model.bytes[range].fill(0);
                }
                // The same again: allocated anew perhaps, but not changed.
                1 => disk
                    .write(&model.bytes[range], Model::place(at))
                    .expect("write"),
                _ => {
                    let mut data = vec![0; length];
                    rng.fill(&mut data);
                    disk.write(&data, Model::place(at)).expect("write");
                    model.bytes[range].copy_from_slice(&data);
                }
            }
        }
        disk.close().expect("close");
        let id = snap(&format!("{volume}-{round}"));
        store.snapshot_volume(volume, &id).expect("snapshot");
        all.push((id, model.clone()));
    }
    all
}

#[test]
fn blocks_and_changes_are_exactly_what_a_byte_array_says() {
    for seed in common::seeds() {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let scratch = Scratch::new();
        let store = &scratch.store;
        let volume = vol("v");
        store
            .create_volume(&volume, VolumeSource::Empty, Some(DISK))
            .expect("volume");
        let history = history(store, &volume, &mut rng);
        for (id, model) in &history {
            let reader = store.read_snapshot(id).expect("reader");
            assert_eq!(reader.block_count(), blocks());
            let listed: BTreeSet<u64> = reader.blocks(0).map(|b| b.expect("block")).collect();
            for index in (0..12).chain(blocks() - 14..blocks()) {
                let expected = model.block(index);
                let block = reader.block(index).expect("block");
                assert!(block.data == expected, "block {index} of {id}");
                assert_eq!(block.sha256[..], Sha256::digest(&expected)[..]);
                if expected.iter().any(|byte| *byte != 0) {
                    assert!(listed.contains(&index), "block {index} of {id} is data");
                }
            }
            // Pages: the rest of the list from any start.
            for start in [0, 5, 12, 1100, blocks() - 1, blocks(), u64::MAX] {
                let page: Vec<u64> = reader.blocks(start).flatten().collect();
                let expected: Vec<u64> = listed.range(start..).copied().collect();
                assert_eq!(page, expected, "from {start}");
            }
            assert!(
                listed
                    .iter()
                    .all(|index| *index < 12 || *index >= blocks() - 14)
            );
        }
        for (first, old) in &history {
            for (second, new) in &history {
                let changed: Vec<ChangedBlock> = store
                    .changed_blocks(first, second, 0)
                    .expect("related")
                    .map(|block| block.expect("block"))
                    .collect();
                let expected: Vec<u64> = (0..12)
                    .chain(blocks() - 14..blocks())
                    .filter(|index| old.block(*index) != new.block(*index))
                    .collect();
                let indexes: Vec<u64> = changed.iter().map(|block| block.index).collect();
                assert_eq!(indexes, expected, "{first} to {second}");
                for block in changed {
                    let has = |model: &Model| model.block(block.index).iter().any(|b| *b != 0);
                    assert!(block.in_first || !has(old), "{block:?}");
                    assert!(block.in_second || !has(new), "{block:?}");
                    assert!(block.in_first || block.in_second, "{block:?}");
                }
            }
        }
    }
}

#[test]
fn a_grown_disk_changed_where_it_is_written_and_its_old_end_reads_as_zeroes() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    // Data right up to an end inside of a cluster.
    let base = import_bytes(store, "base", &vec![7; 70_656]);
    let volume = vol("v");
    store
        .create_volume(&volume, VolumeSource::Snapshot(&base), Some(64 << 40))
        .expect("volume");
    common::write_at(store, &volume, &[9; 512], (64 << 40) - 512);
    store
        .snapshot_volume(&volume, &snap("grown"))
        .expect("snapshot");
    let changed: Vec<_> = store
        .changed_blocks(&base, &snap("grown"), 0)
        .expect("related")
        .map(|block| block.expect("block"))
        .collect();
    let last = (64 << 40) / BLOCK_BYTES - 1;
    assert_eq!(
        changed,
        [ChangedBlock {
            index: last,
            in_first: false,
            in_second: true
        }]
    );
    let reader = store.read_snapshot(&snap("grown")).expect("reader");
    let block = reader.block(0).expect("block");
    assert_eq!(block.data.len() as u64, BLOCK_BYTES);
    assert!(block.data[..70_656].iter().all(|byte| *byte == 7));
    assert!(block.data[70_656..].iter().all(|byte| *byte == 0));
    assert_eq!(reader.blocks(0).flatten().collect::<Vec<_>>(), [0, last]);
    assert_eq!(
        reader.block(last + 1).expect_err("outside").kind(),
        ErrorKind::OutOfRange
    );
}

#[test]
fn snapshots_without_a_common_layer_cannot_be_compared() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let one = import_bytes(store, "one", &[1; 4096]);
    let other = import_bytes(store, "other", &[1; 4096]);
    let error = store
        .changed_blocks(&one, &other, 0)
        .expect_err("unrelated");
    assert_eq!(error.kind(), ErrorKind::Unrelated);
    let error = store
        .changed_blocks(&one, &snap("none"), 0)
        .expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        store.changed_blocks(&one, &one, 0).expect("same").count(),
        0
    );
}

#[test]
fn a_reader_outlives_its_snapshot() {
    let scratch = Scratch::new();
    let store = &scratch.store;
    let one = import_bytes(store, "one", &[1; 4096]);
    let reader = store.read_snapshot(&one).expect("reader");
    store.delete_snapshot(&one).expect("delete");
    assert!(common::layers(store).is_empty());
    assert_eq!(reader.block(0).expect("block").data, [1; 4096]);
}
