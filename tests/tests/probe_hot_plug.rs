//! Disks that come and go, as the probe sees them: it looks for them when it is told to
//! (`rescan`), and so can be a guest that does not let go.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hearth_proto::v1::{AttachVolumeRequest, AttachmentState, InstanceState};
use hearth_tests::{
    BOOT, Expect, Guest, Hearth, Probe,
    attachments::{attach_request, detach_request, serial_of},
    needs_kvm, probe, processes,
};
use tonic::Code;

/// Disks beside the root: a virtual machine has sixteen devices, one gives random numbers.
const MOST: usize = 15;

fn refused(code: Code, reason: &'static str, field: &'static str) -> Expect {
    Expect {
        code,
        reason,
        field,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_lets_go_gets_disks_and_gives_them_back() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    ensure!(probe.expect_ok("rescan").await?["new"] == 0);
    let [first, second] = [hearth.empty_volume(1).await?, hearth.empty_volume(2).await?];
    hearth.attach(&first, &probe.guest.id).await?;
    hearth.attach(&second, &probe.guest.id).await?;
    let found = probe.expect_ok("rescan").await?;
    ensure!(found["new"] == 2, "{found}");
    for (index, (volume, gib)) in [(&first, 1u64), (&second, 2)].into_iter().enumerate() {
        let disk = &found["disks"][index];
        ensure!(disk["serial"] == serial_of(volume), "{found}");
        ensure!(disk["size_bytes"] == gib << 30, "{found}");
    }
    probe.expect_ok("write disk=1 length=1M pattern=3").await?;

    // It has the disk open: it goes when the guest lets go of it, and not before.
    let volume = hearth.detach(&second, false, 0).await?;
    assert_eq!(
        volume.attachment.unwrap_or_default().state(),
        AttachmentState::Detaching
    );
    let busy = refused(Code::FailedPrecondition, "VolumeInUse", "volume_id");
    let again = attach_request(&second, &probe.guest.id);
    busy.check(hearth.volumes().attach_volume(again).await)?;
    let twice = refused(Code::FailedPrecondition, "IncorrectState", "volume_id");
    twice.check(
        hearth
            .volumes()
            .detach_volume(detach_request(&second, false, 0))
            .await,
    )?;
    probe.expect_ok("verify disk=1 length=1M pattern=3").await?;
    let found = probe.expect_ok("rescan").await?;
    ensure!(found["gone"] == 1 && found["disks"][1].is_null(), "{found}");
    hearth.attachment(&second, None).await?;
    probe.expect_ok("write disk=0 length=1M pattern=4").await?;

    // Not flushed by the guest, and there all the same.
    hearth.attach(&second, &probe.guest.id).await?;
    probe.expect_ok("rescan").await?;
    probe.expect_ok("verify disk=1 length=1M pattern=3").await?;
    probe.expect_ok("verify disk=0 length=1M pattern=4").await?;

    // It is the instance's: there after a stop, as the second one.
    probe.guest.stop_by_force().await?;
    probe.start().await?;
    probe.expect_ok("verify disk=1 length=1M pattern=3").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_no_driver_has_found_goes_without_the_guest() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let volume = hearth.empty_volume(1).await?;
    for _ in 0..3 {
        hearth.attach(&volume, &probe.guest.id).await?;
        hearth.detach(&volume, false, 0).await?;
        hearth.attachment(&volume, None).await?;
    }
    ensure!(probe.expect_ok("rescan").await?["new"] == 0);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_let_go_keeps_its_disk_unless_it_is_taken_by_force() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let mut other = hearth.probe(|_| {}).await?;
    let volume = hearth.empty_volume(1).await?;
    hearth.attach(&volume, &probe.guest.id).await?;
    probe.expect_ok("rescan").await?;
    probe.expect_ok("write length=1M pattern=5").await?;

    hearth.detach(&volume, false, 1).await?;
    hearth
        .attachment(&volume, Some(AttachmentState::Attached))
        .await?;
    let kept = |event: &hearth_proto::v1::Event| {
        event.r#type == "volume.attachment" && event.previous_state == "detaching"
    };
    let event = hearth.event(&volume, kept).await?;
    ensure!(
        event.state == "attached" && event.message.contains("did not let go"),
        "{event:?}"
    );
    probe.expect_ok("verify length=1M pattern=5").await?;

    // By force also while the guest is being waited for.
    hearth.detach(&volume, false, 3600).await?;
    hearth.detach(&volume, true, 0).await?;
    hearth.attachment(&volume, None).await?;
    let error = probe.expect_error("read length=4k").await?;
    ensure!(error.contains("IOERR"), "{error}");
    hearth.attach(&volume, &other.guest.id).await?;
    other.expect_ok("rescan").await?;
    other.expect_ok("verify length=1M pattern=5").await?;

    // The guest runs on, and has its place back once it lets go.
    let found = probe.expect_ok("rescan").await?;
    ensure!(found["gone"] == 1, "{found}");
    let next = hearth.empty_volume(1).await?;
    hearth.attach(&next, &probe.guest.id).await?;
    let found = probe.expect_ok("rescan").await?;
    ensure!(found["disks"][0]["serial"] == serial_of(&next), "{found}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_attached_or_detached_is_refused_and_changes_nothing() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(1 << 20, 1)?).await?;
    let mut probe = hearth.probe_of(&image, |_| {}).await?;
    let id = probe.guest.id.clone();
    let instance = probe.guest.describe().await?;
    let root = instance.block_devices[0].volume_id.clone();
    let mut volumes = hearth.volumes();
    let state = refused(Code::FailedPrecondition, "IncorrectState", "volume_id");
    for force in [false, true] {
        state.check(volumes.detach_volume(detach_request(&root, force, 0)).await)?;
    }
    let mut attached = Vec::new();
    while attached.len() < MOST - 1 {
        let volume = hearth.empty_volume(1).await?;
        hearth.attach(&volume, &id).await?;
        attached.push(volume);
    }
    let spare = hearth.empty_volume(1).await?;
    let full = refused(
        Code::ResourceExhausted,
        "AttachmentLimitExceeded",
        "instance_id",
    );
    full.check(volumes.attach_volume(attach_request(&spare, &id)).await)?;
    let found = probe.expect_ok("rescan").await?;
    ensure!(found["new"] == MOST - 1, "{found}");

    let gone = attached.pop().unwrap_or_default();
    hearth.detach(&gone, true, 0).await?;
    hearth.attachment(&gone, None).await?;
    state.check(volumes.detach_volume(detach_request(&gone, false, 0)).await)?;
    let taken = AttachVolumeRequest {
        device_name: "/dev/vdb".to_owned(),
        ..attach_request(&spare, &id)
    };
    Expect::invalid("InvalidParameterValue", "device_name")
        .check(volumes.attach_volume(taken).await)?;
    let long = detach_request(&attached[0], false, u32::MAX);
    Expect::invalid("InvalidParameterValue", "timeout_seconds")
        .check(volumes.detach_volume(long).await)?;
    // The guest has not let go of what was taken by force: its place is not free, and to say so
    // leaves the volume as it was.
    state.check(volumes.attach_volume(attach_request(&spare, &id)).await)?;
    hearth.attachment(&spare, None).await?;
    probe.expect_ok("rescan").await?;
    // It is free a moment after the guest has let go.
    let deadline = Instant::now() + BOOT;
    while let Err(status) = volumes.attach_volume(attach_request(&spare, &id)).await {
        ensure!(status.code() == Code::FailedPrecondition, "{status}");
        ensure!(Instant::now() < deadline, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(probe.guest.describe().await?.block_devices.len(), MOST);

    probe.guest.terminate().await?;
    let over = refused(
        Code::FailedPrecondition,
        "IncorrectInstanceState",
        "instance_id",
    );
    over.check(volumes.attach_volume(attach_request(&spare, &id)).await)?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_the_guest_settles_what_was_under_way() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let id = probe.guest.id.clone();
    let [held, other] = [hearth.empty_volume(1).await?, hearth.empty_volume(1).await?];
    hearth.attach(&held, &id).await?;
    probe.expect_ok("rescan").await?;
    hearth.detach(&held, false, 3600).await?;
    probe.guest.stop_by_force().await?;
    hearth.attachment(&held, None).await?;
    probe.start().await?;
    ensure!(probe.expect_ok("rescan").await?["disks"][0].is_null());

    // A guest that resets itself in the middle comes back without it.
    hearth.attach(&held, &id).await?;
    probe.expect_ok("rescan").await?;
    hearth.detach(&held, false, 3600).await?;
    probe.send("reset method=acpi").await?;
    probe.booted().await?;
    hearth.attachment(&held, None).await?;

    // Terminated while one is on its way out and another on its way in.
    hearth.attach(&held, &id).await?;
    probe.expect_ok("rescan").await?;
    hearth.detach(&held, false, 3600).await?;
    let mut volumes = hearth.volumes();
    let (attached, terminated) = tokio::join!(
        volumes.attach_volume(attach_request(&other, &id)),
        probe.guest.terminate()
    );
    terminated?;
    if let Err(status) = attached {
        ensure!(status.code() == Code::FailedPrecondition, "{status}");
    }
    for volume in [&held, &other] {
        hearth.attachment(volume, None).await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_the_middle_finishes_when_it_is_back() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let id = hearth.probe(|_| {}).await?.guest.id;
    let volume = hearth.empty_volume(1).await?;
    let mut volumes = hearth.volumes();
    for step in ["attachment.row-attaching", "attachment.plugged"] {
        let call = volumes.attach_volume(attach_request(&volume, &id));
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        hearth
            .attachment(&volume, Some(AttachmentState::Attached))
            .await?;
        let mut probe = Probe::attach(Guest::new(&hearth, id.clone())).await?;
        let found = probe.expect_ok("rescan").await?;
        ensure!(
            found["disks"][0]["serial"] == serial_of(&volume),
            "{step}: {found}"
        );

        let step = match step {
            "attachment.plugged" => "attachment.plugged",
            _ => "attachment.row-detaching",
        };
        let call = async {
            let answer = volumes
                .detach_volume(detach_request(&volume, true, 0))
                .await;
            drop(answer);
        };
        hearth.crash_at(step, call).await?;
        hearth.attachment(&volume, None).await?;
        let mut probe = Probe::attach(Guest::new(&hearth, id.clone())).await?;
        probe.expect_ok("rescan").await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_while_no_agent_runs_leaves_nothing_half_attached() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let volume = hearth.empty_volume(1).await?;
    let mut volumes = hearth.volumes();
    for (step, after) in [
        ("attachment.row-attaching", Some(AttachmentState::Attached)),
        ("attachment.row-detaching", None),
    ] {
        let (id, pid) = {
            let probe = hearth.probe(|_| {}).await?;
            let pid = probe.guest.describe().await?.vmm_pid;
            (probe.guest.id, pid)
        };
        if after.is_none() {
            hearth.attach(&volume, &id).await?;
        }
        hearth.stop_agent()?;
        hearth.start_agent_to_crash_at(step).await?;
        let crashed = match after {
            Some(_) => volumes
                .attach_volume(attach_request(&volume, &id))
                .await
                .is_err(),
            None => volumes
                .detach_volume(detach_request(&volume, false, 0))
                .await
                .is_err(),
        };
        ensure!(crashed, "{step}");
        hearth.kill_agent()?;
        processes::kill_9(pid);
        ensure!(processes::wait_gone(pid), "the VMM outlives SIGKILL");
        hearth.start_agent().await?;
        hearth.attachment(&volume, after).await?;
        let guest = Guest::new(&hearth, id);
        guest.wait_state(InstanceState::Stopped).await?;
        guest.terminate().await?;
    }
    hearth.finish().await
}
