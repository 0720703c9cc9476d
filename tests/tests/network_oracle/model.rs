//! What should become of packets: EC2's semantics in a few lines that know nothing of the agent.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hearth_proto::v1::{
    Direction, SecurityGroupPermission, SecurityGroupRule, security_group_permission::Peer as Named,
};
use hearth_tests::net::{
    Body, Cut, End, HOST4, HOST6, Packet,
    packet::{protocol, tcp},
};
use ipnet::IpNet;

/// Everything that decides.
#[derive(Debug, Default)]
pub struct Model {
    pub networks: Vec<Network>,
    pub guests: Vec<Guest>,
    /// By id.
    pub groups: BTreeMap<String, Group>,
    /// By id.
    pub lists: BTreeMap<String, BTreeSet<IpNet>>,
    /// Public addresses and whose they are, if anybody's.
    pub public: BTreeMap<IpAddr, Option<usize>>,
    /// By id.
    pub forwards: BTreeMap<String, Forward>,
    /// Ids in the order in which they were first seen: ids are random, and what is picked by a seed
    /// must not be.
    pub seen: Vec<String>,
}

#[derive(Debug)]
pub struct Network {
    pub ranges: Vec<IpNet>,
    pub gateways: Vec<IpAddr>,
}

/// A port of the host's that is a guest's.
#[derive(Clone, Debug)]
pub struct Forward {
    pub protocol: u8,
    pub host_port: u16,
    pub guest: usize,
    pub port: u16,
}

