//! Limits of volume classes, as a guest measures them: our agent's volumes, and QEMU's
//! `throttling.iops-total` and `throttling.bps-total` on a volume of the same size.
//!
//! Each load wants more than its limit. Of a perfect limiter the rate is 100 % of the limit, and
//! with D requests in flight each of them takes D periods.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hearth_images::{Store, VolumeId, VolumeSource};
use hearth_proto::v1::BlockDeviceMapping;
use hearth_tests::{Hearth, Probe};
use serde_json::Value;

use crate::{
    Bench,
    machine::{Machine, Throttling},
    table::{Row, Section},
};

const MIB: u64 = 1 << 20;

/// Of each load.
const SECONDS: f64 = 10.0;

/// A volume, and what it may do in a second while it has burst credits, which new ones have.
struct Kind {
    class: &'static str,
    size_gib: u64,
    /// Asked for; 0 is the class's own.
    iops: u32,
    throughput_mib: u32,
    limit_iops: u64,
    limit_mib: u64,
    /// Of the requests that are to meet the limit of bytes.
    large: u64,
}

const KINDS: &[Kind] = &[
    kind("standard", 100, (0, 0), (200, 90), MIB),
    kind("sc1", 1024, (0, 0), (250, 80), MIB),
    kind("st1", 1024, (0, 0), (500, 250), MIB),
    kind("gp2", 100, (0, 0), (3000, 128), MIB / 4),
    kind("gp3", 100, (0, 0), (3000, 125), MIB / 4),
    kind("gp3", 100, (16_000, 1000), (16_000, 1000), MIB / 4),
    kind("io1", 1000, (32_000, 0), (32_000, 1000), MIB / 4),
    kind("io2", 1000, (64_000, 0), (64_000, 4000), MIB / 4),
];

const fn kind(
    class: &'static str,
    size_gib: u64,
    (iops, throughput_mib): (u32, u32),
    (limit_iops, limit_mib): (u64, u64),
    large: u64,
) -> Kind {
    Kind {
        class,
        size_gib,
        iops,
        throughput_mib,
        limit_iops,
        limit_mib,
        large,
    }
}

/// What is asked of a disk, and how many of its requests the limit allows in a second.
struct Load {
    name: String,
    command: String,
    depth: f64,
    limit: f64,
}

impl Kind {
    fn loads(&self, seconds: f64) -> Vec<Load> {
        let mut loads = Vec::new();
        for depth in [1, 32] {
            loads.push(Load {
                name: format!("4 KiB at {} IOPS, depth {depth}", self.limit_iops),
                command: format!(
                    "load size=4096 depth={depth} order=random region=64M seconds={seconds}"
                ),
                depth: f64::from(depth),
                limit: self.limit_iops as f64,
            });
        }
        loads.push(Load {
            name: format!(
                "{} KiB at {} MiB/s, depth 4",
                self.large >> 10,
                self.limit_mib
            ),
            command: format!(
                "load size={} depth=4 order=seq region=64M seconds={seconds}",
                self.large
            ),
            depth: 4.0,
            limit: (self.limit_mib * MIB) as f64 / self.large as f64,
        });
        loads
    }
}

impl Load {
    /// The rate in percent of the limit, and by how many periods the 99th percentile of the
    /// latency exceeds the ideal.
    fn judge(&self, answer: &Value) -> Result<(f64, f64)> {
        let number = |value: &Value| value.as_f64().with_context(|| answer.to_string());
        let (count, ns) = (number(&answer["count"])?, number(&answer["ns"])?);
        let p99 = number(&answer["latency_ns"]["p99"])?;
        let rate = count * 1e9 / ns;
        Ok((
            rate * 100.0 / self.limit,
            p99 * self.limit / 1e9 - self.depth,
        ))
    }
}

/// One section for each kind of volume.
pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let hearth = bench.hearth().await?;
    let kernel = &bench.probe_kernel()?;
    let folder = bench.folder();
    let seconds = SECONDS;
    let mut sections = Vec::new();
    for kind in KINDS {
        let mut ours = probe_with(hearth, kind).await?;
        let folder = tempfile::tempdir_in(folder)?;
        let file = empty_volume(folder.path(), kind.size_gib)?;
        let throttling = Throttling {
            iops: kind.limit_iops,
            bytes: kind.limit_mib * MIB,
        };
        let mut qemu = Machine::qemu_throttled(kernel, Some(&file), Some(throttling))?;
        // What is never written takes no time, so that what is measured is the limiter.
        let mut rows = Vec::new();
        for load in kind.loads(seconds) {
            let our = load.judge(&ours.expect_ok(&load.command).await?)?;
            let their = load.judge(&qemu.ask(&load.command)?)?;
            let rate = format!("{}: % of it", load.name);
            rows.push(Row::beside(rate, our.0, their.0));
            rows.push(Row::beside(
                "  p99 latency beyond ideal, periods",
                our.1,
                their.1,
            ));
        }
        ours.guest.terminate().await?;
        sections.push(Section::new(
            format!("Limits of {}, {} GiB", kind.class, kind.size_gib),
            rows,
        ));
    }
    Ok(sections)
}

/// A probe with one disk of this kind. Its type has more IOPS than any of them.
async fn probe_with<'a>(hearth: &'a Hearth, kind: &Kind) -> Result<Probe<'a>> {
    let probe = hearth
        .probe(|request| {
            request.instance_type = "i.8xlarge".to_owned();
            request.vcpus = 1;
            request.block_devices.push(BlockDeviceMapping {
                size_gib: kind.size_gib,
                volume_class: kind.class.to_owned(),
                iops: kind.iops,
                throughput_mib: kind.throughput_mib,
                delete_on_termination: Some(true),
                ..Default::default()
            });
        })
        .await?;
    ensure!(probe.guest.describe().await?.block_devices.len() == 1);
    Ok(probe)
}

fn empty_volume(folder: &Path, size_gib: u64) -> Result<PathBuf> {
    let store = Store::open(folder.join("store"))?;
    let id = VolumeId::new("vol")?;
    store.create_volume(&id, VolumeSource::Empty, Some(size_gib << 30))?;
    Ok(store.volume_path(&id)?)
}
