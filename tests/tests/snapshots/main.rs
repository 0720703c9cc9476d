//! Snapshots: of volumes at rest and under guests that write, of several at one point in time.

mod bad_requests;
mod blocks;
mod crashes;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AttachVolumeRequest, BlockDeviceMapping, CopySnapshotRequest, CreateSnapshotRequest,
    CreateSnapshotsRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    DescribeSnapshotsRequest, Filter, InstanceState, RunInstancesRequest, SnapshotState, Tag,
};
use hearth_tests::{
    Expect, Hearth, Probe, eventually, needs_kvm, probe,
    snapshots::{BLOCK, pattern_at},
    store,
};
use sha2::{Digest, Sha256};
use tonic::Code;

/// An id that nobody has.
const NOBODY: &str = "snap-0123456789abcdef0";

/// Asks for empty disks of 1 GiB.
fn with_disks(count: usize) -> impl FnOnce(&mut RunInstancesRequest) {
    move |request| {
        for _ in 0..count {
            request.block_devices.push(BlockDeviceMapping {
                size_gib: 1,
                delete_on_termination: Some(true),
                ..Default::default()
            });
        }
    }
}

/// The volumes of a guest, in the order of its disks.
async fn volumes_of(probe: &Probe<'_>) -> Result<Vec<String>> {
    let devices = probe.guest.describe().await?.block_devices;
    Ok(devices.into_iter().map(|device| device.volume_id).collect())
}

async fn delete(hearth: &Hearth, snapshot_id: &str) -> Result<()> {
    let snapshot_id = snapshot_id.to_owned();
    let request = DeleteSnapshotRequest { snapshot_id };
    hearth.snapshots().delete_snapshot(request).await?;
    Ok(())
}

async fn delete_volume(hearth: &Hearth, volume_id: &str) -> Result<()> {
    let volume_id = volume_id.to_owned();
    let request = DeleteVolumeRequest { volume_id };
    hearth.volumes().delete_volume(request).await?;
    Ok(())
}

