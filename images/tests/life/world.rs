//! A store and what should be in it.

use crate::common::{Rng, Scratch, assert_check_is_clean, assert_same_contents, layers, snap, vol};
use crate::killed;
use crate::model::{CHUNK, CHUNKS, Contents, Op, place, size_of};
use hearth_images::{
    Access, Disk, MERGED_CHAIN_LENGTH, MergeOutcome, Store, VolumeId, VolumeSource,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

const MAX_VOLUMES: usize = 6;
const MAX_SNAPSHOTS: usize = 12;

struct Volume {
    contents: Contents,
    disk: Option<Disk>,
}

pub struct World {
    scratch: Scratch,
    rng: Rng,
    names: u64,
    volumes: BTreeMap<String, Volume>,
    snapshots: BTreeMap<String, Contents>,
    /// Inode, time and length of layer files that were checked.
    checked: HashMap<PathBuf, (u64, i64, i64, u64)>,
    context: String,
}

impl World {
    pub fn new(seed: u64) -> Self {
        World {
            scratch: Scratch::new(),
            rng: Rng::new(seed),
            names: 0,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            checked: HashMap::new(),
            context: String::new(),
        }
    }

    fn store(&self) -> &Store {
        &self.scratch.store
    }

    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}-{}", self.names)
    }

    /// A volume by chance; `open` says which ones may be it.
    fn pick(&mut self, open: impl Fn(bool) -> bool) -> Option<String> {
        let names: Vec<_> = self
            .volumes
            .iter()
            .filter(|(_, volume)| open(volume.disk.is_some()))
            .map(|(name, _)| name.clone())
            .collect();
        match names.len() as u64 {
            0 => None,
            count => Some(names[self.rng.below(count) as usize].clone()),
        }
    }

    fn pick_snapshot(&mut self) -> Option<String> {
        let count = self.snapshots.len() as u64;
        let index = self.rng.below(count.max(1)) as usize;
        self.snapshots.keys().nth(index).cloned()
    }

    /// One step by chance, after which everything is as it should be.
    pub fn step(&mut self, context: &str) {
        self.context = context.to_owned();
        match self.rng.below(28) {
            0 | 1 => self.create(),
            2 | 3 => self.clone_snapshot(),
            4 => self.delete_volume(),
            5..=7 => self.delete_snapshot(),
            8..=10 => self.attach(),
            11 => self.close(),
            12..=14 => self.snapshot_live(),
            15..=17 => self.snapshot_at_rest(),
            18 | 19 => self.merge_one(),
            20 => self.grow(),
            21 | 22 => self.kill(),
            _ => self.work(),
        }
        // Faster than the steps can make chains too long to be used at all.
        let longest = self.volumes.keys().map(|name| {
            let info = self.store().volume(&vol(name)).expect("volume");
            info.chain_length
        });
        if longest.max().unwrap_or(0) > 30 {
            self.merge_all();
        }
        self.check_files();
    }

    fn create(&mut self) {
        if self.volumes.len() < MAX_VOLUMES {
            let name = self.name("vol");
            let size = size_of(1 + self.rng.below(CHUNKS), self.rng.below(300));
            self.store()
                .create_volume(&vol(&name), VolumeSource::Empty, Some(size))
                .expect("create");
            self.enter(name, Contents::new(size));
        }
    }

    fn enter(&mut self, name: String, contents: Contents) {
        let disk = None;
        self.volumes.insert(name, Volume { contents, disk });
    }

    fn clone_snapshot(&mut self) {
        let Some(source) = self.pick_snapshot() else {
            return;
        };
        if self.volumes.len() < MAX_VOLUMES {
            let name = self.name("vol");
            let mut contents = self.snapshots[&source].clone();
            contents.size += self.rng.below(2) * self.rng.below(1 << 20) * 512;
            self.store()
                .create_volume(
                    &vol(&name),
                    VolumeSource::Snapshot(&snap(&source)),
                    Some(contents.size),
                )
                .expect("clone");
            self.enter(name, contents);
        }
    }

    fn delete_volume(&mut self) {
        if let Some(name) = self.pick(|open| !open) {
            self.store().delete_volume(&vol(&name)).expect("delete");
            self.volumes.remove(&name);
        }
    }

    fn delete_snapshot(&mut self) {
        if let Some(name) = self.pick_snapshot() {
            self.store().delete_snapshot(&snap(&name)).expect("delete");
            self.snapshots.remove(&name);
        }
    }

    fn attach(&mut self) {
        if let Some(name) = self.pick(|open| !open) {
            let disk = self.open(&name, Access::ReadWrite);
            self.volumes.get_mut(&name).expect("volume").disk = Some(disk);
        }
    }

    fn open(&self, name: &str, access: Access) -> Disk {
        self.store()
            .open_volume(&vol(name), access)
            .unwrap_or_else(|error| panic!("{}: {name}: {error}", self.context))
    }

    fn close(&mut self) {
        if let Some(name) = self.pick(|open| open) {
            let volume = self.volumes.get_mut(&name).expect("volume");
            let disk = volume.disk.take().expect("an open disk");
            // Dropping closes, too.
            if self.rng.below(2) == 0 {
                disk.close().expect("close");
            }
        }
    }

    /// Writes to an open volume, or to one that is opened for it.
    fn work(&mut self) {
        let Some(name) = self.pick(|_| true) else {
            return;
        };
        let closed = self.volumes[&name].disk.is_none();
        let opened = closed.then(|| self.open(&name, Access::ReadWrite));
        let World { volumes, rng, .. } = self;
        let Volume { contents, disk } = volumes.get_mut(&name).expect("volume");
        let disk = opened.as_ref().or(disk.as_ref()).expect("a disk");
        for _ in 0..rng.below(20) {
            let op = Op::random(rng, contents.logical());
            op.perform(disk);
            contents.apply(op);
        }
        contents.assert_same(disk, &self.context);
    }

    fn snapshot_live(&mut self) {
        let mut wanted = BTreeMap::new();
        for _ in 0..1 + self.rng.below(3) {
            if let Some(name) = self.pick(|open| open) {
                wanted.insert(name, self.name("snap"));
            }
        }
        if wanted.is_empty() || self.snapshots.len() >= MAX_SNAPSHOTS {
            return;
        }
        let ids: Vec<_> = wanted
            .iter()
            .map(|(volume, snapshot)| (volume, vol(volume), snap(snapshot)))
            .collect();
        let disks: Vec<_> = ids
            .iter()
            .map(|(name, volume, snapshot)| {
                let disk = self.volumes[*name].disk.as_ref().expect("open");
                (disk, volume, snapshot)
            })
            .collect();
        self.store().snapshot_disks(&disks).expect("snapshot");
        self.enter_snapshots(wanted);
    }

    fn snapshot_at_rest(&mut self) {
        let mut wanted = BTreeMap::new();
        for _ in 0..1 + self.rng.below(3) {
            if let Some(name) = self.pick(|open| !open) {
                wanted.insert(name, self.name("snap"));
            }
        }
        if wanted.is_empty() || self.snapshots.len() >= MAX_SNAPSHOTS {
            return;
        }
        let ids: Vec<_> = wanted
            .iter()
            .map(|(volume, snapshot)| (vol(volume), snap(snapshot)))
            .collect();
        let pairs: Vec<_> = ids.iter().map(|(volume, id)| (volume, id)).collect();
        self.store().snapshot_volumes(&pairs).expect("snapshot");
        self.enter_snapshots(wanted);
    }

    fn enter_snapshots(&mut self, taken: BTreeMap<String, String>) {
        for (volume, snapshot) in taken {
            let contents = self.volumes[&volume].contents.clone();
            self.snapshots.insert(snapshot, contents);
        }
    }

    fn merge_one(&mut self) {
        if let Some(merge) = self.store().next_merge().expect("plan") {
            let stop = self.rng.below(4) == 0;
            let outcome = self
                .store()
                .merge(&merge, |_| match stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
                .expect("merge");
            if let MergeOutcome::Merged { volumes } = outcome {
                self.reload(&volumes);
            }
        }
    }

    /// About every second open volume goes over to the new files.
    fn reload(&mut self, merged: &[VolumeId]) {
        let names: Vec<String> = self.volumes.keys().cloned().collect();
        for name in names {
            let skip = self.rng.below(2) == 0;
            if let Some(disk) = &self.volumes[&name].disk
                && !skip
            {
                let changed = self.store().reload_disk(disk, &vol(&name)).expect("reload");
                assert!(changed || !merged.contains(&vol(&name)), "{}", self.context);
            }
        }
    }

    fn merge_all(&mut self) {
        while let Some(merge) = self.store().next_merge().expect("plan") {
            self.store()
                .merge(&merge, |_| ControlFlow::Continue(()))
                .expect("merge");
        }
        self.reload(&[]);
        for name in self.volumes.keys() {
            let info = self.store().volume(&vol(name)).expect("volume");
            assert!(info.chain_length <= MERGED_CHAIN_LENGTH, "{}", self.context);
        }
    }

    fn grow(&mut self) {
        if let Some(name) = self.pick(|_| true) {
            let more = (self.rng.below(1 << 20) + 1) * 512;
            let size = self.volumes[&name].contents.size + more;
            let id = vol(&name);
            let info = match &self.volumes[&name].disk {
                Some(disk) => self.store().grow_disk(disk, &id, size),
                None => self.store().grow_volume(&id, size),
            };
            assert_eq!(info.expect("grow").size_bytes, size);
            self.volumes.get_mut(&name).expect("volume").contents.size = size;
        }
    }

    fn kill(&mut self) {
        let Some(name) = self.pick(|open| !open) else {
            return;
        };
        let seed = self.rng.next();
        let id = vol(&name);
        let killed = killed::run(self.store(), &id, &self.volumes[&name].contents, seed);
        if self.rng.below(2) == 0 {
            self.store().recover_volume(&id).expect("recover");
            // Files that the process did not finish.
            Store::open(self.store().root()).expect("store");
        }
        let access = match self.rng.below(2) {
            0 => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        let disk = self.open(&name, access);
        let contents = killed.judge(&disk, &self.context);
        disk.close().expect("close");
        self.volumes.get_mut(&name).expect("volume").contents = contents;

        let there: HashSet<String> = self
            .store()
            .snapshots()
            .expect("snapshots")
            .iter()
            .map(ToString::to_string)
            .collect();
        self.snapshots.extend(killed.snapshots);
        self.snapshots
            .extend(killed.perhaps.filter(|(name, _)| there.contains(name)));
        assert_eq!(there.len(), self.snapshots.len(), "{}", self.context);
        // Not so many that nothing else is done.
        while self.snapshots.len() > MAX_SNAPSHOTS {
            self.delete_snapshot();
        }
    }

    /// `qemu-img check` of every file that has changed, but those that are being written to.
    fn check_files(&mut self) {
        let open: HashSet<PathBuf> = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.disk.is_some())
            .map(|(name, _)| self.store().volume_path(&vol(name)).expect("path"))
            .collect();
        for path in layers(self.store()) {
            if open.contains(&path) {
                continue;
            }
            let found = std::fs::metadata(&path).expect("layer");
            let state = (found.ino(), found.mtime(), found.mtime_nsec(), found.len());
            if self.checked.get(&path) != Some(&state) {
                println!("{}: checking {}", self.context, path.display());
                assert_check_is_clean(&path);
                self.checked.insert(path, state);
            }
        }
    }

    /// Compares every volume and every snapshot with what it should hold.
    pub fn verify(&self) {
        for (name, volume) in &self.volumes {
            let context = format!("{}: {name}", self.context);
            match &volume.disk {
                Some(disk) => volume.contents.assert_same(disk, &context),
                None => {
                    let disk = self.open(name, Access::ReadOnly);
                    volume.contents.assert_same(&disk, &context);
                }
            }
        }
        for (name, contents) in &self.snapshots {
            let context = format!("{}: {name}", self.context);
            let disk = self
                .store()
                .open_snapshot(&snap(name))
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            contents.assert_same(&disk, &context);
        }
    }

    /// The same by `qemu-img`, which knows nothing of this crate.
    pub fn verify_with_qemu(&self) {
        let raw_path = self.scratch.path("raw");
        let closed = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.disk.is_none())
            .map(|(name, volume)| (self.store().volume_path(&vol(name)), &volume.contents));
        let snapshots = self
            .snapshots
            .iter()
            .map(|(name, contents)| (self.store().snapshot_path(&snap(name)), contents));
        for (path, contents) in closed.chain(snapshots) {
            let raw = File::create(&raw_path).expect("raw");
            raw.set_len(contents.size).expect("raw");
            for at in (0..contents.logical()).step_by(CHUNK as usize) {
                let chunk = &contents.data[at as usize..][..CHUNK as usize];
                if chunk.iter().any(|byte| *byte != 0) {
                    raw.write_all_at(chunk, place(at)).expect("raw");
                }
            }
            assert_same_contents(&path.expect("path"), &raw_path);
        }
    }

    /// Everything goes, in any order.
    pub fn end(mut self) {
        self.merge_all();
        self.verify();
        while !self.volumes.is_empty() || !self.snapshots.is_empty() {
            match self.rng.below(3) {
                0 => self.close(),
                1 => self.delete_volume(),
                _ => self.delete_snapshot(),
            }
        }
        assert!(layers(self.store()).is_empty(), "{}", self.context);
    }
}
