//! Snapshots, clones and images of a disk of 100 GiB under a running guest, through the API.

use std::time::Instant;

use anyhow::{Context, Result};
use hearth_proto::v1::{
    BlockDeviceMapping, CreateImageRequest, CreateSnapshotRequest, CreateVolumeRequest,
};

use crate::{
    Bench,
    launch::ms,
    table::{Row, Section, quantile},
};

/// How often.
const ROUNDS: usize = 30;

/// Size of the disk, in GiB.
const SIZE_GIB: u64 = 100;

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let hearth = bench.hearth().await?;
    let disk = BlockDeviceMapping {
        size_gib: SIZE_GIB,
        delete_on_termination: Some(true),
        ..Default::default()
    };
    let mut probe = hearth
        .probe(|request| request.block_devices.push(disk))
        .await?;
    // Something all over it, so that there are tables to write back.
    for gib in (0..SIZE_GIB).step_by(4) {
        let write = format!("write offset={gib}G length=1M pattern={}", gib + 1);
        probe.expect_ok(&write).await?;
    }
    let instance = probe.guest.describe().await?;
    let volume_id = instance.block_devices[0].volume_id.clone();
    let (mut snapshots, mut clones, mut images) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        probe
            .expect_ok(&format!("write offset={round}G length=1M pattern=9"))
            .await?;
        let request = CreateSnapshotRequest {
            volume_id: volume_id.clone(),
            ..Default::default()
        };
        let start = Instant::now();
        let answer = hearth.snapshots().create_snapshot(request).await?;
        snapshots.push(ms(start));
        let snapshot = answer.into_inner().snapshot.context("no snapshot")?;

        let request = CreateVolumeRequest {
            snapshot_id: snapshot.snapshot_id,
            ..Default::default()
        };
        let start = Instant::now();
        hearth.volumes().create_volume(request).await?;
        clones.push(ms(start));

        let request = CreateImageRequest {
            instance_id: instance.instance_id.clone(),
            name: format!("bench {round}"),
            no_reboot: true,
            ..Default::default()
        };
        let start = Instant::now();
        hearth.images().create_image(request).await?;
        images.push(ms(start));
    }
    probe.guest.terminate().await?;
    let row = |what: &str, values: &[f64], part| Row::alone(what, quantile(values, part));
    Ok(vec![Section::new(
        format!("A disk of {SIZE_GIB} GiB under a running guest, {ROUNDS} rounds"),
        vec![
            row("CreateSnapshot, ms: median", &snapshots, 0.5),
            row("CreateSnapshot, ms: p99", &snapshots, 0.99),
            row("CreateVolume from it, ms: median", &clones, 0.5),
            row("CreateVolume from it, ms: p99", &clones, 0.99),
            row("CreateImage without a stop, ms: median", &images, 0.5),
            row("CreateImage without a stop, ms: p99", &images, 0.99),
        ],
    )])
}
