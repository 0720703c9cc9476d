//! What happens to one packet that opens a connection, said by the policy alone. It knows nothing
//! of nftables and shares no code with the compiler: each is the other's judge.
//!
//! Where a packet is looked at, in order: it must come from an address that is its sender's; what
//! the host itself serves (DHCP, DNS, metadata) always passes; public addresses and port forwards
//! are translated; the sender's groups look at the destination as the sender wrote it, the
//! receiver's groups look at the source as the receiver sees it; networks are isolated.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::policy::{Interface, Network, Policy};

pub mod rules;

pub use rules::{RuleRef, Transport, egress, ingress};

/// Where guests ask for their metadata.
pub const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The same, IPv6.
pub const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// A packet that opens a connection, as its sender wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    pub transport: Transport,
    /// The destination is an address of the host itself that is not a gateway's: the policy does
    /// not know these.
    pub to_host: bool,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// In the order that the packet takes. After one that it does not pass, those that follow say
    /// what would be next.
    pub steps: Vec<Step>,
}

impl Verdict {
    /// Whether it arrives.
    pub fn allowed(&self) -> bool {
        self.steps.iter().all(|step| step.passes)
    }
}

/// A point that a packet comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub point: Point,
    pub passes: bool,
    /// The rule that lets it pass; `None` when none does, or none is needed.
    pub rule: Option<RuleRef>,
    /// In words.
    pub reason: String,
}

/// Which point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// Whether it can open a connection.
    Tracking,
    /// Who sends: an address in one of our networks must be an interface's.
    Source,
    /// Something that the host serves to its guests.
    HostServices,
    /// A public address or a port forward becomes an interface's address.
    Translation,
    /// The groups of the sending interface.
    Egress(String),
    /// From network to network.
    Isolation,
    /// The groups of the receiving interface.
    Ingress(String),
    /// Who receives.
    Destination,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Point::Tracking => f.write_str("connection tracking"),
            Point::Source => f.write_str("source"),
            Point::HostServices => f.write_str("host services"),
            Point::Translation => f.write_str("address translation"),
            Point::Egress(interface) => write!(f, "egress of {interface}"),
            Point::Isolation => f.write_str("isolation"),
            Point::Ingress(interface) => write!(f, "ingress of {interface}"),
            Point::Destination => f.write_str("destination"),
        }
    }
}

/// Says what becomes of `packet`.
pub fn explain(policy: &Policy, packet: &Packet) -> Verdict {
    let mut steps = Vec::new();
    if let Some(step) = opens_nothing(packet) {
        return Verdict { steps: vec![step] };
    }
    let sender = interface_of(policy, packet.source);
    if sender.is_none()
        && let Some((id, network)) = network_of(policy, packet.source)
        && !is_gateway(network, packet.source)
    {
        steps.push(refused(
            Point::Source,
            format!("{} is in {id}, but no interface has it", packet.source),
        ));
        return Verdict { steps };
    }
    if let Some((id, interface)) = sender
        && let Some(step) = to_the_host(policy, packet, id, interface)
    {
        return Verdict { steps: vec![step] };
    }
    let target = match target(policy, packet) {
        Target::Translated(id, port) => {
            steps.push(Step {
                point: Point::Translation,
                passes: true,
                rule: None,
                reason: match port {
                    None => format!("{} is a public address of {id}", packet.destination),
                    Some(port) => format!("the host's port is forwarded to port {port} of {id}"),
                },
            });
            Some((id, port, true))
        }
        Target::Interface(id) => Some((id, None, false)),
        Target::Nobody(network) => {
            steps.push(refused(
                Point::Destination,
                format!(
                    "no interface in {network} has the address {}",
                    packet.destination
                ),
            ));
            return Verdict { steps };
        }
        Target::Host => {
            steps.push(refused(
                Point::Destination,
                "nothing but its services of the host itself can be reached from an instance"
                    .to_owned(),
            ));
            return Verdict { steps };
        }
        Target::Outside => None,
    };
    let mut seen_source = packet.source;
    if let Some((id, interface)) = sender {
        steps.push(by_groups(
            Point::Egress(id.to_owned()),
            egress(
                policy,
                interface,
                packet.destination,
                packet.protocol,
                packet.transport,
            ),
            &interface.groups,
        ));
        if let Some((_, _, true)) = target
            && let Some(public) = public_address(policy, id)
        {
            seen_source = public.into();
        }
    }
    if let (Some((_, from)), Some((to, _, translated))) = (sender, &target) {
        let to_network = policy.interfaces.get(*to).map(|it| &it.network);
        if to_network != Some(&from.network) {
            steps.push(Step {
                point: Point::Isolation,
                passes: *translated,
                rule: None,
                reason: if *translated {
                    "another network, by way of its public side".to_owned()
                } else {
                    "the two are in different networks".to_owned()
                },
            });
        }
    }
    if let Some((id, port, _)) = target
        && let Some(interface) = policy.interfaces.get(id)
    {
        let transport = match (packet.transport, port) {
            (Transport::Ports { source, .. }, Some(destination)) => Transport::Ports {
                source,
                destination,
            },
            (transport, _) => transport,
        };
        steps.push(by_groups(
            Point::Ingress(id.to_owned()),
            ingress(policy, interface, seen_source, packet.protocol, transport),
            &interface.groups,
        ));
    }
    if steps.is_empty() {
        steps.push(Step {
            point: Point::Destination,
            passes: true,
            rule: None,
            reason: "neither end is an instance's: security groups have no say".to_owned(),
        });
    }
    Verdict { steps }
}

