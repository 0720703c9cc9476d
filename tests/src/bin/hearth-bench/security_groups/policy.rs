//! The full policy: what every group allows and who is in which groups, apart from how it is
//! said, and said in two ways: to the API, and as lines of a plain rule list.

use std::net::IpAddr;

use hearth_proto::v1::{SecurityGroupPermission, security_group_permission};

pub const GROUPS: usize = 1000;

/// Of each group.
pub const RULES: usize = 60;

pub const INSTANCES: usize = 500;

/// Of each instance.
pub const GROUPS_OF_INSTANCE: usize = 5;

/// The instance that is measured. In the plain list half of all others come before it.
pub const MEASURED: usize = INSTANCES / 2;

/// The group that is changed while it is measured.
pub const CHANGED: usize = 0;

/// A group without rules, before there is the full policy.
pub const OTHER: usize = 1;

/// Where packets come from.
pub const OUTSIDE: &str = "203.0.113.0/24";

/// The UDP port that the first rule allows.
pub const OPEN_PORT: u16 = 7000;

/// Something that a group allows to come in.
pub struct Rule {
    pub protocol: &'static str,
    pub ports: Option<(u16, u16)>,
    pub peer: Peer,
}

pub enum Peer {
    Block(String),
    /// The members of this group.
    Group(usize),
}

/// What there is before and after the full policy.
pub fn first_rule() -> Rule {
    udp(OPEN_PORT)
}

/// A UDP port, for the outside.
pub fn udp(port: u16) -> Rule {
    Rule {
        protocol: "udp",
        ports: Some((port, port)),
        peer: Peer::Block(OUTSIDE.to_owned()),
    }
}

/// A TCP port, for the outside.
pub fn tcp(port: u16) -> Rule {
    Rule {
        protocol: "tcp",
        ..udp(port)
    }
}

/// The rules of a group of the full policy: mostly blocks with ports, some of which overlap, a
/// few of each other kind. None of them is about the packets that are measured.
pub fn rules(group: usize) -> Vec<Rule> {
    // One of the changed group's is the first rule, and there is room for another.
    let count = if group == CHANGED { RULES - 2 } else { RULES };
    (0..count).map(|number| rule(group, number)).collect()
}

fn rule(group: usize, number: usize) -> Rule {
    let block = |protocol, ports, block: String| Rule {
        protocol,
        ports,
        peer: Peer::Block(block),
    };
    let first = 8000 + 10 * number as u16;
    match number {
        0 => block("tcp", Some((443, 443)), "0.0.0.0/0".to_owned()),
        1 => block("tcp", Some((443, 443)), "::/0".to_owned()),
        2 => block("icmp", None, "10.0.0.0/8".to_owned()),
        3 => block("icmpv6", None, "::/0".to_owned()),
        4..8 => Rule {
            protocol: "tcp",
            ports: Some((first, first)),
            peer: Peer::Group((group + 7 * number) % GROUPS),
        },
        8..14 => {
            let block_of = format!("2001:db8:{group:x}:{number:x}00::/56");
            block("tcp", Some((first, first + 9)), block_of)
        }
        14 | 30 | 46 => block(
            "tcp",
            Some((8000, 9000 + number as u16)),
            "198.18.0.0/15".to_owned(),
        ),
        _ => {
            let protocol = if number.is_multiple_of(3) {
                "udp"
            } else {
                "tcp"
            };
            let ports = Some((first, first + (number % 2) as u16 * 5));
            let block_of = format!("198.18.{}.0/24", (3 * group + number) % 256);
            block(protocol, ports, block_of)
        }
    }
}

/// The groups of an instance.
pub fn groups_of(instance: usize) -> [usize; GROUPS_OF_INSTANCE] {
    let mut groups: [usize; GROUPS_OF_INSTANCE] =
        std::array::from_fn(|number| (GROUPS_OF_INSTANCE * instance + number) % GROUPS);
    if instance == MEASURED {
        // The last, so that what is measured comes at the end of the instance's rules.
        groups[GROUPS_OF_INSTANCE - 1] = CHANGED;
    }
    groups
}

impl Rule {
    /// As the API wants it, by the ids of groups.
    pub fn permission(&self, ids: &[String]) -> SecurityGroupPermission {
        use security_group_permission::Peer as Wire;
        let (from_port, to_port) = self
            .ports
            .map(|(from, to)| (from.into(), to.into()))
            .unzip();
        SecurityGroupPermission {
            protocol: self.protocol.to_owned(),
            from_port,
            to_port,
            peer: Some(match &self.peer {
                Peer::Block(block) if block.contains(':') => Wire::CidrIpv6(block.clone()),
                Peer::Block(block) => Wire::CidrIpv4(block.clone()),
                Peer::Group(group) => Wire::SecurityGroupId(ids[*group].clone()),
            }),
            ..Default::default()
        }
    }

    /// As rules of a list, for one tap: each one address or block.
    pub fn lines(&self, tap: &str, members: &[Vec<IpAddr>]) -> Vec<String> {
        let peers = match &self.peer {
            Peer::Block(block) => vec![block.clone()],
            Peer::Group(group) => members[*group].iter().map(IpAddr::to_string).collect(),
        };
        let line = |peer: &String| {
            let source = if peer.contains(':') {
                format!("ip6 saddr {peer}")
            } else {
                format!("ip saddr {peer}")
            };
            let traffic = match (self.protocol, self.ports) {
                (protocol, Some((from, to))) if from == to => format!("{protocol} dport {from}"),
                (protocol, Some((from, to))) => format!("{protocol} dport {from}-{to}"),
                (protocol, None) => format!("meta l4proto {protocol}"),
            };
            let traffic = traffic.replace("l4proto icmpv6", "l4proto ipv6-icmp");
            format!("oifname \"{tap}\" {source} {traffic} counter accept")
        };
        peers.iter().map(line).collect()
    }
}
