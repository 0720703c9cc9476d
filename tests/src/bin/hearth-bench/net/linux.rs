//! Linux: the base guest, its TCP with checksum and segmentation offloads. What is measured is
//! seen from the host. Where KVM is emulated the guest's kernel is what takes the time, and nobody
//! knows how long a number of bytes will take: streams end by the clock.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_images::{ImportOptions, ImportSource, Store, VolumeId};
use hearth_tests::{Netns, netns, programs};
use hearth_vmm::{
    config::PlatformChoice,
    software_kvm::{self, Platform},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{mac, make_tap};
use crate::{
    Bench,
    machine::{Boot, Machine, Nic},
    table::{Row, Section, quantile},
};

const ROUNDS: usize = 3;

/// Of one stream.
const STREAM: Duration = Duration::from_secs(4);

/// What is not counted at the start of a stream: TCP finds its pace, the guest its program's pages.
const WARM_UP: Duration = Duration::from_secs(1);

/// A Linux that has not booted by then never will. Where KVM is emulated it takes 10 seconds, and
/// minutes beside compilers.
const BOOT: Duration = Duration::from_secs(300);

/// Ends all other waits. To start a program takes an emulated kernel a second, and half a minute
/// beside compilers.
const PATIENCE: Duration = Duration::from_secs(180);

const MEMORY_MIB: u64 = 128;

/// The name of a row, and whether the guest sends.
const DIRECTIONS: [(&str, bool); 2] = [
    ("TCP guest to host, MiB/s", true),
    ("TCP host to guest, MiB/s", false),
];

/// One of the two: a machine, and the number of its link. What failed once is told and left out.
struct Side<'a> {
    name: &'static str,
    running: Option<Machine>,
    netns: &'a Netns,
    number: u8,
}

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if let Some(missing) = netns::missing() {
        println!("\nnet-linux: skipped: {missing}");
        return Ok(Vec::new());
    }
    let netns = &Netns::new()?;
    let guest = programs::guest_folder()?;
    let folder = tempfile::tempdir_in(bench.folder())?;
    let (store, copy) = make_disks(&guest, folder.path())?;
    let kernel = guest.join("vmlinux");
    // The guest's own programs leave the card alone.
    let arguments = "console=ttyS0 root=/dev/vda rw rootfstype=ext4 quiet hearth.net=off";
    let boot = Boot {
        kernel: &kernel,
        arguments,
        memory_mib: MEMORY_MIB,
    };
    // Our VMM adds them itself.
    let with_more = match software_kvm::detect(PlatformChoice::Auto) {
        Platform::Software => format!("{arguments} {}", software_kvm::kernel_args()),
        Platform::Hardware => arguments.to_owned(),
    };
    let qemu_boot = Boot {
        arguments: &with_more,
        ..boot
    };
    let mut ours = Side::new("hearth-vmm", netns, 2, |nic| {
        Machine::hearth_with(&boot, folder.path(), Some((&store, "vol")), Some(nic))
    });
    let mut qemu = Side::new("QEMU", netns, 3, |nic| {
        Machine::qemu_with(&qemu_boot, Some(&copy), None, Some(nic))
    });
    let mut rows = Vec::new();
    for (name, sends) in DIRECTIONS {
        let (mut our_figures, mut their_figures) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            our_figures.extend(ours.stream(name, sends));
            their_figures.extend(qemu.stream(name, sends));
        }
        rows.push(Row::of_both(
            name,
            median(&our_figures),
            median(&their_figures),
        ));
    }
    let title = format!("Network of Linux, medians of {ROUNDS}");
    Ok(vec![Section::new(title, rows)])
}

/// Of all rounds; none if one of them failed.
fn median(figures: &[f64]) -> Option<f64> {
    (figures.len() == ROUNDS).then(|| quantile(figures, 0.5))
}

/// A store whose volume `vol` is the guest's root, and a copy of the same for QEMU.
fn make_disks(guest: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (root, copy) = (folder.join("store"), folder.join("root.qcow2"));
    fs::copy(guest.join("root.qcow2"), &copy)?;
    let store = Store::open(&root)?;
    let id = VolumeId::new("vol")?;
    store.import_volume(&id, ImportSource::File(&copy), ImportOptions::default())?;
    Ok((root, copy))
}

