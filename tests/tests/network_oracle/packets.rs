//! Random packets.

use std::net::IpAddr;

use hearth_tests::net::{
    Body, Cut, End, HOST4, HOST6, OUTSIDE4, OUTSIDE6, Packet, Random,
    packet::{protocol, tcp},
};

use crate::model::{self, Model};

/// Ports that rules and packets are about.
pub const PORTS: [u16; 7] = [22, 80, 443, 5000, 5001, 5002, 65535];

/// Numbers that are not used twice.
#[derive(Debug, Default)]
pub struct Unique {
    tag: u32,
    port: u16,
}

impl Unique {
    pub fn tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// A source port or an ICMP id.
    pub fn port(&mut self) -> u16 {
        self.port = self.port % 40_000 + 1;
        20_000 + self.port
    }
}

/// Somebody out there. Protocols without ports can't share one translated address, so that each
/// guest has somebody of its own for them.
fn outside(random: &mut Random, ipv6: bool, own: Option<usize>) -> IpAddr {
    let host = u8::try_from(own.unwrap_or(0)).unwrap_or(0);
    match (ipv6, own) {
        (false, Some(_)) => IpAddr::from([203, 0, 113, 100 + host]),
        (false, None) => *random.pick(&[
            OUTSIDE4,
            IpAddr::from([192, 0, 2, 77]),
            IpAddr::from([203, 0, 113, 7]),
            IpAddr::from([203, 0, 113, 200]),
            IpAddr::from([10, 99, 0, 5]),
        ]),
        (true, _) => *random.pick(&[
            OUTSIDE6,
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, 7]),
            IpAddr::from([0xfdee, 0, 0, 0, 0, 0, 0, 5]),
        ]),
    }
}

/// Who sends to whom.
fn ends(random: &mut Random, model: &Model, ipv6: bool) -> Option<(End, IpAddr, IpAddr)> {
    let count = model.guests.len();
    let one = random.below(count);
    let address = |guest: usize| {
        let mut all = model.guests[guest].addresses.iter();
        all.find(|it| it.is_ipv6() == ipv6).copied()
    };
    let own = address(one)?;
    let host = if ipv6 { HOST6 } else { HOST4 };
    let network = &model.networks[model.guests[one].network];
    let mut gateways = network.gateways.iter();
    let gateway = *gateways.find(|it| it.is_ipv6() == ipv6)?;
    Some(match random.below(100) {
        0..4 => {
            // As its other interface.
            let own = address(model.guests[one].sibling?)?;
            (End::Guest(one), own, address(random.below(count))?)
        }
        4..43 => {
            let mut other = random.below(count);
            if other == one {
                other = (one + 1) % count;
            }
            (End::Guest(one), own, address(other)?)
        }
        43..62 => (End::Guest(one), own, outside(random, ipv6, None)),
        62..82 => (End::Outside, outside(random, ipv6, None), own),
        82..90 => {
            let from = if random.percent(50) { host } else { gateway };
            (End::Host, from, own)
        }
        90..95 => {
            let to = if random.percent(60) { host } else { gateway };
            (End::Guest(one), own, to)
        }
        95..97 => {
            // As if from another guest.
            let other = address((one + 1) % count)?;
            (End::Outside, other, own)
        }
        _ => {
            let nobody = if ipv6 {
                let IpAddr::V6(it) = own else { return None };
                let mut segments = it.segments();
                segments[7] = 0x99;
                IpAddr::from(segments)
            } else {
                let IpAddr::V4(it) = own else { return None };
                let [a, b, c, _] = it.octets();
                IpAddr::from([a, b, c, 0x99])
            };
            (End::Guest(one), own, nobody)
        }
    })
}

