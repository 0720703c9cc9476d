//! What the firewall is to enforce: the networks, interfaces and security groups of all accounts,
//! without anything that has to do with how nftables does it. The database is where it comes
//! from; [`super::Firewall`] holds the one in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// All of it, by ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `net-…`
    pub networks: BTreeMap<String, Network>,
    /// `eni-…`
    pub interfaces: BTreeMap<String, Interface>,
    /// `sg-…`
    pub groups: BTreeMap<String, Group>,
    /// `pl-…`
    pub prefix_lists: BTreeMap<String, BTreeSet<IpNet>>,
    /// Public address to interface.
    pub addresses: BTreeMap<Ipv4Addr, String>,
    /// `pf-…`
    pub forwards: BTreeMap<String, Forward>,
    /// Interfaces whose flows are counted, from the moment that there is a window.
    pub logged: BTreeMap<String, Traffic>,
    pub windows: Windows,
}

/// Which packets of an interface are counted by flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub accepted: bool,
    pub refused: bool,
}

/// Spans of time in which flows are counted, each apart from the others. They are named by their
/// beginnings: milliseconds since 1970. A new agent takes those over that the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Packets count here.
    pub current: Option<u64>,
    /// Nothing is counted here any more; the counts are still there.
    pub retired: BTreeSet<u64>,
}

/// A network: isolated from the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// No two networks overlap.
    pub ipv4: Ipv4Net,
    pub ipv6: Option<Ipv6Net>,
    pub gateway_ipv4: Ipv4Addr,
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// The outside sees the host's address.
    pub nat: bool,
}

/// An interface of an instance. It is here from the launch to the termination of its instance,
/// whether there is a tap or not: rules that name a group mean the addresses of all its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub network: String,
    /// Name of the tap, in [`super::TAP_PREFIX`]'s name space.
    pub tap: String,
    pub mac: [u8; 6],
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
    /// Groups of the same network.
    pub groups: BTreeSet<String>,
}

/// A security group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub network: String,
    /// `sgr-…`
    pub rules: BTreeMap<String, Rule>,
}

/// Allows packets that open a connection, and with them the whole connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub direction: Direction,
    pub matches: Match,
    pub peer: Peer,
}

/// Seen from the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// To it; the peer is the source.
    Ingress,
    /// From it; the peer is the destination.
    Egress,
}

/// Which packets, apart from whom they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Every protocol.
    All,
    /// An IP protocol by number, with all of its ports, if it has any.
    Protocol(u8),
    /// TCP (6) or UDP (17) with destination ports from `first` to `last`.
    Ports { protocol: u8, first: u16, last: u16 },
    /// ICMP, in IPv4 packets only; without a type all of them, without a code all of the type.
    Icmp { kind: Option<u8>, code: Option<u8> },
    /// ICMPv6, in IPv6 packets only.
    Icmpv6 { kind: Option<u8>, code: Option<u8> },
}

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Block(IpNet),
    /// The addresses of its members.
    Group(String),
    PrefixList(String),
}

/// A port of the host that is one of an interface's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP (6) or UDP (17).
    pub protocol: u8,
    pub host_port: u16,
    pub interface: String,
    pub port: u16,
}

/// One step from one policy to the next. Several of them are applied as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    PutNetwork(String, Network),
    RemoveNetwork(String),
    PutInterface(String, Interface),
    /// With the addresses and forwards to it; its flows are counted no more.
    RemoveInterface(String),
    PutGroup(String, Group),
    RemoveGroup(String),
    PutPrefixList(String, BTreeSet<IpNet>),
    RemovePrefixList(String),
    PutAddress(Ipv4Addr, String),
    RemoveAddress(Ipv4Addr),
    PutForward(String, Forward),
    RemoveForward(String),
    PutLogged(String, Traffic),
    RemoveLogged(String),
    /// All of them; the counts of those that are no longer named are lost.
    PutWindows(Windows),
}

