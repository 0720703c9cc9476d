//! Everything that can be wrong with a store.

use super::graph::Graph;
use super::layer_check::{Look, Sum, Task, ends_the_check};
use super::report::{Finding, FindingKind, Skipped, StoreReport};
use super::sum_file;
use super::{Owner, checksums};
use crate::Store;
use crate::error::{IoContext, Result};
use crate::id::{LayerId, SnapshotId, VolumeId};
use crate::store::{Locked, Mode};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::Path;

/// What a check does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// Repair what can be: refcounts of volumes at rest, leaked clusters, layers that nothing
    /// reaches, stale files. Contents are never changed.
    pub repair: bool,
    /// Compare layers with their checksums, which reads all of them.
    pub checksums: bool,
}

impl Default for CheckOptions {
    /// Checksums, no repair.
    fn default() -> Self {
        CheckOptions {
            repair: false,
            checksums: true,
        }
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckProgress {
    /// Layers that are done.
    pub layers_done: u64,
    /// Layers of the store.
    pub layers_total: u64,
    /// Bytes read for checksums.
    pub bytes_read: u64,
    /// Bytes of the layers on the host's disk.
    pub bytes_total: u64,
}

/// One check of a store.
struct Check<'a> {
    store: &'a Store,
    options: CheckOptions,
    graph: Graph,
    users: HashMap<LayerId, Vec<usize>>,
    report: StoreReport,
}

impl Store {
    /// Looks at everything: every record and chain, every layer's header, tables, refcounts and
    /// checksums, and what lies about unused. What is damaged is named, with the volumes and
    /// snapshots that it concerns; it is looked at and reported, never an error of this call.
    ///
    /// May run while guests run: of a volume that is open for writing all but the top layer is
    /// looked at. `progress` is called often, and ends the check with
    /// [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) by returning `false`.
    pub fn check(
        &self,
        options: CheckOptions,
        mut progress: impl FnMut(CheckProgress) -> bool,
    ) -> Result<StoreReport> {
        let graph = Graph::read(self.layout())?;
        let mut check = Check {
            store: self,
            options,
            users: graph.users(),
            graph,
            report: StoreReport::default(),
        };
        check.records();
        check.chains();
        check.layers(&mut progress)?;
        check.other_files()?;
        check.unused_layers();
        Ok(check.report)
    }
}

impl Check<'_> {
    fn owners_of(&self, layer: &LayerId) -> Vec<Owner> {
        let users = self.users.get(layer).into_iter().flatten();
        let owners: BTreeSet<_> = users.map(|root| &self.graph.roots[*root].owner).collect();
        owners.into_iter().cloned().collect()
    }

    fn find(&mut self, kind: FindingKind, file: String, detail: String, affected: Vec<Owner>) {
        self.report.findings.push(Finding {
            kind,
            file,
            detail,
            affected,
            lost_bytes: 0,
            repaired: false,
        });
    }

    fn records(&mut self) {
        for number in 0..self.graph.roots.len() {
            let root = &self.graph.roots[number];
            let owner = root.owner.clone();
            let file = match &owner {
                Owner::Volume(id) => {
                    self.report.volumes += 1;
                    format!("volumes/{id}.json")
                }
                Owner::Snapshot(id) => {
                    self.report.snapshots += 1;
                    format!("snapshots/{id}.json")
                }
            };
            if let Err(detail) = &root.top {
                let detail = detail.clone();
                self.find(FindingKind::Record, file, detail, vec![owner]);
            }
        }
    }

