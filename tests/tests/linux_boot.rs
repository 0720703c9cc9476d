//! Linux, from a qcow2 root volume, through gRPC.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{BlockDeviceMapping, Event, InstanceState, WatchRequest};
use hearth_tests::{Hearth, needs_kvm, store};
use tonic::Streaming;

/// The next change of state of an instance, as `before -> after`.
async fn next_change(events: &mut Streaming<Event>) -> Result<String> {
    let deadline = hearth_tests::BOOT;
    let event = tokio::time::timeout(deadline, events.message())
        .await
        .context("no event came")??
        .context("the stream of events ended")?;
    Ok(format!("{} -> {}", event.previous_state, event.state))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_written_in_the_guest_is_there_after_stop_and_start() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let request = WatchRequest {
        types: vec!["instance.state".to_owned()],
        ..Default::default()
    };
    let mut events = hearth.events().watch(request).await?.into_inner();

    let guest = hearth.run(&image, |_| {}).await?;
    let mut console = guest.ready().await?;
    let written = "the sea is calm tonight";
    console
        .shell(&format!("echo {written} > /root/poem && sync"))
        .await?;
    let stopped = guest.stop().await?;
    let reason = stopped.state_reason.clone().context("no reason")?;
    ensure!(reason.code == "Client.UserInitiatedShutdown", "{reason:?}");
    ensure!(
        stopped.vmm_pid == 0,
        "a stopped instance has a VMM: {stopped:?}"
    );
    // The guest did shut down by itself: the power button was heard.
    console.expect("hearth-guest: power off").await?;
    store::check(&hearth.store_dir())?;

    guest.start().await?;
    let mut console = guest.ready().await?;
    assert_eq!(console.shell("cat /root/poem").await?, written);
    guest.terminate().await?;

    for change in [
        " -> pending",
        "pending -> running",
        "running -> stopping",
        "stopping -> stopped",
        "stopped -> pending",
        "pending -> running",
        "running -> shutting-down",
        "shutting-down -> terminated",
    ] {
        assert_eq!(next_change(&mut events).await?, change);
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_guests_of_one_image_each_write_their_own_root_and_one_has_grown() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let root_size = BlockDeviceMapping {
        device_name: "/dev/vda".to_owned(),
        size_gib: 3,
        ..Default::default()
    };
    let large = hearth
        .run(&image, |request| request.block_devices = vec![root_size])
        .await?;
    let small = hearth.run(&image, |_| {}).await?;

    let mut large_console = large.ready().await?;
    let mut small_console = small.ready().await?;
    large_console
        .shell("echo large > /root/who && sync")
        .await?;
    small_console
        .shell("echo small > /root/who && sync")
        .await?;
    assert_eq!(large_console.shell("cat /root/who").await?, "large");
    assert_eq!(small_console.shell("cat /root/who").await?, "small");

    // The file system, not only the device: what df calls its size, in KiB.
    let size = "df -k / | tail -n 1 | awk '{ print $2 }'";
    let large_kib: u64 = large_console.shell(size).await?.parse()?;
    let small_kib: u64 = small_console.shell(size).await?.parse()?;
    ensure!(
        large_kib > 2_700_000,
        "the root did not grow: {large_kib} KiB"
    );
    ensure!(
        small_kib < large_kib / 2,
        "the image's own size is {small_kib} KiB"
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reboots_itself_runs_on_and_one_that_powers_off_is_stopped() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let guest = hearth.run(&image, |_| {}).await?;
    let mut console = guest.ready().await?;
    console.shell("echo before > /root/when && sync").await?;
    console.send("reboot\n").await?;
    console.expect("hearth-guest: reboot").await?;

    // The same session goes on with the next boot.
    console.expect("hearth-guest: ready").await?;
    assert_eq!(console.shell("cat /root/when").await?, "before");
    assert_eq!(guest.describe().await?.state(), InstanceState::Running);

    console.send("poweroff\n").await?;
    let stopped = guest.wait_state(InstanceState::Stopped).await?;
    let reason = stopped.state_reason.clone().context("no reason")?;
    assert_eq!(reason.code, "Client.InstanceInitiatedShutdown");
    hearth.finish().await
}