/// A packet of a connection that nobody has opened yet, if it can open one at all.
pub fn packet(random: &mut Random, model: &Model, unique: &mut Unique) -> (End, Packet) {
    loop {
        let ipv6 = random.percent(35);
        let Some((from, mut source, mut destination)) = ends(random, model, ipv6) else {
            continue;
        };
        let (port, to_port) = (unique.port(), *random.pick(&PORTS));
        let tcp_with = |flags| Body::Tcp {
            source: port,
            destination: to_port,
            flags,
        };
        let udp = Body::Udp {
            source: port,
            destination: to_port,
        };
        let icmp = |kind, code| Body::Icmp {
            kind,
            code,
            id: port,
        };
        let echo = icmp(if ipv6 { 128 } else { 8 }, 0);
        let mut cut = Cut::Whole;
        let mut body = match random.below(100) {
            0..28 => tcp_with(tcp::SYN),
            28..34 => tcp_with(tcp::ACK),
            34..39 => tcp_with(*random.pick(&[
                tcp::SYN | tcp::ACK,
                tcp::FIN,
                tcp::RST,
                tcp::FIN | tcp::ACK,
                tcp::FIN | tcp::URGENT | tcp::PUSH,
                tcp::SYN | tcp::FIN,
                tcp::SYN | tcp::RST,
                0,
            ])),
            39..56 => udp,
            56..68 => echo,
            68..74 if ipv6 => icmp(*random.pick(&[1, 4, 129, 139, 140, 200]), 0),
            68..74 => icmp(*random.pick(&[0, 3, 5, 11, 13, 13, 14, 17, 42]), 0),
            74..77 => icmp(if ipv6 { 128 } else { 8 }, 3),
            77..82 => Body::Other(protocol::GRE),
            82..88 => Body::Other(protocol::PRIVATE),
            _ => {
                let size = *random.pick(&[24, 32, 48]);
                cut = match random.below(4) {
                    0 | 1 => Cut::Fragments(size),
                    2 => Cut::Backwards(size),
                    _ => Cut::WithoutFirst(size),
                };
                if random.percent(60) { udp } else { echo }
            }
        };
        let is_other = matches!(body, Body::Other(_));
        // By the public side of a guest, whoever asks. Of a protocol without ports the answers are
        // not to be told from packets that go there directly.
        if !ipv6 && !is_other && random.percent(22) {
            let way = outward(random, model, &mut body);
            let Some(public) = way else { continue };
            destination = public;
            if from == End::Host {
                source = HOST4;
            }
        }
        let to = model.holder(destination);
        // What the host itself serves is not the groups' business.
        if to == Some(End::Host) && matches!(body, Body::Icmp { .. }) {
            continue;
        }
        if is_other && (from == End::Outside || to == Some(End::Outside)) {
            match from {
                End::Guest(number) => destination = outside(random, ipv6, Some(number)),
                // The same pair the other way round would be one translated address's.
                _ => continue,
            }
        }
        let mut packet = Packet::new(source, destination, body, unique.tag());
        packet.cut = cut;
        if cut != Cut::Whole {
            // The mark at the end is in one piece for each of the sizes above.
            packet.filler = 88;
        }
        let guest = matches!(from, End::Guest(_));
        if guest && random.percent(12) {
            decorate(random, &mut packet);
        }
        if from == End::Host && packet.cut != Cut::Whole {
            continue;
        }
        // What can't open anything is not translated, and so is for the host itself.
        let translated = model.translated(&packet).is_some();
        if translated && !guest && !model::can_open(&packet) {
            continue;
        }
        return (from, packet);
    }
}

/// A public address or a forwarded port of somebody's; the port becomes the forward's.
fn outward(random: &mut Random, model: &Model, body: &mut Body) -> Option<IpAddr> {
    let number = match body {
        Body::Tcp { .. } => protocol::TCP,
        Body::Udp { .. } => protocol::UDP,
        _ => protocol::ICMP,
    };
    let forwards = model.in_order(model.forwards.keys());
    let of = |id: &&String| model.forwards[*id].protocol == number;
    let forwards: Vec<_> = forwards.iter().filter(of).collect();
    if !forwards.is_empty() && random.percent(50) {
        let forward = &model.forwards[*random.pick(&forwards)];
        if let Body::Tcp { destination, .. } | Body::Udp { destination, .. } = body {
            *destination = forward.host_port;
        }
        return Some(HOST4);
    }
    let taken = model.public.iter().filter(|it| it.1.is_some());
    let taken: Vec<_> = taken.map(|it| *it.0).collect();
    (!taken.is_empty()).then(|| *random.pick(&taken))
}

/// Adds options of IPv4 or extension headers of IPv6.
fn decorate(random: &mut Random, packet: &mut Packet) {
    let padding = |length: u8| {
        let mut content = vec![0, 0, 1, length];
        content.resize(4 + usize::from(length), 0);
        content
    };
    if packet.source.is_ipv4() {
        let options: [&[u8]; 6] = [
            // No operation; router alert; a timestamp (RFC 791); route options.
            &[1, 1, 1, 1],
            &[148, 4, 0, 0],
            &[68, 8, 5, 0, 0, 0, 0, 0],
            &[7, 7, 4, 0, 0, 0, 0, 0],
            &[131, 7, 4, 198, 51, 100, 2, 0],
            &[137, 7, 4, 198, 51, 100, 2, 0],
        ];
        packet.options = (*random.pick(&options)).to_vec();
    } else {
        packet.extensions = match random.below(3) {
            0 => vec![(0, padding(4))],
            1 => vec![(60, padding(12))],
            _ => vec![(0, padding(4)), (60, padding(4))],
        };
    }
}
