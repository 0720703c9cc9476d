//! A group: for each direction and family a chain of lookups, one for each kind of rule. A rule is
//! an element of a set, so that a packet's cost does not grow with the number of rules. A group has
//! one set for each family, whatever it says: the kernel finds sets by their names in a list.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::firewall::{
    policy::{Direction, Match, Peer, Policy, Rule},
    table::{self, Element, ElementKey, Field, Lookup, RuleBuilder, Set, SetData, rule},
};

use super::{
    Part, lists,
    places::{Places, Ranges},
};

/// A direction, for one family: IPv4 and IPv6 have nothing in common, so that no rule is wider in
/// one of them than it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub direction: Direction,
    pub ipv6: bool,
}

impl Way {
    pub const ALL: [Way; 4] = [
        Way {
            direction: Direction::Ingress,
            ipv6: false,
        },
        Way {
            direction: Direction::Ingress,
            ipv6: true,
        },
        Way {
            direction: Direction::Egress,
            ipv6: false,
        },
        Way {
            direction: Direction::Egress,
            ipv6: true,
        },
    ];

    pub fn name(self) -> &'static str {
        match (self.direction, self.ipv6) {
            (Direction::Ingress, false) => "in4",
            (Direction::Ingress, true) => "in6",
            (Direction::Egress, false) => "out4",
            (Direction::Egress, true) => "out6",
        }
    }

    fn address(self) -> Field {
        if self.ipv6 { Field::Ipv6 } else { Field::Ipv4 }
    }
}

/// The chain of a group.
pub fn chain(group: &str, way: Way) -> String {
    format!("{group}-{}", way.name())
}

/// Whether a group has a chain.
pub fn has_rules(policy: &Policy, group: &str, way: Way) -> bool {
    let rules = policy.groups.get(group).map(|it| &it.rules);
    let mut rules = rules.into_iter().flatten();
    rules.any(|(_, rule)| as_element(policy, rule, way).is_some())
}

/// What of a packet a rule looks at, besides the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Ports,
    Protocols,
    Icmp,
}

/// What an element is about: the direction and kind of its rule, and whose addresses the rule
/// names. It is the first field of the key, so that one set serves all that a group says of a
/// family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// Tags of one peer.
    const OF_PEER: u16 = 6;

    /// The highest number of a peer.
    pub const PEERS: u16 = u16::MAX / Self::OF_PEER - 1;

    fn new(peer: u16, kind: Kind, direction: Direction) -> Self {
        let kind = match kind {
            Kind::Ports => 0,
            Kind::Protocols => 1,
            Kind::Icmp => 2,
        };
        Tag(peer * Self::OF_PEER + kind * 2 + u16::from(direction == Direction::Egress))
    }

    /// The tag in a key.
    pub fn of_key(key: &[u8]) -> Self {
        let bytes = key.first_chunk::<2>().copied().unwrap_or_default();
        Tag(u16::from_be_bytes(bytes))
    }

    /// The number of the peer; blocks have 0.
    pub fn peer(self) -> u16 {
        self.0 / Self::OF_PEER
    }
}

/// The group or prefix list that a rule names.
pub fn peer_name(rule: &Rule) -> Option<&str> {
    match &rule.peer {
        Peer::Block(_) => None,
        Peer::Group(id) | Peer::PrefixList(id) => Some(id),
    }
}

/// A rule as an element: its kind, and the ranges of the key behind the tag.
struct Compiled {
    kind: Kind,
    addresses: (IpAddr, IpAddr),
    protocols: (u8, u8),
    /// Ports, or types and codes of ICMP.
    pairs: (u16, u16),
}

impl Compiled {
    fn ranges(&self, tag: Tag) -> Ranges {
        let mut ranges = Ranges::default();
        ranges.pair(tag.0, tag.0);
        ranges.address(self.addresses.0, self.addresses.1);
        ranges.byte(self.protocols.0, self.protocols.1);
        ranges.pair(self.pairs.0, self.pairs.1);
        ranges
    }
}

/// `None` if the rule has nothing to do with this way.
fn as_element(policy: &Policy, rule: &Rule, way: Way) -> Option<Compiled> {
    if rule.direction != way.direction {
        return None;
    }
    let addresses = match &rule.peer {
        Peer::Block(block) => bounds(block),
        // The addresses are in a set of their own.
        Peer::Group(group) => {
            lists::number(group)?;
            everything(way.ipv6)
        }
        Peer::PrefixList(list) => {
            policy.prefix_lists.get(list)?;
            everything(way.ipv6)
        }
    };
    if addresses.0.is_ipv6() != way.ipv6 {
        return None;
    }
    let icmp = |protocol, kind: Option<u8>, code: Option<u8>| {
        let pair = |kind, code| u16::from_be_bytes([kind, code]);
        let pairs = match (kind, code) {
            (None, _) => (0, u16::MAX),
            (Some(kind), None) => (pair(kind, 0), pair(kind, u8::MAX)),
            (Some(kind), Some(code)) => (pair(kind, code), pair(kind, code)),
        };
        (Kind::Icmp, (protocol, protocol), pairs)
    };
    let (kind, protocols, pairs) = match rule.matches {
        Match::All => (Kind::Protocols, (0, u8::MAX), (0, 0)),
        Match::Protocol(protocol) => (Kind::Protocols, (protocol, protocol), (0, 0)),
        // The other way round is no port at all.
        Match::Ports { first, last, .. } if first > last => return None,
        Match::Ports {
            protocol,
            first,
            last,
        } => (Kind::Ports, (protocol, protocol), (first, last)),
        Match::Icmp { kind, code } if !way.ipv6 => icmp(1, kind, code),
        Match::Icmpv6 { kind, code } if way.ipv6 => icmp(58, kind, code),
        Match::Icmp { .. } | Match::Icmpv6 { .. } => return None,
    };
    Some(Compiled {
        kind,
        addresses,
        protocols,
        pairs,
    })
}

