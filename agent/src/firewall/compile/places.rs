//! Where the rules of a group are in its sets. A rule stays in its place for as long as it lives,
//! since its counter is there.

use std::{collections::BTreeMap, net::IpAddr};

use crate::firewall::{
    policy::Policy,
    table::{Element, ElementKey, key},
};

use super::{
    group::{Tag, peer_name},
    lists::split_layer,
};

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

    /// A field of two bytes: a port, or type and code of ICMP.
    pub fn pair(&mut self, first: u16, last: u16) {
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

/// The places of one group's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// By family (whether it is IPv6) and rule. The kernel's sets of ranges hold no two elements
    /// that overlap, but rules may: those that do are in further sets, the layers.
    layers: BTreeMap<(bool, String), usize>,
    /// The numbers of groups and prefix lists that the rules name.
    peers: BTreeMap<String, u16>,
}

impl Places {
    /// Numbers for the peers that rules name now; each keeps the one that it has. None is left
    /// for those beyond [`Tag::PEERS`].
    pub fn number<'a>(&self, names: impl Iterator<Item = &'a str> + Clone, taken: &mut Places) {
        for name in names.clone() {
            if let Some(number) = self.peers.get(name) {
                taken.peers.insert(name.to_owned(), *number);
            }
        }
        let used: std::collections::BTreeSet<u16> = taken.peers.values().copied().collect();
        let mut free = (1..=Tag::PEERS).filter(|number| !used.contains(number));
        for name in names {
            if !taken.peers.contains_key(name)
                && let Some(number) = free.next()
            {
                taken.peers.insert(name.to_owned(), number);
            }
        }
    }

    /// The number of a peer; blocks have 0.
    pub fn peer(&self, name: Option<&str>) -> Option<u16> {
        match name {
            None => Some(0),
            Some(name) => self.peers.get(name).copied(),
        }
    }

    /// Spreads the elements of one family over layers. `taken` is told where they are now.
    pub fn assign<'a, T>(
        &self,
        ipv6: bool,
        elements: Vec<(&'a str, Ranges, T)>,
        taken: &mut Places,
    ) -> BTreeMap<usize, Vec<(&'a str, Ranges, T)>> {
        let mut layers = BTreeMap::<usize, Vec<(&str, Ranges, T)>>::new();
        let was = |rule: &str| self.layers.get(&(ipv6, rule.to_owned())).copied();
        let (old, new): (Vec<_>, Vec<_>) = elements
            .into_iter()
            .partition(|(rule, ..)| was(rule).is_some());
        for (rule, ranges, more) in old.into_iter().chain(new) {
            let free = |layer: usize| {
                let others = layers.get(&layer);
                let mut others = others.into_iter().flatten();
                !others.any(|(_, other, _)| ranges.overlaps(other))
            };
            let layer = was(rule)
                .filter(|layer| free(*layer))
                .unwrap_or_else(|| (0..).find(|layer| free(*layer)).unwrap_or_default());
            taken.layers.insert((ipv6, rule.to_owned()), layer);
            layers.entry(layer).or_default().push((rule, ranges, more));
        }
        layers
    }
}

/// Where rules of the policy are in the sets that the kernel has: their ids are the comments of
/// elements.
pub fn found(
    policy: &Policy,
    sets: &BTreeMap<String, BTreeMap<ElementKey, Element>>,
) -> BTreeMap<String, Places> {
    let mut all = BTreeMap::<String, Places>::new();
    for (set, elements) in sets {
        let Some((id, ipv6, layer)) = split_layer(set) else {
            continue;
        };
        let Some(group) = policy.groups.get(id) else {
            continue;
        };
        let places = all.entry(id.to_owned()).or_default();
        for (key, element) in elements {
            let Some(rule) = group.rules.get(&element.comment) else {
                continue;
            };
            let number = Tag::of_key(&key.first).peer();
            if let Some(peer) = peer_name(rule)
                && number > 0
                && places.peers.values().all(|taken| *taken != number)
            {
                places.peers.entry(peer.to_owned()).or_insert(number);
            }
            places.layers.insert((ipv6, element.comment.clone()), layer);
        }
    }
    all
}
