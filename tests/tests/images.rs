//! Images of instances: all disks of one moment, and instances made from them.

use std::{
    ops::Add,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, BootProtocol, CreateImageBlockDevice, CreateImageRequest,
    CreateVolumeRequest, DeregisterImageRequest, DescribeImagesRequest,
    DisableImageDeprecationRequest, EnableImageDeprecationRequest, Image, ImageState,
    InstanceState, ModifyImageAttributeRequest, RunInstancesRequest,
};
use hearth_tests::{Expect, Guest, Hearth, Probe, eventually, needs_kvm, probe, store};
use tonic::Code;

/// Size of the root of the image used here, in bytes, and the seed of the pattern on it.
const ROOT: usize = 8 << 20;
const SEED: u64 = 5;

/// In the year 2100, counted from 1970.
const CENTURY: Duration = Duration::from_secs(4_102_444_800);

/// A probe with a second disk of 1 GiB.
async fn two_disks(hearth: &Hearth) -> Result<Probe<'_>> {
    let image = hearth.import(&probe::image_with_root(ROOT, SEED)?).await?;
    let second = BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(true),
        ..Default::default()
    };
    let with_second = |request: &mut RunInstancesRequest| request.block_devices.push(second);
    hearth.probe_of(&image, with_second).await
}

/// Something on both disks that is not in the image they come from.
async fn write_both(probe: &mut Probe<'_>) -> Result<()> {
    for command in [
        "write offset=1M length=1M pattern=6",
        "write disk=1 offset=512M length=1M pattern=7",
        "flush",
        "flush disk=1",
    ] {
        probe.expect_ok(command).await?;
    }
    Ok(())
}

async fn verify_both(probe: &mut Probe<'_>) -> Result<()> {
    for command in [
        "verify length=1M pattern=5",
        "verify offset=1M length=1M pattern=6",
        "verify disk=1 length=1M pattern=zeroes",
        "verify disk=1 offset=512M length=1M pattern=7",
    ] {
        probe.expect_ok(command).await?;
    }
    Ok(())
}

/// Asks for an image. The probe does not hear the power button: a second is enough.
fn request(instance_id: &str, name: &str) -> CreateImageRequest {
    CreateImageRequest {
        instance_id: instance_id.to_owned(),
        name: name.to_owned(),
        stop_timeout_seconds: 1,
        ..Default::default()
    }
}

async fn create(hearth: &Hearth, request: CreateImageRequest) -> Result<Image> {
    let answer = hearth.images().create_image(request).await?;
    answer.into_inner().image.context("no image")
}