impl Policy {
    /// Takes a step. What is put replaces what has the same id; removing what is not there does
    /// nothing.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutNetwork(id, network) => drop(self.networks.insert(id, network)),
            Change::RemoveNetwork(id) => drop(self.networks.remove(&id)),
            Change::PutInterface(id, interface) => drop(self.interfaces.insert(id, interface)),
            Change::RemoveInterface(id) => {
                self.addresses.retain(|_, interface| *interface != id);
                self.forwards.retain(|_, forward| forward.interface != id);
                self.logged.remove(&id);
                self.interfaces.remove(&id);
            }
            Change::PutGroup(id, group) => drop(self.groups.insert(id, group)),
            Change::RemoveGroup(id) => drop(self.groups.remove(&id)),
            Change::PutPrefixList(id, blocks) => drop(self.prefix_lists.insert(id, blocks)),
            Change::RemovePrefixList(id) => drop(self.prefix_lists.remove(&id)),
            Change::PutAddress(address, interface) => {
                self.addresses.insert(address, interface);
            }
            Change::RemoveAddress(address) => drop(self.addresses.remove(&address)),
            Change::PutForward(id, forward) => drop(self.forwards.insert(id, forward)),
            Change::RemoveForward(id) => drop(self.forwards.remove(&id)),
            Change::PutLogged(id, traffic) => drop(self.logged.insert(id, traffic)),
            Change::RemoveLogged(id) => drop(self.logged.remove(&id)),
            Change::PutWindows(windows) => self.windows = windows,
        }
    }

    /// The steps that take `change` back, if it is taken now.
    pub fn inverse(&self, change: &Change) -> Vec<Change> {
        fn put<K: Ord, V: Clone>(
            map: &BTreeMap<K, V>,
            id: &K,
            put: impl FnOnce(V) -> Change,
            remove: impl FnOnce() -> Change,
        ) -> Vec<Change> {
            vec![map.get(id).cloned().map_or_else(remove, put)]
        }
        match change {
            Change::PutNetwork(id, _) | Change::RemoveNetwork(id) => put(
                &self.networks,
                id,
                |it| Change::PutNetwork(id.clone(), it),
                || Change::RemoveNetwork(id.clone()),
            ),
            Change::PutInterface(id, _) => {
                let logged = self.logged.get(id).copied();
                let back = put(
                    &self.interfaces,
                    id,
                    |it| Change::PutInterface(id.clone(), it),
                    || Change::RemoveInterface(id.clone()),
                );
                let logged = logged.map(|it| Change::PutLogged(id.clone(), it));
                back.into_iter().chain(logged).collect()
            }
            Change::RemoveInterface(id) => {
                let interface = self.interfaces.get(id).cloned();
                let interface = interface.map(|it| Change::PutInterface(id.clone(), it));
                let addresses = self.addresses.iter().filter(|(_, it)| *it == id);
                let forwards = self.forwards.iter().filter(|(_, it)| it.interface == *id);
                let logged = self.logged.get(id).copied();
                interface
                    .into_iter()
                    .chain(addresses.map(|(it, id)| Change::PutAddress(*it, id.clone())))
                    .chain(forwards.map(|(id, it)| Change::PutForward(id.clone(), it.clone())))
                    .chain(logged.map(|it| Change::PutLogged(id.clone(), it)))
                    .collect()
            }
            Change::PutGroup(id, _) | Change::RemoveGroup(id) => put(
                &self.groups,
                id,
                |it| Change::PutGroup(id.clone(), it),
                || Change::RemoveGroup(id.clone()),
            ),
            Change::PutPrefixList(id, _) | Change::RemovePrefixList(id) => put(
                &self.prefix_lists,
                id,
                |it| Change::PutPrefixList(id.clone(), it),
                || Change::RemovePrefixList(id.clone()),
            ),
            Change::PutAddress(address, _) | Change::RemoveAddress(address) => put(
                &self.addresses,
                address,
                |it| Change::PutAddress(*address, it),
                || Change::RemoveAddress(*address),
            ),
            Change::PutForward(id, _) | Change::RemoveForward(id) => put(
                &self.forwards,
                id,
                |it| Change::PutForward(id.clone(), it),
                || Change::RemoveForward(id.clone()),
            ),
            Change::PutLogged(id, _) | Change::RemoveLogged(id) => put(
                &self.logged,
                id,
                |it| Change::PutLogged(id.clone(), it),
                || Change::RemoveLogged(id.clone()),
            ),
            Change::PutWindows(_) => vec![Change::PutWindows(self.windows.clone())],
        }
    }

    /// The addresses of a group's members, in order.
    pub fn members<'a>(&'a self, group: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        self.interfaces
            .values()
            .filter(move |interface| interface.groups.contains(group))
            .flat_map(|it| [Some(it.ipv4.into()), it.ipv6.map(IpAddr::from)])
            .flatten()
    }
}