    /// Chains that end in nothing, and layers that are written to though others see them.
    fn chains(&mut self) {
        let mut broken: HashMap<(LayerId, String), BTreeSet<Owner>> = HashMap::new();
        for root in &self.graph.roots {
            if let Some(place) = self.graph.reach(root).broken {
                broken.entry(place).or_default().insert(root.owner.clone());
            }
        }
        let mut broken: Vec<_> = broken.into_iter().collect();
        broken.sort_unstable();
        for ((layer, detail), affected) in broken {
            let affected = affected.into_iter().collect();
            self.find(FindingKind::Chain, layer_file(&layer), detail, affected);
        }
        let tops: Vec<(LayerId, VolumeId)> = self
            .graph
            .tops()
            .into_iter()
            .map(|(layer, volume)| (layer.clone(), volume.clone()))
            .collect();
        for (layer, volume) in tops {
            let affected = self.owners_of(&layer);
            if affected.len() > 1 {
                let detail = format!("volume {volume} writes to this layer, which others see");
                self.find(FindingKind::Chain, layer_file(&layer), detail, affected);
            }
        }
    }

    fn layers(&mut self, progress: &mut dyn FnMut(CheckProgress) -> bool) -> Result<()> {
        let layers: Vec<LayerId> = self.graph.layers.keys().cloned().collect();
        let mut state = CheckProgress {
            layers_total: layers.len() as u64,
            bytes_total: self.graph.layers.values().map(|l| l.allocated).sum(),
            ..CheckProgress::default()
        };
        let tops: HashMap<LayerId, VolumeId> = self
            .graph
            .tops()
            .into_iter()
            .map(|(layer, volume)| (layer.clone(), volume.clone()))
            .collect();
        for id in &layers {
            if !progress(state) {
                return Err(crate::Error::new(crate::ErrorKind::Stopped, "stopped"));
            }
            self.layer(id, tops.get(id), &mut |bytes| {
                state.bytes_read += bytes;
                !progress(state)
            })?;
            state.layers_done += 1;
        }
        progress(state);
        Ok(())
    }

    fn layer(
        &mut self,
        id: &LayerId,
        top_of: Option<&VolumeId>,
        stop: &mut sum_file::Stop<'_>,
    ) -> Result<()> {
        // Whatever nothing reaches is judged as a whole; see `unused_layers`.
        if !self.users.contains_key(id) {
            return Ok(());
        }
        self.report.layers += 1;
        let head = match &self.graph.layers[id].head {
            Ok(head) => head.clone(),
            Err(detail) => {
                let detail = detail.clone();
                let affected = self.owners_of(id);
                self.find(FindingKind::Layer, layer_file(id), detail, affected);
                return Ok(());
            }
        };
        let task = Task {
            layout: self.store.layout(),
            id,
            parent: head.parent.as_ref(),
            is_top: top_of.is_some(),
            repair: self.options.repair,
            checksums: self.options.checksums,
        };
        let look = match task.look(stop) {
            Err(error) if !ends_the_check(&error) => {
                let affected = self.owners_of(id);
                let detail = error.to_string();
                self.find(FindingKind::Layer, layer_file(id), detail, affected);
                return Ok(());
            }
            look => look?,
        };
        // Deleted or replaced while it was looked at: whatever was found is gone.
        if !look.problems.is_empty() && !self.is_still_there(id) {
            return Ok(());
        }
        self.enter(id, top_of, look);
        Ok(())
    }

    fn is_still_there(&self, id: &LayerId) -> bool {
        self.store.layout().layer_path(id).exists()
    }

    fn enter(&mut self, id: &LayerId, top_of: Option<&VolumeId>, look: Look) {
        match look.sum {
            Sum::Verified => self.report.checksums_verified += 1,
            Sum::Missing => self.report.checksums_missing += 1,
            Sum::Skipped => (),
        }
        if look.in_use
            && let Some(volume) = top_of
        {
            self.report.skipped.push(Skipped {
                volume: volume.clone(),
                reason: "in use: only the layers below its own were looked at".into(),
            });
        }
        for problem in look.problems {
            let affected = self.owners_of(id);
            let file = match problem.kind {
                FindingKind::ChecksumFile => format!("layers/{}", sum_file::file_name(id)),
                _ => layer_file(id),
            };
            self.report.findings.push(Finding {
                kind: problem.kind,
                file,
                detail: problem.detail,
                affected,
                lost_bytes: problem.lost_bytes,
                repaired: problem.repaired,
            });
        }
    }

