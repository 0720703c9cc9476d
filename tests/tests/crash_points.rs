//! The agent or a VMM dies (`kill -9`) at a named step. What the next agent finds is the state
//! before or the state after, nothing is left over, and trying again works.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, CreateVolumeRequest, DeleteVolumeRequest, DeregisterImageRequest,
    DescribeImagesRequest, DescribeInstancesRequest, DescribeVolumesRequest, DiskFormat,
    GrowVolumeRequest, Image, ImageState, ImportVolumeHeader, InstanceState, RunInstancesRequest,
    StartInstancesRequest, StopInstancesRequest, TerminateInstancesRequest, Volume, VolumeState,
};
use hearth_tests::{
    Guest, GuestImage, Hearth, Probe, eventually, image_stream, needs_kvm, probe, processes,
    programs, store, volume_stream,
};

/// What an operation comes to when the agent dies at a step of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// As if nobody had asked.
    Undone,
    /// As if nobody had died.
    Done,
}
use Outcome::{Done, Undone};

/// The agent's files, but for its database and what belongs to instances.
fn files(hearth: &Hearth) -> Result<BTreeMap<PathBuf, u64>> {
    let mut files = BTreeMap::new();
    for folder in ["store", "kernels", "tmp"] {
        files.extend(store::files_below(&hearth.state_dir().join(folder))?);
    }
    Ok(files)
}

async fn volumes(hearth: &Hearth) -> Result<Vec<Volume>> {
    let all = DescribeVolumesRequest::default();
    let answer = hearth.volumes().describe_volumes(all).await?;
    Ok(answer.into_inner().volumes)
}

async fn images(hearth: &Hearth) -> Result<Vec<Image>> {
    let all = DescribeImagesRequest::default();
    let answer = hearth.images().describe_images(all).await?;
    Ok(answer.into_inner().images)
}

/// Waits until the agent's files are these again, and no volume is there.
async fn back_to(hearth: &Hearth, before: &BTreeMap<PathBuf, u64>) -> Result<()> {
    eventually(async || {
        let volumes = volumes(hearth).await?;
        ensure!(volumes.is_empty(), "{volumes:#?}");
        let files = files(hearth)?;
        ensure!(files == *before, "{files:#?}\ninstead of\n{before:#?}");
        Ok(())
    })
    .await
}

/// Checks that the only volume is whole and belongs to this outcome.
async fn judge_volume(
    hearth: &Hearth,
    outcome: Outcome,
    before: &BTreeMap<PathBuf, u64>,
) -> Result<()> {
    if outcome == Undone {
        return back_to(hearth, before).await;
    }
    let found = volumes(hearth).await?;
    ensure!(found.len() == 1, "{found:#?}");
    ensure!(found[0].state() == VolumeState::Available, "{found:#?}");
    // One layer and one record more than before.
    eventually(async || {
        let files = files(hearth)?;
        ensure!(files.len() == before.len() + 2, "{files:#?}");
        Ok(())
    })
    .await
}

