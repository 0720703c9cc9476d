//! What a change can take away: only connections in there have to be looked at.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::Connection;
use crate::firewall::policy::{Change, Forward, Group, Interface, Peer, Policy};

/// The connections that a change may end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Those with one of these ends.
    addresses: BTreeSet<IpAddr>,
    /// Those through a public address that is another's now.
    public: BTreeSet<Ipv4Addr>,
    /// Those through a forward that is no more; with the interface's address.
    forwards: Vec<(Forward, Ipv4Addr)>,
    /// Addresses that were interfaces' before.
    were: BTreeSet<IpAddr>,
}

impl Scope {
    /// All connections of all interfaces.
    pub fn everything(policy: &Policy) -> Self {
        let mut scope = Self::default();
        for interface in policy.interfaces.values() {
            scope.interface(interface);
        }
        scope
    }

    /// Adds what `change` may take away, seen from the policy `before` it. A change that only
    /// allows more adds nothing.
    pub fn add(&mut self, before: &Policy, change: &Change) {
        match change {
            Change::PutNetwork(..) | Change::RemoveNetwork(_) => {}
            Change::PutInterface(id, new) => {
                if let Some(old) = before.interfaces.get(id) {
                    let moved =
                        old.ipv4 != new.ipv4 || old.ipv6 != new.ipv6 || old.network != new.network;
                    if moved || !new.groups.is_superset(&old.groups) {
                        self.interface(old);
                    }
                }
            }
            Change::RemoveInterface(id) => {
                if let Some(old) = before.interfaces.get(id) {
                    self.interface(old);
                }
                let lost = before.addresses.iter().filter(|(_, it)| *it == id);
                self.public.extend(lost.map(|(address, _)| *address));
            }
            Change::PutGroup(id, new) => {
                if let Some(old) = before.groups.get(id)
                    && !allows_all_of(new, old)
                {
                    self.members(before, id);
                }
            }
            Change::RemoveGroup(id) => self.members(before, id),
            Change::PutPrefixList(id, new) => {
                let old = before.prefix_lists.get(id);
                if old.is_some_and(|old| !old.is_subset(new)) {
                    self.prefix_list(before, id);
                }
            }
            Change::RemovePrefixList(id) => self.prefix_list(before, id),
            Change::PutAddress(address, id) => {
                let old = before.addresses.get(address);
                if old.is_some_and(|old| old != id) {
                    self.public.insert(*address);
                }
            }
            Change::RemoveAddress(address) => {
                self.public.insert(*address);
            }
            Change::PutForward(id, new) => {
                if before.forwards.get(id).is_some_and(|old| old != new) {
                    self.forward(before, id);
                }
            }
            Change::RemoveForward(id) => self.forward(before, id),
            Change::PutLogged(..) | Change::RemoveLogged(_) | Change::PutWindows(_) => {}
        }
    }

    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.public.is_empty() && self.forwards.is_empty()
    }

    /// Whether the change may have taken this one away.
    pub fn touches(&self, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original, &connection.reply);
        let ends = [
            original.source,
            original.destination,
            reply.source,
            reply.destination,
        ];
        let is_public = |it: &IpAddr| matches!(it, IpAddr::V4(it) if self.public.contains(it));
        ends.iter()
            .any(|it| self.addresses.contains(it) || is_public(it))
            || self.is_by_lost_forward(connection)
    }

    pub fn is_public(&self, address: Ipv4Addr) -> bool {
        self.public.contains(&address)
    }

    pub fn was_interface(&self, address: IpAddr) -> bool {
        self.were.contains(&address)
    }

    /// Whether it came in by a forward that is no more.
    pub fn is_by_lost_forward(&self, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original, &connection.reply);
        connection.translated
            && self.forwards.iter().any(|(forward, address)| {
                forward.protocol == original.protocol
                    && forward.host_port == original.destination_port
                    && forward.port == reply.source_port
                    && reply.source == IpAddr::V4(*address)
            })
    }

    fn interface(&mut self, interface: &Interface) {
        let ipv4 = IpAddr::V4(interface.ipv4);
        for address in [Some(ipv4), interface.ipv6.map(IpAddr::V6)] {
            self.addresses.extend(address);
            self.were.extend(address);
        }
    }

    fn members(&mut self, policy: &Policy, group: &str) {
        for interface in policy.interfaces.values() {
            if interface.groups.contains(group) {
                self.interface(interface);
            }
        }
    }

    fn prefix_list(&mut self, policy: &Policy, list: &str) {
        let names = |peer: &Peer| matches!(peer, Peer::PrefixList(it) if it == list);
        for (id, group) in &policy.groups {
            if group.rules.values().any(|rule| names(&rule.peer)) {
                self.members(policy, id);
            }
        }
    }

    fn forward(&mut self, policy: &Policy, id: &str) {
        if let Some(forward) = policy.forwards.get(id)
            && let Some(interface) = policy.interfaces.get(&forward.interface)
        {
            self.forwards.push((forward.clone(), interface.ipv4));
        }
    }
}

fn allows_all_of(new: &Group, old: &Group) -> bool {
    let mut rules = old.rules.iter();
    rules.all(|(id, rule)| {
        new.rules.get(id) == Some(rule) || new.rules.values().any(|other| other == rule)
    })
}