fn bounds(block: &IpNet) -> (IpAddr, IpAddr) {
    (block.network(), block.broadcast())
}

fn everything(ipv6: bool) -> (IpAddr, IpAddr) {
    if ipv6 {
        bounds(&IpNet::V6(ipnet::Ipv6Net::default()))
    } else {
        bounds(&IpNet::V4(ipnet::Ipv4Net::default()))
    }
}

/// A lookup of a chain: whose addresses, what kind, and in which layer.
type Wanted<'a> = (Option<&'a Peer>, Kind, usize);

pub fn compile(policy: &Policy, id: &str, places: &Places, part: &mut Part) {
    let Some(group) = policy.groups.get(id) else {
        return;
    };
    let named = group.rules.values().filter_map(peer_name);
    places.number(named, &mut part.places);
    let mut chains = BTreeMap::<&str, (Way, BTreeSet<Wanted<'_>>)>::new();
    for ipv6 in [false, true] {
        let mut elements = Vec::new();
        for way in Way::ALL.into_iter().filter(|way| way.ipv6 == ipv6) {
            for (rule_id, rule) in &group.rules {
                let peer = part.places.peer(peer_name(rule));
                if let (Some(it), Some(peer)) = (as_element(policy, rule, way), peer) {
                    let ranges = it.ranges(Tag::new(peer, it.kind, way.direction));
                    elements.push((rule_id.as_str(), ranges, (way, rule, it.kind)));
                    if let Peer::Group(group) = &rule.peer {
                        part.references.insert(group.clone());
                    }
                }
            }
        }
        for (layer, elements) in places.assign(ipv6, elements, &mut part.places) {
            let name = lists::rules(id, ipv6, layer);
            part.tables.inet.set(&name, rules_set(ipv6));
            for (rule_id, ranges, (way, rule, kind)) in elements {
                let (first, last) = ranges.keys();
                let key = ElementKey {
                    first,
                    last: Some(last),
                    starts: true,
                };
                let element = Element::commented(rule_id);
                part.tables.inet.element(&name, key, element);
                let chain = chains.entry(way.name()).or_insert((way, BTreeSet::new()));
                let peer = peer_name(rule).map(|_| &rule.peer);
                chain.1.insert((peer, kind, layer));
            }
        }
    }
    for (way, wanted) in chains.into_values() {
        let lookups = wanted.into_iter().filter_map(|(peer, kind, layer)| {
            let name = match peer {
                None | Some(Peer::Block(_)) => None,
                Some(Peer::Group(id) | Peer::PrefixList(id)) => Some(id.as_str()),
            };
            let tag = Tag::new(part.places.peer(name)?, kind, way.direction);
            let set = lists::rules(id, way.ipv6, layer);
            Some(lookup(way, peer, kind, tag, &set))
        });
        let rules = lookups.collect();
        part.tables.inet.chain(&chain(id, way), rules);
    }
}

fn rules_set(ipv6: bool) -> Set {
    let address = if ipv6 { Field::Ipv6 } else { Field::Ipv4 };
    Set {
        key: vec![Field::Tag, address, Field::Protocol, Field::Port],
        lookup: Lookup::Ranges,
        data: SetData::Nothing,
        counters: true,
    }
}

/// Egress looks at what the guest asked for, before it was translated; ingress at what comes out
/// of translation.
fn lookup(way: Way, peer: Option<&Peer>, kind: Kind, tag: Tag, set: &str) -> table::Rule {
    let out = way.direction == Direction::Egress;
    let address = |builder: RuleBuilder| {
        if out {
            builder.key_ct_destination(way.address())
        } else {
            builder.key_source(way.address())
        }
    };
    let mut builder = if way.ipv6 {
        rule().ipv6()
    } else {
        rule().ipv4()
    };
    builder = match peer {
        None | Some(Peer::Block(_)) => builder,
        Some(Peer::Group(id)) => {
            let group = lists::number(id).unwrap_or_default();
            address(builder.key_value(Field::Group, &group)).in_set(lists::members_set(way.ipv6))
        }
        Some(Peer::PrefixList(id)) => address(builder).in_set(&lists::blocks(id, way.ipv6)),
    };
    if kind == Kind::Icmp {
        builder = builder.protocol(if way.ipv6 { 58 } else { 1 });
    }
    builder = address(builder.key_value(Field::Tag, &tag.0.to_be_bytes())).key_protocol();
    builder = match kind {
        Kind::Ports if out => builder.key_ct_destination_port(),
        Kind::Ports => builder.key_destination_port(),
        // Not every protocol has ports.
        Kind::Protocols => builder.key_value(Field::Port, &[0, 0]),
        // Type and code.
        Kind::Icmp => builder.key_payload(Field::Port, 2, 0),
    };
    builder.in_set(set).accept()
}