    /// Layers that nothing reaches. They go as a deletion would make them go: not while any
    /// record or header cannot be read, for that may reach anything.
    fn unused_layers(&mut self) {
        let unused: Vec<(LayerId, u64)> = self
            .graph
            .layers
            .iter()
            .filter(|(id, _)| !self.users.contains_key(*id))
            .map(|(id, layer)| (id.clone(), layer.allocated))
            .collect();
        if unused.is_empty() {
            return;
        }
        let mut detail = "nothing reaches this layer".to_owned();
        // A damaged layer may have reached it.
        if self.report.findings.iter().any(|f| f.kind.is_damage()) {
            detail += "; it stays for as long as there is damage";
        } else if self.options.repair
            && let Err(error) = self.store.collect_garbage()
        {
            detail = format!("{detail}; it stays, because {error}");
        }
        for (id, bytes) in unused {
            let repaired = self.options.repair && !self.is_still_there(&id);
            self.report.findings.push(Finding {
                kind: FindingKind::UnusedLayer,
                file: layer_file(&id),
                detail: detail.clone(),
                affected: Vec::new(),
                lost_bytes: bytes,
                repaired,
            });
        }
    }

    /// Checksums of layers that are gone, unfinished files, and names that are not ours. Only
    /// what we made ourselves is removed.
    fn other_files(&mut self) -> Result<()> {
        let layout = self.store.layout();
        let mut stale: Vec<(&Path, &str, String, bool)> = Vec::new();
        for name in &self.graph.other_files {
            match checksums::layer_of_file(name) {
                Some(id) if self.users.contains_key(&id) => (),
                // Gone meanwhile, or with its layer.
                Some(_) if !layout.layers.join(name).exists() => (),
                Some(_) => stale.push((&layout.layers, "layers", name.clone(), true)),
                None => stale.push((&layout.layers, "layers", name.clone(), false)),
            }
        }
        for (dir, folder) in [
            (&layout.volumes, "volumes"),
            (&layout.snapshots, "snapshots"),
        ] {
            for name in names(dir)? {
                let id = name.strip_suffix(".json").unwrap_or_default();
                let is_ours = match folder {
                    "volumes" => VolumeId::new(id).is_ok(),
                    _ => SnapshotId::new(id).is_ok(),
                };
                if !is_ours {
                    stale.push((dir, folder, name, false));
                }
            }
        }
        for name in names(&layout.tmp)? {
            // Whoever is at work on a file has it locked, but for a moment after making it.
            let Ok(file) = File::open(layout.tmp.join(&name)) else {
                continue;
            };
            let settled = file
                .metadata()
                .is_ok_and(|file| checksums::has_settled(&file));
            if settled && Locked::try_new(file, Mode::Exclusive, String::new).is_ok() {
                stale.push((&layout.tmp, "tmp", name, true));
            }
        }
        for (dir, folder, name, is_ours) in stale {
            let path = dir.join(&name);
            let lost_bytes = allocated(&path);
            let repaired = is_ours && self.options.repair && fs::remove_file(&path).is_ok();
            let detail = if is_ours {
                "left behind by work that was cut off"
            } else {
                "not a file of the store; remove it by hand"
            };
            self.report.findings.push(Finding {
                kind: FindingKind::StaleFile,
                file: format!("{folder}/{name}"),
                detail: detail.into(),
                affected: Vec::new(),
                lost_bytes,
                repaired,
            });
        }
        Ok(())
    }
}

fn layer_file(id: &LayerId) -> String {
    format!("layers/{}", id.file_name())
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).context(|| format!("{}", dir.display()))? {
        let name = entry.context(|| format!("{}", dir.display()))?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}
