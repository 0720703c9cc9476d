//! Disk loads by the probe: our VMM on a volume, QEMU on a copy of its qcow2 files, and the host
//! without any machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use hearth_images::{Access, SnapshotId, Store, VolumeId, VolumeSource};
use rustix::fs::sync;

use crate::{
    Bench, host_file,
    machine::Machine,
    table::{Row, Section},
};

/// Of each disk, in bytes.
pub const SIZE: u64 = 1 << 30;

const PIECE: usize = 1 << 20;

/// Of each load.
const SECONDS: f64 = 2.0;

/// What is asked of a disk.
pub struct Load {
    pub read: bool,
    pub sequential: bool,
    /// Of one request, in bytes.
    pub size: u64,
    pub depth: u64,
    pub seconds: f64,
}

/// Reads before writes, which change where the data is.
fn loads(seconds: f64) -> Vec<Load> {
    let mut loads = Vec::new();
    for read in [true, false] {
        for (sequential, size, depth) in [(false, 4096, 1), (false, 4096, 32), (true, 128 << 10, 1)]
        {
            loads.push(Load {
                read,
                sequential,
                size,
                depth,
                seconds,
            });
        }
    }
    loads
}

impl Load {
    fn name(&self) -> String {
        let verb = if self.read { "read" } else { "write" };
        match self.sequential {
            true => format!("{} KiB sequential {verb}, MiB/s", self.size >> 10),
            false => format!(
                "{} KiB random {verb}, depth {}, IOPS",
                self.size >> 10,
                self.depth
            ),
        }
    }

    /// In the unit that the name has.
    fn figure(&self, iops: f64) -> f64 {
        match self.sequential {
            true => iops * self.size as f64 / f64::from(1 << 20),
            false => iops,
        }
    }

    fn command(&self) -> String {
        format!(
            "load size={} depth={} read_percent={} order={} seconds={}",
            self.size,
            self.depth,
            if self.read { 100 } else { 0 },
            if self.sequential { "seq" } else { "random" },
            self.seconds
        )
    }
}

/// One section for each kind of volume.
pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let kernel = bench.probe_kernel()?;
    let folder = bench.folder();
    let loads = loads(SECONDS);
    let raw = host_file::make(folder)?;
    sync();
    let host: Vec<f64> = loads
        .iter()
        .map(|load| Ok(load.figure(host_file::iops(&raw, load)?)))
        .collect::<Result<_>>()?;
    fs::remove_file(raw)?;

    let mut sections = Vec::new();
    for (name, layers) in [("full", 1), ("five-layer", 5), ("fresh", 0)] {
        let folder = tempfile::tempdir_in(folder)?;
        let root = folder.path().join("store");
        let copy = make_volume(&root, folder.path(), layers)?;
        let mut ours = Machine::hearth(&kernel, folder.path(), Some((&root, "vol")))?;
        let mut qemu = Machine::qemu(&kernel, Some(&copy))?;
        // In turns, so that whatever else the host does slows both.
        let mut rows = Vec::new();
        for (load, host) in loads.iter().zip(&host) {
            let ours = run(&mut ours, load).context("hearth-vmm")?;
            let qemu = run(&mut qemu, load).context("QEMU")?;
            rows.push(Row {
                bare: Some(*host),
                ..Row::beside(load.name(), ours, qemu)
            });
        }
        sections.push(Section::new(
            format!("Disk of {} MiB, {name} volume", SIZE >> 20),
            rows,
        ));
    }
    Ok(sections)
}

/// In the unit that the load's name has.
fn run(machine: &mut Machine, load: &Load) -> Result<f64> {
    // What the load before left to be written back is no part of this one.
    sync();
    let command = load.command();
    let answer = machine.ask(&command)?;
    let (count, ns) = (answer["count"].as_f64(), answer["ns"].as_f64());
    let iops = count.zip(ns).map(|(count, ns)| count * 1e9 / ns);
    let iops = iops.with_context(|| format!("`{command}`: {answer}"))?;
    Ok(load.figure(iops))
}

/// Makes the volume `vol` with its data spread over so many layers, and a copy of all layers;
/// gives the copy's top layer.
fn make_volume(root: &Path, folder: &Path, layers: usize) -> Result<PathBuf> {
    let store = Store::open(root)?;
    let id = VolumeId::new("vol")?;
    store.create_volume(&id, VolumeSource::Empty, Some(SIZE))?;
    let data: Vec<u8> = (1..=251).cycle().take(PIECE).collect();
    for layer in 0..layers {
        if layer > 0 {
            store.snapshot_volume(&id, &SnapshotId::new(format!("snap-{layer}"))?)?;
        }
        let disk = store.open_volume(&id, Access::ReadWrite)?;
        let pieces = (0..SIZE).step_by(PIECE).skip(layer).step_by(layers);
        for offset in pieces {
            disk.write(&data, offset)?;
        }
        disk.close()?;
    }
    ensure!(store.volume(&id)?.chain_length == layers.max(1));
    let top = store.volume_path(&id)?;
    let copies = folder.join("copy");
    fs::create_dir(&copies)?;
    for entry in fs::read_dir(top.parent().context("a layer's folder")?)? {
        let entry = entry?;
        fs::copy(entry.path(), copies.join(entry.file_name()))?;
    }
    sync();
    Ok(copies.join(top.file_name().context("a layer's name")?))
}
