//! Whole machines on `/dev/kvm`, with guests of a few instructions: how each boot protocol enters
//! the guest, and how each kind of end is told.

#![allow(clippy::unwrap_used, reason = "a test that can't go on ends")]

mod disks;
mod guests;
mod hotplug;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use hearth_vmm::config::{
    BootConfig, BootProtocol, DiskConfig, PROTOCOL_VERSION, PlatformChoice, VmConfig, run_files,
};
use hearth_vmm::control::{ExitReason, ExitReport, Phase, Reply, Request};

const MIB: u64 = 1 << 20;

/// A machine in a directory of its own.
struct TestMachine {
    dir: tempfile::TempDir,
    config: VmConfig,
}

impl TestMachine {
    fn new(kernel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, kernel).unwrap();
        let config = VmConfig {
            version: PROTOCOL_VERSION,
            instance_id: "i-test".into(),
            vcpus: 1,
            memory_bytes: 32 * MIB,
            boot: BootConfig {
                kernel: path,
                initrd: None,
                kernel_args: String::new(),
                protocol: BootProtocol::Auto,
            },
            disks: Vec::new(),
            disk_limits: Default::default(),
            nets: Vec::new(),
            net_limits: Default::default(),
            system: None,
            run_dir: dir.path().into(),
            platform: PlatformChoice::Auto,
        };
        Self { dir, config }
    }

    fn run(&self) -> ExitReport {
        let (never, _keep) = pipe();
        hearth_vmm::process::run(&self.config, Instant::now(), &never)
    }

    fn start(&self) -> Running {
        let (terminate, terminator) = pipe();
        let config = self.config.clone();
        let thread = std::thread::spawn(move || {
            hearth_vmm::process::run(&config, Instant::now(), &terminate)
        });
        Running {
            thread,
            terminator,
            dir: self.dir.path().into(),
        }
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(run_files::CONSOLE_LOG)).unwrap()
    }
}

struct Running {
    thread: JoinHandle<ExitReport>,
    terminator: OwnedFd,
    dir: std::path::PathBuf,
}

impl Running {
    fn connect(&self) -> Control {
        loop {
            if let Ok(stream) = UnixStream::connect(self.dir.join(run_files::CONTROL_SOCKET)) {
                return Control::new(stream);
            }
            assert!(
                !self.thread.is_finished(),
                "the machine ended before it could be reached"
            );
            std::thread::yield_now();
        }
    }

    fn end(self) -> ExitReport {
        self.thread.join().unwrap()
    }
}

struct Control {
    reader: BufReader<UnixStream>,
    stream: UnixStream,
}

impl Control {
    fn new(stream: UnixStream) -> Self {
        Self {
            reader: BufReader::new(stream.try_clone().unwrap()),
            stream,
        }
    }

    fn raw(&mut self, line: &str) -> Reply {
        self.stream.write_all(line.as_bytes()).unwrap();
        self.reply()
    }

    fn reply(&mut self) -> Reply {
        let mut answer = String::new();
        self.reader.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.raw(&format!("{}\n", serde_json::to_string(request).unwrap()))
    }

    fn hello(&mut self) -> Reply {
        self.ask(&Request::Hello {
            version: PROTOCOL_VERSION,
        })
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe().unwrap()
}

fn no_kvm() -> bool {
    let missing = !Path::new("/dev/kvm").exists();
    if missing {
        println!("skipped: no /dev/kvm");
    }
    missing
}

#[test]
fn a_guest_entered_in_long_mode_says_hello_and_powers_off() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::says_hello_and_powers_off(), false));
    let report = machine.run();
    assert_eq!(report.reason, ExitReason::PowerOff, "{}", report.message);
    assert_eq!(machine.console(), "hi");
    let saved = std::fs::read(machine.dir.path().join(run_files::EXIT_REPORT)).unwrap();
    assert_eq!(
        serde_json::from_slice::<ExitReport>(&saved).unwrap(),
        report
    );
}

#[test]
fn a_guest_entered_through_pvh_finds_its_start_info() {
    if no_kvm() {
        return;
    }
    let code = guests::finds_its_pvh_start_info();
    let mut machine = TestMachine::new(&guests::elf(&code, true));
    machine.config.boot.protocol = BootProtocol::Pvh;
    assert_eq!(machine.run().reason, ExitReason::PowerOff);
    assert_eq!(machine.console(), "p");

    let mut machine = TestMachine::new(&guests::elf(&code, false));
    machine.config.boot.protocol = BootProtocol::Pvh;
    let report = machine.run();
    assert_eq!(report.reason, ExitReason::StartFailed);
    assert!(
        report.message.contains("no PVH entry"),
        "{}",
        report.message
    );
}

