//! Requests about disks on the control socket of a running machine.

use hearth_images::{Access, SnapshotId, Store, VolumeId, VolumeSource};
use hearth_vmm::config::DiskConfig;
use hearth_vmm::control::{DiskSnapshot, ExitReason, Reply, Request};

use super::{MIB, TestMachine, guests, no_kvm};

fn disk(serial: &str, store: &Store, volume: &VolumeId) -> DiskConfig {
    DiskConfig {
        serial: serial.into(),
        store: store.root().into(),
        volume: volume.to_string(),
        read_only: false,
        queues: 1,
    }
}

fn refused(reply: Reply, word: &str) {
    match reply {
        Reply::Error { message } => assert!(message.contains(word), "{word:?} not in {message:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn disks_of_a_running_machine_are_snapshotted_and_grow() {
    if no_kvm() {
        return;
    }
    let mut machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let store = Store::open(machine.dir.path().join("store")).unwrap();
    let elsewhere = Store::open(machine.dir.path().join("elsewhere")).unwrap();
    let volume = |store: &Store, id: &str| {
        let id = VolumeId::new(id).unwrap();
        store
            .create_volume(&id, VolumeSource::Empty, Some(8 * MIB))
            .unwrap();
        id
    };
    let (a, b, c) = (
        volume(&store, "a"),
        volume(&store, "b"),
        volume(&elsewhere, "c"),
    );
    machine.config.disks = vec![
        disk("disk-a", &store, &a),
        disk("disk-b", &store, &b),
        disk("disk-c", &elsewhere, &c),
    ];
    let running = machine.start();
    let mut control = running.connect();
    control.hello();
    let snapshots = |pairs: &[(&str, &str)]| Request::SnapshotDisks {
        disks: pairs
            .iter()
            .map(|(serial, snapshot)| DiskSnapshot {
                serial: (*serial).into(),
                snapshot: (*snapshot).into(),
            })
            .collect(),
    };
    match control.ask(&snapshots(&[("disk-b", "s2"), ("disk-a", "s1")])) {
        Reply::Snapshots {
            pause_ns,
            snapshots,
        } => {
            assert!(pause_ns > 0);
            let ids: Vec<_> = snapshots.iter().map(|one| one.snapshot.as_str()).collect();
            assert_eq!(ids, ["s2", "s1"]);
            assert!(snapshots.iter().all(|one| one.size_bytes == 8 * MIB));
        }
        other => panic!("{other:?}"),
    }
    refused(control.ask(&snapshots(&[("disk-x", "s3")])), "disk-x");
    refused(control.ask(&snapshots(&[("disk-a", "../s")])), "id");
    refused(control.ask(&snapshots(&[("disk-a", "s1")])), "exists");
    refused(control.ask(&snapshots(&[])), "one store");
    let two_stores = snapshots(&[("disk-a", "s3"), ("disk-c", "s4")]);
    refused(control.ask(&two_stores), "one store");
    assert_eq!(store.snapshots().unwrap().len(), 2);
    assert!(elsewhere.snapshots().unwrap().is_empty());

    let resize = |serial: &str, size_bytes| Request::ResizeDisk {
        serial: serial.into(),
        size_bytes,
    };
    assert_eq!(control.ask(&resize("disk-a", 16 * MIB)), Reply::Done);
    assert_eq!(control.ask(&resize("disk-a", 16 * MIB)), Reply::Done);
    refused(control.ask(&resize("disk-a", 8 * MIB)), "less");
    refused(control.ask(&resize("disk-a", 16 * MIB + 1)), "multiple");
    refused(control.ask(&resize("", 16 * MIB)), "serial");
    assert_eq!(store.volume(&a).unwrap().size_bytes, 16 * MIB);

    control.ask(&Request::Kill);
    assert_eq!(running.end().reason, ExitReason::Killed);
    let opened = store.open_volume(&a, Access::ReadWrite).unwrap();
    assert_eq!(opened.size_bytes(), 16 * MIB);
    let snapshot = store
        .open_snapshot(&SnapshotId::new("s1").unwrap())
        .unwrap();
    assert_eq!(snapshot.size_bytes(), 8 * MIB);
}