fn refused(point: Point, reason: String) -> Step {
    Step {
        point,
        passes: false,
        rule: None,
        reason,
    }
}

fn by_groups(
    point: Point,
    rule: Option<RuleRef>,
    groups: &std::collections::BTreeSet<String>,
) -> Step {
    let names = || groups.iter().cloned().collect::<Vec<_>>().join(", ");
    let reason = match &rule {
        Some(rule) => format!("allowed by {} of {}", rule.rule, rule.group),
        None if groups.is_empty() => "the interface is in no group".to_owned(),
        None => format!("no rule of {} allows it", names()),
    };
    Step {
        point,
        passes: rule.is_some(),
        rule,
        reason,
    }
}

/// What a guest's packet comes to when it is for the host; `None` when it is not.
fn to_the_host(policy: &Policy, packet: &Packet, id: &str, from: &Interface) -> Option<Step> {
    let network = policy.networks.get(&from.network)?;
    let destination = packet.destination;
    let port = packet.transport.destination_port();
    let served = |what: &str| Step {
        point: Point::HostServices,
        passes: true,
        rule: None,
        reason: format!("{what}: always allowed"),
    };
    let not_served = |reason: String| refused(Point::HostServices, reason);
    let echo = matches!(
        (packet.protocol, packet.transport, destination),
        (1, Transport::Icmp { kind: 8, .. }, IpAddr::V4(_))
            | (58, Transport::Icmp { kind: 128, .. }, IpAddr::V6(_))
    );
    let metadata = match destination {
        IpAddr::V4(it) => it == METADATA_IPV4,
        IpAddr::V6(it) => it == METADATA_IPV6 && network.gateway_ipv6.is_some(),
    };
    if metadata && packet.protocol == 6 && port == Some(80) {
        return Some(served("the metadata service"));
    }
    if is_reserved(destination) {
        return Some(not_served(format!(
            "{destination} is the host's link-local side; only the metadata service is there"
        )));
    }
    if is_gateway(network, destination) {
        return Some(match (packet.protocol, port) {
            (6 | 17, Some(53)) => served("the name service"),
            (17, Some(67)) if destination.is_ipv4() => served("DHCP"),
            _ if echo => served("an echo request to the gateway"),
            _ => not_served(format!(
                "the gateway of {id} answers DHCP, DNS and echo requests only"
            )),
        });
    }
    let foreign = policy.networks.values();
    if foreign.into_iter().any(|it| is_gateway(it, destination)) {
        return Some(not_served(format!(
            "{destination} is the gateway of another network"
        )));
    }
    let nobodys = match destination {
        IpAddr::V4(it) => {
            it.is_multicast() || it.is_broadcast() || it.is_loopback() || it.octets()[0] == 0
        }
        // With the unspecified and the loopback address all that stand for an IPv4 address.
        IpAddr::V6(it) => it.is_multicast() || it.to_ipv4().is_some(),
    };
    nobodys.then(|| not_served(format!("{destination} is not routed")))
}

