//! Of the compiler alone, without a kernel.

use std::collections::BTreeSet;

use super::{
    random::{GUESTS, Random},
    world::policy,
};
use crate::firewall::{
    compile::{Parts, affected},
    policy::{Change, Policy, Traffic, Windows},
    table::{Lookup, Tables, diff},
};

fn windows(current: Option<u64>, retired: &[u64]) -> Change {
    let retired = retired.iter().copied().collect();
    Change::PutWindows(Windows { current, retired })
}

#[test]
fn changes_one_by_one_come_to_the_same_as_all_at_once() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let mut policy = policy(GUESTS);
        let mut parts = Parts::of(&policy, &Default::default());
        let all = Traffic {
            accepted: true,
            refused: true,
        };
        for round in 0..80 {
            let change = match round {
                // The last network goes, and comes again.
                40 => Change::RemoveNetwork(policy.networks.keys().next().expect("two").clone()),
                41 => Change::RemoveNetwork(policy.networks.keys().next().expect("one").clone()),
                43 => Change::PutNetwork(format!("net-{:017x}", 0), super::world::network(0)),
                50 => Change::PutNetwork(format!("net-{:017x}", 1), super::world::network(1)),
                10 => Change::PutLogged(super::world::eni(0), all),
                20 => windows(Some(1000), &[]),
                30 => Change::PutLogged(super::world::eni(1), all),
                42 => windows(Some(2000), &[1000]),
                60 => Change::RemoveLogged(super::world::eni(1)),
                70 => windows(None, &[2000]),
                _ => random.change(&policy),
            };
            let before = policy.clone();
            let undo = policy.inverse(&change);
            let mut units = affected(&policy, &change);
            policy.apply(change.clone());
            units.extend(affected(&policy, &change));
            let step = parts.step(&policy, &units);
            parts.take(step);
            let whole = Parts::of(&policy, &parts.places());
            assert_eq!(parts, whole, "seed {seed}, round {round}: {change:?}");
            no_overlap(&parts.tables());
            let mut back = policy.clone();
            undo.into_iter().for_each(|change| back.apply(change));
            assert_eq!(back, before, "{change:?} undone");
        }
    }
}

#[test]
fn an_undone_step_leaves_nothing_behind() {
    let mut random = Random(7);
    let mut policy = random.policy();
    let mut parts = Parts::of(&policy, &Default::default());
    let mut units = BTreeSet::new();
    let before = parts.clone();
    for _ in 0..10 {
        let change = random.change(&policy);
        units.extend(affected(&policy, &change));
        policy.apply(change.clone());
        units.extend(affected(&policy, &change));
    }
    let step = parts.step(&policy, &units);
    let replaced = parts.take(step);
    assert_ne!(parts, before);
    parts.restore(replaced);
    assert_eq!(parts, before);
}

#[test]
fn one_more_rule_is_one_more_element() {
    let mut policy = Random(3).policy();
    let id = super::world::sg(0);
    policy.groups.insert(id.clone(), super::world::closed(0));
    let mut group = policy.groups[&id].clone();
    let mut rule = |port: u16| {
        let matches = crate::firewall::policy::Match::Ports {
            protocol: 6,
            first: port,
            last: port,
        };
        group.rules.insert(
            format!("sgr-{port}"),
            crate::firewall::policy::Rule {
                direction: crate::firewall::policy::Direction::Ingress,
                matches,
                peer: crate::firewall::policy::Peer::Block("0.0.0.0/0".parse().expect("block")),
            },
        );
        Change::PutGroup(id.clone(), group.clone())
    };
    let first = rule(80);
    let second = rule(81);
    policy.apply(first);
    let parts = Parts::of(&policy, &Default::default());
    let units = affected(&policy, &second);
    policy.apply(second);
    let step = parts.step(&policy, &units);
    let commands = diff(&step.old.inet, &step.new.inet);
    assert_eq!(commands.len(), 1, "{commands:?}");
}

#[test]
fn without_networks_there_is_nothing() {
    let mut policy = Random(5).policy();
    policy.networks.clear();
    let parts = Parts::of(&policy, &Default::default());
    assert_eq!(parts.tables(), Tables::default());
    assert_eq!(Parts::of(&Policy::default(), &Default::default()), parts);
}

fn no_overlap(tables: &Tables) {
    for (name, set) in &tables.inet.sets {
        if set.lookup != Lookup::Ranges || set.key.len() < 2 {
            continue;
        }
        let elements: Vec<_> = tables.inet.elements[name].keys().collect();
        for (index, one) in elements.iter().enumerate() {
            for other in &elements[index + 1..] {
                let mut at = 0;
                let apart = set.key.iter().any(|field| {
                    let end = at + field.words() * 4;
                    let range = at..end;
                    at = end;
                    let last =
                        |it: &Option<Vec<u8>>| it.as_ref().expect("last")[range.clone()].to_vec();
                    last(&one.last) < other.first[range.clone()].to_vec()
                        || last(&other.last) < one.first[range.clone()].to_vec()
                });
                assert!(apart, "{name}: {one:?} and {other:?}");
            }
        }
    }
}
