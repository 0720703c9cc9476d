//! Guests that break the rules of virtio: nobody but them may suffer.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{BlockDeviceMapping, InstanceState, RunInstancesRequest};
use hearth_tests::{Hearth, Probe, needs_kvm};

/// Asks for an empty disk.
fn with_disk(request: &mut RunInstancesRequest) {
    request.block_devices.push(BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(true),
        ..Default::default()
    });
}

/// The kinds of misuse that the probe knows.
async fn kinds(probe: &mut Probe<'_>) -> Result<Vec<String>> {
    let error = probe.expect_error("misuse kind=unknown").await?;
    let (_, list) = error.split_once("one of ").context("no list of kinds")?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

/// Misuses a disk, after which either the guest runs on, or it is stopped and events say why.
async fn misuse(hearth: &Hearth, probe: &mut Probe<'_>, kind: &str) -> Result<()> {
    let command = format!("misuse kind={kind} timeout=0.1");
    if let Err(error) = probe.ask(&command).await {
        let instance = probe.guest.describe().await?;
        let ended = [InstanceState::Stopping, InstanceState::Stopped];
        ensure!(ended.contains(&instance.state()), "{error:#}");
        probe.stopped().await?;
        let is_stop = |event: &hearth_proto::v1::Event| event.state == "stopped";
        let event = hearth.event(&probe.guest.id, is_stop).await?;
        ensure!(!event.reason_code.is_empty(), "{event:?}");
        ensure!(!event.message.is_empty(), "{event:?}");
        probe.start().await?;
    }
    // A reset brings the disk back, with nothing of what was there changed.
    probe.expect_ok("verify length=64k pattern=3").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_misuses_a_virtqueue_harms_nobody_else() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut witness = hearth.probe(with_disk).await?;
    witness.expect_ok("write length=1M pattern=4").await?;

    let mut hostile = hearth.probe(with_disk).await?;
    hostile.expect_ok("write length=64k pattern=3").await?;
    let kinds = kinds(&mut hostile).await?;
    ensure!(kinds.len() >= 50, "{kinds:?}");
    for kind in &kinds {
        let done = misuse(&hearth, &mut hostile, kind).await;
        done.with_context(|| format!("kind {kind}"))?;
    }

    witness.expect_ok("verify length=1M pattern=4").await?;
    let mut another = hearth.probe(with_disk).await?;
    another.expect_ok("write length=64k pattern=5").await?;
    another.expect_ok("verify length=64k pattern=5").await?;
    hearth.finish().await
}
