//! Disks that come and go while a guest runs, by the control socket. The guests have no driver, or
//! one of a few instructions that never lets go.

use hearth_images::{Access, Store, VolumeId, VolumeSource};
use hearth_vmm::config::DiskConfig;
use hearth_vmm::control::{DiskPhase, DiskStatus, ExitReason, Reply, Request};

use super::{Control, TestMachine, guests, no_kvm};

/// A store beside the machine with so many volumes, `vol-0`, `vol-1`, ...
fn with_volumes(machine: &TestMachine, count: usize) -> Store {
    let store = Store::open(machine.dir.path().join("store")).unwrap();
    for index in 0..count {
        let id = VolumeId::new(format!("vol-{index}")).unwrap();
        let created = store.create_volume(&id, VolumeSource::Empty, Some(1 << 20));
        created.unwrap();
    }
    store
}

fn disk(machine: &TestMachine, index: usize) -> DiskConfig {
    DiskConfig {
        serial: format!("vol{index}"),
        store: machine.dir.path().join("store"),
        volume: format!("vol-{index}"),
        read_only: false,
        queues: 1,
        limits: Default::default(),
    }
}

fn attach(control: &mut Control, disk: DiskConfig) -> Reply {
    control.ask(&Request::AttachDisk { disk })
}

fn detach(control: &mut Control, serial: &str, force: bool) -> Reply {
    control.ask(&Request::DetachDisk {
        serial: serial.into(),
        force,
        patience_ms: 10,
    })
}

fn list(control: &mut Control) -> Vec<DiskStatus> {
    match control.ask(&Request::ListDisks) {
        Reply::Disks { disks } => disks,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(reply: Reply, words: &str) {
    match reply {
        Reply::Error { message } if message.contains(words) => {}
        other => panic!("not refused with {words:?}: {other:?}"),
    }
}

fn is_free(store: &Store, index: usize) -> bool {
    let id = VolumeId::new(format!("vol-{index}")).unwrap();
    store.open_volume(&id, Access::ReadWrite).is_ok()
}

#[test]
fn a_disk_comes_and_goes_and_its_volume_is_open_just_as_long() {
    if no_kvm() {
        return;
    }
    let mut machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let store = with_volumes(&machine, 2);
    machine.config.disks = vec![disk(&machine, 0)];
    let running = machine.start();
    let mut control = running.connect();
    control.hello();
    for _ in 0..3 {
        assert_eq!(attach(&mut control, disk(&machine, 1)), Reply::Done);
        let disks = list(&mut control);
        let serials: Vec<_> = disks.iter().map(|disk| disk.serial.as_str()).collect();
        assert_eq!(serials, ["vol0", "vol1"]);
        assert!(
            disks
                .iter()
                .all(|d| d.phase == DiskPhase::Attached && !d.driver)
        );
        assert!(!is_free(&store, 1));
        assert_eq!(detach(&mut control, "vol1", false), Reply::Done);
        assert_eq!(list(&mut control).len(), 1);
        assert!(is_free(&store, 1));
    }
    // One that was there from the start goes, too.
    assert_eq!(detach(&mut control, "vol0", false), Reply::Done);
    assert!(is_free(&store, 0) && list(&mut control).is_empty());
    control.ask(&Request::Kill);
    assert_eq!(running.end().reason, ExitReason::Killed);
}

#[test]
fn what_can_not_come_or_go_is_refused_and_takes_no_place() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let store = with_volumes(&machine, 16);
    let running = machine.start();
    let mut control = running.connect();
    control.hello();
    refused(detach(&mut control, "vol0", false), "no disk");
    refused(detach(&mut control, "vol0", true), "no disk");
    for _ in 0..20 {
        let mut missing = disk(&machine, 0);
        missing.volume = "vol-none".into();
        refused(attach(&mut control, missing), "vol-none");
        let mut malformed = disk(&machine, 0);
        malformed.serial = "with a space".into();
        refused(attach(&mut control, malformed), "serial");
    }
    assert_eq!(attach(&mut control, disk(&machine, 0)), Reply::Done);
    refused(attach(&mut control, disk(&machine, 0)), "already");
    let mut twice = disk(&machine, 0);
    twice.serial = "other".into();
    refused(attach(&mut control, twice), "other");
    for index in 1..15 {
        assert_eq!(attach(&mut control, disk(&machine, index)), Reply::Done);
    }
    refused(attach(&mut control, disk(&machine, 15)), "taken");
    assert!(is_free(&store, 15));
    assert_eq!(detach(&mut control, "vol7", true), Reply::Done);
    assert!(is_free(&store, 7));
    assert_eq!(list(&mut control).len(), 14);
    control.ask(&Request::Kill);
    assert_eq!(running.end().reason, ExitReason::Killed);
    assert!((0..16).all(|index| is_free(&store, index)));
}

#[test]
fn a_driver_that_does_not_let_go_keeps_the_disk_until_it_is_taken_by_force() {
    if no_kvm() {
        return;
    }
    let mut machine = TestMachine::new(&guests::elf(&guests::acknowledges_its_disk(), false));
    let store = with_volumes(&machine, 1);
    machine.config.disks = vec![disk(&machine, 0)];
    let running = machine.start();
    let mut control = running.connect();
    control.hello();
    while !list(&mut control)[0].driver {
        std::thread::yield_now();
    }
    for _ in 0..2 {
        refused(detach(&mut control, "vol0", false), "let go");
        assert_eq!(list(&mut control)[0].phase, DiskPhase::Attached);
        assert!(!is_free(&store, 0));
    }
    assert_eq!(detach(&mut control, "vol0", true), Reply::Done);
    assert!(is_free(&store, 0) && list(&mut control).is_empty());
    // The volume may come back, at another place.
    assert_eq!(attach(&mut control, disk(&machine, 0)), Reply::Done);
    assert!(!list(&mut control)[0].driver);
    control.ask(&Request::Kill);
    assert_eq!(running.end().reason, ExitReason::Killed);
}