async fn images(hearth: &Hearth) -> Result<Vec<Image>> {
    let all = DescribeImagesRequest::default();
    let answer = hearth.images().describe_images(all).await?;
    Ok(answer.into_inner().images)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_running_instance_has_all_its_disks() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut original = two_disks(&hearth).await?;
    write_both(&mut original).await?;
    let id = original.guest.id.clone();
    let image = create(&hearth, request(&id, "of both")).await?;
    ensure!(image.state() == ImageState::Available, "{image:?}");
    ensure!(image.source_instance_id == id, "{image:?}");
    ensure!(image.root_size_bytes == ROOT as u64, "{image:?}");
    let devices = &image.block_devices;
    ensure!(devices.len() == 2, "{image:?}");
    ensure!(devices[0].device_name == "/dev/vda", "{image:?}");
    ensure!(devices[1].device_name == "/dev/vdb", "{image:?}");
    ensure!(devices[1].size_bytes == 1 << 30, "{image:?}");
    ensure!(devices[1].delete_on_termination, "{image:?}");
    ensure!(images(&hearth).await?.contains(&image));

    // It was stopped for it, and started again.
    let mut original = Probe::attach(Guest::new(&hearth, id)).await?;
    verify_both(&mut original).await?;

    // Two of them, each with disks of its own, apart from those of the first.
    let mut first = hearth.probe_of(&image.image_id, |_| {}).await?;
    let mut second = hearth.probe_of(&image.image_id, |_| {}).await?;
    verify_both(&mut first).await?;
    first
        .expect_ok("write disk=1 offset=512M length=1M pattern=8")
        .await?;
    original
        .expect_ok("write offset=1M length=1M pattern=9")
        .await?;
    verify_both(&mut second).await?;
    let described = second.guest.describe().await?;
    ensure!(described.block_devices.len() == 2, "{described:?}");

    // Taken away, the image leaves them alone; its disks go with the last that needs them.
    let image_id = image.image_id;
    hearth
        .images()
        .deregister_image(DeregisterImageRequest { image_id })
        .await?;
    second.guest.stop_by_force().await?;
    second.start().await?;
    verify_both(&mut second).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reboot_the_guest_runs_on_and_what_it_flushed_is_in_the_image() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut original = two_disks(&hearth).await?;
    write_both(&mut original).await?;
    let before = original.guest.describe().await?;
    let live = CreateImageRequest {
        no_reboot: true,
        ..request(&before.instance_id, "live")
    };
    let image = create(&hearth, live).await?;

    // The same process, on the same console.
    let after = original.guest.describe().await?;
    ensure!(after.vmm_pid == before.vmm_pid, "{after:?}");
    original
        .expect_ok("write disk=1 offset=512M length=1M pattern=8")
        .await?;
    let mut copy = hearth.probe_of(&image.image_id, |_| {}).await?;
    verify_both(&mut copy).await?;
    original
        .expect_ok("verify disk=1 offset=512M length=1M pattern=8")
        .await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_may_be_left_out_changed_and_made_larger() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut original = two_disks(&hearth).await?;
    write_both(&mut original).await?;
    original.guest.stop_by_force().await?;
    let id = original.guest.id.clone();
    let without = CreateImageBlockDevice {
        device_name: "/dev/vdb".to_owned(),
        no_device: true,
        delete_on_termination: None,
    };
    let image = create(
        &hearth,
        CreateImageRequest {
            block_devices: vec![without],
            ..request(&id, "root only")
        },
    )
    .await?;
    ensure!(image.block_devices.len() == 1, "{image:?}");
    // It was stopped, and stays so.
    let described = original.guest.describe().await?;
    ensure!(described.state() == InstanceState::Stopped, "{described:?}");

    let kept = CreateImageBlockDevice {
        device_name: "/dev/vdb".to_owned(),
        no_device: false,
        delete_on_termination: Some(false),
    };
    let image = create(
        &hearth,
        CreateImageRequest {
            block_devices: vec![kept],
            ..request(&id, "both")
        },
    )
    .await?;
    ensure!(!image.block_devices[1].delete_on_termination, "{image:?}");
    let larger = BlockDeviceMapping {
        device_name: "/dev/vdb".to_owned(),
        size_gib: 2,
        delete_on_termination: Some(true),
        ..Default::default()
    };
    let mut copy = hearth
        .probe_of(&image.image_id, |request| {
            request.block_devices = vec![larger]
        })
        .await?;
    verify_both(&mut copy).await?;
    let machine = copy.expect_ok("identify").await?;
    assert_eq!(machine["disks"][1]["size_bytes"], 2u64 << 30);

    // A volume of the image's root, as of an imported one.
    let volume = CreateVolumeRequest {
        image_id: image.image_id.clone(),
        ..Default::default()
    };
    let volume = hearth.volumes().create_volume(volume).await?.into_inner();
    let volume = volume.volume.context("no volume")?;
    ensure!(volume.size_bytes == ROOT as u64, "{volume:?}");

    let smaller = RunInstancesRequest {
        image_id: image.image_id,
        memory_mib: 32,
        block_devices: vec![BlockDeviceMapping {
            device_name: "/dev/vda".to_owned(),
            volume_id: volume.volume_id,
            ..Default::default()
        }],
        ..Default::default()
    };
    let answer = hearth.instances().run_instances(smaller).await;
    let expected = "block_devices[0].volume_id";
    Expect::invalid("InvalidParameterCombination", expected).check(answer)?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_makes_one_image_and_another_of_its_name_is_refused() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let original = two_disks(&hearth).await?;
    original.guest.stop_by_force().await?;
    let with_token = CreateImageRequest {
        client_token: "once".to_owned(),
        ..request(&original.guest.id, "once")
    };
    let first = create(&hearth, with_token.clone()).await?;
    assert_eq!(create(&hearth, with_token.clone()).await?, first);

    let other = CreateImageRequest {
        description: "another".to_owned(),
        ..with_token
    };
    let mismatch = Expect {
        code: Code::FailedPrecondition,
        reason: "IdempotentParameterMismatch",
        field: "",
    };
    mismatch.check(hearth.images().create_image(other).await)?;
    let duplicate = Expect {
        code: Code::AlreadyExists,
        reason: "InvalidAMIName.Duplicate",
        field: "name",
    };
    let again = request(&original.guest.id, "once");
    duplicate.check(hearth.images().create_image(again).await)?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_an_image_is_refused_with_its_field() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let original = two_disks(&hearth).await?;
    let id = original.guest.id.clone();
    let before = (
        images(&hearth).await?,
        store::files_below(&hearth.store_dir())?.len(),
    );
    let change = |device_name: &str, no_device| {
        vec![CreateImageBlockDevice {
            device_name: device_name.to_owned(),
            no_device,
            delete_on_termination: None,
        }]
    };
    let disks = |block_devices| CreateImageRequest {
        block_devices,
        ..request(&id, "name")
    };
    let none = "i-0123456789abcdef0";
    let cases = [
        (request("", "name"), "MissingParameter", "instance_id"),
        (
            request("i-1", "name"),
            "InvalidInstanceID.Malformed",
            "instance_id",
        ),
        (request(&id, "a/b"), "InvalidAMIName.Malformed", "name"),
        (
            CreateImageRequest {
                description: "x".repeat(256),
                ..request(&id, "name")
            },
            "InvalidParameterValue",
            "description",
        ),
        (
            CreateImageRequest {
                stop_timeout_seconds: 3601,
                ..request(&id, "name")
            },
            "InvalidParameterValue",
            "stop_timeout_seconds",
        ),
        (
            disks(change("/dev/vdz", true)),
            "InvalidParameterValue",
            "block_devices[0].device_name",
        ),
        (
            disks(change("/dev/vda", true)),
            "InvalidParameterCombination",
            "block_devices[0].no_device",
        ),
    ];
    for (request, reason, field) in cases {
        let answer = hearth.images().create_image(request).await;
        Expect::invalid(reason, field).check(answer)?;
    }
    let missing = Expect {
        code: Code::NotFound,
        reason: "InvalidInstanceID.NotFound",
        field: "instance_id",
    };
    missing.check(hearth.images().create_image(request(none, "name")).await)?;
    let after = (
        images(&hearth).await?,
        store::files_below(&hearth.store_dir())?.len(),
    );
    ensure!(before == after, "{before:#?}\n{after:#?}");
    // It was not stopped for any of them.
    let described = original.guest.describe().await?;
    ensure!(described.state() == InstanceState::Running, "{described:?}");
    original.guest.terminate().await?;
    let state = Expect {
        code: Code::FailedPrecondition,
        reason: "IncorrectInstanceState",
        field: "instance_id",
    };
    state.check(hearth.images().create_image(request(&id, "name")).await)?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_agent_dies_the_instance_runs_again_and_the_image_is_there_or_not() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let id = {
        let mut original = two_disks(&hearth).await?;
        write_both(&mut original).await?;
        original.guest.id.clone()
    };
    let before = images(&hearth).await?.len();
    for (step, made) in [
        ("image.row-creating", false),
        ("image.instance-stopped", false),
        ("image.snapshots-taken", false),
        ("image.row-available", true),
    ] {
        let request = CreateImageRequest {
            client_token: step.to_owned(),
            ..request(&id, step)
        };
        let mut client = hearth.images();
        let call = client.create_image(request.clone());
        let answer = hearth.crash_at(step, call).await?;
        ensure!(answer.is_err(), "{step}");
        // The instance first: it is what somebody misses.
        let guest = Guest::new(&hearth, id.clone());
        guest.wait_state(InstanceState::Running).await?;
        let there = eventually(async || {
            let images = images(&hearth).await?;
            let pending = images
                .iter()
                .any(|image| image.state() == ImageState::Pending);
            ensure!(!pending, "{images:#?}");
            Ok(images.len() == before + 1)
        });
        ensure!(there.await? == made, "{step}");

        // The same call again, with the same token.
        let image = create(&hearth, request).await?;
        let images = images(&hearth).await?;
        ensure!(images.len() == before + 1, "{step}: {images:#?}");
        let mut copy = hearth.probe_of(&image.image_id, |_| {}).await?;
        verify_both(&mut copy).await?;
        copy.guest.terminate().await?;
        let image_id = image.image_id;
        hearth
            .images()
            .deregister_image(DeregisterImageRequest { image_id })
            .await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn boot_settings_may_be_changed_and_an_image_deprecated() -> Result<()> {
    let hearth = Hearth::start().await?;
    let image_id = hearth.probe_image().await?.to_owned();
    let modify = ModifyImageAttributeRequest {
        image_id: image_id.clone(),
        description: Some("for tests".to_owned()),
        kernel_args: Some("quiet".to_owned()),
        boot_protocol: Some(BootProtocol::Pvh.into()),
    };
    let mut client = hearth.images();
    let answer = client.modify_image_attribute(modify).await?.into_inner();
    let modified = answer.image.context("no image")?;
    assert_eq!(modified.description, "for tests");
    assert_eq!(modified.kernel_args, "quiet");
    assert_eq!(modified.boot_protocol(), BootProtocol::Pvh);
    // What is not set stays.
    let nothing = ModifyImageAttributeRequest {
        image_id: image_id.clone(),
        ..Default::default()
    };
    let answer = client.modify_image_attribute(nothing).await?.into_inner();
    assert_eq!(answer.image.context("no image")?, modified);
    let bad = ModifyImageAttributeRequest {
        image_id: image_id.clone(),
        kernel_args: Some("a\nb".to_owned()),
        ..Default::default()
    };
    let answer = client.modify_image_attribute(bad).await;
    Expect::invalid("InvalidParameterValue", "kernel_args").check(answer)?;

    let mut enable = EnableImageDeprecationRequest {
        image_id: image_id.clone(),
        deprecate_at: Some(SystemTime::UNIX_EPOCH.add(CENTURY).into()),
    };
    let answer = client.enable_image_deprecation(enable.clone()).await?;
    let image = answer.into_inner().image.context("no image")?;
    assert_eq!(image.deprecation_time, enable.deprecate_at);
    enable.deprecate_at = Some(SystemTime::UNIX_EPOCH.into());
    let answer = client.enable_image_deprecation(enable.clone()).await;
    Expect::invalid("InvalidParameterValue", "deprecate_at").check(answer)?;
    enable.deprecate_at = None;
    let answer = client.enable_image_deprecation(enable).await;
    Expect::invalid("MissingParameter", "deprecate_at").check(answer)?;
    let disable = DisableImageDeprecationRequest { image_id };
    let answer = client.disable_image_deprecation(disable).await?;
    let image = answer.into_inner().image.context("no image")?;
    assert_eq!(image.deprecation_time, None);
    hearth.finish().await
}