#[test]
fn both_ways_to_reset_are_told_from_a_power_off_and_from_a_crash() {
    if no_kvm() {
        return;
    }
    for (code, reason) in [
        (
            guests::resets_through_the_keyboard_controller(),
            ExitReason::Reset,
        ),
        (guests::resets_through_acpi(), ExitReason::Reset),
        (guests::triple_faults(), ExitReason::GuestCrash),
    ] {
        let report = TestMachine::new(&guests::elf(&code, false)).run();
        assert_eq!(report.reason, reason, "{}", report.message);
    }
}

#[test]
fn memory_above_the_hole_below_four_gib_is_there() {
    if no_kvm() {
        return;
    }
    let code = guests::uses_memory_above_four_gib();
    let mut machine = TestMachine::new(&guests::elf(&code, false));
    machine.config.memory_bytes = 3072 * MIB + 32 * MIB;
    assert_eq!(machine.run().reason, ExitReason::PowerOff);
    assert_eq!(machine.console(), "y");
}

#[test]
fn the_control_socket_answers_and_kills() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let running = machine.start();
    let mut subscriber = running.connect();
    subscriber.hello();
    assert_eq!(subscriber.ask(&Request::Subscribe), Reply::Done);
    let mut control = running.connect();
    match control.hello() {
        Reply::Hello {
            instance_id, pid, ..
        } => {
            assert_eq!(instance_id, "i-test");
            assert_eq!(pid, std::process::id());
        }
        other => panic!("{other:?}"),
    }
    match control.ask(&Request::Status) {
        Reply::Status(status) => {
            assert_eq!(status.phase, Phase::Running);
            assert!(status.start_to_guest_ns > 0);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(control.ask(&Request::Kill), Reply::Done);
    let report = running.end();
    assert_eq!(report.reason, ExitReason::Killed);
    match subscriber.reply() {
        Reply::Event(hearth_vmm::control::Event::Exited(told)) => assert_eq!(told, report),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_speaks_another_version_or_nonsense_is_refused() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let running = machine.start();
    for line in [
        "{\"request\":\"hello\",\"version\":99}\n",
        "{\"request\":\"kill\"}\n",
        "nonsense\n",
        "{\"request\":\"hello\"\n",
    ] {
        let reply = running.connect().raw(line);
        assert!(matches!(reply, Reply::Error { .. }), "{line:?}: {reply:?}");
    }
    let mut control = running.connect();
    control.hello();
    control.ask(&Request::Kill);
    assert_eq!(running.end().reason, ExitReason::Killed);
}

#[test]
fn a_termination_signal_ends_a_guest_that_spins() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::spins(), false));
    let running = machine.start();
    drop(running.connect());
    rustix::io::write(&running.terminator, b"x").unwrap();
    assert_eq!(running.end().reason, ExitReason::Killed);
}

#[test]
fn what_is_typed_on_the_console_reaches_the_guest_and_comes_back() {
    if no_kvm() {
        return;
    }
    let machine = TestMachine::new(&guests::elf(&guests::echoes_the_serial_line(), false));
    let running = machine.start();
    let mut control = running.connect();
    control.hello();
    assert_eq!(
        control.ask(&Request::AttachConsole { replay: true }),
        Reply::Done
    );
    // More than the UART's FIFO of 64 bytes at once.
    let typed = [b'a'; 300];
    control.stream.write_all(&typed).unwrap();
    let mut echoed = [0; 300];
    control.reader.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, [b'b'; 300]);
    control.stream.write_all(b"q").unwrap();
    assert_eq!(running.end().reason, ExitReason::PowerOff);
}

#[test]
fn what_can_not_be_started_is_told_and_leaves_an_exit_report() {
    if no_kvm() {
        return;
    }
    let good = guests::elf(&guests::spins(), false);
    type Change = fn(&mut VmConfig);
    let cases: [(&[u8], Change, &str); 6] = [
        (b"#!/bin/sh\n", |_| {}, "not a kernel"),
        (&good[..80], |_| {}, "not a kernel"),
        (&good, |config| config.vcpus = 0, "vcpus"),
        (
            &good,
            |config| config.boot.initrd = Some("/nonexistent".into()),
            "initrd",
        ),
        (
            &good,
            |config| config.boot.kernel_args = "x".repeat(70_000),
            "arguments",
        ),
        (
            &good,
            |config| {
                config.disks = vec![DiskConfig {
                    serial: "vol-none".into(),
                    store: config.run_dir.join("store"),
                    volume: "vol-none".into(),
                    read_only: false,
                    queues: 1,
                    limits: Default::default(),
                }];
            },
            "disk vol-none",
        ),
    ];
    for (kernel, change, words) in cases {
        let mut machine = TestMachine::new(kernel);
        change(&mut machine.config);
        let report = machine.run();
        assert_eq!(report.reason, ExitReason::StartFailed, "{words}");
        assert!(report.message.contains(words), "{}", report.message);
        assert!(machine.dir.path().join(run_files::EXIT_REPORT).exists());
    }
}