async fn delete(hearth: &Hearth, volume_id: String) -> Result<()> {
    let request = DeleteVolumeRequest { volume_id };
    hearth.volumes().delete_volume(request).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_created_or_not_at_all() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(1 << 20, 3)?).await?;
    let before = files(&hearth)?;
    for (step, outcome) in [
        ("volume.row-creating", Undone),
        ("layer.written", Undone),
        ("layer.published", Undone),
        ("record.written", Undone),
        ("record.created", Undone),
        ("volume.made", Undone),
        ("volume.row-available", Done),
    ] {
        let request = CreateVolumeRequest {
            image_id: image.clone(),
            client_token: step.to_owned(),
            ..Default::default()
        };
        let mut client = hearth.volumes();
        let call = client.create_volume(request.clone());
        let answer = hearth.crash_at(step, call).await?;
        ensure!(answer.is_err(), "{step}");
        let judged = judge_volume(&hearth, outcome, &before).await;
        judged.with_context(|| step.to_owned())?;

        let again = hearth.volumes().create_volume(request).await?.into_inner();
        let id = again.volume.context("no volume")?.volume_id;
        let found = volumes(&hearth).await?;
        ensure!(
            found.len() == 1 && found[0].volume_id == id,
            "{step}: {found:#?}"
        );
        delete(&hearth, id).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_begun_is_carried_through() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = files(&hearth)?;
    for step in [
        "volume.row-deleting",
        "record.removed",
        "layer.removed",
        "volume.gone-from-store",
        "volume.row-removed",
    ] {
        let request = CreateVolumeRequest {
            size_gib: 1,
            ..Default::default()
        };
        let made = hearth.volumes().create_volume(request).await?.into_inner();
        let volume_id = made.volume.context("no volume")?.volume_id;
        let mut client = hearth.volumes();
        let call = client.delete_volume(DeleteVolumeRequest { volume_id });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

/// A raw disk of one MiB that holds the pattern of seed 3.
fn raw_disk() -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    probe::pattern::fill(3, 0, &mut bytes);
    bytes
}

fn import_header(bytes: &[u8], format: DiskFormat) -> ImportVolumeHeader {
    ImportVolumeHeader {
        format: format.into(),
        length_bytes: bytes.len() as u64,
        ..Default::default()
    }
}

/// Checks with QEMU's tool that the only volume holds what [`raw_disk`] does, and zeroes after.
fn compare_with_raw_disk(hearth: &Hearth) -> Result<()> {
    let raw = hearth.scratch()?.join("raw");
    fs::write(&raw, raw_disk())?;
    let layers = store::qcow2_files(&hearth.store_dir())?;
    ensure!(layers.len() == 1, "{layers:?}");
    store::check(&hearth.store_dir())?;
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "qcow2"]);
    programs::output_of(compare.arg(raw).arg(&layers[0]))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_grows_keeps_its_data_and_gets_its_size() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = files(&hearth)?;
    // The table of 1 GiB has room for 2 GiB; for 5,000 GiB it has to move.
    for (step, size_gib) in [
        ("volume.row-growing", 2),
        ("grow.table-extended", 2),
        ("grow.header-written", 2),
        ("volume.grown", 2),
        ("grow.table-copied", 5000),
        ("grow.header-written", 5000),
        ("volume.grown", 5000),
    ] {
        let bytes = raw_disk();
        let header = ImportVolumeHeader {
            size_gib: 1,
            ..import_header(&bytes, DiskFormat::Raw)
        };
        let stream = tokio_stream::iter(volume_stream(header, &bytes));
        let made = hearth.volumes().import_volume(stream).await?.into_inner();
        let volume_id = made.volume.context("no volume")?.volume_id;
        let request = GrowVolumeRequest {
            volume_id: volume_id.clone(),
            size_gib,
        };
        let mut client = hearth.volumes();
        let call = client.grow_volume(request.clone());
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let grown = eventually(async || {
            let found = volumes(&hearth).await?;
            ensure!(found.len() == 1, "{found:#?}");
            ensure!(found[0].size_bytes == size_gib << 30, "{found:#?}");
            // Until nobody is at work on it any more, it can't grow again.
            let request = GrowVolumeRequest {
                size_gib: size_gib + 1,
                ..request.clone()
            };
            hearth.volumes().grow_volume(request).await?;
            Ok(())
        });
        grown.await.with_context(|| step.to_owned())?;
        compare_with_raw_disk(&hearth).with_context(|| step.to_owned())?;
        delete(&hearth, volume_id).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_imported_whole_or_not_at_all() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = files(&hearth)?;
    let raw = raw_disk();
    let (raw_file, qcow2_file) = (hearth.scratch()?.join("in"), hearth.scratch()?.join("q"));
    fs::write(&raw_file, &raw)?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
    programs::output_of(convert.arg(&raw_file).arg(&qcow2_file))?;
    let qcow2 = fs::read(&qcow2_file)?;
    for (step, outcome) in [
        ("volume.row-importing", Undone),
        ("import.spooled", Undone),
        ("import.copied", Undone),
        ("layer.published", Undone),
        ("record.written", Undone),
        ("record.created", Undone),
        ("volume.imported", Undone),
        ("volume.row-available", Done),
    ] {
        let header = ImportVolumeHeader {
            client_token: step.to_owned(),
            ..import_header(&qcow2, DiskFormat::Qcow2)
        };
        let messages = volume_stream(header, &qcow2);
        let mut client = hearth.volumes();
        let call = client.import_volume(tokio_stream::iter(messages.clone()));
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let judged = judge_volume(&hearth, outcome, &before).await;
        judged.with_context(|| step.to_owned())?;

        let stream = tokio_stream::iter(messages);
        let again = hearth.volumes().import_volume(stream).await?.into_inner();
        compare_with_raw_disk(&hearth).with_context(|| step.to_owned())?;
        delete(&hearth, again.volume.context("no volume")?.volume_id).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_imported_whole_or_not_at_all() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = files(&hearth)?;
    for (step, outcome) in [
        ("image.row-pending", Undone),
        ("import.copied", Undone),
        ("layer.published", Undone),
        ("record.created", Undone),
        ("image.root-imported", Undone),
        ("image.row-with-files", Undone),
        ("image.files-kept", Undone),
        ("image.row-available", Done),
    ] {
        let mut image = GuestImage::kernel_only("tiny", hearth_tests::tiny::one_byte())
            .with_initrd(vec![7; 5000])
            .with_root(raw_disk(), DiskFormat::Raw);
        image.header.client_token = step.to_owned();
        let messages = image_stream(&image);
        let mut client = hearth.images();
        let call = client.import_image(tokio_stream::iter(messages.clone()));
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        if outcome == Undone {
            let found = images(&hearth).await?;
            ensure!(found.is_empty(), "{step}: {found:#?}");
            back_to(&hearth, &before)
                .await
                .with_context(|| step.to_owned())?;
        }

        // The same name and the same token: both are free again, or name the image.
        let stream = tokio_stream::iter(messages);
        let again = hearth.images().import_image(stream).await?.into_inner();
        let image_id = again.image.context("no image")?.image_id;
        let found = images(&hearth).await?;
        ensure!(found.len() == 1, "{step}: {found:#?}");
        ensure!(
            found[0].state() == ImageState::Available,
            "{step}: {found:#?}"
        );
        ensure!(found[0].image_id == image_id, "{step}: {found:#?}");
        // Kernel, initrd, a layer and its record.
        let files = files(&hearth)?;
        ensure!(files.len() == before.len() + 4, "{step}: {files:#?}");
        let request = DeregisterImageRequest { image_id };
        hearth.images().deregister_image(request).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_deregistered_goes_with_its_files() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = files(&hearth)?;
    for step in [
        "image.row-deregistered",
        "record.removed",
        "layer.removed",
        "image.root-removed",
        "image.row-removed",
    ] {
        let image_id = hearth.import(&probe::image_with_root(1 << 20, 3)?).await?;
        let mut client = hearth.images();
        let call = client.deregister_image(DeregisterImageRequest { image_id });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
        ensure!(images(&hearth).await?.is_empty(), "{step}");
    }
    hearth.finish().await
}

/// Asks for an empty disk that goes with the instance, and one that stays.
fn with_disks(request: &mut RunInstancesRequest) {
    for delete in [true, false] {
        request.block_devices.push(BlockDeviceMapping {
            size_gib: 1,
            delete_on_termination: Some(delete),
            ..Default::default()
        });
    }
}

/// The only instance runs in the only VMM, and answers.
async fn the_probe_answers<'a>(hearth: &'a Hearth, id: &str) -> Result<Probe<'a>> {
    let guest = Guest::new(hearth, id.to_owned());
    let instance = guest.wait_state(InstanceState::Running).await?;
    let vmms = processes::vmms_of(&hearth.state_dir());
    ensure!(vmms == [instance.vmm_pid], "{vmms:?}, {instance:?}");
    let mut probe = Probe::attach(guest).await?;
    probe.expect_ok("echo text=here").await?;
    Ok(probe)
}

