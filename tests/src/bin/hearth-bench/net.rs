//! A probe, and Linux, on a tap: our VMM beside QEMU's virtio-net, which gets no vhost. Both are up
//! at the same time in a network namespace of the bench's own, and take turns.

pub mod linux;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use hearth_tests::{Netns, netns};
use serde_json::Value;

use crate::{
    Bench,
    machine::{Machine, Nic},
    table::{Row, Section, quantile},
};

/// Of each measurement; the median counts.
const ROUNDS: usize = 5;

/// Of one stream.
const STREAM_BYTES: u64 = 128 << 20;

/// Of one direction.
const FRAMES: u64 = 100_000;

/// Data of a small datagram, in bytes.
const SMALL: usize = 64;

const PINGS: u64 = 1000;

/// Ends a peer that waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine and its link: the host has 10.9.N.1, the guest 10.9.N.2.
struct Side<'a> {
    name: &'static str,
    machine: Machine,
    netns: &'a Netns,
    number: u8,
    /// Of the host's end.
    host_mac: String,
    guest_mac: String,
}

/// Measures one figure once.
type Figure = fn(&mut Side<'_>) -> Result<f64>;

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if let Some(missing) = netns::missing() {
        println!("\nnet: skipped: {missing}");
        return Ok(Vec::new());
    }
    let netns = Netns::new()?;
    let kernel = bench.probe_kernel()?;
    let folder = tempfile::tempdir_in(bench.folder())?;
    let mut ours = Side::new("hearth-vmm", &netns, 0, |nic| {
        Machine::hearth_on(&kernel, folder.path(), nic)
    })?;
    let mut qemu = Side::new("QEMU", &netns, 1, |nic| Machine::qemu_on(&kernel, nic))?;
    let figures: [(&str, Figure); 5] = [
        ("TCP guest to host, MiB/s", |side| side.stream("send")),
        ("TCP host to guest, MiB/s", |side| side.stream("receive")),
        ("64 bytes of UDP, guest to host, 1000/s", |side| {
            side.send_small()
        }),
        ("64 bytes of UDP, host to guest, 1000/s", |side| {
            side.receive_small()
        }),
        ("ping from the guest, median, microseconds", |side| {
            side.ping()
        }),
    ];
    let mut rows = Vec::new();
    for (name, figure) in figures {
        let (mut our_figures, mut their_figures) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            our_figures.push(figure(&mut ours).context("hearth-vmm").context(name)?);
            their_figures.push(figure(&mut qemu).context("QEMU").context(name)?);
        }
        let median = |figures: &[f64]| quantile(figures, 0.5);
        rows.push(Row::beside(
            name,
            median(&our_figures),
            median(&their_figures),
        ));
    }
    drop((ours, qemu));
    let title = format!("Network of a probe, medians of {ROUNDS}");
    Ok(vec![Section::new(title, rows)])
}

fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

/// The host's end of a link.
fn make_tap(netns: &Netns, number: u8) -> Result<()> {
    netns.tap(&format!("tap{number}"), &format!("10.9.{number}.1/24"))?;
    // A guest that only counts answers no ARP.
    let guest_mac = mac(number);
    let neighbour = format!("10.9.{number}.2 lladdr {guest_mac} dev tap{number}");
    netns.ip(&format!("neigh replace {neighbour} nud permanent"))?;
    Ok(())
}

