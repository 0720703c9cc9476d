//! All records and layers of a store, and which record reaches which layer.

use super::Owner;
use crate::error::{IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::layer::chain::{self, MAX_CHAIN_LENGTH};
use crate::store::{Layout, Record, record_ids};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A store as it was at one moment, as far as it could be read.
#[derive(Debug)]
pub(crate) struct Graph {
    pub roots: Vec<Root>,
    pub layers: BTreeMap<LayerId, Layer>,
    /// Names in the folder of layers that are no layer's.
    pub other_files: Vec<String>,
}

/// A record.
#[derive(Debug)]
pub(crate) struct Root {
    pub owner: Owner,
    /// The layer that it names, or why that cannot be told.
    pub top: Result<LayerId, String>,
}

/// A layer file.
#[derive(Debug)]
pub(crate) struct Layer {
    /// What the file takes on the host's disk, in bytes.
    pub allocated: u64,
    /// Mode 0444.
    pub read_only: bool,
    /// What its header says, or why that cannot be told.
    pub head: Result<Head, String>,
}

/// What is needed of a layer's header.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub parent: Option<LayerId>,
    pub size: u64,
}

/// The layers that a record reaches.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// From the top down, as far as it could be followed.
    pub layers: Vec<LayerId>,
    /// Why it could not be followed further: the layer, and what is wrong with it. A layer whose
    /// header cannot be read is no such reason, but ends the chain too.
    pub broken: Option<(LayerId, String)>,
}

impl Graph {
    /// Reads everything. Others may change names meanwhile: what does not fit together is
    /// looked at again with the names locked.
    pub fn read(layout: &Layout) -> Result<Graph> {
        let graph = Graph::read_now(layout)?;
        if graph.is_whole() {
            return Ok(graph);
        }
        let _names = layout.lock_names()?;
        Graph::read_now(layout)
    }

    fn read_now(layout: &Layout) -> Result<Graph> {
        // Records first: a layer is there before a record names it.
        let mut roots = Vec::new();
        for id in record_ids(&layout.volumes)? {
            if let Ok(id) = VolumeId::new(&id) {
                let top = read_record(&layout.volumes, id.as_ref());
                roots.extend(top.map(|top| Root {
                    owner: Owner::Volume(id),
                    top,
                }));
            }
        }
        for id in record_ids(&layout.snapshots)? {
            if let Ok(id) = SnapshotId::new(&id) {
                let top = read_record(&layout.snapshots, id.as_ref());
                roots.extend(top.map(|top| Root {
                    owner: Owner::Snapshot(id),
                    top,
                }));
            }
        }
        let mut layers = BTreeMap::new();
        let mut other_files = Vec::new();
        let dir = &layout.layers;
        for entry in fs::read_dir(dir).context(|| format!("{}", dir.display()))? {
            let name = entry.context(|| format!("{}", dir.display()))?.file_name();
            let name = name.to_string_lossy().into_owned();
            match LayerId::parse_file_name(&name) {
                Some(id) => {
                    let layer = read_layer(dir, &id);
                    layers.insert(id, layer);
                }
                None => other_files.push(name),
            }
        }
        other_files.sort_unstable();
        Ok(Graph {
            roots,
            layers,
            other_files,
        })
    }

    /// Every record and header was read, and every layer is there and reached.
    fn is_whole(&self) -> bool {
        let mut reached = HashSet::new();
        self.roots.iter().all(|root| {
            let reach = self.reach(root);
            let is_whole = root.top.is_ok() && reach.broken.is_none();
            reached.extend(reach.layers);
            is_whole
        }) && reached.len() == self.layers.len()
            && self.layers.values().all(|layer| layer.head.is_ok())
    }

    /// The layers that a record reaches.
    pub fn reach(&self, root: &Root) -> Reach {
        let mut reach = Reach::default();
        let mut next = root.top.as_ref().ok().cloned();
        let mut child_size = u64::MAX;
        while let Some(id) = next {
            let broken = |what: String| Some((id.clone(), what));
            let Some(layer) = self.layers.get(&id) else {
                reach.broken = broken("the layer is missing".into());
                break;
            };
            if reach.layers.contains(&id) {
                reach.broken = broken("the chain comes back to this layer".into());
                break;
            }
            if reach.layers.len() == MAX_CHAIN_LENGTH {
                reach.broken = broken(format!("the chain has more than {MAX_CHAIN_LENGTH} layers"));
                break;
            }
            let head = layer.head.as_ref();
            if head.is_ok_and(|head| head.size > child_size) {
                reach.broken = broken("the layer is larger than the one above it".into());
                break;
            }
            reach.layers.push(id);
            child_size = head.map_or(child_size, |head| head.size);
            next = head.ok().and_then(|head| head.parent.clone());
        }
        reach
    }

    /// Who reaches each layer: numbers of `roots`. Layers that are missing are among them.
    pub fn users(&self) -> HashMap<LayerId, Vec<usize>> {
        let mut users: HashMap<LayerId, Vec<usize>> = HashMap::new();
        for (number, root) in self.roots.iter().enumerate() {
            let reach = self.reach(root);
            let broken = reach.broken.map(|(id, _)| id);
            let broken = broken.filter(|id| !reach.layers.contains(id));
            for id in reach.layers.into_iter().chain(broken) {
                users.entry(id).or_default().push(number);
            }
        }
        users
    }

    /// The top layers of volumes: those that are written to.
    pub fn tops(&self) -> HashMap<&LayerId, &VolumeId> {
        let tops = self.roots.iter().filter_map(|root| match &root.owner {
            Owner::Volume(id) => root.top.as_ref().ok().map(|top| (top, id)),
            Owner::Snapshot(_) => None,
        });
        tops.collect()
    }
}

/// The layer that a record names; `None` if the record is gone by now.
fn read_record(dir: &Path, id: &str) -> Option<Result<LayerId, String>> {
    match Record::read(dir, id) {
        Ok(None) => None,
        Ok(Some(record)) => Some(record.layer_id().map_err(|error| error.to_string())),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn read_layer(dir: &Path, id: &LayerId) -> Layer {
    let link = chain::open_link(dir, id.clone());
    let metadata = fs::metadata(dir.join(id.file_name())).ok();
    Layer {
        // st_blocks counts units of 512 bytes, whatever the file system's block size is.
        allocated: metadata.as_ref().map_or(0, |file| file.blocks() * 512),
        read_only: metadata.is_some_and(|file| file.mode() & 0o222 == 0),
        head: link
            .map(|link| Head {
                parent: link.parent,
                size: link.header.size,
            })
            .map_err(|error| error.to_string()),
    }
}