/// ICMP messages that only answer or report: connection tracking takes none of them for the first
/// of a connection.
fn opens_nothing(packet: &Packet) -> Option<Step> {
    let Transport::Icmp { kind, .. } = packet.transport else {
        return None;
    };
    let asks = match packet.protocol {
        // Echo, timestamp, information and address mask requests.
        1 => matches!(kind, 8 | 13 | 15 | 17),
        // Echo request, node information query.
        58 => matches!(kind, 128 | 139),
        _ => true,
    };
    (!asks).then(|| {
        refused(
            Point::Tracking,
            format!("ICMP type {kind} opens nothing: it passes as an answer, or as an error"),
        )
    })
}

enum Target<'a> {
    /// By a public address (no port) or a forward (with the interface's port).
    Translated(&'a str, Option<u16>),
    Interface(&'a str),
    /// In this network, but nobody's.
    Nobody(&'a str),
    Host,
    Outside,
}

fn target<'a>(policy: &'a Policy, packet: &Packet) -> Target<'a> {
    if let IpAddr::V4(public) = packet.destination
        && let Some(id) = policy.addresses.get(&public)
    {
        return Target::Translated(id, None);
    }
    if let Some((id, _)) = interface_of(policy, packet.destination) {
        return Target::Interface(id);
    }
    if packet.to_host && packet.destination.is_ipv4() {
        let forward = policy.forwards.values().find(|it| {
            it.protocol == packet.protocol
                && Some(it.host_port) == packet.transport.destination_port()
        });
        if let Some(it) = forward {
            return Target::Translated(&it.interface, Some(it.port));
        }
    }
    if packet.to_host {
        return if interface_of(policy, packet.source).is_some() {
            Target::Host
        } else {
            Target::Outside
        };
    }
    match network_of(policy, packet.destination) {
        Some((id, _)) => Target::Nobody(id),
        None => Target::Outside,
    }
}

/// The interface that has a private address.
pub fn interface_of(policy: &Policy, address: IpAddr) -> Option<(&str, &Interface)> {
    let has = |it: &Interface| match address {
        IpAddr::V4(address) => it.ipv4 == address,
        IpAddr::V6(address) => it.ipv6 == Some(address),
    };
    let mut all = policy.interfaces.iter();
    all.find(|(_, it)| has(it))
        .map(|(id, it)| (id.as_str(), it))
}

/// The network that an address is in.
pub fn network_of(policy: &Policy, address: IpAddr) -> Option<(&str, &Network)> {
    let has = |it: &Network| match address {
        IpAddr::V4(address) => it.ipv4.contains(&address),
        IpAddr::V6(address) => it.ipv6.is_some_and(|range| range.contains(&address)),
    };
    let mut all = policy.networks.iter();
    all.find(|(_, it)| has(it))
        .map(|(id, it)| (id.as_str(), it))
}

/// The public address of an interface, as others see it.
pub fn public_address(policy: &Policy, interface: &str) -> Option<Ipv4Addr> {
    let mut all = policy.addresses.iter();
    all.find(|(_, it)| *it == interface)
        .map(|(address, _)| *address)
}

fn is_gateway(network: &Network, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => network.gateway_ipv4 == address,
        IpAddr::V6(address) => network.gateway_ipv6 == Some(address),
    }
}

/// Link-local, and what clouds use like it: never routed for a guest.
fn is_reserved(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => {
            it.segments()[0] & 0xffc0 == 0xfe80 || it.segments()[..2] == [0xfd00, 0xec2]
        }
    }
}