impl<'a> Side<'a> {
    fn new(
        name: &'static str,
        netns: &'a Netns,
        number: u8,
        start: impl FnOnce(Nic<'_>) -> Result<Machine>,
    ) -> Result<Self> {
        let tap = format!("tap{number}");
        let guest_mac = mac(number);
        make_tap(netns, number)?;
        let link = netns.ip(&format!("link show {tap}"))?;
        let mut words = link.split_whitespace();
        words.find(|word| *word == "link/ether");
        let host_mac = words.next().context("a tap without an address")?;
        let nic = Nic {
            netns,
            tap: &tap,
            mac: &guest_mac,
        };
        let machine = start(nic).context(name)?;
        let mut side = Self {
            name,
            machine,
            netns,
            number,
            host_mac: host_mac.to_owned(),
            guest_mac,
        };
        let address = format!("ip=10.9.{number}.2 gateway=10.9.{number}.1");
        side.ask(&format!(
            "ping address=10.9.{number}.1 timeout=10 {address}"
        ))?;
        Ok(side)
    }

    fn ask(&mut self, command: &str) -> Result<Value> {
        self.machine.ask(command).context(self.name)
    }

    fn host(&self, port: u16) -> String {
        format!("10.9.{}.1:{port}", self.number)
    }

    /// One stream, in MiB/s as the guest sees it.
    fn stream(&mut self, direction: &str) -> Result<f64> {
        let to = self.host(9);
        let listener = self.netns.enter(|| Ok(TcpListener::bind(&to)?))?;
        let sends = direction == "send";
        let peer = thread::spawn(move || -> Result<()> {
            let (stream, _) = listener.accept()?;
            match sends {
                true => drain(stream).map(drop),
                false => pour(stream, STREAM_BYTES),
            }
        });
        let command =
            format!("tcp_throughput to={to} direction={direction} bytes={STREAM_BYTES} timeout=60");
        let answer = self.ask(&command)?;
        peer.join().map_err(|_| anyhow!("the peer panicked"))??;
        let per_second = answer["bytes_per_s"].as_f64().context("bytes_per_s")?;
        Ok(per_second / f64::from(1 << 20))
    }

    /// Frames that reach the host, in thousands per second.
    fn send_small(&mut self) -> Result<f64> {
        // Somebody must be there, or the host answers each with an error.
        let to = self.host(9);
        let _sink = self.netns.enter(|| Ok(UdpSocket::bind(&to)?))?;
        let before = self.frames_of_tap()?;
        let frame = self.datagram()?;
        let answer = self.ask(&format!("raw_frame hex={frame} count={FRAMES}"))?;
        let passed = self.frames_of_tap()? - before;
        // A few hundred may be on their way still.
        ensure!(passed + 1000 > FRAMES, "{passed} of {FRAMES} frames passed");
        rate(passed, &answer)
    }

    /// Frames that reach the guest, of more than it can take, in thousands per second.
    fn receive_small(&mut self) -> Result<f64> {
        let (from, to) = (self.host(0), format!("10.9.{}.2:9", self.number));
        let socket = self.netns.enter(|| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // A full queue is no matter.
                    let _ = socket.send(&[7; SMALL]);
                }
            });
            let answer = self.ask(&format!("count_frames count={FRAMES} timeout=60"));
            done.store(true, Ordering::Relaxed);
            rate(FRAMES, &answer?)
        })
    }

    fn ping(&mut self) -> Result<f64> {
        let to = format!("10.9.{}.1", self.number);
        let answer = self.ask(&format!("ping address={to} count={PINGS} timeout=5"))?;
        ensure!(answer["received"] == PINGS, "{answer}");
        let ns = answer["round_trip_ns"]["p50"].as_f64().context("p50")?;
        Ok(ns / 1000.0)
    }

    /// Frames that the guest has sent, as the host's kernel counts them.
    fn frames_of_tap(&self) -> Result<u64> {
        let name = format!("tap{}:", self.number);
        let table = self
            .netns
            .enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let line = table
            .lines()
            .find_map(|line| line.trim().strip_prefix(&name));
        let figure = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(figure.context("a tap without figures")?.parse()?)
    }

    /// A datagram from the guest to port 9 of the host, in hexadecimal digits.
    fn datagram(&self) -> Result<String> {
        let hex = |mac: &str| mac.replace(':', "");
        let total = (28 + SMALL) as u16;
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        ip.extend([10, 9, self.number, 2, 10, 9, self.number, 1]);
        let sum: u32 = ip
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
            .sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        // From port 1000; without a checksum.
        ip.extend([0x03, 0xe8, 0, 9]);
        ip.extend((8 + SMALL as u16).to_be_bytes());
        ip.extend([0, 0]);
        ip.extend([7; SMALL]);
        let packet: String = ip.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!(
            "{}{}0800{packet}",
            hex(&self.host_mac),
            hex(&self.guest_mac)
        ))
    }
}

/// In thousands per second.
fn rate(count: u64, answer: &Value) -> Result<f64> {
    let ns = answer["ns"].as_f64().context("no time")?;
    Ok(count as f64 * 1e6 / ns)
}

/// Reads to the end; gives how many bytes there were.
fn drain(mut stream: TcpStream) -> Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

/// Writes so many bytes, a number of MiB.
fn pour(mut stream: TcpStream, bytes: u64) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let buffer = vec![7; 1 << 20];
    for _ in 0..bytes >> 20 {
        stream.write_all(&buffer)?;
    }
    Ok(())
}
