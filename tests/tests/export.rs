//! Exports: stand-alone files that hold what the volume holds, judged by QEMU's tool.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, DiskFormat, ExportImageRequest,
    ExportSnapshotRequest, ExportVolumeRequest, ImportVolumeHeader,
};
use hearth_tests::{
    Expect, GuestImage, Hearth, needs_kvm, probe, programs, receive, tiny, volume_stream,
};
use tonic::Code;

const MIB: usize = 1 << 20;

/// A disk with data, holes and stored zeroes.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 12 * MIB];
    probe::pattern::fill(3, 0, &mut bytes[..2 * MIB]);
    probe::pattern::fill(4, 0, &mut bytes[7 * MIB + 512..9 * MIB]);
    bytes
}

/// The disk as a volume; its id, and the disk as a raw file.
async fn imported(hearth: &Hearth) -> Result<(String, PathBuf)> {
    let bytes = disk();
    let raw = hearth.scratch()?.join("disk.raw");
    fs::write(&raw, &bytes)?;
    let header = ImportVolumeHeader {
        format: DiskFormat::Raw.into(),
        length_bytes: bytes.len() as u64,
        ..Default::default()
    };
    let stream = tokio_stream::iter(volume_stream(header, &bytes));
    let answer = hearth.volumes().import_volume(stream).await?.into_inner();
    Ok((answer.volume.unwrap_or_default().volume_id, raw))
}

