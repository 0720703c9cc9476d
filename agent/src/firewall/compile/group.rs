//! A group: for each direction and family a chain of lookups, one for each kind of rule. A rule is
//! an element of a set, so that a packet's cost does not grow with the number of rules.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::{
    policy::{Direction, Match, Peer, Policy, Rule},
    table::{Element, ElementKey, Field, Lookup, Set, SetData, rule},
};

use super::{
    Part,
    layers::{Layers, Ranges},
    lists,
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

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ports => "ports",
            Kind::Protocols => "protocols",
            Kind::Icmp => "icmp",
        }
    }

    fn fields(self, ipv6: bool) -> &'static [Field] {
        match (self, ipv6) {
            (Kind::Ports, _) => &[Field::Protocol, Field::Port],
            (Kind::Protocols, _) => &[Field::Protocol],
            (Kind::Icmp, false) => &[Field::IcmpType, Field::IcmpCode],
            (Kind::Icmp, true) => &[Field::Icmpv6Type, Field::Icmpv6Code],
        }
    }
}

/// A rule as an element: the kind of its set, the peers that the set is for (a set of addresses, if
/// the element does not say them), and the ranges of the key.
struct Compiled<'a> {
    kind: Kind,
    peers: Option<&'a str>,
    ranges: Ranges,
}

/// `None` if the rule has nothing to do with this way.
fn as_element<'a>(policy: &Policy, rule: &'a Rule, way: Way) -> Option<Compiled<'a>> {
    if rule.direction != way.direction {
        return None;
    }
    let (peers, first, last) = match &rule.peer {
        Peer::Block(block) => {
            let (first, last) = bounds(block);
            if first.is_ipv6() != way.ipv6 {
                return None;
            }
            (None, first, last)
        }
        Peer::Group(group) => {
            let (first, last) = everything(way.ipv6);
            (Some(group.as_str()), first, last)
        }
        Peer::PrefixList(list) => {
            policy.prefix_lists.get(list)?;
            let (first, last) = everything(way.ipv6);
            (Some(list.as_str()), first, last)
        }
    };
    let any = |it: Option<u8>| (it.unwrap_or(0), it.unwrap_or(u8::MAX));
    let mut ranges = Ranges::default();
    ranges.address(first, last);
    let kind = match rule.matches {
        Match::All => {
            ranges.byte(0, u8::MAX);
            Kind::Protocols
        }
        Match::Protocol(protocol) => {
            ranges.byte(protocol, protocol);
            Kind::Protocols
        }
        Match::Ports {
            protocol,
            first,
            last,
        } => {
            // The other way round is no port at all.
            if first > last {
                return None;
            }
            ranges.byte(protocol, protocol);
            ranges.port(first, last);
            Kind::Ports
        }
        Match::Icmp { kind, code } if !way.ipv6 => {
            let (kind, code) = (any(kind), any(code));
            ranges.byte(kind.0, kind.1);
            ranges.byte(code.0, code.1);
            Kind::Icmp
        }
        Match::Icmpv6 { kind, code } if way.ipv6 => {
            let (kind, code) = (any(kind), any(code));
            ranges.byte(kind.0, kind.1);
            ranges.byte(code.0, code.1);
            Kind::Icmp
        }
        Match::Icmp { .. } | Match::Icmpv6 { .. } => return None,
    };
    Some(Compiled {
        kind,
        peers,
        ranges,
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

pub fn compile(policy: &Policy, id: &str, layers: &Layers, part: &mut Part) {
    let Some(group) = policy.groups.get(id) else {
        return;
    };
    for way in Way::ALL {
        // By peers, then kind: the rules of one set, before overlaps are taken apart.
        let mut sets = std::collections::BTreeMap::<_, Vec<(&str, Ranges)>>::new();
        for (rule_id, rule) in &group.rules {
            if let Some(compiled) = as_element(policy, rule, way) {
                let set = sets.entry((compiled.peers, compiled.kind)).or_default();
                set.push((rule_id, compiled.ranges));
                if let Peer::Group(group) = &rule.peer {
                    part.references.insert(group.clone());
                }
            }
        }
        if sets.is_empty() {
            continue;
        }
        let chain = chain(id, way);
        let mut rules = Vec::new();
        for ((peers, kind), elements) in sets {
            let base = match peers {
                None => format!("{chain}-{}", kind.name()),
                Some(peers) => format!("{chain}-{peers}-{}", kind.name()),
            };
            for (layer, elements) in layers.assign(&base, elements, &mut part.layers) {
                let name = Layers::set(&base, layer);
                rules.push(lookup(way, peers, kind, &name));
                let mut fields = vec![way.address()];
                fields.extend(kind.fields(way.ipv6));
                let set = Set {
                    key: fields,
                    lookup: Lookup::Ranges,
                    data: SetData::Nothing,
                    counters: true,
                };
                part.tables.inet.set(&name, set);
                for (rule_id, ranges) in elements {
                    let (first, last) = ranges.keys();
                    let key = ElementKey {
                        first,
                        last: Some(last),
                        starts: true,
                    };
                    let element = Element::commented(rule_id);
                    part.tables.inet.element(&name, key, element);
                }
            }
        }
        part.tables.inet.chain(&chain, rules);
    }
}

/// Egress looks at what the guest asked for, before it was translated; ingress at what comes out
/// of translation.
fn lookup(way: Way, peers: Option<&str>, kind: Kind, set: &str) -> crate::firewall::table::Rule {
    let out = way.direction == Direction::Egress;
    let address = |builder: crate::firewall::table::RuleBuilder| {
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
    if let Some(peers) = peers {
        builder = address(builder).in_set(&lists::addresses(peers, way.ipv6));
    }
    builder = match kind {
        Kind::Ports => {
            let builder = address(builder).key_protocol();
            if out {
                builder.key_ct_destination_port()
            } else {
                builder.key_destination_port()
            }
        }
        Kind::Protocols => address(builder).key_protocol(),
        Kind::Icmp => {
            let [kind, code] = [kind.fields(way.ipv6)[0], kind.fields(way.ipv6)[1]];
            let builder = builder.protocol(if way.ipv6 { 58 } else { 1 });
            address(builder)
                .key_payload(kind, 2, 0)
                .key_payload(code, 2, 1)
        }
    };
    builder.in_set(set).accept()
}
