//! Which layers to merge.

use super::super::layout::{self, Layout, Record};
use super::{MERGED_CHAIN_LENGTH, Merge};
use crate::error::{Error, ErrorKind, Result};
use crate::id::LayerId;
use crate::layer::chain::{self, MAX_CHAIN_LENGTH};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The layers that records reach, and how they hang together.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: HashMap<LayerId, Node>,
    /// Layers that a volume writes to: never merged.
    tops: HashSet<LayerId>,
    /// Layers that snapshots name.
    named: HashSet<LayerId>,
}

#[derive(Debug)]
struct Node {
    parent: Option<LayerId>,
    /// Not sealed yet, or left so by a process that was killed.
    dirty: bool,
    children: usize,
}

impl Tree {
    /// Reads all records and the headers of all layers that they reach. Names must be locked.
    pub fn read(layout: &Layout) -> Result<Self> {
        let mut tree = Tree::default();
        for (dir, writable) in [(&layout.volumes, true), (&layout.snapshots, false)] {
            for id in layout::record_ids(dir)? {
                if let Err(error) = tree.enter(layout, dir, &id, writable) {
                    tracing::warn!("{id} is passed over by merging: {error}");
                }
            }
        }
        Ok(tree)
    }

    fn enter(&mut self, layout: &Layout, dir: &Path, id: &str, writable: bool) -> Result<()> {
        let record = Record::read(dir, id)?
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("record {id} vanished")))?;
        let first = record.layer_id()?;
        match writable {
            true => self.tops.insert(first.clone()),
            false => self.named.insert(first.clone()),
        };
        let mut next = Some(first);
        while let Some(layer) = next {
            if self.nodes.contains_key(&layer) {
                break;
            }
            let link = chain::open_link(&layout.layers, layer.clone())?;
            let node = Node {
                parent: link.parent.clone(),
                dirty: link.header.is_dirty(),
                children: 0,
            };
            self.nodes.insert(layer, node);
            next = link.parent;
        }
        Ok(())
    }

    /// All merges in chains that are too long: the longest chains first, and the cheapest merges
    /// of each.
    pub fn merges(mut self, layout: &Layout) -> Vec<Merge> {
        self.count_children();
        let mut chains: Vec<Vec<&LayerId>> = self
            .nodes
            .keys()
            .filter(|layer| !self.tops.contains(*layer))
            .map(|layer| self.chain(layer))
            .filter(|chain| chain.len() >= MERGED_CHAIN_LENGTH)
            .collect();
        // The ids only make the order the same each time.
        chains.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let (mut merges, mut seen) = (Vec::new(), HashSet::new());
        for chain in chains {
            let mut of_chain = Vec::new();
            for pair in chain
                .windows(2)
                .filter(|pair| seen.insert((pair[0], pair[1])))
            {
                match self.merge_of(layout, pair[0], pair[1]) {
                    Ok(merge) => of_chain.extend(merge),
                    Err(error) => tracing::warn!("passed over by merging: {error}"),
                }
            }
            of_chain.sort_by_key(|(cost, _)| *cost);
            merges.extend(of_chain.into_iter().map(|(_, merge)| merge));
        }
        merges
    }

    fn count_children(&mut self) {
        let parents: Vec<_> = self
            .nodes
            .values()
            .flat_map(|node| node.parent.clone())
            .collect();
        for parent in parents {
            if let Some(node) = self.nodes.get_mut(&parent) {
                node.children += 1;
            }
        }
    }

    /// A layer and those below it, as far as they could be read.
    fn chain<'a>(&'a self, layer: &'a LayerId) -> Vec<&'a LayerId> {
        let mut chain = vec![layer];
        let mut next = self.nodes.get(layer).and_then(|node| node.parent.as_ref());
        while let Some(layer) = next {
            if chain.len() >= MAX_CHAIN_LENGTH || chain.contains(&layer) {
                break;
            }
            chain.push(layer);
            next = self.nodes.get(layer).and_then(|node| node.parent.as_ref());
        }
        chain
    }

    /// What merging two layers costs: what is copied, and what is stored twice afterwards.
    fn merge_of(
        &self,
        layout: &Layout,
        child: &LayerId,
        parent: &LayerId,
    ) -> Result<Option<(u64, Merge)>> {
        let (Some(above), Some(below)) = (self.nodes.get(child), self.nodes.get(parent)) else {
            return Ok(None);
        };
        let is_top = |layer| self.tops.contains(layer);
        if above.dirty || below.dirty || is_top(child) || is_top(parent) {
            return Ok(None);
        }
        let size = |layer: &LayerId| {
            let link = chain::open_link(&layout.layers, layer.clone())?;
            super::super::allocated_by(&link)
        };
        let (child_bytes, parent_bytes) = (size(child)?, size(parent)?);
        let stays = below.children > 1 || self.named.contains(parent);
        let twice = if stays { parent_bytes } else { 0 };
        let merge = Merge {
            child: child.clone(),
            parent: parent.clone(),
            copies_bytes: child_bytes + parent_bytes,
        };
        Ok(Some((merge.copies_bytes + twice, merge)))
    }
}
