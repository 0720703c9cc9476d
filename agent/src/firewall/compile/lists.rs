//! Sets of addresses: networks, members of groups, prefix lists. And the names of a group's sets.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::{
    policy::Policy,
    table::{Element, ElementKey, Field, Lookup, Set, SetData, Table, key},
};

use super::Part;

/// The set of the addresses of the members of all groups that rules name.
pub fn members_set(ipv6: bool) -> &'static str {
    if ipv6 { "members6" } else { "members4" }
}

/// A group as a field of a key: the number in its id.
pub fn number(group: &str) -> Option<[u8; 16]> {
    let digits = group.strip_prefix("sg-")?;
    let number = u128::from_str_radix(digits, 16).ok()?;
    Some(number.to_be_bytes())
}

/// The set of a prefix list's blocks.
pub fn blocks(list: &str, ipv6: bool) -> String {
    format!("{list}-blocks{}", if ipv6 { 6 } else { 4 })
}

/// The set of a group's rules; the layer is counted from 0.
pub fn rules(group: &str, ipv6: bool, layer: usize) -> String {
    let family = if ipv6 { 6 } else { 4 };
    match layer {
        0 => format!("{group}-rules{family}"),
        _ => format!("{group}-rules{family}-{}", layer + 1),
    }
}

/// Group, family and layer of a set that is named by [`rules`].
pub fn split_layer(set: &str) -> Option<(&str, bool, usize)> {
    let (group, rest) = set.split_once("-rules")?;
    let (family, layer) = rest.split_at_checked(1)?;
    let layer = match layer.strip_prefix('-') {
        None if layer.is_empty() => 0,
        None => return None,
        Some(number) => number.parse::<usize>().ok()?.checked_sub(1)?,
    };
    match family {
        "4" => Some((group, false, layer)),
        "6" => Some((group, true, layer)),
        _ => None,
    }
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
    let Some(number) = number(group) else {
        return part;
    };
    if policy.networks.is_empty() {
        return part;
    }
    let table = &mut part.tables.inet;
    for (id, interface) in &policy.interfaces {
        if !interface.groups.contains(group) {
            continue;
        }
        let mut all = vec![IpAddr::V4(interface.ipv4)];
        all.extend(interface.ipv6.map(IpAddr::V6));
        for address in all {
            let key = key().bytes(&number).address(address).build();
            table.element(
                members_set(address.is_ipv6()),
                ElementKey::exact(key),
                Element::commented(id),
            );
        }
    }
    part
}

pub fn prefix_list(policy: &Policy, id: &str, table: &mut Table) {
    let Some(blocks_of) = policy.prefix_lists.get(id) else {
        return;
    };
    let all: Vec<IpNet> = blocks_of.iter().copied().collect();
    for ipv6 in [false, true] {
        let key = vec![if ipv6 { Field::Ipv6 } else { Field::Ipv4 }];
        let set = Set {
            key,
            lookup: Lookup::Ranges,
            data: SetData::Nothing,
            counters: false,
        };
        table.set(&blocks(id, ipv6), set);
    }
    // Those that lie in others or beside them are made one: ranges do not overlap.
    for block in IpNet::aggregate(&all) {
        range(table, &blocks(id, block.addr().is_ipv6()), &block, "");
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
