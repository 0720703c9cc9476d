//! Whether a connection would be admitted if it were opened now.

use std::{collections::HashMap, net::IpAddr};

use super::{Connection, Scope, Tuple};
use crate::firewall::{
    FORWARD_MARK,
    explain::{Transport, egress, ingress, network_of},
    policy::{Interface, Policy},
};

/// The policy, with its interfaces by address.
pub struct Index<'a> {
    policy: &'a Policy,
    interfaces: HashMap<IpAddr, (&'a str, &'a Interface)>,
}

impl<'a> Index<'a> {
    pub fn new(policy: &'a Policy) -> Self {
        let mut interfaces = HashMap::new();
        for (id, interface) in &policy.interfaces {
            let found = (id.as_str(), interface);
            interfaces.insert(IpAddr::V4(interface.ipv4), found);
            if let Some(ipv6) = interface.ipv6 {
                interfaces.insert(IpAddr::V6(ipv6), found);
            }
        }
        Self { policy, interfaces }
    }

    /// Whether the policy admits a connection that a change may have taken away.
    pub fn admits(&self, scope: &Scope, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original, &connection.reply);
        let client = self.interfaces.get(&original.source).copied();
        let server = self.interfaces.get(&reply.source).copied();
        let is_gone = |address: IpAddr, found: bool| !found && scope.was_interface(address);
        if is_gone(original.source, client.is_some()) || is_gone(reply.source, server.is_some()) {
            return false;
        }
        if client.is_none() && connection.mark == FORWARD_MARK {
            return true;
        }
        if !self.translation_stands(scope, connection) {
            return false;
        }
        if client.is_some() && server.is_none() && self.is_the_hosts(original.destination, reply) {
            return true;
        }
        if client.is_none() && self.is_dhcp(original) {
            return true;
        }
        if let Some((_, from)) = client
            && egress(
                self.policy,
                from,
                original.destination,
                original.protocol,
                transport(original, original.destination_port),
            )
            .is_none()
        {
            return false;
        }
        if let (Some((_, from)), Some((_, to))) = (client, server)
            && from.network != to.network
            && !connection.translated
        {
            return false;
        }
        match server {
            Some((_, to)) => ingress(
                self.policy,
                to,
                reply.destination,
                original.protocol,
                transport(original, reply.source_port),
            )
            .is_some(),
            None => true,
        }
    }

    /// Whether public addresses and forwards that it goes through are still what they were.
    fn translation_stands(&self, scope: &Scope, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original, &connection.reply);
        let belongs = |public: IpAddr, private: IpAddr| {
            let IpAddr::V4(public) = public else {
                return true;
            };
            if !scope.is_public(public) {
                return true;
            }
            let owner = self.policy.addresses.get(&public);
            let interface = owner.and_then(|id| self.policy.interfaces.get(id));
            interface.is_some_and(|it| IpAddr::V4(it.ipv4) == private)
        };
        let in_use = self.policy.forwards.values().any(|forward| {
            forward.protocol == original.protocol
                && forward.host_port == original.destination_port
                && forward.port == reply.source_port
                && self
                    .policy
                    .interfaces
                    .get(&forward.interface)
                    .is_some_and(|it| IpAddr::V4(it.ipv4) == reply.source)
        });
        (!scope.is_by_lost_forward(connection) || in_use)
            && belongs(original.destination, reply.source)
            && belongs(reply.destination, original.source)
    }

    /// DNS, metadata, echo: what the host serves.
    fn is_the_hosts(&self, asked: IpAddr, reply: &Tuple) -> bool {
        let ends = [asked, reply.source];
        ends.iter().any(|end| {
            let link_local = match end {
                IpAddr::V4(it) => it.is_link_local(),
                IpAddr::V6(it) => it.segments()[0] & 0xffc0 == 0xfe80,
            };
            link_local || self.is_gateway(*end)
        })
    }

    fn is_gateway(&self, address: IpAddr) -> bool {
        network_of(self.policy, address).is_some_and(|(_, network)| match address {
            IpAddr::V4(it) => network.gateway_ipv4 == it,
            IpAddr::V6(it) => network.gateway_ipv6 == Some(it),
        })
    }

    /// Addresses that the host gave out.
    fn is_dhcp(&self, original: &Tuple) -> bool {
        let ports = (original.source_port, original.destination_port);
        original.protocol == 17
            && match original.source {
                IpAddr::V4(_) => ports == (67, 68) && self.is_gateway(original.source),
                IpAddr::V6(it) => ports == (547, 546) && it.segments()[0] & 0xffc0 == 0xfe80,
            }
    }
}

fn transport(original: &Tuple, destination: u16) -> Transport {
    match (original.protocol, original.icmp) {
        (1 | 58, Some((kind, code))) => Transport::Icmp { kind, code },
        (6 | 17, _) => Transport::Ports {
            source: original.source_port,
            destination,
        },
        _ => Transport::Other,
    }
}
