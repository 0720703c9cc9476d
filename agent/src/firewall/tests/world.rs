//! A host in a network namespace of its own, with guests and an outside.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    process::{Command, Stdio},
};

use rustix::ioctl::{Setter, ioctl};

use super::packet::Packet;
use crate::firewall::{
    conntrack,
    engine::{Engine, Request},
    netlink::Socket,
    policy::{Change, Direction, Group, Interface, Match, Network, Peer, Policy, Rule},
};

/// The host's side of every tap.
pub const HOST_MAC: [u8; 6] = [2, 0x68, 0x74, 0x68, 0, 1];
const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// Somebody out there, and the host's address towards it.
pub const OUTSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
pub const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2));

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Outside,
    /// By number; see [`guest`].
    Guest(usize),
}

/// The id of a guest's interface.
pub fn eni(number: usize) -> String {
    format!("eni-{number:017x}")
}

pub fn sg(number: usize) -> String {
    format!("sg-{number:017x}")
}

pub fn tap_name(number: usize) -> String {
    format!("hth{number:012x}")
}

/// Guests are in two networks, the even ones in the first.
pub fn interface(number: usize) -> Interface {
    let network = number % 2;
    let host = u8::try_from(number + 4).expect("few");
    let second = u8::try_from(network).expect("two");
    Interface {
        network: format!("net-{network:017x}"),
        tap: tap_name(number),
        mac: [2, 0, 0, 0, 1, host],
        ipv4: Ipv4Addr::new(10, second, 0, host),
        ipv6: Some(Ipv6Addr::new(
            0xfd00,
            0x10,
            u16::from(second),
            0,
            0,
            0,
            0,
            u16::from(host),
        )),
        groups: [sg(network)].into(),
    }
}

pub fn network(number: usize) -> Network {
    let second = u8::try_from(number).expect("two");
    let v6 = format!("fd00:10:{second:x}::/64");
    Network {
        ipv4: format!("10.{second}.0.0/16").parse().expect("block"),
        ipv6: Some(v6.parse().expect("block")),
        gateway_ipv4: Ipv4Addr::new(10, second, 0, 1),
        gateway_ipv6: Some(Ipv6Addr::new(
            0xfd00,
            0x10,
            u16::from(second),
            0,
            0,
            0,
            0,
            1,
        )),
        nat: true,
    }
}

/// Everything may go out, nothing come in.
pub fn closed(network: usize) -> Group {
    let all = |block: &str| Rule {
        direction: Direction::Egress,
        matches: Match::All,
        peer: Peer::Block(block.parse().expect("block")),
    };
    Group {
        network: format!("net-{network:017x}"),
        rules: [
            (format!("sgr-{network:x}a"), all("0.0.0.0/0")),
            (format!("sgr-{network:x}b"), all("::/0")),
        ]
        .into(),
    }
}

/// Two networks, their closed groups, `guests` guests.
pub fn policy(guests: usize) -> Policy {
    let mut policy = Policy::default();
    for number in 0..2 {
        policy
            .networks
            .insert(format!("net-{number:017x}"), network(number));
        policy.groups.insert(sg(number), closed(number));
    }
    for number in 0..guests {
        policy.interfaces.insert(eni(number), interface(number));
    }
    policy
}

/// Runs `test` in a network namespace of its own.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let test = std::thread::spawn(move || {
        let flags = rustix::thread::UnshareFlags::NEWNET;
        // SAFETY: changes the namespace of this thread only, which nothing else depends on.
        if let Err(error) = unsafe { rustix::thread::unshare_unsafe(flags) } {
            println!("skipped: no network namespace: {error}");
            return;
        }
        test();
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

pub struct World {
    pub engine: Engine,
    taps: BTreeMap<End, File>,
    sockets: Vec<std::os::fd::OwnedFd>,
}

