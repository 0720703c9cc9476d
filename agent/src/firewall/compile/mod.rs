//! From the policy to tables. Each object of the policy has its part of the tables (a [`Unit`]),
//! which is made from the policy alone; a change of the policy changes the parts that it affects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

mod affected;
mod base;
mod group;
mod interface;
mod lists;
mod places;
mod translation;

pub use affected::affected;
pub use places::{Places, found as places_found};

use super::{policy::Policy, table::Tables};

/// A part of the tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// What is there as soon as there is a network.
    Base,
    Network(String),
    Interface(String),
    Group(String),
    /// The addresses of a group's members, if a rule names the group.
    Members(String),
    PrefixList(String),
    Address(Ipv4Addr),
    Forward(String),
}

/// What a unit comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub tables: Tables,
    /// Groups whose members its rules name.
    pub references: BTreeSet<String>,
    /// Where the elements of its rules are.
    pub places: Places,
}

/// The parts of a policy's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(BTreeMap<Unit, Part>);

/// Parts before and after a change, of the units that it affected.
#[derive(Debug, Default)]
pub struct Step {
    pub old: Tables,
    pub new: Tables,
    parts: BTreeMap<Unit, Part>,
}

/// What a step replaced.
#[derive(Debug)]
pub struct Replaced(BTreeMap<Unit, Option<Part>>);

impl Parts {
    /// All of a policy. `places` says where the elements of groups are already.
    pub fn of(policy: &Policy, places: &BTreeMap<String, Places>) -> Self {
        let mut units: Vec<Unit> = vec![Unit::Base];
        units.extend(policy.networks.keys().cloned().map(Unit::Network));
        units.extend(policy.interfaces.keys().cloned().map(Unit::Interface));
        units.extend(policy.groups.keys().cloned().map(Unit::Group));
        units.extend(policy.prefix_lists.keys().cloned().map(Unit::PrefixList));
        units.extend(policy.addresses.keys().copied().map(Unit::Address));
        units.extend(policy.forwards.keys().cloned().map(Unit::Forward));
        let nothing = Places::default();
        let mut parts = BTreeMap::new();
        for unit in units {
            let places = match &unit {
                Unit::Group(id) => places.get(id),
                _ => None,
            };
            let part = compile(policy, &unit, places.unwrap_or(&nothing));
            parts.insert(unit, part);
        }
        let references: BTreeSet<String> = parts
            .values()
            .flat_map(|it| it.references.clone())
            .collect();
        for group in references {
            let part = lists::members(policy, &group);
            parts.insert(Unit::Members(group), part);
        }
        parts.retain(|_, part| *part != Part::default());
        Self(parts)
    }

    /// The whole tables.
    pub fn tables(&self) -> Tables {
        let mut tables = Tables::default();
        for part in self.0.values() {
            tables.extend(part.tables.clone());
        }
        tables
    }

    /// Where elements are.
    #[cfg(test)]
    pub fn places(&self) -> BTreeMap<String, Places> {
        let all = self.0.iter().filter_map(|(unit, part)| match unit {
            Unit::Group(id) => Some((id.clone(), part.places.clone())),
            _ => None,
        });
        all.collect()
    }

    /// From these parts to those of `policy`, when `units` are affected.
    pub fn step(&self, policy: &Policy, units: &BTreeSet<Unit>) -> Step {
        let mut step = Step::default();
        let mut members = BTreeSet::new();
        for unit in units {
            if let Unit::Members(group) = unit {
                members.insert(group.clone());
                continue;
            }
            let nothing = Places::default();
            let old = self.0.get(unit);
            let part = compile(policy, unit, old.map_or(&nothing, |it| &it.places));
            let before = old.map(|it| &it.references);
            members.extend(before.into_iter().flatten().cloned());
            members.extend(part.references.iter().cloned());
            step.parts.insert(unit.clone(), part);
        }
        for group in members {
            let named = |part: &Part| part.references.contains(&group);
            let part = if step.parts.values().any(named)
                || self
                    .0
                    .iter()
                    .any(|(unit, part)| !step.parts.contains_key(unit) && named(part))
            {
                lists::members(policy, &group)
            } else {
                Part::default()
            };
            step.parts.insert(Unit::Members(group), part);
        }
        for (unit, part) in &step.parts {
            if let Some(old) = self.0.get(unit) {
                step.old.extend(old.tables.clone());
            }
            step.new.extend(part.tables.clone());
        }
        step
    }

    /// Takes a step; gives back what is needed to undo it.
    pub fn take(&mut self, step: Step) -> Replaced {
        let mut replaced = BTreeMap::new();
        for (unit, part) in step.parts {
            let old = if part == Part::default() {
                self.0.remove(&unit)
            } else {
                self.0.insert(unit.clone(), part)
            };
            replaced.insert(unit, old);
        }
        Replaced(replaced)
    }

    /// Undoes a step.
    pub fn restore(&mut self, replaced: Replaced) {
        for (unit, old) in replaced.0 {
            match old {
                Some(part) => drop(self.0.insert(unit, part)),
                None => drop(self.0.remove(&unit)),
            }
        }
    }

    /// The sets of a group that count what its rules admit.
    pub fn counting_sets(&self, group: &str) -> impl Iterator<Item = &str> {
        let part = self.0.get(&Unit::Group(group.to_owned()));
        let sets = part.into_iter().flat_map(|it| &it.tables.inet.sets);
        sets.filter(|(_, set)| set.counters)
            .map(|(name, _)| name.as_str())
    }
}

fn compile(policy: &Policy, unit: &Unit, places: &Places) -> Part {
    // Without networks there is nothing at all.
    if policy.networks.is_empty() {
        return Part::default();
    }
    let mut part = Part::default();
    match unit {
        Unit::Base => part.tables = base::tables(policy),
        Unit::Network(id) => lists::network(policy, id, &mut part.tables.inet),
        Unit::Interface(id) => interface::compile(policy, id, &mut part.tables),
        Unit::Group(id) => group::compile(policy, id, places, &mut part),
        Unit::Members(id) => return lists::members(policy, id),
        Unit::PrefixList(id) => lists::prefix_list(policy, id, &mut part.tables.inet),
        Unit::Address(address) => {
            translation::address(policy, *address, &mut part.tables.inet);
        }
        Unit::Forward(id) => translation::forward(policy, id, &mut part.tables.inet),
    }
    part
}
