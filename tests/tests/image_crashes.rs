//! The agent dies in the middle of RegisterImage and CopyImage: the image is there, or nothing
//! of it is, and the same call again makes it.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CopyImageRequest, CreateSnapshotRequest, CreateVolumeRequest, DescribeImagesRequest,
    DescribeSnapshotsRequest, Image, ImageState, RegisterImageRequest,
};
use hearth_tests::{Hearth, eventually, probe};

/// Size of the root of the image that is copied, in bytes, and the seed of the pattern on it.
const ROOT: usize = 4 << 20;
const SEED: u64 = 9;

async fn images(hearth: &Hearth) -> Result<Vec<Image>> {
    let all = DescribeImagesRequest::default();
    let answer = hearth.images().describe_images(all).await?;
    Ok(answer.into_inner().images)
}

async fn snapshots(hearth: &Hearth) -> Result<usize> {
    let all = DescribeSnapshotsRequest::default();
    let answer = hearth.snapshots().describe_snapshots(all).await?;
    Ok(answer.into_inner().snapshots.len())
}

/// Waits until so many images and snapshots are there, and none is pending.
async fn settles(hearth: &Hearth, wanted: (usize, usize)) -> Result<()> {
    eventually(async || {
        let images = images(hearth).await?;
        let available = |image: &Image| image.state() == ImageState::Available;
        ensure!(images.iter().all(available), "{images:#?}");
        let found = (images.len(), snapshots(hearth).await?);
        ensure!(found == wanted, "{found:?}, not {wanted:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_cut_off_is_there_or_leaves_nothing() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let source_image_id = hearth.import(&probe::image_with_root(ROOT, SEED)?).await?;
    for (round, (step, made)) in [
        ("image.row-copying", false),
        ("image.snapshots-copied", false),
        ("image.row-available", true),
    ]
    .into_iter()
    .enumerate()
    {
        let request = CopyImageRequest {
            source_image_id: source_image_id.clone(),
            name: format!("copy {round}"),
            client_token: step.to_owned(),
            ..Default::default()
        };
        // Each earlier round has left one image and one snapshot.
        let before = (1 + round, round);
        let after = (before.0 + 1, before.1 + 1);
        let mut client = hearth.images();
        let call = client.copy_image(request.clone());
        let answer = hearth.crash_at(step, call).await?;
        ensure!(answer.is_err(), "{step}");
        let left = if made { after } else { before };
        settles(&hearth, left).await.context(step)?;

        let again = hearth.images().copy_image(request).await?.into_inner();
        let image = again.image.context("no image")?;
        settles(&hearth, after).await.context(step)?;
        if hearth_tests::programs::kvm() {
            let mut probe = hearth.probe_of(&image.image_id, |_| {}).await?;
            let all = format!("verify length={ROOT} pattern={SEED}");
            probe.expect_ok(&all).await?;
            probe.guest.terminate().await?;
        }
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_is_cut_off_is_there_or_leaves_nothing() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let kernel_image_id = hearth.probe_image().await?.to_owned();
    let volume = CreateVolumeRequest {
        size_gib: 1,
        ..Default::default()
    };
    let volume = hearth.volumes().create_volume(volume).await?.into_inner();
    let snapshot = CreateSnapshotRequest {
        volume_id: volume.volume.context("no volume")?.volume_id,
        ..Default::default()
    };
    let snapshot = hearth.snapshots().create_snapshot(snapshot).await?;
    let snapshot = snapshot.into_inner().snapshot.context("no snapshot")?;
    for (round, (step, made)) in [
        ("image.row-registering", false),
        ("image.row-available", true),
    ]
    .into_iter()
    .enumerate()
    {
        let request = RegisterImageRequest {
            name: format!("registered {round}"),
            root_snapshot_id: snapshot.snapshot_id.clone(),
            kernel_image_id: kernel_image_id.clone(),
            client_token: step.to_owned(),
            ..Default::default()
        };
        let before = (1 + round, 1);
        let after = (2 + round, 1);
        let mut client = hearth.images();
        let call = client.register_image(request.clone());
        let answer = hearth.crash_at(step, call).await?;
        ensure!(answer.is_err(), "{step}");
        let left = if made { after } else { before };
        settles(&hearth, left).await.context(step)?;
        hearth.images().register_image(request).await?;
        settles(&hearth, after).await.context(step)?;
    }
    hearth.finish().await
}