impl World {
    /// With the taps of the policy's guests.
    pub fn new(policy: Policy) -> Self {
        let guests = policy.interfaces.len();
        let mut engine = Engine::default();
        engine.load(policy).expect("loaded");
        let mut world = World {
            engine,
            taps: BTreeMap::new(),
            sockets: Vec::new(),
        };
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        let mut batch = "link set lo up\n".to_owned();
        world.taps.insert(End::Outside, open_tap("out0"));
        for line in [
            "link set out0 address 02:00:00:00:00:ff up",
            "address add 198.51.100.1/24 dev out0",
            "address add 2001:db8:ff::1/64 dev out0 nodad",
            "neighbour add 198.51.100.2 lladdr 02:00:00:00:00:fe dev out0 nud permanent",
            "neighbour add 2001:db8:ff::2 lladdr 02:00:00:00:00:fe dev out0 nud permanent",
            "route add default via 198.51.100.2",
            "-6 route add default via 2001:db8:ff::2",
        ] {
            batch.push_str(line);
            batch.push('\n');
        }
        for number in 0..guests {
            world
                .taps
                .insert(End::Guest(number), open_tap(&tap_name(number)));
            batch.push_str(&set_up_guest(number, &interface(number)));
        }
        ip(&batch);
        world.settle();
        world
    }

    /// One more end of the host that is none of the policy's.
    pub fn add_tap(&mut self, number: usize) {
        self.taps
            .insert(End::Guest(number), open_tap(&tap_name(number)));
        ip(&set_up_guest(number, &interface(number)));
        self.settle();
    }

    /// What the kernel says by itself on new links is over.
    fn settle(&mut self) {
        self.drain();
    }

    pub fn drain(&mut self) {
        let ends: Vec<End> = self.taps.keys().copied().collect();
        for end in ends {
            while self.read(end).is_some() {}
        }
    }

    pub fn apply(&mut self, change: Change) -> u64 {
        let request = Request {
            changes: vec![change],
            cut: true,
        };
        let mut cuts = self.engine.apply(&[request]).expect("applied");
        cuts.pop().expect("one").expect("cut")
    }

    /// All connections end, whatever the policy says.
    pub fn forget_connections(&mut self) {
        conntrack::flush(&mut Socket::open(0).expect("netlink")).expect("flushed");
    }

