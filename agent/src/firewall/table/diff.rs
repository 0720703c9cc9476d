//! The commands that make one table of another.

use std::collections::BTreeSet;

use super::{Base, Chain, Element, ElementKey, Rule, Set, Table};

/// One command of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    AddChain(&'a str, Option<Base>),
    AddSet(&'a str, &'a Set),
    /// Removes all rules of a chain.
    FlushChain(&'a str),
    DeleteElement(&'a str, &'a ElementKey, &'a Element),
    AddElement(&'a str, &'a ElementKey, &'a Element),
    AddRule(&'a str, &'a Rule),
    DeleteChain(&'a str),
    DeleteSet(&'a str),
}

/// From `old` to `new`, in an order that the kernel takes: what is named exists, what is removed is
/// no longer named. Sets of the same name are the same but for their elements, chains the same but
/// for their rules.
pub fn diff<'a>(old: &'a Table, new: &'a Table) -> Vec<Command<'a>> {
    let mut commands = Vec::new();
    for (name, chain) in &new.chains {
        if !old.chains.contains_key(name) {
            commands.push(Command::AddChain(name, chain.base));
        }
    }
    for (name, set) in &new.sets {
        if !old.sets.contains_key(name) {
            commands.push(Command::AddSet(name, set));
        }
    }
    let changed: BTreeSet<&str> = new
        .chains
        .iter()
        .filter(|(name, chain)| rules_of(old.chains.get(*name)) != chain.rules.as_slice())
        .map(|(name, _)| name.as_str())
        .collect();
    for (name, chain) in &old.chains {
        let goes = !new.chains.contains_key(name);
        if (goes || changed.contains(name.as_str())) && !chain.rules.is_empty() {
            commands.push(Command::FlushChain(name));
        }
    }
    elements(old, new, &mut commands);
    for name in &changed {
        for rule in rules_of(new.chains.get(*name)) {
            commands.push(Command::AddRule(name, rule));
        }
    }
    for name in old.chains.keys() {
        if !new.chains.contains_key(name) {
            commands.push(Command::DeleteChain(name));
        }
    }
    for name in old.sets.keys() {
        if !new.sets.contains_key(name) {
            commands.push(Command::DeleteSet(name));
        }
    }
    commands
}

fn rules_of(chain: Option<&Chain>) -> &[Rule] {
    chain.map_or(&[], |chain| &chain.rules)
}

fn elements<'a>(old: &'a Table, new: &'a Table, commands: &mut Vec<Command<'a>>) {
    for (set, elements) in &old.elements {
        // With the set go its elements. But maps of verdicts hold on to chains until then.
        let stay = new.elements.get(set);
        for (key, element) in elements {
            if stay.and_then(|it| it.get(key)) != Some(element) {
                commands.push(Command::DeleteElement(set, key, element));
            }
        }
    }
    for (set, elements) in &new.elements {
        let were = old.elements.get(set);
        for (key, element) in elements {
            if were.and_then(|it| it.get(key)) != Some(element) {
                commands.push(Command::AddElement(set, key, element));
            }
        }
    }
}
