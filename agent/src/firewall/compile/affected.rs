//! Which parts a change affects.

use std::collections::BTreeSet;

use crate::firewall::policy::{Change, Interface, Peer, Policy};

use super::Unit;

/// The units whose parts may be others after `change`, seen from the policy `before` it.
pub fn affected(before: &Policy, change: &Change) -> BTreeSet<Unit> {
    let mut units = BTreeSet::new();
    match change {
        Change::PutNetwork(id, _) | Change::RemoveNetwork(id) => {
            units.insert(Unit::Network(id.clone()));
            units.extend(interfaces(before, |it| it.network == *id));
            let first = before.networks.is_empty();
            let last = before.networks.keys().all(|it| it == id);
            if first || last {
                // There was nothing, or there will be nothing.
                units.insert(Unit::Base);
                units.extend(everything(before));
            }
        }
        Change::PutInterface(id, interface) => {
            interface_changes(before, id, &mut units);
            units.extend(interface.groups.iter().cloned().map(Unit::Members));
        }
        Change::RemoveInterface(id) => interface_changes(before, id, &mut units),
        Change::PutGroup(id, _) | Change::RemoveGroup(id) => {
            units.insert(Unit::Group(id.clone()));
            units.extend(interfaces(before, |it| it.groups.contains(id)));
        }
        Change::PutPrefixList(id, _) | Change::RemovePrefixList(id) => {
            units.insert(Unit::PrefixList(id.clone()));
            // Only whether it is there matters to others.
            let appears = !before.prefix_lists.contains_key(id);
            if appears || matches!(change, Change::RemovePrefixList(_)) {
                for (group, it) in &before.groups {
                    let names = |peer: &Peer| matches!(peer, Peer::PrefixList(list) if list == id);
                    if it.rules.values().any(|rule| names(&rule.peer)) {
                        units.insert(Unit::Group(group.clone()));
                        units.extend(interfaces(before, |it| it.groups.contains(group)));
                    }
                }
            }
        }
        Change::PutAddress(address, id) => {
            units.insert(Unit::Address(*address));
            units.insert(Unit::Interface(id.clone()));
            let had = before.addresses.get(address).cloned();
            units.extend(had.map(Unit::Interface));
        }
        Change::RemoveAddress(address) => {
            units.insert(Unit::Address(*address));
            let had = before.addresses.get(address).cloned();
            units.extend(had.map(Unit::Interface));
        }
        Change::PutForward(id, _) | Change::RemoveForward(id) => {
            units.insert(Unit::Forward(id.clone()));
        }
        Change::PutLogged(id, _) | Change::RemoveLogged(id) => {
            units.insert(Unit::Interface(id.clone()));
        }
        Change::PutWindows(windows) => {
            units.insert(Unit::Base);
            // Only whether there is one matters to interfaces.
            if windows.current.is_some() != before.windows.current.is_some() {
                units.extend(before.logged.keys().cloned().map(Unit::Interface));
            }
        }
    }
    units
}

fn interfaces(policy: &Policy, which: impl Fn(&Interface) -> bool) -> BTreeSet<Unit> {
    let all = policy.interfaces.iter();
    all.filter(|(_, it)| which(it))
        .map(|(id, _)| Unit::Interface(id.clone()))
        .collect()
}

fn interface_changes(before: &Policy, id: &str, units: &mut BTreeSet<Unit>) {
    units.insert(Unit::Interface(id.to_owned()));
    if let Some(was) = before.interfaces.get(id) {
        units.extend(was.groups.iter().cloned().map(Unit::Members));
    }
    let addresses = before.addresses.iter().filter(|(_, it)| *it == id);
    units.extend(addresses.map(|(address, _)| Unit::Address(*address)));
    let forwards = before.forwards.iter().filter(|(_, it)| it.interface == id);
    units.extend(forwards.map(|(forward, _)| Unit::Forward(forward.clone())));
}

fn everything(policy: &Policy) -> BTreeSet<Unit> {
    let mut units = interfaces(policy, |_| true);
    units.extend(policy.networks.keys().cloned().map(Unit::Network));
    units.extend(policy.groups.keys().cloned().map(Unit::Group));
    units.extend(policy.groups.keys().cloned().map(Unit::Members));
    units.extend(policy.prefix_lists.keys().cloned().map(Unit::PrefixList));
    units.extend(policy.addresses.keys().copied().map(Unit::Address));
    units.extend(policy.forwards.keys().cloned().map(Unit::Forward));
    units
}
