//! Requests that can't be met. Each gets a typed error that names the field, leaves nothing half
//! made behind, and the agent goes on.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    AttachVolumeRequest, BlockDeviceMapping, CreateVolumeRequest, DeleteVolumeRequest,
    DescribeImagesRequest, DescribeInstancesRequest, DescribeVolumesRequest, DiskFormat,
    GrowVolumeRequest, ImportVolumeHeader, RunInstancesRequest,
};
use hearth_tests::{
    Expect, GuestImage, Hearth, broken, image_stream, needs_kvm, store, tiny, volume_stream,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

/// An agent, and what it had before something bad was asked of it.
struct Watched {
    hearth: Hearth,
    before: (Vec<String>, BTreeMap<PathBuf, u64>),
}

impl Watched {
    async fn start() -> Result<Self> {
        let hearth = Hearth::start().await?;
        let before = everything(&hearth).await?;
        Ok(Self { hearth, before })
    }

    /// From here on nothing may be added.
    async fn mark(&mut self) -> Result<()> {
        self.before = everything(&self.hearth).await?;
        Ok(())
    }

    /// Nothing was added, nothing is gone, and the agent answers.
    async fn unchanged(&self) -> Result<()> {
        let now = everything(&self.hearth).await?;
        ensure!(
            now == self.before,
            "before: {:#?}\nnow: {now:#?}",
            self.before
        );
        Ok(())
    }

    /// The same, once the agent has undone what it was in the middle of: a client that goes away
    /// does not learn when that is.
    async fn settled(&self) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(100);
        let mut calm = 0;
        for _ in 0..300 {
            calm = match self.unchanged().await {
                Ok(()) => calm + 1,
                Err(_) => 0,
            };
            if calm == 3 {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.unchanged().await
    }

    async fn finish(self) -> Result<()> {
        self.settled().await?;
        self.hearth.finish().await
    }
}

/// All objects, and all files but the database's own.
async fn everything(hearth: &Hearth) -> Result<(Vec<String>, BTreeMap<PathBuf, u64>)> {
    let mut objects = Vec::new();
    let request = DescribeInstancesRequest::default();
    for instance in hearth
        .instances()
        .describe_instances(request)
        .await?
        .into_inner()
        .instances
    {
        objects.push(format!("{} {:?}", instance.instance_id, instance.state()));
    }
    let request = DescribeVolumesRequest::default();
    for volume in hearth
        .volumes()
        .describe_volumes(request)
        .await?
        .into_inner()
        .volumes
    {
        objects.push(format!(
            "{} {:?} {}",
            volume.volume_id,
            volume.state(),
            volume.size_bytes
        ));
    }
    let request = DescribeImagesRequest::default();
    for image in hearth
        .images()
        .describe_images(request)
        .await?
        .into_inner()
        .images
    {
        objects.push(format!("{} {:?}", image.image_id, image.state()));
    }
    let mut files = store::files_below(&hearth.state_dir())?;
    files.retain(|path, _| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Logs grow on the guests' account.
        !name.starts_with("hearth.db") && !name.ends_with(".log")
    });
    Ok((objects, files))
}

fn run(image_id: &str) -> RunInstancesRequest {
    RunInstancesRequest {
        image_id: image_id.to_owned(),
        ..Default::default()
    }
}

async fn tiny_image(hearth: &Hearth) -> Result<String> {
    hearth
        .import(&GuestImage::kernel_only("tiny", tiny::echo()))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_named_as_the_field_at_fault() -> Result<()> {
    let watched = Watched::start().await?;
    let mut instances = watched.hearth.instances();
    let not_found = Expect {
        code: Code::NotFound,
        reason: "InvalidAMIID.NotFound",
        field: "image_id",
    };
    let unknown = "img-0123456789abcdef0";
    not_found.check(instances.run_instances(run(unknown)).await)?;
    let malformed = Expect::invalid("InvalidAMIID.Malformed", "image_id");
    for id in ["img-", "../../etc/passwd", "img-0123456789abcdeg0"] {
        malformed.check(instances.run_instances(run(id)).await)?;
    }
    let missing = Expect::invalid("MissingParameter", "image_id");
    missing.check(instances.run_instances(run("")).await)?;
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn more_memory_than_the_host_has_is_a_lack_of_capacity() -> Result<()> {
    let mut watched = Watched::start().await?;
    let image = tiny_image(&watched.hearth).await?;
    watched.mark().await?;
    let mut instances = watched.hearth.instances();
    let capacity = Expect {
        code: Code::ResourceExhausted,
        reason: "InsufficientInstanceCapacity",
        field: "memory_mib",
    };
    // 1 TiB.
    let request = RunInstancesRequest {
        memory_mib: 1 << 20,
        ..run(&image)
    };
    capacity.check(instances.run_instances(request).await)?;
    let invalid = Expect::invalid("InvalidParameterValue", "memory_mib");
    for memory_mib in [1, 31, u64::MAX] {
        let request = RunInstancesRequest {
            memory_mib,
            ..run(&image)
        };
        invalid.check(instances.run_instances(request).await)?;
    }
    let invalid = Expect::invalid("InvalidParameterValue", "vcpus");
    let request = RunInstancesRequest {
        vcpus: 33,
        ..run(&image)
    };
    invalid.check(instances.run_instances(request).await)?;
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_is_none_is_refused() -> Result<()> {
    let watched = Watched::start().await?;
    let mut cut = tiny::one_byte();
    cut.truncate(100);
    for kernel in [b"#!/bin/sh\n".to_vec(), vec![0; 4096], cut] {
        let image = GuestImage::kernel_only("not a kernel", kernel);
        let stream = tokio_stream::iter(image_stream(&image));
        let answer = watched.hearth.images().import_image(stream).await;
        Expect::invalid("InvalidParameterValue", "header.kernel").check(answer)?;
    }
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_files_are_not_what_its_header_says_is_refused() -> Result<()> {
    let watched = Watched::start().await?;
    let good = GuestImage::kernel_only("tiny", tiny::one_byte());
    let mut images = watched.hearth.images();

    let mut wrong = good.clone();
    if let Some(kernel) = wrong.header.kernel.as_mut() {
        kernel.sha256 = "00".repeat(32);
    }
    let answer = images
        .import_image(tokio_stream::iter(image_stream(&wrong)))
        .await;
    Expect::invalid("InvalidParameterValue", "header.kernel.sha256").check(answer)?;

    let mut wrong = good.clone();
    if let Some(kernel) = wrong.header.kernel.as_mut() {
        kernel.length_bytes = u64::MAX;
    }
    let answer = images
        .import_image(tokio_stream::iter(image_stream(&wrong)))
        .await;
    Expect::invalid("InvalidParameterValue", "header.kernel.length_bytes").check(answer)?;

    // More bytes than were announced.
    let mut messages = image_stream(&good);
    messages.extend(messages.last().cloned());
    let answer = images.import_image(tokio_stream::iter(messages)).await;
    Expect::invalid("InvalidParameterValue", "data").check(answer)?;
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_a_slash_is_refused() -> Result<()> {
    let watched = Watched::start().await?;
    for name in ["../escape", "a/b", "/etc/passwd", "no", "new\nline", ""] {
        let image = GuestImage::kernel_only(name, tiny::one_byte());
        let stream = tokio_stream::iter(image_stream(&image));
        let answer = watched.hearth.images().import_image(stream).await;
        Expect::invalid("InvalidAMIName.Malformed", "header.name").check(answer)?;
    }
    for id in ["vol-../../hearth.db", "../x", "vol-0123"] {
        let request = DeleteVolumeRequest {
            volume_id: id.to_owned(),
        };
        let answer = watched.hearth.volumes().delete_volume(request).await;
        Expect::invalid("InvalidVolumeID.Malformed", "volume_id").check(answer)?;
    }
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_of_nothing_and_of_too_much_are_refused() -> Result<()> {
    let mut watched = Watched::start().await?;
    let image = tiny_image(&watched.hearth).await?;
    let mut volumes = watched.hearth.volumes();
    let request = CreateVolumeRequest {
        size_gib: 2,
        ..Default::default()
    };
    let volume_id = volumes
        .create_volume(request)
        .await?
        .into_inner()
        .volume
        .unwrap_or_default()
        .volume_id;
    watched.mark().await?;

    let invalid = Expect::invalid("InvalidParameterValue", "size_gib");
    for size_gib in [0, 65_537, 1 << 54, u64::MAX] {
        let request = CreateVolumeRequest {
            size_gib,
            ..Default::default()
        };
        invalid.check(volumes.create_volume(request).await)?;
        let request = GrowVolumeRequest {
            volume_id: volume_id.clone(),
            size_gib,
        };
        invalid.check(volumes.grow_volume(request).await)?;
    }
    // Smaller than it is.
    let request = GrowVolumeRequest {
        volume_id,
        size_gib: 1,
    };
    invalid.check(volumes.grow_volume(request).await)?;

    for size_gib in [0, 65_537, u64::MAX] {
        let disk = BlockDeviceMapping {
            device_name: "/dev/vdb".to_owned(),
            size_gib,
            ..Default::default()
        };
        let request = RunInstancesRequest {
            block_devices: vec![disk],
            ..run(&image)
        };
        let answer = watched.hearth.instances().run_instances(request).await;
        Expect::invalid("InvalidParameterValue", "block_devices[0].size_gib").check(answer)?;
    }
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_attached_once() -> Result<()> {
    needs_kvm!();
    let mut watched = Watched::start().await?;
    let hearth = &watched.hearth;
    let image = tiny_image(hearth).await?;
    let first = hearth.run(&image, |_| {}).await?;
    let second = hearth.run(&image, |_| {}).await?;
    for guest in [&first, &second] {
        guest.console().await?.expect("tiny: ready").await?;
        guest.stop_by_force().await?;
    }
    let (first, second) = (first.id.clone(), second.id.clone());
    let mut volumes = hearth.volumes();
    let request = CreateVolumeRequest {
        size_gib: 1,
        ..Default::default()
    };
    let volume_id = volumes
        .create_volume(request)
        .await?
        .into_inner()
        .volume
        .unwrap_or_default()
        .volume_id;
    let attach = |instance_id: &str| AttachVolumeRequest {
        volume_id: volume_id.clone(),
        instance_id: instance_id.to_owned(),
        ..Default::default()
    };
    volumes.attach_volume(attach(&first)).await?;
    watched.mark().await?;

    let in_use = Expect {
        code: Code::FailedPrecondition,
        reason: "VolumeInUse",
        field: "volume_id",
    };
    in_use.check(volumes.attach_volume(attach(&second)).await)?;
    in_use.check(volumes.attach_volume(attach(&first)).await)?;
    let request = DeleteVolumeRequest {
        volume_id: volume_id.clone(),
    };
    in_use.check(volumes.delete_volume(request).await)?;
    let disk = BlockDeviceMapping {
        volume_id,
        ..Default::default()
    };
    let request = RunInstancesRequest {
        block_devices: vec![disk],
        ..run(&image)
    };
    let in_use = Expect {
        field: "block_devices[0].volume_id",
        ..in_use
    };
    in_use.check(watched.hearth.instances().run_instances(request).await)?;
    watched.unchanged().await?;
    watched.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_qcow2_is_refused_as_a_volume_and_as_a_root() -> Result<()> {
    let watched = Watched::start().await?;
    let folder = watched.hearth.scratch()?;
    // The program that runs this test is surely there.
    let there = std::env::current_exe()?.display().to_string();
    let files = [
        ("truncated", broken::truncated(&folder)?),
        ("looping", broken::looping(&folder)?),
        (
            "backed by a file outside",
            broken::backed_by(&folder, &there)?,
        ),
        (
            "backed by a file that is not there",
            broken::backed_by(&folder, "../../nothing")?,
        ),
        (
            "backed by itself",
            broken::backed_by(&folder, "backed.qcow2")?,
        ),
        ("with a data file outside", broken::with_data_file(&folder)?),
        ("not qcow2 at all", vec![0; 1 << 20]),
        ("cut in its header", broken::whole(&folder)?[..50].to_vec()),
    ];
    for (what, bytes) in files {
        let header = ImportVolumeHeader {
            format: DiskFormat::Qcow2.into(),
            length_bytes: bytes.len() as u64,
            ..Default::default()
        };
        let stream = tokio_stream::iter(volume_stream(header, &bytes));
        let answer = watched.hearth.volumes().import_volume(stream).await;
        let refused = Expect::invalid("InvalidParameterValue", "data").check(answer);
        refused.map_err(|error| error.context(format!("a volume {what}")))?;

        let image = GuestImage::kernel_only("broken root", tiny::one_byte())
            .with_root(bytes, DiskFormat::Qcow2);
        let stream = tokio_stream::iter(image_stream(&image));
        let answer = watched.hearth.images().import_image(stream).await;
        let refused = Expect::invalid("InvalidParameterValue", "header.root").check(answer);
        refused.map_err(|error| error.context(format!("a root {what}")))?;
        watched
            .unchanged()
            .await
            .map_err(|error| error.context(what))?;
    }
    watched.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cut_off_in_the_middle_leaves_nothing() -> Result<()> {
    let watched = Watched::start().await?;
    let bytes = vec![7; 4 << 20];
    let header = ImportVolumeHeader {
        format: DiskFormat::Raw.into(),
        length_bytes: bytes.len() as u64,
        ..Default::default()
    };

    // The client ends its stream early.
    let mut messages = volume_stream(header.clone(), &bytes);
    messages.truncate(3);
    let stream = tokio_stream::iter(messages.clone());
    let answer = watched.hearth.volumes().import_volume(stream).await;
    Expect::invalid("IncompleteBody", "data").check(answer)?;
    let stream = tokio_stream::iter(Vec::new());
    let answer = watched.hearth.volumes().import_volume(stream).await;
    Expect::invalid("MissingParameter", "header").check(answer)?;

    // The client goes away.
    let (sender, receiver) = tokio::sync::mpsc::channel(messages.len());
    for message in messages {
        sender.send(message).await?;
    }
    let mut volumes = watched.hearth.volumes();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let call = tokio::spawn(async move { volumes.import_volume(stream).await });
    while sender.capacity() < sender.max_capacity() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    call.abort();
    let _ = call.await;
    watched.settled().await?;

    // Not even HTTP/2, or only the beginning of it.
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04",
    ] {
        let mut stream = tokio::net::UnixStream::connect(watched.hearth.socket()).await?;
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        // Whatever it says, it hangs up.
        let _ = stream.read_to_end(&mut answer).await;
    }
    watched.finish().await
}
