//! Agents that die while snapshots are taken, copied and deleted.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CopySnapshotRequest, CreateSnapshotRequest, DeleteSnapshotRequest, InstanceState, SnapshotState,
};
use hearth_tests::{
    Hearth, eventually, needs_kvm,
    snapshots::{BLOCK, pattern_at},
    store,
};

use crate::{delete, volumes_of, with_disks};

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_taken_or_not_at_all_when_the_agent_dies() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let volume = hearth.volume_with(7, 2).await?;
    for (step, done) in [
        ("snapshot.rows-pending", false),
        ("layer.published", false),
        ("record.created", false),
        ("snapshot.taken", false),
        ("snapshot.rows-completed", true),
    ] {
        let request = CreateSnapshotRequest {
            volume_id: volume.clone(),
            client_token: step.to_owned(),
            ..Default::default()
        };
        let mut client = hearth.snapshots();
        let call = client.create_snapshot(request.clone());
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let wanted = usize::from(done);
        let settled = eventually(async || {
            let found = hearth.all_snapshots().await?;
            ensure!(found.len() == wanted, "{found:#?}");
            let records = store::files_below(&hearth.store_dir().join("snapshots"))?;
            ensure!(records.len() == wanted, "{records:#?}");
            Ok(())
        });
        settled.await.with_context(|| step.to_owned())?;
        let again = hearth.snapshots().create_snapshot(request).await?;
        let again = again.into_inner().snapshot.context("no snapshot")?;
        ensure!(again.state() == SnapshotState::Completed, "{again:?}");
        let found = hearth.all_snapshots().await?;
        ensure!(found == [again.clone()], "{step}: {found:#?}");
        let (data, _) = hearth.block_of(&again.snapshot_id, 1).await?;
        ensure!(data == pattern_at(7, BLOCK as u64, BLOCK), "{step}");
        delete(&hearth, &again.snapshot_id).await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_deletions_that_a_crash_cuts_off_are_undone_and_carried_through() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let volume = hearth.volume_with(7, 1).await?;
    let source = hearth.snapshot_of(&volume).await?.snapshot_id;
    let only_source = async |hearth: &Hearth| {
        eventually(async || {
            let found = hearth.all_snapshots().await?;
            ensure!(found.len() == 1, "{found:#?}");
            ensure!(found[0].snapshot_id == source, "{found:#?}");
            let records = store::files_below(&hearth.store_dir().join("snapshots"))?;
            ensure!(records.len() == 1, "{records:#?}");
            Ok(())
        })
        .await
    };
    for step in ["snapshot.row-copying", "snapshot.copied"] {
        let request = CopySnapshotRequest {
            source_snapshot_id: source.clone(),
            ..Default::default()
        };
        let mut client = hearth.snapshots();
        let call = client.copy_snapshot(request);
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let settled = only_source(&hearth).await;
        settled.with_context(|| step.to_owned())?;
    }
    for step in [
        "snapshot.row-deleting",
        "snapshot.gone-from-store",
        "snapshot.row-removed",
    ] {
        let snapshot_id = hearth.snapshot_of(&volume).await?.snapshot_id;
        let mut client = hearth.snapshots();
        let call = client.delete_snapshot(DeleteSnapshotRequest { snapshot_id });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let settled = only_source(&hearth).await;
        settled.with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_stopped_for_a_snapshot_starts_after_a_crash_of_the_agent()
-> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let (id, volume) = {
        let probe = hearth.probe(with_disks(1)).await?;
        let volume = volumes_of(&probe).await?.remove(0);
        (probe.guest.id.clone(), volume)
    };
    for (step, done) in [
        // It goes on stopping, and starts after that.
        ("instance.row-stopping", false),
        ("snapshot.instance-stopped", false),
        ("snapshot.rows-completed", true),
    ] {
        let request = CreateSnapshotRequest {
            volume_id: volume.clone(),
            stop_first: true,
            // The probe is deaf to the power button.
            stop_timeout_seconds: 1,
            ..Default::default()
        };
        let mut client = hearth.snapshots();
        let call = client.create_snapshot(request);
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let again = eventually(async || {
            let living = hearth.living_instances().await?;
            let running = living
                .iter()
                .any(|i| i.instance_id == id && i.state() == InstanceState::Running);
            ensure!(running, "{living:#?}");
            let found = hearth.all_snapshots().await?;
            ensure!(found.len() == usize::from(done), "{found:#?}");
            Ok(())
        });
        again.await.with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}
