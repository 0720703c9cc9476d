//! Tables of nftables as plain data: what is wanted, what is there, and the difference.

use std::collections::BTreeMap;

mod diff;
mod expression;
mod field;

pub use diff::{Command, diff};
pub use expression::{CtState, Direction, Expression, RuleBuilder, rule};
pub use field::{Field, key};

/// The name of our tables.
pub const TABLE: &str = "hearth";

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    Arp,
}

impl Family {
    /// All that we have a table in.
    pub const ALL: [Family; 2] = [Family::Inet, Family::Arp];

    /// `NFPROTO_*`
    pub fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Arp => 3,
        }
    }
}

/// Our tables, or a part of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub inet: Table,
    pub arp: Table,
}

impl Tables {
    pub fn get(&self, family: Family) -> &Table {
        match family {
            Family::Inet => &self.inet,
            Family::Arp => &self.arp,
        }
    }

    /// Adds what `other` has. No two parts have the same object or element.
    pub fn extend(&mut self, other: Tables) {
        self.inet.extend(other.inet);
        self.arp.extend(other.arp);
    }
}

/// A table, or a part of one: elements may be of sets that are in another part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub chains: BTreeMap<String, Chain>,
    pub sets: BTreeMap<String, Set>,
    /// By the name of the set.
    pub elements: BTreeMap<String, BTreeMap<ElementKey, Element>>,
}

impl Table {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty() && self.elements.is_empty()
    }

    pub fn extend(&mut self, other: Table) {
        self.chains.extend(other.chains);
        self.sets.extend(other.sets);
        for (set, elements) in other.elements {
            self.elements.entry(set).or_default().extend(elements);
        }
    }

    /// Adds a chain that others jump to.
    pub fn chain(&mut self, name: &str, rules: Vec<Rule>) {
        self.chains
            .insert(name.to_owned(), Chain { base: None, rules });
    }

    pub fn set(&mut self, name: &str, set: Set) {
        self.sets.insert(name.to_owned(), set);
    }

    pub fn element(&mut self, set: &str, key: ElementKey, element: Element) {
        let elements = self.elements.entry(set.to_owned()).or_default();
        elements.insert(key, element);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Where packets come in; `None` for chains that are jumped to.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Packets come in at a hook, and are accepted at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `NF_INET_*` or `NF_ARP_*`
    pub hook: u32,
    pub priority: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub expressions: Vec<Expression>,
    pub comment: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What the key is made of.
    pub key: Vec<Field>,
    pub lookup: Lookup,
    pub data: SetData,
    /// Each element counts packets and bytes.
    pub counters: bool,
}

/// How a set finds its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// By a hash of the whole key.
    Exact,
    /// Each field is between first and last; elements do not overlap.
    Ranges,
    /// As `Exact`, and packets add the elements: what is in there is the kernel's alone.
    Filled,
}

/// What a set says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// That it is there.
    Nothing,
    Verdict,
    Value(Vec<Field>),
}

/// What tells the elements of a set apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ElementKey {
    /// Fields, each filled up with zeroes to a multiple of 4 bytes.
    pub first: Vec<u8>,
    /// The last key, inclusive, in sets of ranges over several fields.
    pub last: Option<Vec<u8>>,
    /// Whether it is an element, or begins one. If not: the first key that is no longer in the
    /// range before it, in sets of ranges over one field. The kernel wants the end of a range
    /// before the beginning of the next.
    pub starts: bool,
}

impl ElementKey {
    pub fn exact(key: Vec<u8>) -> Self {
        Self {
            first: key,
            last: None,
            starts: true,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    pub data: Option<Data>,
    pub comment: String,
}

impl Element {
    pub fn commented(comment: &str) -> Self {
        Self {
            data: None,
            comment: comment.to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Jump(String),
    Value(Vec<u8>),
}
