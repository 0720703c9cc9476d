//! Images of instances: all disks of one moment, and instances made from them.

use std::{
    ops::Add,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, BootProtocol, CopyImageRequest, CreateImageBlockDevice, CreateImageRequest,
    CreateSnapshotRequest, CreateSnapshotsRequest, CreateVolumeRequest, DeleteSnapshotRequest,
    DeleteSnapshotResponse, DeregisterImageRequest, DescribeImagesRequest,
    DescribeInstancesRequest, DescribeSnapshotsRequest, DisableImageDeprecationRequest, DiskFormat,
    EnableImageDeprecationRequest, Image, ImageState, ImportVolumeHeader, InstanceState,
    ModifyImageAttributeRequest, ModifyLaunchPermissionRequest, PermissionChange,
    RegisterImageBlockDevice, RegisterImageRequest, RunInstancesRequest, TerminateInstancesRequest,
};
use hearth_tests::{
    Expect, Guest, Hearth, Probe, as_account, eventually, needs_kvm, probe, root_disk::RootDisk,
    store, volume_stream,
};
use tonic::{Code, Response, Status};

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

async fn deregister(hearth: &Hearth, image_id: &str) -> Result<()> {
    let request = DeregisterImageRequest {
        image_id: image_id.to_owned(),
    };
    hearth.images().deregister_image(request).await?;
    Ok(())
}

fn snapshots_of(image: &Image) -> Vec<String> {
    let disks = image.block_devices.iter();
    disks.map(|disk| disk.snapshot_id.clone()).collect()
}

/// The ids of all snapshots, in the order of their creation.
async fn all_snapshots(hearth: &Hearth) -> Result<Vec<String>> {
    let all = DescribeSnapshotsRequest::default();
    let answer = hearth.snapshots().describe_snapshots(all).await?;
    let snapshots = answer.into_inner().snapshots.into_iter();
    Ok(snapshots.map(|snapshot| snapshot.snapshot_id).collect())
}

async fn delete_snapshot(
    hearth: &Hearth,
    id: &str,
) -> Result<Response<DeleteSnapshotResponse>, Status> {
    let request = DeleteSnapshotRequest {
        snapshot_id: id.to_owned(),
    };
    hearth.snapshots().delete_snapshot(request).await
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

    // Its snapshots can't go before it.
    let snapshots: Vec<_> = snapshots_of(&image);
    let in_use = Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidSnapshot.InUse",
        field: "snapshot_id",
    };
    let message = in_use.check(delete_snapshot(&hearth, &snapshots[1]).await)?;
    ensure!(message.contains(&image.image_id), "{message}");

    // Taken away, the image leaves instances and snapshots alone.
    deregister(&hearth, &image.image_id).await?;
    ensure!(all_snapshots(&hearth).await? == snapshots);
    for id in &snapshots {
        delete_snapshot(&hearth, id).await?;
    }
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
        ("snapshot.instance-stopped", false),
        ("snapshot.taken", false),
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
        // Snapshots of what is not there are not there either.
        eventually(async || {
            let snapshots = all_snapshots(&hearth).await?.len();
            ensure!(snapshots == if made { 2 } else { 0 }, "{snapshots}");
            Ok(())
        })
        .await
        .context(step)?;

        // The same call again, with the same token.
        let image = create(&hearth, request).await?;
        let images = images(&hearth).await?;
        ensure!(images.len() == before + 1, "{step}: {images:#?}");
        let mut copy = hearth.probe_of(&image.image_id, |_| {}).await?;
        verify_both(&mut copy).await?;
        copy.guest.terminate().await?;
        deregister(&hearth, &image.image_id).await?;
        for id in snapshots_of(&image) {
            delete_snapshot(&hearth, &id).await?;
        }
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

