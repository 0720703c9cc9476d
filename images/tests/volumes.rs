//! Volumes and snapshots as a whole: making, cloning, growing, deleting.

mod common;

use common::{Scratch, assert_all_layers_are_clean, assert_check_is_clean, qemu_img};
use hearth_images::{Access, ErrorKind, SnapshotId, VolumeId, VolumeSource};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn vol(id: &str) -> VolumeId {
    VolumeId::new(id).expect("id")
}

fn snap(id: &str) -> SnapshotId {
    SnapshotId::new(id).expect("id")
}

#[test]
fn what_is_written_is_read_again_after_closing_and_opening() {
    let scratch = Scratch::new();
    let id = vol("vol-1");
    let info = scratch
        .store
        .create_volume(&id, VolumeSource::Empty, Some(GIB))
        .expect("create");
    assert_eq!((info.size_bytes, info.chain_length), (GIB, 1));

    let disk = scratch
        .store
        .open_volume(&id, Access::ReadWrite)
        .expect("open");
    disk.write(&[7; 5000], 123_456_789).expect("write");
    disk.close().expect("close");

    let disk = scratch
        .store
        .open_volume(&id, Access::ReadOnly)
        .expect("open");
    let mut data = [1; 5002];
    disk.read(&mut data, 123_456_788).expect("read");
    assert_eq!(data[0], 0);
    assert!(data[1..5001].iter().all(|byte| *byte == 7));
    assert_eq!(data[5001], 0);
    assert!(disk.write(&[0; 512], 0).is_err());
    assert_check_is_clean(&scratch.store.volume_path(&id).expect("path"));
}