    /// Sends a frame as it is.
    pub fn send_frame(&mut self, from: End, frame: &[u8]) {
        let mut tap = &self.taps[&from];
        match tap.write(frame) {
            Ok(_) => {}
            // What the kernel takes for no frame at all.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a packet with the addresses of its sender's link.
    pub fn send(&mut self, from: End, packet: &Packet) {
        let mut packet = packet.clone();
        (packet.source_mac, packet.destination_mac) = match from {
            End::Outside => (OUTSIDE_MAC, [2, 0, 0, 0, 0, 0xff]),
            End::Guest(number) => (interface(number).mac, HOST_MAC),
        };
        self.send_frame(from, &packet.frame());
    }

    fn read(&mut self, end: End) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4096];
        let mut tap = &self.taps[&end];
        match tap.read(&mut frame) {
            Ok(len) => Some(frame[..len].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The packets that arrived somewhere, but for what the kernel says by itself: neighbour
    /// discovery, listener reports, errors. The kernel forwards while it takes a frame, so that
    /// all that comes of it is there.
    pub fn arrived(&mut self) -> Vec<(End, Packet)> {
        let ends: Vec<End> = self.taps.keys().copied().collect();
        let mut all = Vec::new();
        for end in ends {
            while let Some(frame) = self.read(end) {
                if let Some(packet) = Packet::parse(&frame)
                    && !is_the_kernels(&packet)
                {
                    all.push((end, packet));
                }
            }
        }
        all
    }

    /// How many frames of any kind are at `end`, but for neighbour discovery.
    pub fn everything_at(&mut self, end: End) -> usize {
        let mut count = 0;
        while let Some(frame) = self.read(end) {
            let packet = Packet::parse(&frame);
            count += usize::from(packet.is_some_and(|it| it.protocol == 1));
        }
        count
    }

    /// Asks by ARP who the gateway is, as (`mac`, `address`); the answer, if there is one.
    pub fn arp(&mut self, from: End, mac: [u8; 6], address: Ipv4Addr) -> Option<Vec<u8>> {
        self.drain();
        let mut frame = [[0xff; 6], mac].concat();
        frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(address.octets());
        frame.extend([0; 6]);
        frame.extend([10, 0, 0, 1]);
        self.send_frame(from, &frame);
        // Answers to 10.0.0.1 itself come at once; those by proxy_arp after a while.
        std::iter::from_fn(|| self.read(from)).find(|it| it[12..14] == [0x08, 0x06] && it[21] == 2)
    }

    /// Begins a TCP connection from the host; where its first packet arrives.
    pub fn connect(&mut self, to: std::net::SocketAddr) -> Option<(End, Packet)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
        self.drain();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let socket = socket_with(AddressFamily::INET, kind, flags, None).expect("socket");
        let _ = connect(&socket, &to);
        self.sockets.push(socket);
        self.arrived().pop()
    }

    /// Sends a packet; says where it arrived and as what.
    pub fn pass(&mut self, from: End, packet: &Packet) -> Option<(End, Packet)> {
        self.drain();
        self.send(from, packet);
        let mut arrived = self.arrived();
        assert!(arrived.len() <= 1, "{packet:?} became {arrived:?}");
        arrived.pop()
    }
}

fn is_the_kernels(packet: &Packet) -> bool {
    match packet.protocol {
        // Errors, neighbour discovery and multicast; of ICMP tests use echoes and odd types.
        58 => matches!(packet.payload[0], 1..=4 | 130..=137 | 143),
        1 => matches!(packet.payload[0], 3 | 5 | 11),
        0 => packet.destination.is_multicast(),
        2 => true,
        _ => false,
    }
}

fn set_up_guest(number: usize, interface: &Interface) -> String {
    let tap = tap_name(number);
    let network = network(number % 2);
    let mac = interface.mac.map(|it| format!("{it:02x}")).join(":");
    let ipv6 = interface.ipv6.expect("given");
    let gateway6 = network.gateway_ipv6.expect("given");
    sysctl(&format!("ipv4/conf/{tap}/proxy_arp"), "1");
    format!(
        "link set {tap} address 02:68:74:68:00:01 addrgenmode none up\n\
         address add {gateway}/32 dev {tap}\n\
         address add fe80::1/64 dev {tap} nodad\n\
         address add {gateway6}/128 dev {tap} nodad\n\
         route add {ipv4}/32 dev {tap} proto 72\n\
         -6 route add {ipv6}/128 dev {tap} proto 72\n\
         neighbour add {ipv4} lladdr {mac} dev {tap} nud permanent\n\
         neighbour add {ipv6} lladdr {mac} dev {tap} nud permanent\n",
        gateway = network.gateway_ipv4,
        ipv4 = interface.ipv4,
    )
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
}

/// Runs lines of `ip`.
pub fn ip(lines: &str) {
    let plain: Vec<&str> = lines.lines().filter(|it| !it.starts_with("-6")).collect();
    let six: Vec<&str> = lines
        .lines()
        .filter_map(|it| it.strip_prefix("-6 "))
        .collect();
    feed("ip", &["-batch", "-"], &plain.join("\n"));
    feed("ip", &["-6", "-batch", "-"], &six.join("\n"));
}

/// Runs a program with this input; returns what it says.
pub fn feed(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(program);
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {error}\n{input}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `nft` with these commands.
pub fn nft(commands: &str) -> String {
    feed("nft", &["-f", "-"], commands)
}

/// `struct ifreq` as far as TUNSETIFF looks at it.
#[repr(C)]
struct TapRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

fn open_tap(name: &str) -> File {
    const TUNSETIFF: u32 = 0x4004_54ca;
    const IFF_TAP: u16 = 2;
    const IFF_NO_PI: u16 = 0x1000;
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a flag");
    let tun = {
        use std::os::unix::fs::OpenOptionsExt;
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open("/dev/net/tun")
            .expect("/dev/net/tun")
    };
    let mut request = TapRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI,
        rest: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the call reads one ifreq, which the request is.
    unsafe { ioctl(tun.as_fd(), Setter::<TUNSETIFF, TapRequest>::new(request)) }.expect("tap");
    tun
}