async fn terminate_and_delete(hearth: &Hearth, id: &str) -> Result<()> {
    Guest::new(hearth, id.to_owned()).terminate().await?;
    for volume in volumes(hearth).await? {
        if volume.state() == VolumeState::Available {
            delete(hearth, volume.volume_id).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_asked_for_comes_up_once() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let image = hearth.probe_image().await?.to_owned();
    let before = files(&hearth)?;
    for step in [
        "launch.rows-pending",
        "record.created",
        "launch.volumes-made",
        "launch.vmm-spawned",
        "instance.row-running",
    ] {
        let mut request = RunInstancesRequest {
            image_id: image.clone(),
            memory_mib: 32,
            client_token: step.to_owned(),
            ..Default::default()
        };
        with_disks(&mut request);
        let mut client = hearth.instances();
        // Most of it happens after the answer.
        let call = client.run_instances(request.clone());
        hearth.crash_at(step, call).await?.ok();
        let again = hearth.instances().run_instances(request).await?;
        let ids: Vec<_> = again.into_inner().instances;
        ensure!(ids.len() == 1, "{step}: {ids:#?}");
        let id = &ids[0].instance_id;
        let mut probe = the_probe_answers(&hearth, id)
            .await
            .with_context(|| step.to_owned())?;
        let disks = probe.expect_ok("identify").await?["disks"].clone();
        ensure!(disks.as_array().is_some_and(|d| d.len() == 2), "{disks}");
        ensure!(hearth.living_instances().await?.len() == 1, "{step}");
        drop(probe);
        terminate_and_delete(&hearth, id).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_and_a_start_that_were_begun_are_carried_through() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let id = {
        let mut probe = hearth.probe(with_disks).await?;
        probe.expect_ok("write length=1M pattern=3").await?;
        probe.guest.id.clone()
    };
    let ids = vec![id.clone()];
    for step in [
        "instance.row-stopping",
        "instance.vmm-ended",
        "instance.row-stopped",
    ] {
        let mut client = hearth.instances();
        let call = client.stop_instances(StopInstancesRequest {
            instance_ids: ids.clone(),
            force: true,
            timeout_seconds: 0,
        });
        hearth.crash_at(step, call).await?.ok();
        let guest = Guest::new(&hearth, id.clone());
        guest.wait_state(InstanceState::Stopped).await?;
        let vmms = processes::vmms_of(&hearth.state_dir());
        ensure!(vmms.is_empty(), "{step}: {vmms:?}");
        guest.start().await?;
        let mut probe = the_probe_answers(&hearth, &id).await?;
        probe.expect_ok("verify length=1M pattern=3").await?;
    }
    for step in [
        "instance.row-pending",
        "launch.vmm-spawned",
        "instance.row-running",
    ] {
        Guest::new(&hearth, id.clone()).stop_by_force().await?;
        let mut client = hearth.instances();
        let call = client.start_instances(StartInstancesRequest {
            instance_ids: ids.clone(),
        });
        hearth.crash_at(step, call).await?.ok();
        let mut probe = the_probe_answers(&hearth, &id)
            .await
            .with_context(|| step.to_owned())?;
        probe.expect_ok("verify length=1M pattern=3").await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_to_end_ends_and_its_disks_with_it() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    hearth.probe_image().await?;
    let before = files(&hearth)?;
    for step in [
        "instance.row-shutting-down",
        "instance.vmm-ended",
        "terminate.volumes-released",
        "record.removed",
        "volume.row-removed",
        "terminate.volumes-deleted",
        "instance.row-terminated",
    ] {
        let id = hearth.probe(with_disks).await?.guest.id;
        let mut client = hearth.instances();
        let call = client.terminate_instances(TerminateInstancesRequest {
            instance_ids: vec![id.clone()],
        });
        hearth.crash_at(step, call).await?.ok();
        let guest = Guest::new(&hearth, id.clone());
        guest.wait_state(InstanceState::Terminated).await?;
        let vmms = processes::vmms_of(&hearth.state_dir());
        ensure!(vmms.is_empty(), "{step}: {vmms:?}");
        // The one that stays is free, the other is gone.
        let left = eventually(async || {
            let left = volumes(&hearth).await?;
            ensure!(left.len() == 1, "{left:#?}");
            ensure!(left[0].state() == VolumeState::Available, "{left:#?}");
            Ok(left[0].volume_id.clone())
        });
        delete(&hearth, left.await.with_context(|| step.to_owned())?).await?;
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_while_it_starts_ends_the_launch_with_a_reason() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let image = hearth.probe_image().await?.to_owned();
    let before = files(&hearth)?;
    for step in ["vmm.bound", "vmm.built", "vmm.started"] {
        hearth.stop_agent()?;
        hearth.start_agent_to_crash_at(step).await?;
        let small = |request: &mut RunInstancesRequest| {
            request.memory_mib = 32;
            with_disks(request);
        };
        let guest = hearth.run(&image, small).await?;
        let over = guest.wait_state(InstanceState::Terminated).await?;
        let reason = over.state_reason.unwrap_or_default();
        ensure!(reason.code == "Server.InternalError", "{step}: {reason:?}");
        ensure!(!reason.message.is_empty(), "{step}");
        let is_over = |event: &hearth_proto::v1::Event| event.state == "shutting-down";
        let event = hearth.event(&guest.id, is_over).await?;
        ensure!(event.reason_code == reason.code, "{step}: {event:?}");
        drop(guest);
        // A volume that no guest ever had goes, whatever was to become of it.
        for volume in volumes(&hearth).await? {
            delete(&hearth, volume.volume_id).await?;
        }
        back_to(&hearth, &before)
            .await
            .with_context(|| step.to_owned())?;
    }
    hearth.stop_agent()?;
    hearth.start_agent().await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_dies_while_it_ends_leaves_a_stopped_instance_with_its_data() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let id = hearth.probe(with_disks).await?.guest.id;
    for (seed, step) in ["vmm.stopping", "vmm.stopped", "vmm.report-written"]
        .iter()
        .enumerate()
    {
        Guest::new(&hearth, id.clone()).stop_by_force().await?;
        hearth.stop_agent()?;
        hearth.start_agent_to_crash_at(step).await?;
        Guest::new(&hearth, id.clone()).start().await?;
        let mut probe = the_probe_answers(&hearth, &id).await?;
        let pattern = format!("offset={seed}M length=1M pattern={seed}");
        probe.expect_ok(&format!("write {pattern}")).await?;
        probe.expect_ok("flush").await?;
        probe.send("poweroff").await?;
        let stopped = probe.stopped().await?;
        // It could not say why it ended.
        let reason = stopped.state_reason.unwrap_or_default();
        ensure!(reason.code == "Server.InternalError", "{step}: {reason:?}");
        drop(probe);
        hearth.stop_agent()?;
        hearth.start_agent().await?;
        Guest::new(&hearth, id.clone()).start().await?;
        let mut probe = the_probe_answers(&hearth, &id).await?;
        let verified = probe.expect_ok(&format!("verify {pattern}")).await;
        verified.with_context(|| (*step).to_owned())?;
    }
    let all = DescribeInstancesRequest::default();
    let all = hearth
        .instances()
        .describe_instances(all)
        .await?
        .into_inner();
    ensure!(all.instances.len() == 1, "{all:#?}");
    hearth.finish().await
}

/// The Rust files below a folder.
fn sources(folder: &str) -> Result<Vec<String>> {
    let files = store::files_below(&programs::repository().join(folder))?;
    files
        .keys()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| Ok(fs::read_to_string(path)?))
        .collect()
}

#[test]
fn each_crash_point_is_in_a_test() -> Result<()> {
    let tests = [sources("tests/tests")?, sources("images/tests")?].concat();
    let mut points = 0;
    for source in [
        sources("images/src")?,
        sources("vmm/src")?,
        sources("agent/src")?,
    ]
    .concat()
    {
        for call in source.split("crash_point(").skip(1) {
            // A name, or a `match` with several; a declaration has none.
            let arguments = call.split(");").next().unwrap_or_default();
            for name in arguments.split('"').skip(1).step_by(2) {
                points += 1;
                let quoted = format!("\"{name}\"");
                let tested = tests.iter().any(|test| test.contains(&quoted));
                ensure!(tested, "no test comes to the crash point {name}");
            }
        }
    }
    ensure!(points > 30, "only {points} found");
    Ok(())
}
