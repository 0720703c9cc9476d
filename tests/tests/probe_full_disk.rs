//! The host's disk is full.

use std::fs;

use anyhow::{Result, ensure};
use hearth_proto::v1::{BlockDeviceMapping, InstanceState, RunInstancesRequest};
use hearth_tests::{Hearth, needs_kvm, store};

/// Asks for an empty disk, larger than all that the host has.
fn with_disk(request: &mut RunInstancesRequest) {
    request.block_devices.push(BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(true),
        ..Default::default()
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_fills_the_hosts_disk_is_told_and_goes_on_when_there_is_room() -> Result<()> {
    needs_kvm!();
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return Ok(());
    }
    let hearth = Hearth::start_small(64).await?;
    let mut probe = hearth.probe(with_disk).await?;
    probe.expect_ok("write length=1M pattern=3").await?;
    probe.expect_ok("flush").await?;
    // What an administrator can delete later.
    let ballast = hearth.state_dir().join("ballast");
    fs::write(&ballast, vec![1; 16 << 20])?;

    probe
        .expect_error("write offset=64M length=128M pattern=4")
        .await?;
    let disk_error = |event: &hearth_proto::v1::Event| event.r#type == "instance.disk-error";

    // The guest runs on, what was there is there, and the agent answers.
    probe.expect_ok("verify length=1M pattern=3").await?;
    let instance = probe.guest.describe().await?;
    assert_eq!(instance.state(), InstanceState::Running);

    fs::remove_file(&ballast)?;
    // Recorded as soon as there is room for the record.
    let event = hearth.event(&probe.guest.id, disk_error).await?;
    ensure!(!event.message.is_empty(), "{event:?}");
    probe
        .expect_ok("write offset=512M length=4M pattern=5")
        .await?;
    probe.expect_ok("flush").await?;
    probe.guest.stop_by_force().await?;
    store::check(&hearth.store_dir())?;
    probe.start().await?;
    probe.expect_ok("verify length=1M pattern=3").await?;
    probe
        .expect_ok("verify offset=512M length=4M pattern=5")
        .await?;
    hearth.finish().await
}
