//! What volumes and snapshots take on the host's disk.
//!
//! A layer is *own* to a volume or snapshot, or to a set of them (those of an account), if nobody
//! else reaches it, and *shared* otherwise. Own bytes are what deleting the whole set gives back.

use super::Owner;
use super::graph::Graph;
use crate::Store;
use crate::error::Result;
use crate::id::{SnapshotId, VolumeId};
use std::collections::HashMap;

/// Bytes on the host's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    /// In layers that nobody else reaches.
    pub own_bytes: u64,
    /// In layers that others reach too. Each layer counts once.
    pub shared_bytes: u64,
}

/// The usage of a store at one moment.
#[derive(Debug)]
pub struct Usage {
    /// Bytes of each layer, and how many records reach it.
    layers: Vec<(u64, usize)>,
    /// Which layers each record reaches.
    owners: HashMap<Owner, Vec<usize>>,
    unreached_bytes: u64,
}

impl Store {
    /// What every volume and snapshot takes, in one walk over records and headers. Whatever
    /// cannot be read counts as nothing: [`Store::check`] tells of it.
    pub fn usage(&self) -> Result<Usage> {
        let graph = Graph::read(self.layout())?;
        let users = graph.users();
        let numbers: HashMap<_, _> = graph.layers.keys().zip(0..).collect();
        let layers: Vec<(u64, usize)> = graph
            .layers
            .iter()
            .map(|(id, layer)| (layer.allocated, users.get(id).map_or(0, Vec::len)))
            .collect();
        let mut owners: HashMap<Owner, Vec<usize>> = HashMap::new();
        for root in &graph.roots {
            let reach = graph.reach(root).layers;
            let reached = reach.iter().flat_map(|id| numbers.get(id)).copied();
            owners.insert(root.owner.clone(), reached.collect());
        }
        let unreached = layers.iter().filter(|(_, users)| *users == 0);
        Ok(Usage {
            unreached_bytes: unreached.map(|(bytes, _)| bytes).sum(),
            layers,
            owners,
        })
    }
}

impl Usage {
    /// A volume's, if there is one of this id.
    pub fn volume(&self, id: &VolumeId) -> Option<Blocks> {
        self.one(&Owner::Volume(id.clone()))
    }

    /// A snapshot's, if there is one of this id.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<Blocks> {
        self.one(&Owner::Snapshot(id.clone()))
    }

    /// One volume's or snapshot's.
    pub fn one(&self, owner: &Owner) -> Option<Blocks> {
        self.owners.contains_key(owner).then(|| self.of([owner]))
    }

    /// That of a set of volumes and snapshots together. What is not there counts as nothing.
    pub fn of<'a>(&self, owners: impl IntoIterator<Item = &'a Owner>) -> Blocks {
        let mut members: HashMap<usize, usize> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        for owner in owners {
            if seen.insert(owner) {
                for layer in self.owners.get(owner).into_iter().flatten() {
                    *members.entry(*layer).or_default() += 1;
                }
            }
        }
        let mut blocks = Blocks::default();
        for (layer, count) in members {
            let (bytes, users) = self.layers[layer];
            if count == users {
                blocks.own_bytes += bytes;
            } else {
                blocks.shared_bytes += bytes;
            }
        }
        blocks
    }

    /// All volumes and snapshots, sorted.
    pub fn owners(&self) -> Vec<&Owner> {
        let mut owners: Vec<_> = self.owners.keys().collect();
        owners.sort_unstable();
        owners
    }

    /// All layers together, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.layers.iter().map(|(bytes, _)| bytes).sum()
    }

    /// Layers that nothing reaches, in bytes; they go with the next deletion.
    pub fn unreached_bytes(&self) -> u64 {
        self.unreached_bytes
    }
}