/// Checks that the store holds neither layers nor records.
async fn store_is_empty(hearth: &Hearth) -> Result<()> {
    eventually(async || {
        let files = store::files_below(&hearth.store_dir())?;
        let left: BTreeMap<_, _> = files
            .into_iter()
            .filter(|(path, _)| {
                let text = path.to_string_lossy();
                ["/layers/", "/volumes/", "/snapshots/", "/tmp/"]
                    .iter()
                    .any(|folder| text.contains(folder))
            })
            .collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_running_guest_holds_what_was_there_and_the_guest_goes_on() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_disks(1)).await?;
    let volume = volumes_of(&probe).await?.remove(0);
    probe.expect_ok("write length=4M pattern=1").await?;
    probe.expect_ok("flush").await?;
    let snapshot = hearth.snapshot_of(&volume).await?;
    ensure!(snapshot.state() == SnapshotState::Completed, "{snapshot:?}");
    ensure!(snapshot.progress == 100, "{snapshot:?}");
    ensure!(snapshot.size_bytes == 1 << 30, "{snapshot:?}");
    ensure!(snapshot.volume_id == volume, "{snapshot:?}");
    ensure!(snapshot.owner_id == "local", "{snapshot:?}");
    let written = probe.expect_ok("write offset=1M length=4M pattern=2").await;
    written?;
    probe.expect_ok("flush").await?;

    // A volume from it has the old data; larger, for another guest of its own.
    let with_snapshot = |request: &mut RunInstancesRequest| {
        request.block_devices.push(BlockDeviceMapping {
            snapshot_id: snapshot.snapshot_id.clone(),
            size_gib: 2,
            delete_on_termination: Some(true),
            ..Default::default()
        });
    };
    let mut other = hearth.probe(with_snapshot).await?;
    other.expect_ok("verify length=4M pattern=1").await?;
    let rest = "verify offset=4M length=4M pattern=zeroes";
    other.expect_ok(rest).await?;
    let end = "verify offset=2147482624 length=1k pattern=zeroes";
    other.expect_ok(end).await?;
    other.expect_ok("write length=1M pattern=9").await?;

    // And the guest has the new data, also after its next start.
    probe.expect_ok("verify length=1M pattern=1").await?;
    let new = "verify offset=1M length=4M pattern=2";
    probe.expect_ok(new).await?;
    delete(&hearth, &snapshot.snapshot_id).await?;
    probe.guest.stop_by_force().await?;
    probe.start().await?;
    probe.expect_ok("verify length=1M pattern=1").await?;
    probe.expect_ok(new).await?;
    other.expect_ok("verify length=1M pattern=9").await?;
    let old = "verify offset=1M length=3M pattern=1";
    other.expect_ok(old).await?;
    hearth.finish().await
}

/// The seed whose pattern starts the snapshot's disk; 0 for none of them.
async fn seed_in(hearth: &Hearth, snapshot_id: &str, seeds: u64) -> Result<u64> {
    let (data, _) = hearth.block_of(snapshot_id, 0).await?;
    let is = |seed: &u64| data[..4096] == pattern_at(*seed, 0, 4096)[..];
    Ok((1..=seeds).rev().find(is).unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_instance_are_taken_at_one_point_in_time_while_it_writes() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_disks(2)).await?;
    let id = probe.guest.id.clone();
    let volumes = volumes_of(&probe).await?;
    let done = std::sync::atomic::AtomicBool::new(false);
    // One write on the first disk, then the same on the second, over and over.
    let write = async {
        let mut seed = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            seed += 1;
            for disk in [0, 1] {
                let command = format!("write disk={disk} length=4k pattern={seed}");
                probe.expect_ok(&command).await?;
            }
        }
        Ok::<u64, anyhow::Error>(seed)
    };
    let take = async {
        let mut all = Vec::new();
        for round in 0..8 {
            let request = CreateSnapshotsRequest {
                instance_id: id.clone(),
                description: format!("round {round}"),
                ..Default::default()
            };
            let answer = hearth.snapshots().create_snapshots(request).await;
            all.push(answer?.into_inner().snapshots);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, anyhow::Error>(all)
    };
    // A failure of one must end the other.
    let (written, taken) = tokio::try_join!(write, take)?;
    ensure!(written > 8, "only {written} writes");
    let mut last = 0;
    for snapshots in &taken {
        let of: Vec<_> = snapshots.iter().map(|s| s.volume_id.clone()).collect();
        ensure!(of == volumes, "{snapshots:#?}");
        let first = seed_in(&hearth, &snapshots[0].snapshot_id, written).await?;
        let second = seed_in(&hearth, &snapshots[1].snapshot_id, written).await?;
        // The second disk's write starts when the first one's has ended.
        ensure!(
            first == second || first == second + 1,
            "{first} on the first disk, {second} on the second, of {written}"
        );
        ensure!(first >= last, "{first} after {last}");
        last = first;
    }
    for snapshot in taken.iter().flatten() {
        delete(&hearth, &snapshot.snapshot_id).await?;
    }
    let command = format!("verify disk=1 length=4k pattern={written}");
    probe.expect_ok(&command).await?;

    // Only some of them.
    let request = CreateSnapshotsRequest {
        instance_id: id,
        volume_ids: vec![volumes[1].clone()],
        ..Default::default()
    };
    let some = hearth.snapshots().create_snapshots(request).await?;
    let some = some.into_inner().snapshots;
    ensure!(
        some.len() == 1 && some[0].volume_id == volumes[1],
        "{some:#?}"
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_a_running_guest_comes_with_a_warning_or_is_stopped_for() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(1 << 20, 5)?).await?;
    let probe = hearth.probe_of(&image, with_disks(1)).await?;
    let volumes = volumes_of(&probe).await?;
    let request = CreateSnapshotsRequest {
        instance_id: probe.guest.id.clone(),
        ..Default::default()
    };
    let mut client = hearth.snapshots();
    let both = client.create_snapshots(request.clone()).await?.into_inner();
    ensure!(both.snapshots.len() == 2, "{both:#?}");
    ensure!(both.warnings.len() == 1, "{both:#?}");
    let root = &both.snapshots[0].snapshot_id;
    ensure!(both.warnings[0].contains(root), "{both:#?}");
    let data_only = CreateSnapshotsRequest {
        exclude_root: true,
        ..request.clone()
    };
    let data = client.create_snapshots(data_only).await?.into_inner();
    ensure!(data.warnings.is_empty(), "{data:#?}");
    let of: Vec<_> = data.snapshots.iter().map(|s| &s.volume_id).collect();
    ensure!(of == [&volumes[1]], "{data:#?}");

    let stop_first = CreateSnapshotsRequest {
        stop_first: true,
        // The probe is deaf to the power button.
        stop_timeout_seconds: 1,
        client_token: "once".to_owned(),
        ..request
    };
    let stopped = client.create_snapshots(stop_first.clone()).await?;
    let stopped = stopped.into_inner();
    ensure!(stopped.warnings.is_empty(), "{stopped:#?}");
    ensure!(stopped.snapshots.len() == 2, "{stopped:#?}");
    // It starts again: another boot of the same guest.
    probe.guest.wait_state(InstanceState::Running).await?;
    let probe = Probe::attach(probe.guest).await?;
    let again = client.create_snapshots(stop_first).await?.into_inner();
    ensure!(again.snapshots == stopped.snapshots, "{again:#?}");
    let state = probe.guest.describe().await?.state();
    ensure!(state == InstanceState::Running, "{state:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_go_in_any_order_and_leave_nothing() -> Result<()> {
    let hearth = Hearth::start().await?;
    let volume = hearth.volume_with(1, 4).await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(hearth.snapshot_of(&volume).await?.snapshot_id);
    }
    let clone = hearth.volume_from(&ids[1]).await?;
    let copy = CopySnapshotRequest {
        source_snapshot_id: ids[2].clone(),
        description: "a copy".to_owned(),
        ..Default::default()
    };
    let copy = hearth.snapshots().copy_snapshot(copy).await?.into_inner();
    let copy = copy.snapshot.context("no copy")?;
    ensure!(copy.source_snapshot_id == ids[2], "{copy:?}");
    ensure!(copy.state() == SnapshotState::Completed, "{copy:?}");
    for at in [1, 3, 2, 0] {
        delete(&hearth, &ids[at]).await?;
    }
    delete_volume(&hearth, &volume).await?;
    let (data, digest) = hearth.block_of(&copy.snapshot_id, 3).await?;
    ensure!(data == pattern_at(1, 3 * BLOCK as u64, BLOCK), "the copy");
    let wanted: String = Sha256::digest(&data)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    ensure!(digest == wanted, "{digest}");
    let of_clone = hearth.snapshot_of(&clone).await?.snapshot_id;
    let (data, _) = hearth.block_of(&of_clone, 0).await?;
    ensure!(data == pattern_at(1, 0, BLOCK), "the clone");
    store::check(&hearth.store_dir())?;
    delete(&hearth, &of_clone).await?;
    delete(&hearth, &copy.snapshot_id).await?;
    delete_volume(&hearth, &clone).await?;
    ensure!(hearth.all_snapshots().await?.is_empty());
    store_is_empty(&hearth).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_token_takes_one_snapshot_and_filters_find_it() -> Result<()> {
    let hearth = Hearth::start().await?;
    let volume = hearth.volume_with(1, 1).await?;
    let request = CreateSnapshotRequest {
        volume_id: volume.clone(),
        description: "nightly".to_owned(),
        tags: vec![Tag {
            key: "Name".to_owned(),
            value: "data".to_owned(),
        }],
        client_token: "abc".to_owned(),
        ..Default::default()
    };
    let mut client = hearth.snapshots();
    let first = client.create_snapshot(request.clone()).await?.into_inner();
    let again = client.create_snapshot(request.clone()).await?.into_inner();
    ensure!(first.snapshot == again.snapshot, "{first:?}, {again:?}");
    let other = CreateSnapshotRequest {
        description: "other".to_owned(),
        ..request
    };
    let mismatch = Expect {
        code: Code::FailedPrecondition,
        reason: "IdempotentParameterMismatch",
        field: "",
    };
    mismatch.check(client.create_snapshot(other).await)?;
    hearth.snapshot_of(&volume).await?;
    let id = first.snapshot.context("no snapshot")?.snapshot_id;
    for (name, value, count) in [
        ("snapshot-id", id.as_str(), 1),
        ("status", "completed", 2),
        ("status", "error", 0),
        ("volume-id", &volume, 2),
        ("volume-size", "1", 2),
        ("description", "night*", 1),
        ("tag:Name", "data", 1),
        ("owner-id", "local", 2),
    ] {
        let filter = Filter {
            name: name.to_owned(),
            values: vec![value.to_owned()],
        };
        let request = DescribeSnapshotsRequest {
            filters: vec![filter],
            ..Default::default()
        };
        let found = client.describe_snapshots(request).await?.into_inner();
        ensure!(found.snapshots.len() == count, "{name}: {found:#?}");
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_the_snapshot_and_the_guest_goes_on() -> Result<()> {
    needs_kvm!();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return Ok(());
    }
    let hearth = Hearth::start_small(64).await?;
    let mut probe = hearth.probe(with_disks(1)).await?;
    let volume = volumes_of(&probe).await?.remove(0);
    probe.expect_ok("write length=1M pattern=3").await?;
    probe.expect_ok("flush").await?;
    let before = store::files_below(&hearth.store_dir())?.len();
    // All that is left, to the last byte.
    let ballast = hearth.state_dir().join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    let full = loop {
        match std::io::Write::write(&mut file, &[1; 4096]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    ensure!(full.kind() == std::io::ErrorKind::StorageFull, "{full}");
    let request = CreateSnapshotRequest {
        volume_id: volume.clone(),
        ..Default::default()
    };
    let no_room = Expect {
        code: Code::ResourceExhausted,
        reason: "InsufficientVolumeCapacity",
        field: "",
    };
    no_room.check(hearth.snapshots().create_snapshot(request).await)?;
    probe.expect_ok("verify length=1M pattern=3").await?;
    drop(file);
    std::fs::remove_file(&ballast)?;
    eventually(async || {
        let left = hearth.all_snapshots().await?;
        ensure!(left.is_empty(), "{left:#?}");
        let files = store::files_below(&hearth.store_dir())?;
        ensure!(files.len() == before, "{files:#?}");
        Ok(())
    })
    .await?;
    probe
        .expect_ok("write offset=1M length=1M pattern=4")
        .await?;
    probe.expect_ok("flush").await?;
    let snapshot = hearth.snapshot_of(&volume).await?.snapshot_id;
    let (data, _) = hearth.block_of(&snapshot, 2).await?;
    ensure!(data == pattern_at(4, 1 << 20, BLOCK));
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_the_store_has_lost_is_in_error_and_can_be_deleted() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let volume = hearth.volume_with(7, 1).await?;
    let id = hearth.snapshot_of(&volume).await?.snapshot_id;
    hearth.stop_agent()?;
    let record = hearth.store_dir().join(format!("snapshots/{id}.json"));
    std::fs::remove_file(record)?;
    hearth.start_agent().await?;
    let found = hearth.all_snapshots().await?;
    ensure!(found.len() == 1, "{found:#?}");
    ensure!(found[0].state() == SnapshotState::Error, "{found:#?}");
    ensure!(!found[0].state_message.is_empty(), "{found:#?}");
    let request = CreateVolumeRequest {
        snapshot_id: id.clone(),
        ..Default::default()
    };
    let refused = Expect {
        code: Code::FailedPrecondition,
        reason: "IncorrectState",
        field: "snapshot_id",
    };
    refused.check(hearth.volumes().create_volume(request).await)?;
    delete(&hearth, &id).await?;
    ensure!(hearth.all_snapshots().await?.is_empty());
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_instance_has_its_volumes_taken_at_rest() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_disks(1)).await?;
    let extra = hearth.volume_with(4, 2).await?;
    probe.expect_ok("write length=1M pattern=1").await?;
    probe.expect_ok("flush").await?;
    probe.guest.stop_by_force().await?;
    let request = AttachVolumeRequest {
        volume_id: extra.clone(),
        instance_id: probe.guest.id.clone(),
        ..Default::default()
    };
    hearth.volumes().attach_volume(request).await?;
    let request = CreateSnapshotsRequest {
        instance_id: probe.guest.id.clone(),
        stop_first: true,
        ..Default::default()
    };
    let both = hearth.snapshots().create_snapshots(request).await?;
    let both = both.into_inner().snapshots;
    ensure!(both.len() == 2, "{both:#?}");
    let state = probe.guest.describe().await?.state();
    ensure!(state == InstanceState::Stopped, "{state:?}");
    for (snapshot, seed) in both.iter().zip([1, 4]) {
        let (data, _) = hearth.block_of(&snapshot.snapshot_id, 1).await?;
        ensure!(data == pattern_at(seed, BLOCK as u64, BLOCK), "{seed}");
    }
    probe.start().await?;
    probe.expect_ok("verify length=1M pattern=1").await?;
    probe.expect_ok("verify disk=1 pattern=4").await?;
    hearth.finish().await
}
