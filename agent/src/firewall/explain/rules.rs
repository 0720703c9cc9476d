//! Whether a rule of an interface's groups admits a packet.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::policy::{Direction, Interface, Match, Peer, Policy, Rule};

/// What follows the IP header, as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP.
    Ports { source: u16, destination: u16 },
    /// ICMP and ICMPv6.
    Icmp { kind: u8, code: u8 },
    /// Another protocol.
    Other,
}

impl Transport {
    /// Of protocols that have ports.
    pub fn destination_port(self) -> Option<u16> {
        match self {
            Transport::Ports { destination, .. } => Some(destination),
            _ => None,
        }
    }
}

/// A rule by its ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// `sg-…`
    pub group: String,
    /// `sgr-…`
    pub rule: String,
}

/// The first rule of the interface's groups, by id, that lets it send there.
pub fn egress(
    policy: &Policy,
    interface: &Interface,
    destination: IpAddr,
    protocol: u8,
    transport: Transport,
) -> Option<RuleRef> {
    admits(
        policy,
        interface,
        Direction::Egress,
        destination,
        protocol,
        transport,
    )
}

/// The first rule of the interface's groups, by id, that lets it receive from there.
pub fn ingress(
    policy: &Policy,
    interface: &Interface,
    source: IpAddr,
    protocol: u8,
    transport: Transport,
) -> Option<RuleRef> {
    admits(
        policy,
        interface,
        Direction::Ingress,
        source,
        protocol,
        transport,
    )
}

fn admits(
    policy: &Policy,
    interface: &Interface,
    direction: Direction,
    peer: IpAddr,
    protocol: u8,
    transport: Transport,
) -> Option<RuleRef> {
    interface.groups.iter().find_map(|group| {
        let rules = &policy.groups.get(group)?.rules;
        let (rule, _) = rules.iter().find(|(_, rule)| {
            rule.direction == direction
                && matches_packet(&rule.matches, peer, protocol, transport)
                && matches_peer(policy, rule, peer)
        })?;
        Some(RuleRef {
            group: group.clone(),
            rule: rule.clone(),
        })
    })
}

fn matches_packet(matches: &Match, peer: IpAddr, protocol: u8, transport: Transport) -> bool {
    let icmp = |want_kind: Option<u8>, want_code: Option<u8>| match transport {
        Transport::Icmp { kind, code } => {
            want_kind.is_none_or(|it| it == kind && want_code.is_none_or(|it| it == code))
        }
        _ => false,
    };
    match *matches {
        Match::All => true,
        Match::Protocol(wanted) => wanted == protocol,
        Match::Ports {
            protocol: wanted,
            first,
            last,
        } => {
            let port = transport.destination_port();
            wanted == protocol && port.is_some_and(|port| (first..=last).contains(&port))
        }
        Match::Icmp { kind, code } => protocol == 1 && peer.is_ipv4() && icmp(kind, code),
        Match::Icmpv6 { kind, code } => protocol == 58 && peer.is_ipv6() && icmp(kind, code),
    }
}

fn matches_peer(policy: &Policy, rule: &Rule, peer: IpAddr) -> bool {
    match &rule.peer {
        Peer::Block(block) => contains(block, peer),
        Peer::Group(group) => policy.members(group).any(|member| member == peer),
        Peer::PrefixList(list) => policy
            .prefix_lists
            .get(list)
            .is_some_and(|blocks| blocks.iter().any(|block| contains(block, peer))),
    }
}

fn contains(block: &IpNet, address: IpAddr) -> bool {
    match (block, address) {
        (IpNet::V4(block), IpAddr::V4(address)) => block.contains(&address),
        (IpNet::V6(block), IpAddr::V6(address)) => block.contains(&address),
        _ => false,
    }
}
