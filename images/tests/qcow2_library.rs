//! What the qcow2 library leaves in the file at moments when the process may be killed, and how
//! volumes make up for it. Copying the file at such a moment gives what a kill would leave.

mod common;

use common::{Scratch, assert_check_is_clean};
use hearth_images::{Access, Disk, ErrorKind, Repair, Store, VolumeId, VolumeSource};
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use std::path::{Path, PathBuf};
use std::process::Command;

const GIB: u64 = 1 << 30;
const CLUSTER: usize = 64 << 10;

fn new_image(path: &Path) -> FormatAccess<ImagoFile> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .expect("file");
    let storage = ImagoFile::try_from(file).expect("storage");
    let image = Qcow2::<ImagoFile>::create_builder(storage)
        .size(4 * GIB)
        .create_open(DenyImplicitOpenGate::default(), |storage| {
            Ok(Qcow2::builder(storage).backing(None).write(true))
        })
        .expect("image");
    FormatAccess::new(image)
}

/// Exit status of `qemu-img check` on a copy of the file as it is now: 2 for corruption, 3 for
/// leaks.
fn check_now(path: &Path) -> i32 {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).expect("copy");
    Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(&copy)
        .output()
        .expect("these tests need qemu-img (Debian: apt-get install qemu-utils)")
        .status
        .code()
        .expect("exit status")
}

#[test]
fn the_library_names_a_new_l2_table_before_its_refcount_is_written() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image");
    let image = new_image(&path);
    image.flush().expect("flush");
    assert_eq!(check_now(&path), 0);
    image.write(&[1u8; CLUSTER][..], 0).expect("write");
    assert_eq!(
        check_now(&path),
        2,
        "fixed in the library? then say so in docs/volumes.md"
    );
    image.flush().expect("flush");
    assert_eq!(check_now(&path), 0);
}

#[test]
fn the_library_puts_a_table_into_a_cluster_that_the_file_still_gives_to_the_guest() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("image");
    let mut image = new_image(&path);
    image.write(&[1u8; CLUSTER][..], 0).expect("write");
    image.flush().expect("flush");
    image
        .inner_mut()
        .discard_to_zero(0, CLUSTER as u64)
        .expect("discard");
    // This needs a new L2 table, which lands in the cluster that was freed; the L2 entry that
    // gave it up is still in memory only.
    image
        .inner_mut()
        .discard_to_zero(GIB, CLUSTER as u64)
        .expect("discard");
    assert_eq!(
        check_now(&path),
        2,
        "fixed in the library? then say so in docs/volumes.md"
    );
    image.flush().expect("flush");
}

/// A second store with the volume as it is now, as if its process had just been killed.
fn killed_now(scratch: &Scratch, name: &str) -> (Store, VolumeId, PathBuf) {
    let root = scratch.path(name);
    for folder in ["layers", "volumes", "snapshots", "tmp"] {
        std::fs::create_dir_all(root.join(folder)).expect("folder");
        for entry in std::fs::read_dir(scratch.store.root().join(folder)).expect("folder") {
            let entry = entry.expect("entry");
            std::fs::copy(entry.path(), root.join(folder).join(entry.file_name())).expect("copy");
        }
    }
    let store = Store::open(root).expect("store");
    let id = VolumeId::new("vol").expect("id");
    let path = store.volume_path(&id).expect("path");
    (store, id, path)
}

fn open_new(scratch: &Scratch) -> Disk {
    let id = VolumeId::new("vol").expect("id");
    scratch
        .store
        .create_volume(&id, VolumeSource::Empty, Some(4 * GIB))
        .expect("create");
    scratch
        .store
        .open_volume(&id, Access::ReadWrite)
        .expect("open")
}