/// Snapshots of both disks of a stopped instance.
async fn snapshots(hearth: &Hearth, instance_id: &str) -> Result<Vec<String>> {
    let request = CreateSnapshotsRequest {
        instance_id: instance_id.to_owned(),
        ..Default::default()
    };
    let answer = hearth.snapshots().create_snapshots(request).await?;
    let snapshots = answer.into_inner().snapshots.into_iter();
    Ok(snapshots.map(|snapshot| snapshot.snapshot_id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_registered_of_snapshots_with_the_kernel_of_another() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut original = two_disks(&hearth).await?;
    write_both(&mut original).await?;
    let stopped = original.guest.stop_by_force().await?;
    let taken = snapshots(&hearth, &stopped.instance_id).await?;
    let good = RegisterImageRequest {
        name: "registered".to_owned(),
        root_snapshot_id: taken[0].clone(),
        block_devices: vec![RegisterImageBlockDevice {
            device_name: "/dev/vdb".to_owned(),
            snapshot_id: taken[1].clone(),
            delete_on_termination: true,
        }],
        kernel_image_id: stopped.image_id.clone(),
        client_token: "once".to_owned(),
        ..Default::default()
    };
    let mut client = hearth.images();
    let answer = client.register_image(good.clone()).await?.into_inner();
    let image = answer.image.context("no image")?;
    assert_eq!(snapshots_of(&image), taken);
    let again = client.register_image(good.clone()).await?.into_inner();
    assert_eq!(again.image.as_ref(), Some(&image));
    let mut copy = hearth.probe_of(&image.image_id, |_| {}).await?;
    verify_both(&mut copy).await?;

    // The probe's root has no file system, so no kernel either.
    let count = images(&hearth).await?.len();
    let other = RegisterImageRequest {
        name: "other".to_owned(),
        client_token: String::new(),
        ..good
    };
    let twice = vec![other.block_devices[0].clone(); 2];
    let none = "snap-0123456789abcdef0".to_owned();
    let cases = [
        (
            RegisterImageRequest {
                kernel_image_id: String::new(),
                ..other.clone()
            },
            Expect::invalid("InvalidParameterValue", "root_snapshot_id"),
        ),
        (
            RegisterImageRequest {
                root_snapshot_id: String::new(),
                ..other.clone()
            },
            Expect::invalid("MissingParameter", "root_snapshot_id"),
        ),
        (
            RegisterImageRequest {
                root_snapshot_id: none,
                ..other.clone()
            },
            Expect {
                code: Code::NotFound,
                reason: "InvalidSnapshot.NotFound",
                field: "root_snapshot_id",
            },
        ),
        (
            RegisterImageRequest {
                block_devices: twice,
                ..other.clone()
            },
            Expect::invalid("InvalidParameterValue", "block_devices[1].device_name"),
        ),
        (
            RegisterImageRequest {
                kernel_image_id: "img-0123456789abcdef0".to_owned(),
                ..other.clone()
            },
            Expect {
                code: Code::NotFound,
                reason: "InvalidAMIID.NotFound",
                field: "kernel_image_id",
            },
        ),
    ];
    for (request, expected) in cases {
        expected.check(client.register_image(request).await)?;
        ensure!(images(&hearth).await?.len() == count);
    }
    // Somebody else's snapshots are not there at all.
    let foreign = Expect {
        code: Code::NotFound,
        reason: "InvalidSnapshot.NotFound",
        field: "root_snapshot_id",
    };
    let of_other = as_account("other", other);
    foreign.check(client.register_image(of_other).await)?;

    deregister(&hearth, &image.image_id).await?;
    assert_eq!(all_snapshots(&hearth).await?, taken);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_registered_of_a_root_that_has_its_kernel_inside() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let (_folder, disk) = RootDisk::base()?
        .with_kernel("/boot/vmlinuz-6.12")?
        .with_text("/etc/kernel/cmdline", "quiet")?
        .plain()?;
    let header = ImportVolumeHeader {
        length_bytes: std::fs::metadata(&disk)?.len(),
        format: DiskFormat::Raw.into(),
        ..Default::default()
    };
    let stream = tokio_stream::iter(volume_stream(header, &std::fs::read(&disk)?));
    let volume = hearth.volumes().import_volume(stream).await?.into_inner();
    let volume_id = volume.volume.context("no volume")?.volume_id;
    let request = CreateSnapshotRequest {
        volume_id,
        ..Default::default()
    };
    let answer = hearth.snapshots().create_snapshot(request).await?;
    let snapshot = answer.into_inner().snapshot.context("no snapshot")?;
    let request = RegisterImageRequest {
        name: "found".to_owned(),
        root_snapshot_id: snapshot.snapshot_id,
        ..Default::default()
    };
    let answer = hearth.images().register_image(request).await?;
    let image = answer.into_inner().image.context("no image")?;
    assert_eq!(image.kernel_args, "root=/dev/vda quiet console=ttyS0");
    assert_eq!(image.state(), ImageState::Available);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_the_grantees_own_and_outlives_the_image_that_was_shared() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut original = two_disks(&hearth).await?;
    write_both(&mut original).await?;
    let live = CreateImageRequest {
        no_reboot: true,
        ..request(&original.guest.id, "shared")
    };
    let image = create(&hearth, live).await?;
    let copy_of = CopyImageRequest {
        source_image_id: image.image_id.clone(),
        name: "shared".to_owned(),
        ..Default::default()
    };
    let mut client = hearth.images();
    let foreign = Expect {
        code: Code::NotFound,
        reason: "InvalidAMIID.NotFound",
        field: "source_image_id",
    };
    let refused = client
        .copy_image(as_account("other", copy_of.clone()))
        .await;
    foreign.check(refused)?;

    let share = ModifyLaunchPermissionRequest {
        image_id: image.image_id.clone(),
        launch_permission: Some(PermissionChange {
            add_accounts: vec!["other".to_owned()],
            ..Default::default()
        }),
    };
    client.modify_launch_permission(share).await?;
    let copied = client.copy_image(as_account("other", copy_of)).await?;
    let copied = copied.into_inner().image.context("no image")?;
    assert_eq!(copied.owner_id, "other");
    assert_eq!(copied.block_devices.len(), 2);

    // Deprecated, the shared one is listed no longer, unless it is asked for.
    let soon = SystemTime::now() + Duration::from_secs(1);
    let deprecate = EnableImageDeprecationRequest {
        image_id: image.image_id.clone(),
        deprecate_at: Some(soon.into()),
    };
    client.enable_image_deprecation(deprecate).await?;
    eventually(async || {
        let all = as_account("other", DescribeImagesRequest::default());
        let listed = hearth.images().describe_images(all).await?.into_inner();
        let ids: Vec<_> = listed.images.iter().map(|image| &image.image_id).collect();
        ensure!(ids == [&copied.image_id], "{ids:?}");
        Ok(())
    })
    .await?;
    let asked_for = DescribeImagesRequest {
        include_deprecated: true,
        ..Default::default()
    };
    let listed = client
        .describe_images(as_account("other", asked_for))
        .await?;
    ensure!(listed.into_inner().images.len() == 2);
    // Its owner sees it as before.
    let own = images(&hearth).await?;
    ensure!(
        own.iter().any(|one| one.image_id == image.image_id),
        "{own:#?}"
    );

    // Gone with all its snapshots, it leaves the copy whole.
    deregister(&hearth, &image.image_id).await?;
    for id in snapshots_of(&image) {
        delete_snapshot(&hearth, &id).await?;
    }
    let run = RunInstancesRequest {
        image_id: copied.image_id,
        memory_mib: 32,
        ..Default::default()
    };
    let ran = hearth
        .instances()
        .run_instances(as_account("other", run))
        .await?;
    let id = ran.into_inner().instances[0].instance_id.clone();
    let all = DescribeInstancesRequest {
        instance_ids: vec![id.clone()],
        ..Default::default()
    };
    eventually(async || {
        let mut client = hearth.instances();
        let asked = as_account("other", all.clone());
        let answer = client.describe_instances(asked).await?.into_inner();
        let state = answer.instances[0].state();
        ensure!(state == InstanceState::Running, "{state:?}");
        Ok(())
    })
    .await?;
    let end = TerminateInstancesRequest {
        instance_ids: vec![id],
    };
    hearth
        .instances()
        .terminate_instances(as_account("other", end))
        .await?;
    hearth.finish().await
}