impl<'a> Side<'a> {
    fn new(
        name: &'static str,
        netns: &'a Netns,
        number: u8,
        start: impl FnOnce(Nic<'_>) -> Result<Machine>,
    ) -> Self {
        let mut side = Self {
            name,
            running: None,
            netns,
            number,
        };
        match side.boot(start) {
            Ok(machine) => side.running = Some(machine),
            Err(error) => side.give_up("boot", &error),
        }
        side
    }

    /// Starts the machine, and gives its guest an address.
    fn boot(&self, start: impl FnOnce(Nic<'_>) -> Result<Machine>) -> Result<Machine> {
        let (tap, number) = (format!("tap{}", self.number), self.number);
        make_tap(self.netns, number)?;
        let nic = Nic {
            netns: self.netns,
            tap: &tap,
            mac: &mac(number),
        };
        let mut machine = start(nic)?;
        let console = machine.console();
        console.wait_for("hearth-guest: ready", BOOT)?;
        console.type_line(&format!(
            "ip link set eth0 up; ip addr add 10.9.{number}.2/24 dev eth0; ping -c 1 10.9.{number}.1"
        ))?;
        console.wait_for(" 0% packet loss", PATIENCE)?;
        Ok(machine)
    }

    /// One stream, in MiB/s; nothing if this side has failed.
    fn stream(&mut self, name: &str, sends: bool) -> Option<f64> {
        let machine = self.running.as_mut()?;
        match stream(machine, self.netns, self.number, sends) {
            Ok(figure) => Some(figure),
            Err(error) => {
                self.give_up(name, &error);
                None
            }
        }
    }

    fn give_up(&mut self, at: &str, error: &anyhow::Error) {
        eprintln!("net-linux: no figures of {}: {at}: {error:#}", self.name);
        self.running = None;
    }
}

/// One stream, in MiB/s as the host sees it. The guest's program has the socket itself as its
/// standard input or output, and moves a MiB with each call.
fn stream(machine: &mut Machine, netns: &Netns, number: u8, sends: bool) -> Result<f64> {
    let host = format!("10.9.{number}.1");
    let listener = netns.enter(|| Ok(TcpListener::bind((host.as_str(), 9))?))?;
    let program = match sends {
        true => "dd if=/dev/zero bs=1M",
        false => "dd of=/dev/null bs=1M",
    };
    // What is typed is said again by the terminal, but not with this number.
    let console = machine.console();
    console.type_line(&format!("nc {host} 9 -e {program}; echo stream $((6*7))"))?;
    let stream = match accept(&listener) {
        Ok(stream) => stream,
        // What the guest has said may tell why.
        Err(error) => match console.wait_for("stream 42", Duration::from_secs(1)) {
            Ok(()) => bail!("{error}: the guest's program has ended without a connection"),
            Err(said) => bail!("{error}: {said:#}"),
        },
    };
    let figure = match sends {
        true => receive(stream),
        false => send(stream),
    }?;
    console
        .wait_for("stream 42", PATIENCE)
        .context("the end of the guest's program")?;
    Ok(figure)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let mut listening = [PollFd::new(listener, PollFlags::IN)];
    let ready = poll(&mut listening, Some(&Timespec::try_from(PATIENCE)?))?;
    ensure!(ready > 0, "no connection of the guest for {PATIENCE:?}");
    Ok(listener.accept()?.0)
}

/// Reads as fast as the guest sends.
fn receive(mut stream: TcpStream) -> Result<f64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    let (mut counted_from, mut bytes) = (None, 0);
    loop {
        let count = stream.read(&mut buffer).context("reading")?;
        ensure!(count > 0, "the guest ended the stream after {bytes} bytes");
        let now = Instant::now();
        match counted_from {
            None if now - start >= WARM_UP => counted_from = Some(now),
            None => {}
            Some(from) => {
                bytes += count;
                if now - from >= STREAM {
                    // The rest is refused, which ends the guest's program.
                    return Ok(mib_per_second(bytes, now - from));
                }
            }
        }
    }
}

/// Writes as fast as the guest takes it, until that has read all.
fn send(mut stream: TcpStream) -> Result<f64> {
    stream.set_nonblocking(true)?;
    let buffer = vec![7; 1 << 20];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < WARM_UP + STREAM {
        match stream.write(&buffer) {
            Ok(count) => bytes += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(&stream, PollFlags::OUT)];
                poll(&mut writable, Some(&Timespec::try_from(WARM_UP)?))?;
            }
            Err(error) => bail!("writing: {error}"),
        }
    }
    stream.set_nonblocking(false)?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The guest closes when it has read all.
    let count = stream.read(&mut [0]).context("waiting for the end")?;
    ensure!(count == 0, "the guest answered");
    Ok(mib_per_second(bytes, start.elapsed()))
}

fn mib_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}
