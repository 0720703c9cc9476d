//! The store as a whole: damage is found and named, lost space is given back, usage is told.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CheckStoreRequest, CreateVolumeRequest, DescribeUsageRequest, DescribeUsageResponse,
    DiskFormat, ExportVolumeRequest, StoreFindingKind, StoreReport, check_store_response::Message,
};
use hearth_tests::{Expect, GuestImage, Hearth, needs_kvm, probe, programs, receive, tiny};

const MIB: usize = 1 << 20;

/// Seed of the pattern on the image's root.
const SEED: u64 = 5;

/// The last message of a check, and how many came before.
async fn check(hearth: &Hearth, repair: bool) -> Result<(StoreReport, usize)> {
    let request = CheckStoreRequest {
        repair,
        skip_checksums: false,
    };
    let mut messages = hearth.store().check_store(request).await?.into_inner();
    let mut before = 0;
    loop {
        let message = messages
            .message()
            .await?
            .and_then(|message| message.message);
        match message.context("the stream ended without a report")? {
            Message::Progress(progress) => {
                ensure!(progress.layers_done <= progress.layers_total);
                before += 1;
            }
            Message::Report(report) => {
                ensure!(messages.message().await?.is_none(), "more after the report");
                return Ok((report, before));
            }
        }
    }
}

/// An image with a root of 8 MiB, whatever its kernel.
async fn image(hearth: &Hearth) -> Result<String> {
    let mut root = vec![0; 8 * MIB];
    probe::pattern::fill(SEED, 0, &mut root);
    let image = GuestImage::kernel_only("rooted", tiny::echo());
    hearth.import(&image.with_root(root, DiskFormat::Raw)).await
}

async fn volume(hearth: &Hearth, image_id: &str) -> Result<String> {
    let request = CreateVolumeRequest {
        size_gib: 1,
        image_id: image_id.to_owned(),
        ..Default::default()
    };
    let answer = hearth.volumes().create_volume(request).await?.into_inner();
    Ok(answer.volume.unwrap_or_default().volume_id)
}

/// The file of the layer that a record of the store names.
fn layer_of(hearth: &Hearth, record: &str) -> Result<PathBuf> {
    let text = fs::read_to_string(hearth.store_dir().join(record))?;
    let record: serde_json::Value = serde_json::from_str(&text)?;
    let layer = record["layer"].as_str().context("no layer in a record")?;
    Ok(hearth.store_dir().join(format!("layers/{layer}.qcow2")))
}

fn flip(path: &Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 0x10], offset)?;
    Ok(())
}

