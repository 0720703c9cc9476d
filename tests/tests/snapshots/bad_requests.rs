//! What is refused.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, CopySnapshotRequest, CreateSnapshotRequest, CreateSnapshotsRequest,
    CreateVolumeRequest, DeleteSnapshotRequest, DescribeVolumesRequest, RunInstancesRequest,
};
use hearth_tests::{Expect, Hearth, needs_kvm};
use tonic::Code;

use crate::NOBODY;

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_say_what_is_wrong_and_leave_nothing() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let volume = hearth.volume_with(1, 1).await?;
    let mut client = hearth.snapshots();
    let good = CreateSnapshotRequest {
        volume_id: volume.clone(),
        ..Default::default()
    };
    let missing = |reason, field| Expect {
        code: Code::NotFound,
        reason,
        field,
    };
    let id = |volume_id: &str| CreateSnapshotRequest {
        volume_id: volume_id.to_owned(),
        ..Default::default()
    };
    Expect::invalid("MissingParameter", "volume_id").check(client.create_snapshot(id("")).await)?;
    Expect::invalid("InvalidVolumeID.Malformed", "volume_id")
        .check(client.create_snapshot(id("vol-../../x")).await)?;
    missing("InvalidVolume.NotFound", "volume_id")
        .check(client.create_snapshot(id("vol-0123456789abcdef0")).await)?;
    let long = CreateSnapshotRequest {
        description: "é".repeat(256),
        ..good.clone()
    };
    let patient = CreateSnapshotRequest {
        stop_timeout_seconds: 3601,
        ..good.clone()
    };
    Expect::invalid("InvalidParameterValue", "stop_timeout_seconds")
        .check(client.create_snapshot(patient).await)?;
    Expect::invalid("InvalidParameterValue", "description")
        .check(client.create_snapshot(long).await)?;

    let probe = hearth.probe(|_| {}).await?;
    let instance_id = probe.guest.id.clone();
    let attached = CreateSnapshotsRequest {
        instance_id: instance_id.clone(),
        volume_ids: vec![volume.clone()],
        ..Default::default()
    };
    Expect::invalid("InvalidParameterValue", "volume_ids[0]")
        .check(client.create_snapshots(attached.clone()).await)?;
    let both = CreateSnapshotsRequest {
        exclude_root: true,
        ..attached.clone()
    };
    Expect::invalid("InvalidParameterCombination", "exclude_root")
        .check(client.create_snapshots(both).await)?;
    let none = CreateSnapshotsRequest {
        volume_ids: vec![],
        ..attached
    };
    let no_volume = Expect {
        code: Code::FailedPrecondition,
        reason: "IncorrectState",
        field: "instance_id",
    };
    no_volume.check(client.create_snapshots(none).await)?;

    let of_nobody = CopySnapshotRequest {
        source_snapshot_id: NOBODY.to_owned(),
        ..Default::default()
    };
    missing("InvalidSnapshot.NotFound", "source_snapshot_id")
        .check(client.copy_snapshot(of_nobody).await)?;
    for (snapshot_id, expected) in [
        ("", Expect::invalid("MissingParameter", "snapshot_id")),
        (
            "snap-1",
            Expect::invalid("InvalidSnapshotID.Malformed", "snapshot_id"),
        ),
        (NOBODY, missing("InvalidSnapshot.NotFound", "snapshot_id")),
    ] {
        let snapshot_id = snapshot_id.to_owned();
        let request = DeleteSnapshotRequest { snapshot_id };
        expected.check(client.delete_snapshot(request).await)?;
    }
    ensure!(hearth.all_snapshots().await?.is_empty());

    // Volumes from snapshots.
    let large = CreateVolumeRequest {
        size_gib: 2,
        ..Default::default()
    };
    let large = hearth.volumes().create_volume(large).await?.into_inner();
    let large = large.volume.context("no volume")?.volume_id;
    let snapshot = hearth.snapshot_of(&large).await?.snapshot_id;
    let mut volumes = hearth.volumes();
    let from = |snapshot_id: &str, size_gib, image_id: &str| CreateVolumeRequest {
        snapshot_id: snapshot_id.to_owned(),
        size_gib,
        image_id: image_id.to_owned(),
        ..Default::default()
    };
    Expect::invalid("InvalidParameterValue", "size_gib")
        .check(volumes.create_volume(from(&snapshot, 1, "")).await)?;
    Expect::invalid("InvalidSnapshotID.Malformed", "snapshot_id")
        .check(volumes.create_volume(from("snap-x", 1, "")).await)?;
    missing("InvalidSnapshot.NotFound", "snapshot_id")
        .check(volumes.create_volume(from(NOBODY, 0, "")).await)?;
    let image = hearth.probe_image().await?;
    Expect::invalid("InvalidParameterCombination", "snapshot_id")
        .check(volumes.create_volume(from(&snapshot, 0, image)).await)?;
    let disk = |snapshot_id: &str, volume_id: &str, size_gib| RunInstancesRequest {
        image_id: image.to_owned(),
        block_devices: vec![BlockDeviceMapping {
            snapshot_id: snapshot_id.to_owned(),
            volume_id: volume_id.to_owned(),
            size_gib,
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut instances = hearth.instances();
    Expect::invalid("InvalidParameterValue", "block_devices[0].size_gib")
        .check(instances.run_instances(disk(&snapshot, "", 1)).await)?;
    missing("InvalidSnapshot.NotFound", "block_devices[0].snapshot_id")
        .check(instances.run_instances(disk(NOBODY, "", 0)).await)?;
    Expect::invalid("InvalidParameterCombination", "block_devices[0].volume_id")
        .check(instances.run_instances(disk(&snapshot, &volume, 0)).await)?;
    let there = volumes
        .describe_volumes(DescribeVolumesRequest::default())
        .await?;
    ensure!(there.into_inner().volumes.len() == 2);
    hearth.finish().await
}
