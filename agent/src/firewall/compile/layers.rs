//! The kernel's sets of ranges hold no two elements that overlap, but rules may: those that do are
//! in further sets, the layers. A rule stays in its layer for as long as it lives, since its
//! counter is there.

use std::{collections::BTreeMap, net::IpAddr};

use crate::firewall::table::{Table, key};

/// First and last of each field of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(Vec<u8>, Vec<u8>)>);

impl Ranges {
    pub fn address(&mut self, first: IpAddr, last: IpAddr) {
        let bytes = |it: IpAddr| key().address(it).build();
        self.0.push((bytes(first), bytes(last)));
    }

    pub fn byte(&mut self, first: u8, last: u8) {
        self.0.push((vec![first], vec![last]));
    }

    pub fn port(&mut self, first: u16, last: u16) {
        let bytes = |it: u16| it.to_be_bytes().to_vec();
        self.0.push((bytes(first), bytes(last)));
    }

    /// First and last key.
    pub fn keys(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut first, mut last) = (key(), key());
        for (from, to) in &self.0 {
            first = first.bytes(from);
            last = last.bytes(to);
        }
        (first.build(), last.build())
    }

    fn overlaps(&self, other: &Ranges) -> bool {
        let mut fields = self.0.iter().zip(&other.0);
        fields.all(|((first, last), (from, to))| first <= to && from <= last)
    }
}

/// In which layer of a set the element of each rule is, by the set's name and the rule's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(BTreeMap<(String, String), usize>);

impl Layers {
    /// Adds what others know.
    pub fn extend(&mut self, other: Layers) {
        self.0.extend(other.0);
    }

    /// The name of a layer.
    pub fn set(base: &str, layer: usize) -> String {
        match layer {
            0 => base.to_owned(),
            _ => format!("{base}-{}", layer + 1),
        }
    }

    /// Spreads the elements of a set over layers; each rule goes where it was, if that is still
    /// possible. `taken` is told where they are now.
    pub fn assign<'a>(
        &self,
        base: &str,
        elements: Vec<(&'a str, Ranges)>,
        taken: &mut Layers,
    ) -> BTreeMap<usize, Vec<(&'a str, Ranges)>> {
        let mut layers = BTreeMap::<usize, Vec<(&str, Ranges)>>::new();
        let was = |rule: &str| self.0.get(&(base.to_owned(), rule.to_owned())).copied();
        let (old, new): (Vec<_>, Vec<_>) = elements
            .into_iter()
            .partition(|(rule, _)| was(rule).is_some());
        for (rule, ranges) in old.into_iter().chain(new) {
            let free = |layer: usize| {
                let others = layers.get(&layer);
                let mut others = others.into_iter().flatten();
                !others.any(|(_, other)| ranges.overlaps(other))
            };
            let layer = was(rule)
                .filter(|layer| free(*layer))
                .unwrap_or_else(|| (0..).find(|layer| free(*layer)).unwrap_or_default());
            taken.0.insert((base.to_owned(), rule.to_owned()), layer);
            layers.entry(layer).or_default().push((rule, ranges));
        }
        layers
    }
}

/// Where rules are in a table that the kernel has: their ids are the comments of elements.
pub fn found(table: &Table) -> Layers {
    let mut layers = Layers::default();
    for (set, elements) in &table.elements {
        let (base, layer) = match set.rsplit_once('-') {
            Some((base, number)) => match number.parse::<usize>() {
                Ok(number) if number > 1 => (base, number - 1),
                _ => (set.as_str(), 0),
            },
            None => continue,
        };
        for element in elements.values() {
            if !element.comment.is_empty() {
                let key = (base.to_owned(), element.comment.clone());
                layers.0.insert(key, layer);
            }
        }
    }
    layers
}