/// An interface. An instance may have two: each is a guest of its own, with another number.
#[derive(Debug)]
pub struct Guest {
    pub instance: String,
    pub interface: String,
    /// Another interface of the instance.
    pub sibling: Option<usize>,
    pub network: usize,
    pub addresses: Vec<IpAddr>,
    pub groups: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Group {
    pub network: usize,
    /// By id.
    pub rules: BTreeMap<String, Rule>,
    pub is_default: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub ingress: bool,
    pub what: What,
    pub peer: Peer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Everything,
    Protocol(u8),
    Ports(u8, u16, u16),
    Icmp(u8, u8, Option<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Block(IpNet),
    Group(String),
    List(String),
}

impl Rule {
    /// As the API says it.
    pub fn of(rule: &SecurityGroupRule) -> Option<(String, Self)> {
        let permission = rule.permission.as_ref()?;
        let ingress = rule.direction() == Direction::Ingress;
        Some((rule.rule_id.clone(), Self::new(ingress, permission)?))
    }

    pub fn new(ingress: bool, permission: &SecurityGroupPermission) -> Option<Self> {
        let number = match permission.protocol.as_str() {
            "" | "-1" => None,
            "tcp" => Some(protocol::TCP),
            "udp" => Some(protocol::UDP),
            "icmp" => Some(protocol::ICMP),
            "icmpv6" => Some(protocol::ICMPV6),
            digits => Some(digits.parse().ok()?),
        };
        let value = |it: Option<i32>| it.filter(|it| *it >= 0);
        let (from, to) = (value(permission.from_port), value(permission.to_port));
        let what = match (number, from, to) {
            (None, ..) => What::Everything,
            (Some(it @ (protocol::TCP | protocol::UDP)), Some(first), Some(last)) => {
                What::Ports(it, u16::try_from(first).ok()?, u16::try_from(last).ok()?)
            }
            (Some(it @ (protocol::ICMP | protocol::ICMPV6)), Some(kind), code) => {
                let code = code.map(u8::try_from).transpose().ok()?;
                What::Icmp(it, u8::try_from(kind).ok()?, code)
            }
            (Some(it), ..) => What::Protocol(it),
        };
        let peer = match permission.peer.as_ref()? {
            Named::CidrIpv4(block) | Named::CidrIpv6(block) => Peer::Block(block.parse().ok()?),
            Named::SecurityGroupId(id) => Peer::Group(id.clone()),
            Named::PrefixListId(id) => Peer::List(id.clone()),
        };
        Some(Self {
            ingress,
            what,
            peer,
        })
    }
}

impl Model {
    /// Ids in an order that is the same each time.
    pub fn in_order<'a>(&self, ids: impl Iterator<Item = &'a String>) -> Vec<String> {
        let mut ids: Vec<String> = ids.cloned().collect();
        ids.sort_by_key(|id| self.seen.iter().position(|it| it == id));
        ids
    }

    /// Where a packet arrives that is no part of a known connection; `None`: nowhere.
    pub fn opens(&self, from: End, packet: &Packet) -> Option<End> {
        if !can_open(packet) || self.is_forged(from, packet) {
            return None;
        }
        let (to, port) = match self.translated(packet) {
            Some((guest, port)) => (End::Guest(guest), port),
            None => (self.holder(packet.destination)?, None),
        };
        let mut seen = packet.clone();
        if let (Body::Tcp { destination, .. } | Body::Udp { destination, .. }, Some(port)) =
            (&mut seen.body, port)
        {
            *destination = port;
        }
        if let End::Guest(one) = from
            && self.translated(packet).is_some()
            && let Some(public) = self.public_of(one)
            && packet.source.is_ipv4()
        {
            seen.source = public;
        }
        self.lets(from, to, packet, &seen).then_some(to)
    }

    /// Whether the rules let a connection be: its first packet as it was `sent`, and as it is
    /// `seen` at the other end.
    pub fn lets(&self, from: End, to: End, sent: &Packet, seen: &Packet) -> bool {
        match (from, to) {
            (End::Guest(_), End::Host) => return false,
            (End::Guest(one), End::Guest(other))
                if self.guests[one].network != self.guests[other].network
                    && self.guests[other].addresses.contains(&sent.destination) =>
            {
                return false;
            }
            _ => {}
        }
        let sends = match from {
            End::Guest(one) => self.admits(one, false, sent.destination, sent),
            End::Host | End::Outside => true,
        };
        let receives = match to {
            End::Guest(one) => self.admits(one, true, seen.source, seen),
            End::Host | End::Outside => true,
        };
        sends && receives
    }

    /// Whether the public addresses and forwards that a connection goes through are what they were.
    pub fn translation_stands(&self, from: End, to: End, sent: &Packet, seen: &Packet) -> bool {
        let is = |address: IpAddr, end: End| match self.public.get(&address) {
            Some(guest) => guest.map(End::Guest) == Some(end),
            None => true,
        };
        let by_forward = sent.destination == HOST4 && matches!(to, End::Guest(_));
        let forward = self.forwards.values().any(|it| {
            forwards(it, sent) && End::Guest(it.guest) == to && port(seen) == Some(it.port)
        });
        is(sent.destination, to) && is(seen.source, from) && (!by_forward || forward)
    }

    /// From an address that is not the sender's own.
    pub fn is_forged(&self, from: End, packet: &Packet) -> bool {
        match from {
            End::Guest(one) => !self.guests[one].addresses.contains(&packet.source),
            End::Outside => self.in_networks(packet.source),
            End::Host => false,
        }
    }

    /// Whose a public address or forwarded port is, and the port there if it is another.
    pub fn translated(&self, packet: &Packet) -> Option<(usize, Option<u16>)> {
        if let Some(guest) = self.public.get(&packet.destination) {
            return guest.map(|it| (it, None));
        }
        if packet.destination != HOST4 {
            return None;
        }
        let mut all = self.forwards.values();
        let found = all.find(|it| forwards(it, packet))?;
        Some((found.guest, Some(found.port)))
    }

    /// The public address of a guest.
    pub fn public_of(&self, guest: usize) -> Option<IpAddr> {
        let mut all = self.public.iter();
        all.find(|(_, it)| **it == Some(guest)).map(|it| *it.0)
    }

    /// Who has an address; `None` for those of our networks that nobody has.
    pub fn holder(&self, address: IpAddr) -> Option<End> {
        let has = |it: &Guest| it.addresses.contains(&address);
        if let Some(number) = self.guests.iter().position(has) {
            return Some(End::Guest(number));
        }
        if let Some(Some(number)) = self.public.get(&address) {
            return Some(End::Guest(*number));
        }
        let is_gateway = |it: &Network| it.gateways.contains(&address);
        if [HOST4, HOST6].contains(&address) || self.networks.iter().any(is_gateway) {
            return Some(End::Host);
        }
        (!self.in_networks(address)).then_some(End::Outside)
    }

    fn in_networks(&self, address: IpAddr) -> bool {
        let mut ranges = self.networks.iter().flat_map(|it| &it.ranges);
        ranges.any(|it| it.contains(&address))
    }

    fn admits(&self, guest: usize, ingress: bool, peer: IpAddr, packet: &Packet) -> bool {
        let groups = self.guests[guest].groups.iter();
        let mut rules = groups.flat_map(|it| self.groups[it].rules.values());
        rules.any(|it| {
            it.ingress == ingress
                && matches(&it.what, packet)
                && match &it.peer {
                    Peer::Block(block) => block.contains(&peer),
                    Peer::List(id) => self.lists[id].iter().any(|it| it.contains(&peer)),
                    Peer::Group(id) => self.guests.iter().any(|member| {
                        member.groups.contains(id) && member.addresses.contains(&peer)
                    }),
                }
        })
    }
}

fn port(packet: &Packet) -> Option<u16> {
    match packet.body {
        Body::Tcp { destination, .. } | Body::Udp { destination, .. } => Some(destination),
        _ => None,
    }
}

fn forwards(forward: &Forward, packet: &Packet) -> bool {
    packet.protocol() == forward.protocol && port(packet) == Some(forward.host_port)
}

/// Whether a packet can be the first of a connection at all.
pub fn can_open(packet: &Packet) -> bool {
    if matches!(packet.cut, Cut::WithoutFirst(_)) {
        return false;
    }
    // Record route, source routes.
    if packet
        .options
        .first()
        .is_some_and(|it| [7, 131, 137].contains(it))
    {
        return false;
    }
    match packet.body {
        Body::Tcp { flags, .. } => flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN) == tcp::SYN,
        // Of ICMP, what asks for an answer: echo, timestamp, information, address mask; of
        // ICMPv6 echo and node information.
        Body::Icmp { kind, .. } if packet.source.is_ipv4() => matches!(kind, 8 | 13 | 15 | 17),
        Body::Icmp { kind, .. } => matches!(kind, 128 | 139),
        Body::Error { .. } => false,
        Body::Udp { .. } | Body::Other(_) => true,
    }
}

fn matches(what: &What, packet: &Packet) -> bool {
    match *what {
        What::Everything => true,
        What::Protocol(number) => packet.protocol() == number,
        What::Ports(number, first, last) => {
            packet.protocol() == number
                && match packet.body {
                    Body::Tcp { destination, .. } | Body::Udp { destination, .. } => {
                        (first..=last).contains(&destination)
                    }
                    _ => false,
                }
        }
        What::Icmp(number, wanted, wanted_code) => {
            packet.protocol() == number
                && match packet.body {
                    Body::Icmp { kind, code, .. } => {
                        kind == wanted && wanted_code.is_none_or(|it| it == code)
                    }
                    _ => false,
                }
        }
    }
}
