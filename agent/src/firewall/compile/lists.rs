//! Sets of addresses: networks, members of groups, prefix lists.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::{
    policy::Policy,
    table::{Element, ElementKey, Field, Lookup, Set, SetData, Table, key},
};

use super::Part;

/// The set of the addresses of a group's members, or of a prefix list's blocks.
pub fn addresses(id: &str, ipv6: bool) -> String {
    format!("{id}-addresses{}", if ipv6 { 6 } else { 4 })
}

pub fn network(policy: &Policy, id: &str, table: &mut Table) {
    let Some(network) = policy.networks.get(id) else {
        return;
    };
    let mut blocks = vec![("networks4", "nat4", IpNet::V4(network.ipv4.trunc()))];
    if let Some(ipv6) = network.ipv6 {
        blocks.push(("networks6", "nat6", IpNet::V6(ipv6.trunc())));
    }
    for (networks, nat, block) in blocks {
        range(table, networks, &block, id);
        if network.nat {
            range(table, nat, &block, id);
        }
    }
    let gateway = ElementKey::exact(key().ipv4(network.gateway_ipv4).build());
    table.element("gateways4", gateway, Element::commented(id));
}

pub fn members(policy: &Policy, group: &str) -> Part {
    let mut part = Part::default();
    if policy.networks.is_empty() {
        return part;
    }
    let table = &mut part.tables.inet;
    for ipv6 in [false, true] {
        table.set(&addresses(group, ipv6), set(ipv6, Lookup::Exact));
    }
    for (id, interface) in &policy.interfaces {
        if !interface.groups.contains(group) {
            continue;
        }
        let mut all = vec![IpAddr::V4(interface.ipv4)];
        all.extend(interface.ipv6.map(IpAddr::V6));
        for address in all {
            table.element(
                &addresses(group, address.is_ipv6()),
                ElementKey::exact(key().address(address).build()),
                Element::commented(id),
            );
        }
    }
    part
}

pub fn prefix_list(policy: &Policy, id: &str, table: &mut Table) {
    let Some(blocks) = policy.prefix_lists.get(id) else {
        return;
    };
    let blocks: Vec<IpNet> = blocks.iter().copied().collect();
    for ipv6 in [false, true] {
        table.set(&addresses(id, ipv6), set(ipv6, Lookup::Ranges));
    }
    // Those that lie in others or beside them are made one: ranges do not overlap.
    for block in IpNet::aggregate(&blocks) {
        range(table, &addresses(id, block.addr().is_ipv6()), &block, "");
    }
}

fn set(ipv6: bool, lookup: Lookup) -> Set {
    Set {
        key: vec![if ipv6 { Field::Ipv6 } else { Field::Ipv4 }],
        lookup,
        data: SetData::Nothing,
        counters: false,
    }
}

/// A range over one field is two elements: the first key, and the first that is no longer in it.
fn range(table: &mut Table, set: &str, block: &IpNet, comment: &str) {
    let first = ElementKey::exact(key().address(block.network()).build());
    table.element(set, first, Element::commented(comment));
    let after = match block.broadcast() {
        IpAddr::V4(it) => it.to_bits().checked_add(1).map(|it| IpAddr::V4(it.into())),
        IpAddr::V6(it) => it.to_bits().checked_add(1).map(|it| IpAddr::V6(it.into())),
    };
    // The last address of all has none behind it.
    if let Some(after) = after {
        let end = ElementKey {
            first: key().address(after).build(),
            last: None,
            starts: false,
        };
        table.element(set, end, Element::default());
    }
}
