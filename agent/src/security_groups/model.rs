//! Security groups and their rules as the agent knows them.

use std::fmt;

use ipnet::IpNet;

use crate::{firewall::policy, tags::Tag, time::Millis};

crate::db::state_names! {
    /// Which way a rule looks, seen from the instance.
    Direction {
        Ingress = "ingress",
        Egress = "egress",
    }
}

/// One group: its row, and the rows of its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecurityGroup {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub network_id: String,
    pub name: String,
    pub description: String,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
    /// In the order of creation.
    pub rules: Vec<Rule>,
}

/// One rule of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub group_id: String,
    /// The group's.
    pub owner: String,
    pub direction: Direction,
    pub permission: Permission,
    pub description: String,
}

/// What a rule allows, in its normal form: two permissions that mean the same are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permission {
    pub traffic: Traffic,
    pub peer: Peer,
}

/// The protocol, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Every protocol.
    All,
    /// A protocol by its number; of TCP and UDP all ports, of ICMP all types.
    Protocol(u8),
    /// TCP or UDP with some of the destination ports.
    Ports { protocol: u8, first: u16, last: u16 },
    /// ICMP or ICMPv6 of one type, with one code or all.
    Icmp {
        protocol: u8,
        kind: u8,
        code: Option<u8>,
    },
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Block(IpNet),
    /// The members of this group.
    Group(String),
    PrefixList(String),
}

/// Numbers of protocols that have names.
pub mod protocols {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

/// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
pub fn protocol_word(protocol: u8) -> String {
    match protocol {
        protocols::ICMP => "icmp".to_owned(),
        protocols::TCP => "tcp".to_owned(),
        protocols::UDP => "udp".to_owned(),
        protocols::ICMPV6 => "icmpv6".to_owned(),
        number => number.to_string(),
    }
}

impl Traffic {
    /// The protocol's number; `None` for all.
    pub fn protocol(self) -> Option<u8> {
        match self {
            Self::All => None,
            Self::Protocol(protocol)
            | Self::Ports { protocol, .. }
            | Self::Icmp { protocol, .. } => Some(protocol),
        }
    }

    /// `-1`, `tcp`, `47`.
    pub fn word(self) -> String {
        self.protocol()
            .map_or_else(|| "-1".to_owned(), protocol_word)
    }

    /// First and last port, or type and code, where there are some.
    pub fn range(self) -> (Option<u16>, Option<u16>) {
        match self {
            Self::All | Self::Protocol(_) => (None, None),
            Self::Ports { first, last, .. } => (Some(first), Some(last)),
            Self::Icmp { kind, code, .. } => (Some(kind.into()), code.map(u16::from)),
        }
    }

    /// From its parts; `None` when they do not go together.
    pub fn from_parts(protocol: Option<u8>, from: Option<u16>, to: Option<u16>) -> Option<Self> {
        Some(match (protocol, from, to) {
            (None, None, None) => Self::All,
            (Some(protocol), None, None) => Self::Protocol(protocol),
            (Some(protocol @ (protocols::TCP | protocols::UDP)), Some(first), Some(last))
                if first <= last =>
            {
                Self::Ports {
                    protocol,
                    first,
                    last,
                }
            }
            (Some(protocol @ (protocols::ICMP | protocols::ICMPV6)), Some(kind), code) => {
                Self::Icmp {
                    protocol,
                    kind: u8::try_from(kind).ok()?,
                    code: code.map(u8::try_from).transpose().ok()?,
                }
            }
            _ => return None,
        })
    }
}

impl Peer {
    /// Which of the kinds, as the database names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "cidr",
            Self::Group(_) => "group",
            Self::PrefixList(_) => "prefix-list",
        }
    }

    /// From the database's two columns.
    pub fn from_parts(kind: &str, peer: String) -> Option<Self> {
        match kind {
            "cidr" => peer.parse().ok().map(Self::Block),
            "group" => Some(Self::Group(peer)),
            "prefix-list" => Some(Self::PrefixList(peer)),
            _ => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => block.fmt(f),
            Self::Group(id) | Self::PrefixList(id) => f.write_str(id),
        }
    }
}

/// In words, for messages: `tcp 80-90 with 10.0.0.0/8`.
impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.traffic {
            Traffic::All => f.write_str("all traffic")?,
            Traffic::Protocol(protocol) => match protocol_word(protocol) {
                word if word.starts_with(|first: char| first.is_ascii_digit()) => {
                    write!(f, "protocol {word}")?;
                }
                word => f.write_str(&word)?,
            },
            Traffic::Ports {
                protocol,
                first,
                last,
            } => {
                write!(f, "{} {first}", protocol_word(protocol))?;
                if last > first {
                    write!(f, "-{last}")?;
                }
            }
            Traffic::Icmp {
                protocol,
                kind,
                code,
            } => {
                write!(f, "{} {kind}", protocol_word(protocol))?;
                if let Some(code) = code {
                    write!(f, "/{code}")?;
                }
            }
        }
        write!(f, " with {}", self.peer)
    }
}

impl From<&Rule> for policy::Rule {
    fn from(rule: &Rule) -> Self {
        Self {
            direction: match rule.direction {
                Direction::Ingress => policy::Direction::Ingress,
                Direction::Egress => policy::Direction::Egress,
            },
            matches: match rule.permission.traffic {
                Traffic::All => policy::Match::All,
                Traffic::Protocol(protocols::ICMP) => policy::Match::Icmp {
                    kind: None,
                    code: None,
                },
                Traffic::Protocol(protocols::ICMPV6) => policy::Match::Icmpv6 {
                    kind: None,
                    code: None,
                },
                Traffic::Protocol(protocol) => policy::Match::Protocol(protocol),
                Traffic::Ports {
                    protocol,
                    first,
                    last,
                } => policy::Match::Ports {
                    protocol,
                    first,
                    last,
                },
                Traffic::Icmp {
                    protocol,
                    kind,
                    code,
                } => {
                    let kind = Some(kind);
                    match protocol {
                        protocols::ICMP => policy::Match::Icmp { kind, code },
                        _ => policy::Match::Icmpv6 { kind, code },
                    }
                }
            },
            peer: match &rule.permission.peer {
                Peer::Block(block) => policy::Peer::Block(*block),
                Peer::Group(id) => policy::Peer::Group(id.clone()),
                Peer::PrefixList(id) => policy::Peer::PrefixList(id.clone()),
            },
        }
    }
}

impl From<&SecurityGroup> for policy::Group {
    fn from(group: &SecurityGroup) -> Self {
        Self {
            network: group.network_id.clone(),
            rules: group
                .rules
                .iter()
                .map(|rule| (rule.id.clone(), rule.into()))
                .collect(),
        }
    }
}
