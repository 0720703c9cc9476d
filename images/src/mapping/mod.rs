//! Which layer of a chain holds a guest cluster, by our own reading of the tables.
//!
//! For everything that reads whole volumes or snapshots without a guest: listing and comparing
//! blocks, export. The tables are read one span (what one L2 table covers, 512 MiB) at a time, so
//! that memory does not depend on the size of the disk, and each entry is judged before it is
//! followed: a damaged table is an error, whatever it says.

mod layer;

use crate::check::tables::OwnTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::id::LayerId;
use crate::layer::CLUSTER_BYTES;
use crate::layer::chain::Link;
use crate::store::Locked;
use layer::LayerMap;

/// Clusters of one span: the entries of one L2 table.
pub(crate) const SPAN_CLUSTERS: u64 = CLUSTER_BYTES / 8;

/// Guest bytes of one span.
pub(crate) const SPAN_BYTES: u64 = SPAN_CLUSTERS * CLUSTER_BYTES;

/// Where the contents of one guest cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nowhere: it reads as zeroes.
    Zeroes,
    /// In a file of the chain. Behind its first `length` bytes the cluster reads as zeroes: the
    /// disk of that layer, or of one that it is seen through, ends there.
    Data {
        /// Number of the layer, 0 is the top.
        layer: usize,
        /// Offset in that layer's file.
        offset: u64,
        /// 1 to [`CLUSTER_BYTES`].
        length: u64,
    },
}

/// A chain of layers, open for reading. Nobody may write to any of them meanwhile: all are
/// sealed, or the top one is locked.
#[derive(Debug)]
pub(crate) struct ChainMap {
    layers: Vec<LayerMap>,
    size: u64,
    _lock: Option<Locked>,
}

impl ChainMap {
    /// Reads the L1 tables. `lock` is held for as long as the map lives.
    pub fn open(top: Link, ancestors: Vec<Link>, lock: Option<Locked>) -> Result<ChainMap> {
        let size = top.header.size;
        let mut layers: Vec<LayerMap> = Vec::with_capacity(1 + ancestors.len());
        for link in std::iter::once(top).chain(ancestors) {
            if let Some(child) = layers.last()
                && link.header.size > child.size()
            {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("layer {} is smaller than its parent", child.id()),
                ));
            }
            layers.push(LayerMap::open(link)?);
        }
        Ok(ChainMap {
            layers,
            size,
            _lock: lock,
        })
    }

    /// Size of the virtual disk in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of spans of the disk.
    pub fn spans(&self) -> u64 {
        self.size.div_ceil(SPAN_BYTES)
    }

    /// The layers' ids, the top one first.
    pub fn layer_ids(&self) -> impl Iterator<Item = &LayerId> {
        self.layers.iter().map(LayerMap::id)
    }

    /// Id of a layer by its number.
    pub fn layer_id(&self, layer: usize) -> &LayerId {
        self.layers[layer].id()
    }

    /// Whether one of the layers that `which` accepts has an L2 table for a span.
    pub fn has_table(&self, span: u64, which: impl Fn(&LayerId) -> bool) -> bool {
        self.layers
            .iter()
            .any(|layer| layer.has_table(span) && which(layer.id()))
    }

    /// Resolves the clusters of one span through the whole chain; `None` if it holds nothing.
    pub fn resolve(&self, span: u64) -> Result<Option<Vec<Target>>> {
        let first = span * SPAN_BYTES;
        let clusters = self
            .size
            .saturating_sub(first)
            .div_ceil(CLUSTER_BYTES)
            .min(SPAN_CLUSTERS) as usize;
        if clusters == 0 || !self.has_table(span, |_| true) {
            return Ok(None);
        }
        let mut targets = vec![Target::Zeroes; clusters];
        let mut open = vec![true; clusters];
        let mut left = clusters;
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(entries) = layer.table(span)? else {
                continue;
            };
            for (index, entry) in entries.iter().take(clusters).enumerate() {
                if *entry == 0 || !open[index] {
                    continue;
                }
                let guest = first + index as u64 * CLUSTER_BYTES;
                // What lies behind the end of a layer's disk is not seen through it. Parents are
                // never larger than their children, so that the own size is the smallest passed.
                let Some(length) = layer.size().checked_sub(guest).filter(|left| *left > 0) else {
                    continue;
                };
                match layer.target(*entry)? {
                    OwnTarget::Parent => continue,
                    OwnTarget::Zeroes => (),
                    OwnTarget::Data(offset) => {
                        targets[index] = Target::Data {
                            layer: number,
                            offset,
                            length: length.min(CLUSTER_BYTES),
                        }
                    }
                }
                open[index] = false;
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        Ok(Some(targets))
    }

    /// Fills `buffer`, at most a cluster, with the first bytes of a cluster.
    pub fn read_cluster(&self, target: Target, buffer: &mut [u8]) -> Result<()> {
        let Target::Data {
            layer,
            offset,
            length,
        } = target
        else {
            buffer.fill(0);
            return Ok(());
        };
        let stored = buffer.len().min(length as usize);
        let (data, zeroes) = buffer.split_at_mut(stored);
        zeroes.fill(0);
        self.layers[layer].read(data, offset)
    }
}
