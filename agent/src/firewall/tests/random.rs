//! Random policies, changes and packets out of small worlds, so that they meet.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    packet::Packet,
    world::{End, HOST4, OUTSIDE4, OUTSIDE6, closed, eni, interface, policy, sg},
};
use crate::firewall::{
    explain::{self, Transport},
    policy::{Change, Direction, Forward, Group, Match, Peer, Policy, Rule},
};

/// How many guests and groups there may be.
pub const GUESTS: usize = 6;
pub const GROUPS: usize = 6;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = u64::try_from(limit).expect("small");
        usize::try_from((z ^ (z >> 31)) % limit).expect("small")
    }

    pub fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    fn byte(&mut self, limit: usize) -> u8 {
        u8::try_from(self.below(limit)).expect("small")
    }

    fn port(&mut self) -> u16 {
        u16::try_from(self.below(8) + 80).expect("small")
    }

    fn block(&mut self) -> ipnet::IpNet {
        self.of(&[
            "0.0.0.0/0",
            "10.0.0.0/24",
            "10.0.0.4/30",
            "10.0.0.8/32",
            "10.1.0.0/16",
            "198.51.100.0/24",
            "198.51.100.2/32",
            "203.0.113.0/28",
            "128.0.0.0/1",
            "::/0",
            "fd00:10::/64",
            "fd00:10::4/126",
            "fd00:10:1::/48",
            "2001:db8:ff::2/128",
            "8000::/1",
        ])
        .parse()
        .expect("block")
    }

    pub fn rule(&mut self) -> Rule {
        let any = |random: &mut Self, all: &[u8]| match random.below(3) {
            0 => None,
            _ => Some(random.of(all)),
        };
        let matches = match self.below(8) {
            0 => Match::All,
            1 => Match::Protocol(self.of(&[6, 17, 1, 58, 47, 99])),
            2 => Match::Icmp {
                kind: any(self, &[8, 13]),
                code: any(self, &[0, 1]),
            },
            3 => Match::Icmpv6 {
                kind: any(self, &[128, 139]),
                code: any(self, &[0, 1]),
            },
            _ => {
                let (one, other) = (self.port(), self.port());
                Match::Ports {
                    protocol: self.of(&[6, 17]),
                    first: one.min(other),
                    last: one.max(other),
                }
            }
        };
        let peer = match self.below(4) {
            0 => Peer::Group(sg(self.below(GROUPS))),
            1 => Peer::PrefixList(format!("pl-{}", self.below(3))),
            _ => Peer::Block(self.block()),
        };
        Rule {
            direction: self.of(&[Direction::Ingress, Direction::Egress]),
            matches,
            peer,
        }
    }

    fn group(&mut self, number: usize, old: Option<&Group>) -> Group {
        let mut group = old.cloned().unwrap_or_else(|| closed(number % 2));
        for _ in 0..=self.below(4) {
            let id = format!("sgr-{:03}", self.below(1000));
            group.rules.insert(id, self.rule());
        }
        let ids: Vec<String> = group.rules.keys().cloned().collect();
        for id in ids {
            if self.below(6) == 0 {
                group.rules.remove(&id);
            }
        }
        group
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, self.byte(4) + 1)
    }

    pub fn change(&mut self, policy: &Policy) -> Change {
        let guest = self.below(GUESTS);
        let group = self.below(GROUPS);
        match self.below(16) {
            0 => Change::RemoveInterface(eni(guest)),
            1..=4 => {
                let mut it = interface(guest);
                it.groups.clear();
                for _ in 0..self.below(4) {
                    // Of the same network.
                    it.groups.insert(sg(self.below(GROUPS / 2) * 2 + guest % 2));
                }
                Change::PutInterface(eni(guest), it)
            }
            5 => Change::RemoveGroup(sg(group)),
            6 => {
                let blocks = (0..self.below(5)).map(|_| self.block()).collect();
                Change::PutPrefixList(format!("pl-{}", self.below(3)), blocks)
            }
            7 => Change::RemovePrefixList(format!("pl-{}", self.below(3))),
            8 if policy.interfaces.contains_key(&eni(guest)) => {
                Change::PutAddress(self.address(), eni(guest))
            }
            9 => Change::RemoveAddress(self.address()),
            10 if policy.interfaces.contains_key(&eni(guest)) => {
                let number = self.below(4);
                Change::PutForward(
                    format!("pf-{number}"),
                    Forward {
                        protocol: if number.is_multiple_of(2) { 6 } else { 17 },
                        host_port: u16::try_from(number + 8080).expect("small"),
                        interface: eni(guest),
                        port: self.port(),
                    },
                )
            }
            11 => Change::RemoveForward(format!("pf-{}", self.below(4))),
            _ => Change::PutGroup(sg(group), self.group(group, policy.groups.get(&sg(group)))),
        }
    }

    pub fn policy(&mut self) -> Policy {
        let mut policy = policy(GUESTS);
        for _ in 0..30 {
            let change = self.change(&policy);
            policy.apply(change);
        }
        policy
    }

    /// A packet that opens a connection, and who sends it.
    pub fn packet(&mut self) -> (End, explain::Packet, Packet) {
        let v6 = self.below(3) == 0;
        let own = |number: usize| -> IpAddr {
            let interface = interface(number);
            if v6 {
                interface.ipv6.expect("given").into()
            } else {
                interface.ipv4.into()
            }
        };
        let (from, source) = match self.below(GUESTS + 2) {
            number if number < GUESTS => (End::Guest(number), own(number)),
            _ => (End::Outside, if v6 { OUTSIDE6 } else { OUTSIDE4 }),
        };
        let destination = loop {
            let destination = match self.below(12) {
                0 | 1 => {
                    if v6 {
                        OUTSIDE6
                    } else {
                        OUTSIDE4
                    }
                }
                2 | 3 if !v6 => self.address().into(),
                4 if !v6 => HOST4,
                5 if !v6 => Ipv4Addr::new(10, self.byte(2), 0, 1).into(),
                6 if !v6 => Ipv4Addr::new(10, self.byte(2), 0, 77).into(),
                _ => own(self.below(GUESTS)),
            };
            // What goes back where it came from is no business of ours.
            let turns =
                from == End::Outside && (destination == OUTSIDE4 || destination == OUTSIDE6);
            if destination != source && !turns {
                break destination;
            }
        };
        let protocol = self.of(&[6, 6, 6, 17, 17, if v6 { 58 } else { 1 }, 47, 99]);
        let transport = match protocol {
            6 | 17 => Transport::Ports {
                source: u16::try_from(40000 + self.below(20000)).expect("small"),
                destination: if destination == HOST4 {
                    u16::try_from(8080 + self.below(5)).expect("small")
                } else {
                    self.port()
                },
            },
            1 => Transport::Icmp {
                kind: self.of(&[8, 13]),
                code: self.byte(2),
            },
            58 => Transport::Icmp {
                kind: self.of(&[128, 139]),
                code: self.byte(2),
            },
            _ => Transport::Other,
        };
        let described = explain::Packet {
            source,
            destination,
            protocol,
            transport,
            to_host: destination == HOST4,
        };
        let packet = Packet::first(source, destination, protocol, transport);
        (from, described, packet)
    }
}