fn hearth_program(hearth: &Hearth, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(programs::built("hearth")?);
    command.env("HEARTH_SOCKET", hearth.socket());
    Ok(command.args(arguments).output()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_and_named_with_all_that_share_it_and_nothing_else() -> Result<()> {
    let hearth = Hearth::start().await?;
    let image = image(&hearth).await?;
    let clones = [
        volume(&hearth, &image).await?,
        volume(&hearth, &image).await?,
    ];
    let other = volume(&hearth, "").await?;

    // Checksums come by themselves.
    let mut waited = 0;
    let report = loop {
        let (report, _) = check(&hearth, false).await?;
        ensure!(report.clean && report.findings.is_empty(), "{report:?}");
        if report.checksums_missing == 0 {
            break report;
        }
        waited += 1;
        ensure!(waited < 600, "no checksums: {report:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!((report.volumes, report.snapshots) == (3, 1), "{report:?}");
    ensure!(report.checksums_verified == 4, "{report:?}");

    // A bit of the image's data.
    let layer = layer_of(&hearth, &format!("snapshots/{image}.json"))?;
    flip(&layer, fs::metadata(&layer)?.len() - 100_000)?;
    for repair in [false, true] {
        let (report, before) = check(&hearth, repair).await?;
        ensure!(before > 0, "no progress");
        let [finding] = &report.findings[..] else {
            anyhow::bail!("{report:#?}");
        };
        ensure!(
            finding.kind() == StoreFindingKind::Checksum && finding.damage,
            "{finding:?}"
        );
        ensure!(!finding.repaired && !report.clean, "{report:?}");
        let name = layer.file_name().unwrap_or_default().to_string_lossy();
        ensure!(finding.file == format!("layers/{name}"), "{finding:?}");
        let affected: BTreeSet<_> = finding.affected_ids.iter().collect();
        ensure!(
            affected == clones.iter().chain([&image]).collect(),
            "{finding:?}"
        );
    }

    // The program says the same, and fails.
    let said = hearth_program(&hearth, &["store", "check"])?;
    ensure!(said.status.code() == Some(1), "{said:?}");
    let stdout = String::from_utf8(said.stdout)?;
    for word in ["DAMAGE", &image, &clones[0], &clones[1]] {
        ensure!(stdout.contains(word), "{word} is missing: {stdout}");
    }
    ensure!(!stdout.contains(&other), "{stdout}");
    ensure!(String::from_utf8(said.stderr)?.contains("damage"));

    // Others are well.
    let request = ExportVolumeRequest {
        volume_id: other,
        format: DiskFormat::Raw.into(),
    };
    let answer = hearth.store().export_volume(request).await;
    let exported = receive(answer, hearth.scratch()?.join("other.raw")).await;
    ensure!(exported?.zeroes == 1 << 30);

    flip(&layer, fs::metadata(&layer)?.len() - 100_000)?;
    ensure!(check(&hearth, false).await?.0.clean);
    let said = hearth_program(&hearth, &["store", "check"])?;
    ensure!(said.status.success(), "{said:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_of_one_volume_is_found_without_checksums_and_harms_no_other() -> Result<()>
{
    let mut hearth = Hearth::start().await?;
    let image = image(&hearth).await?;
    let (broken, sound) = (
        volume(&hearth, &image).await?,
        volume(&hearth, &image).await?,
    );
    hearth.stop_agent()?;
    // An entry of the L1 table (its offset is in the header, at 40) with a reserved bit.
    let layer = layer_of(&hearth, &format!("volumes/{broken}.json"))?;
    let mut l1 = [0; 8];
    File::open(&layer)?.read_exact_at(&mut l1, 40)?;
    flip(&layer, u64::from_be_bytes(l1))?;
    hearth.start_agent().await?;

    let (report, _) = check(&hearth, true).await?;
    let [finding] = &report.findings[..] else {
        anyhow::bail!("{report:#?}");
    };
    ensure!(
        finding.kind() == StoreFindingKind::Layer && finding.damage,
        "{finding:?}"
    );
    ensure!(finding.affected_ids == [broken.clone()], "{finding:?}");

    // Reading it is an error, and no lie.
    let export = |id: &str| ExportVolumeRequest {
        volume_id: id.to_owned(),
        format: DiskFormat::Raw.into(),
    };
    let answer = hearth.store().export_volume(export(&broken)).await;
    let message = Expect::invalid("InvalidParameterValue", "volume_id").check(answer)?;
    ensure!(message.contains("L1 entry"), "{message}");
    let answer = hearth.store().export_volume(export(&sound)).await;
    receive(answer, hearth.scratch()?.join("sound.raw")).await?;
    flip(&layer, u64::from_be_bytes(l1))?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crashes_left_is_found_and_repaired() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let volume = volume(&hearth, "").await?;
    hearth.stop_agent()?;
    let layer = layer_of(&hearth, &format!("volumes/{volume}.json"))?;
    let store = hearth.store_dir();
    // A layer without a record (the agent removes those when it starts), an unfinished file from
    // an hour ago, a volume not closed.
    let orphan = store.join("layers/00112233445566778899aabbccddeeff.qcow2");
    hearth.start_agent().await?;
    fs::copy(&layer, &orphan)?;
    let unfinished = store.join("tmp/0011");
    fs::write(&unfinished, vec![1; MIB])?;
    let hour = Duration::from_secs(3600);
    File::open(&unfinished)?.set_modified(SystemTime::now() - hour)?;
    OpenOptions::new()
        .write(true)
        .open(&layer)?
        .write_all_at(&[1], 79)?;

    let kinds = |report: &StoreReport| {
        let mut kinds: Vec<_> = report
            .findings
            .iter()
            .map(|f| (f.kind(), f.repaired))
            .collect();
        kinds.sort_unstable();
        kinds
    };
    let expected = |repaired| {
        [
            StoreFindingKind::NotClosed,
            StoreFindingKind::UnusedLayer,
            StoreFindingKind::StaleFile,
        ]
        .map(|kind| (kind, repaired))
    };
    let (report, _) = check(&hearth, false).await?;
    ensure!(kinds(&report) == expected(false), "{report:#?}");
    ensure!(report.findings.iter().all(|finding| !finding.damage));
    ensure!(orphan.exists() && unfinished.exists());

    let said = hearth_program(&hearth, &["store", "check", "--repair"])?;
    ensure!(said.status.success(), "{said:?}");
    ensure!(!orphan.exists() && !unfinished.exists());
    let (report, _) = check(&hearth, false).await?;
    ensure!(report.findings.is_empty(), "{report:#?}");

    // A guest uses it: skipped, and said so.
    let image = probe::image()?;
    let image = hearth.import(&image).await?;
    let attach = |request: &mut hearth_proto::v1::RunInstancesRequest| {
        request
            .block_devices
            .push(hearth_proto::v1::BlockDeviceMapping {
                volume_id: volume.clone(),
                ..Default::default()
            });
    };
    let probe = hearth.probe_of(&image, attach).await?;
    let (report, _) = check(&hearth, true).await?;
    let [skipped] = &report.skipped[..] else {
        anyhow::bail!("{report:#?}");
    };
    ensure!(skipped.volume_id == volume && report.clean, "{report:?}");
    drop(probe);
    hearth.finish().await
}

async fn usage(hearth: &Hearth, ids: &[&str]) -> Result<DescribeUsageResponse> {
    let request = DescribeUsageRequest {
        resource_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        totals_only: false,
    };
    Ok(hearth.store().describe_usage(request).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_tells_own_from_shared_and_an_account_shares_nothing_with_itself() -> Result<()> {
    let hearth = Hearth::start().await?;
    let image = image(&hearth).await?;
    let first = volume(&hearth, &image).await?;
    let alone = usage(&hearth, &[&image, &first]).await?;
    let second = volume(&hearth, &image).await?;

    let answer = usage(&hearth, &[]).await?;
    ensure!(answer.resources.len() == 3, "{answer:?}");
    for resource in &answer.resources {
        ensure!(resource.owner_id == "local", "{resource:?}");
        ensure!(resource.shared_bytes >= 8 << 20, "{resource:?}");
        ensure!(resource.own_bytes < 1 << 20, "{resource:?}");
    }
    let [account] = &answer.accounts[..] else {
        anyhow::bail!("{answer:?}");
    };
    ensure!(
        account.owner_id == "local" && account.shared_bytes == 0,
        "{account:?}"
    );
    ensure!(account.own_bytes == answer.total_bytes, "{answer:?}");
    ensure!(answer.unused_bytes == 0, "{answer:?}");
    // Another clone takes next to nothing.
    ensure!(
        answer.total_bytes - alone.total_bytes < 1 << 20,
        "{answer:?}"
    );

    let one = usage(&hearth, &[&second]).await?;
    ensure!(
        one.resources.len() == 1 && one.resources[0].resource_id == second,
        "{one:?}"
    );
    for (ids, reason, code) in [
        (
            ["vol-00000000000000000"],
            "InvalidVolume.NotFound",
            tonic::Code::NotFound,
        ),
        (
            ["snap-00000000000000000"],
            "InvalidSnapshot.NotFound",
            tonic::Code::NotFound,
        ),
        (
            ["i-0"],
            "InvalidParameterValue",
            tonic::Code::InvalidArgument,
        ),
    ] {
        let request = DescribeUsageRequest {
            resource_ids: ids.map(str::to_owned).to_vec(),
            totals_only: false,
        };
        let expect = Expect {
            code,
            reason,
            field: "resource_ids[0]",
        };
        expect.check(hearth.store().describe_usage(request).await)?;
    }
    let said = hearth_program(&hearth, &["store", "usage"])?;
    let stdout = String::from_utf8(said.stdout)?;
    for word in [&image, &first, &second] {
        ensure!(stdout.contains(word), "{stdout}");
    }
    hearth.finish().await
}