#[test]
fn a_missing_refcount_of_a_new_l2_table_is_written_after_a_kill() {
    let scratch = Scratch::new();
    let disk = open_new(&scratch);
    disk.write(&[1; CLUSTER], 0).expect("write");
    let (store, id, path) = killed_now(&scratch, "killed");
    let found = store.check_volume(&id, Repair::No).expect("check");
    assert!(found.unaccounted_clusters > 0, "{found:?}");
    assert!(!found.is_clean());
    let repaired = store.recover_volume(&id).expect("recover");
    assert!(repaired.repaired && repaired.is_clean());
    assert_check_is_clean(&path);
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    disk.write(&[2; 3 * CLUSTER], GIB - 100).expect("write");
    disk.close().expect("close");
    assert_check_is_clean(&path);
}

#[test]
fn a_discarded_cluster_never_has_two_owners_in_the_file() {
    let scratch = Scratch::new();
    let disk = open_new(&scratch);
    disk.write(&[1; 2 * CLUSTER], 0).expect("write");
    disk.flush().expect("flush");
    disk.discard(0, 2 * CLUSTER as u64).expect("discard");
    disk.discard(GIB, 2 * CLUSTER as u64).expect("discard");
    disk.write(&[2; 512], 2 * GIB).expect("write");
    disk.write(&[3; 512], 3 * GIB).expect("write");
    let (store, id, path) = killed_now(&scratch, "killed");
    store.recover_volume(&id).expect("recover");
    assert_check_is_clean(&path);
    let mut data = [9; 2 * CLUSTER];
    let disk = store.open_volume(&id, Access::ReadOnly).expect("open");
    disk.read(&mut data, 0).expect("read");
    assert!(data.iter().all(|byte| *byte == 0));
}

#[test]
fn damage_is_reported_and_not_repaired() {
    let scratch = Scratch::new();
    let disk = open_new(&scratch);
    disk.write(&[1; CLUSTER], 0).expect("write");
    disk.write(&[1; CLUSTER], CLUSTER as u64).expect("write");
    disk.close().expect("close");
    let (store, id, path) = killed_now(&scratch, "damaged");
    let mut bytes = std::fs::read(&path).expect("layer");
    // Both guest clusters in one host cluster: the second L2 entry becomes a copy of the first.
    let at = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes")) as usize
    };
    let l1 = at(&bytes, 40);
    let l2 = at(&bytes, l1) & 0x00ff_ffff_ffff_fe00;
    bytes.copy_within(l2..l2 + 8, l2 + 8);
    bytes[79] |= 1; // dirty
    std::fs::write(&path, &bytes).expect("layer");
    for result in [
        store.recover_volume(&id),
        store.check_volume(&id, Repair::Refcounts),
        store
            .open_volume(&id, Access::ReadWrite)
            .map(|_| Default::default()),
    ] {
        assert_eq!(result.expect_err("damaged").kind(), ErrorKind::Corrupt);
    }
    assert!(
        std::fs::read(&path).expect("layer") == bytes,
        "something was changed"
    );
}

#[test]
fn a_refcount_block_that_a_power_loss_took_is_made_anew() {
    let scratch = Scratch::new();
    let disk = open_new(&scratch);
    disk.write(&[1; 5 * CLUSTER], 100).expect("write");
    disk.close().expect("close");
    let (store, id, path) = killed_now(&scratch, "lost");
    let mut bytes = std::fs::read(&path).expect("layer");
    let table = u64::from_be_bytes(bytes[48..56].try_into().expect("8 bytes")) as usize;
    bytes[table..table + 8].fill(0);
    std::fs::write(&path, &bytes).expect("layer");
    // Without the mark of an unclean close this is damage, and nobody writes to it.
    let error = store
        .open_volume(&id, Access::ReadWrite)
        .expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    bytes[79] |= 1; // dirty
    std::fs::write(&path, &bytes).expect("layer");
    assert!(store.recover_volume(&id).expect("recover").repaired);
    assert_check_is_clean(&path);
    let disk = store.open_volume(&id, Access::ReadWrite).expect("open");
    let mut data = [0; 5 * CLUSTER];
    disk.read(&mut data, 100).expect("read");
    assert!(data == [1; 5 * CLUSTER]);
    disk.write(&data, GIB).expect("write");
    disk.close().expect("close");
    assert_check_is_clean(&path);
}