fn of_volume(volume_id: &str, format: DiskFormat) -> ExportVolumeRequest {
    ExportVolumeRequest {
        volume_id: volume_id.to_owned(),
        format: format.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_volume_holds_what_was_imported() -> Result<()> {
    let hearth = Hearth::start().await?;
    let (volume, raw) = imported(&hearth).await?;
    let scratch = hearth.scratch()?;

    let request = of_volume(&volume, DiskFormat::Unspecified);
    let answer = hearth.store().export_volume(request).await;
    let exported = receive(answer, scratch.join("out.qcow2")).await?;
    exported.holds(&raw)?;
    ensure!(exported.header.format() == DiskFormat::Qcow2);
    ensure!(exported.header.size_bytes == 12 * MIB as u64);
    // Four MiB of data and some tables: zeroes are left out.
    ensure!(
        exported.header.length_bytes < 5 * MIB as u64,
        "{exported:?}"
    );

    let request = of_volume(&volume, DiskFormat::Raw);
    let answer = hearth.store().export_volume(request).await;
    let exported = receive(answer, scratch.join("out.raw")).await?;
    exported.is(&disk())?;
    ensure!(exported.zeroes >= 7 * MIB as u64, "{exported:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_is_its_root_and_a_clone_s_changes_are_its_own() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(8 * MIB, 5)?).await?;
    let raw = hearth.scratch()?.join("root.raw");
    let mut bytes = vec![0; 8 * MIB];
    probe::pattern::fill(5, 0, &mut bytes);
    fs::write(&raw, &bytes)?;

    // A guest writes to its clone.
    let mut probe = hearth.probe_of(&image, |_| {}).await?;
    probe
        .expect_ok("write disk=0 offset=4k length=64k pattern=9")
        .await?;
    probe.expect_ok("flush disk=0").await?;
    let instance = probe.guest.describe().await?;
    let root = instance.block_devices[0].volume_id.clone();

    // While it runs its volume is not to be had; the error says who has it.
    let request = of_volume(&root, DiskFormat::Raw);
    let answer = hearth.store().export_volume(request.clone()).await;
    let expect = Expect {
        code: Code::FailedPrecondition,
        reason: "VolumeInUse",
        field: "volume_id",
    };
    let message = expect.check(answer)?;
    ensure!(message.contains(&instance.instance_id), "{message}");

    // The image is, also while guests run from it.
    let request = ExportImageRequest {
        image_id: image.clone(),
        format: DiskFormat::Qcow2.into(),
    };
    let answer = hearth.store().export_image(request).await;
    let exported = receive(answer, hearth.scratch()?.join("image.qcow2")).await?;
    exported.holds(&raw)?;

    probe.guest.stop_by_force().await?;
    probe::pattern::fill(9, 4096, &mut bytes[4096..4096 + 65_536]);
    let request = of_volume(&root, DiskFormat::Raw);
    let answer = hearth.store().export_volume(request).await;
    let exported = receive(answer, hearth.scratch()?.join("root.out")).await?;
    exported.is(&bytes)?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_exported_is_refused_by_name() -> Result<()> {
    let hearth = Hearth::start().await?;
    let kernel = GuestImage::kernel_only("rootless", tiny::echo());
    let rootless = hearth.import(&kernel).await?;
    let missing = |reason, field| Expect {
        code: Code::NotFound,
        reason,
        field,
    };
    let mut store = hearth.store();

    let invalid = Expect::invalid("InvalidVolumeID.Malformed", "volume_id");
    let request = of_volume("../../etc/passwd", DiskFormat::Raw);
    invalid.check(store.export_volume(request).await)?;
    let invalid = Expect::invalid("MissingParameter", "volume_id");
    invalid.check(store.export_volume(ExportVolumeRequest::default()).await)?;
    let request = of_volume("vol-00000000000000000", DiskFormat::Raw);
    let answer = store.export_volume(request).await;
    missing("InvalidVolume.NotFound", "volume_id").check(answer)?;
    let request = ExportVolumeRequest {
        volume_id: "vol-00000000000000000".to_owned(),
        format: 77,
    };
    let invalid = Expect::invalid("InvalidParameterValue", "format");
    invalid.check(store.export_volume(request).await)?;

    let snapshot = |id: &str| ExportSnapshotRequest {
        snapshot_id: id.to_owned(),
        format: 0,
    };
    let invalid = Expect::invalid("InvalidSnapshotID.Malformed", "snapshot_id");
    // Not by the id of an image, either.
    invalid.check(store.export_snapshot(snapshot(&rootless)).await)?;
    let answer = store
        .export_snapshot(snapshot("snap-00000000000000000"))
        .await;
    missing("InvalidSnapshot.NotFound", "snapshot_id").check(answer)?;

    let image = |id: &str| ExportImageRequest {
        image_id: id.to_owned(),
        format: 0,
    };
    let answer = store.export_image(image("img-00000000000000000")).await;
    missing("InvalidAMIID.NotFound", "image_id").check(answer)?;
    let invalid = Expect::invalid("InvalidParameterValue", "image_id");
    let message = invalid.check(store.export_image(image(&rootless)).await)?;
    ensure!(message.contains("no root"), "{message}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_lets_go_of_the_volume() -> Result<()> {
    let hearth = Hearth::start().await?;
    let request = CreateVolumeRequest {
        size_gib: 64,
        ..Default::default()
    };
    let answer = hearth.volumes().create_volume(request).await?.into_inner();
    let volume_id = answer.volume.unwrap_or_default().volume_id;
    // 64 GiB of zeroes in pieces of at most 64 MiB: far from done after the first message.
    let request = of_volume(&volume_id, DiskFormat::Raw);
    let mut stream = hearth.store().export_volume(request).await?.into_inner();
    ensure!(stream.message().await?.is_some());
    drop(stream);
    let mut tries = 0;
    loop {
        let request = DeleteVolumeRequest {
            volume_id: volume_id.clone(),
        };
        match hearth.volumes().delete_volume(request).await {
            Ok(_) => break,
            Err(status) if status.code() == Code::NotFound => break,
            Err(status) => {
                tries += 1;
                ensure!(tries < 300, "{status:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    hearth.finish().await
}

fn hearth_program(hearth: &Hearth, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(programs::built("hearth")?);
    command.env("HEARTH_SOCKET", hearth.socket());
    Ok(command.args(arguments).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_writes_a_sparse_file_or_none() -> Result<()> {
    let hearth = Hearth::start().await?;
    let (volume, _) = imported(&hearth).await?;
    let folder = hearth.scratch()?.join("exports");
    fs::create_dir(&folder)?;
    let file = folder.join("disk.raw");
    let name = file.to_str().unwrap_or_default();
    let names = || -> Result<Vec<_>> {
        let entries = fs::read_dir(&folder)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    };

    let export = ["volume", "export", &volume, name, "--format", "raw"];
    let done = hearth_program(&hearth, &export)?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(fs::read(&file)? == disk(), "other bytes");
    ensure!(fs::metadata(&file)?.blocks() * 512 < 6 << 20, "not sparse");
    ensure!(names()? == ["disk.raw"], "{:?}", names()?);

    // What is there stays, unless it is said that it may go.
    let refused = hearth_program(&hearth, &export)?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let stderr = String::from_utf8(refused.stderr)?;
    ensure!(stderr.contains("--force"), "{stderr}");
    fs::write(&file, "old")?;
    let force = ["volume", "export", &volume, name, "--force"];
    let done = hearth_program(&hearth, &force)?;
    ensure!(done.status.success(), "{done:?}");
    ensure!(
        fs::read(&file)?.starts_with(b"QFI\xfb"),
        "qcow2 is the default"
    );

    // A refused export leaves no file and no part of one, and the old file alone.
    let nobody = "vol-00000000000000000";
    let other = folder.join("other");
    let other = other.to_str().unwrap_or_default();
    for target in [name, other] {
        let force = ["volume", "export", nobody, target, "--force"];
        let refused = hearth_program(&hearth, &force)?;
        ensure!(refused.status.code() == Some(1), "{refused:?}");
        let stderr = String::from_utf8(refused.stderr)?;
        ensure!(stderr.contains("there is no volume"), "{stderr}");
    }
    ensure!(names()? == ["disk.raw"], "{:?}", names()?);
    hearth.finish().await
}
