//! Accounts: each sees and changes what is its own, and nothing else.

use std::time::Duration;

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    AttachVolumeRequest, BlockDeviceMapping, ConsoleInput, ConsoleOpen, CreateVolumeRequest,
    DeleteVolumeRequest, DeregisterImageRequest, DescribeImagesRequest, DescribeInstancesRequest,
    DescribeVolumesRequest, DetachVolumeRequest, GetConsoleOutputRequest, GrowVolumeRequest,
    RunInstancesRequest, StopInstancesRequest, TerminateInstancesRequest, WatchRequest,
    console_input::Input,
};
use hearth_tests::{Expect, Hearth, as_account, needs_kvm};
use tonic::Code;

const EVE: &str = "eve";

fn not_found(reason: &'static str, field: &'static str) -> Expect {
    Expect {
        code: Code::NotFound,
        reason,
        field,
    }
}

async fn volume_of(hearth: &Hearth, account: &str) -> Result<String> {
    let request = CreateVolumeRequest {
        size_gib: 1,
        client_token: "the same for everybody".replace(' ', "-"),
        ..Default::default()
    };
    let answer = hearth
        .volumes()
        .create_volume(as_account(account, request))
        .await?
        .into_inner();
    let volume = answer.volume.unwrap_or_default();
    ensure!(volume.owner_id == account, "{volume:?}");
    Ok(volume.volume_id)
}

async fn volumes_seen_by(hearth: &Hearth, account: &str) -> Result<Vec<String>> {
    let request = as_account(account, DescribeVolumesRequest::default());
    let answer = hearth.volumes().describe_volumes(request).await?;
    let volumes = answer.into_inner().volumes;
    Ok(volumes.into_iter().map(|v| v.volume_id).collect())
}

#[tokio::test]
async fn an_account_sees_its_own_volumes_and_the_administrator_all() -> Result<()> {
    let hearth = Hearth::start().await?;
    let ours = volume_of(&hearth, "local").await?;
    // The same client token: tokens are each account's own.
    let hers = volume_of(&hearth, EVE).await?;
    ensure!(ours != hers);
    ensure!(volumes_seen_by(&hearth, "local").await? == std::slice::from_ref(&ours));
    ensure!(volumes_seen_by(&hearth, EVE).await? == std::slice::from_ref(&hers));
    ensure!(volumes_seen_by(&hearth, "nobody").await?.is_empty());
    ensure!(volumes_seen_by(&hearth, "*").await? == [ours.clone(), hers]);

    let by_id = DescribeVolumesRequest {
        volume_ids: vec![ours],
        ..Default::default()
    };
    let answer = hearth
        .volumes()
        .describe_volumes(as_account(EVE, by_id))
        .await;
    not_found("InvalidVolume.NotFound", "volume_ids[0]").check(answer)?;
    hearth.finish().await
}

#[tokio::test]
async fn nothing_of_somebody_elses_volume_can_be_changed() -> Result<()> {
    let hearth = Hearth::start().await?;
    let volume_id = volume_of(&hearth, "local").await?;
    let refused = not_found("InvalidVolume.NotFound", "volume_id");
    let delete = DeleteVolumeRequest {
        volume_id: volume_id.clone(),
    };
    refused.check(
        hearth
            .volumes()
            .delete_volume(as_account(EVE, delete.clone()))
            .await,
    )?;
    let grow = GrowVolumeRequest {
        volume_id: volume_id.clone(),
        size_gib: 2,
    };
    refused.check(hearth.volumes().grow_volume(as_account(EVE, grow)).await)?;
    let detach = DetachVolumeRequest {
        volume_id,
        ..Default::default()
    };
    refused.check(
        hearth
            .volumes()
            .detach_volume(as_account(EVE, detach))
            .await,
    )?;
    // The administrator may.
    hearth
        .volumes()
        .delete_volume(as_account("*", delete))
        .await?;
    ensure!(volumes_seen_by(&hearth, "local").await?.is_empty());
    hearth.finish().await
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_and_all_accounts_own_nothing() -> Result<()> {
    let hearth = Hearth::start().await?;
    for name in ["Eve", "a b", "-x", "../x", &"x".repeat(65), "*"] {
        let request = CreateVolumeRequest {
            size_gib: 1,
            ..Default::default()
        };
        let answer = hearth
            .volumes()
            .create_volume(as_account(name, request))
            .await;
        Expect::invalid("InvalidParameterValue", "hearth-account").check(answer)?;
    }
    ensure!(volumes_seen_by(&hearth, "*").await?.is_empty());
    hearth.finish().await
}

#[tokio::test]
async fn instances_and_images_of_others_are_as_if_they_were_not_there() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image_id = hearth.probe_image().await?.to_owned();
    let mut probe = hearth.probe(|_| {}).await?;
    let instance_id = probe.guest.id.clone();

    let mut images = hearth.images();
    let seen = images
        .describe_images(as_account(EVE, DescribeImagesRequest::default()))
        .await?;
    ensure!(seen.into_inner().images.is_empty());
    let deregister = DeregisterImageRequest {
        image_id: image_id.clone(),
    };
    not_found("InvalidAMIID.NotFound", "image_id")
        .check(images.deregister_image(as_account(EVE, deregister)).await)?;

    let mut instances = hearth.instances();
    let run = RunInstancesRequest {
        image_id,
        ..Default::default()
    };
    not_found("InvalidAMIID.NotFound", "image_id")
        .check(instances.run_instances(as_account(EVE, run)).await)?;
    let seen = instances
        .describe_instances(as_account(EVE, DescribeInstancesRequest::default()))
        .await?;
    ensure!(seen.into_inner().instances.is_empty());
    let refused = not_found("InvalidInstanceID.NotFound", "instance_ids[0]");
    let ids = vec![instance_id.clone()];
    let stop = StopInstancesRequest {
        instance_ids: ids.clone(),
        ..Default::default()
    };
    refused.check(instances.stop_instances(as_account(EVE, stop)).await)?;
    let terminate = TerminateInstancesRequest { instance_ids: ids };
    refused.check(
        instances
            .terminate_instances(as_account(EVE, terminate))
            .await,
    )?;
    let refused = not_found("InvalidInstanceID.NotFound", "instance_id");
    let output = GetConsoleOutputRequest {
        instance_id: instance_id.clone(),
    };
    refused.check(instances.get_console_output(as_account(EVE, output)).await)?;
    let open = ConsoleInput {
        input: Some(Input::Open(ConsoleOpen {
            instance_id: instance_id.clone(),
            replay: true,
        })),
    };
    let answer = instances
        .console(as_account(EVE, tokio_stream::iter([open])))
        .await;
    let Err(status) = answer else {
        anyhow::bail!("a console of somebody else's opened");
    };
    not_found("InvalidInstanceID.NotFound", "instance_id").check_status(&status)?;

    // A disk of hers can't be put on our instance, not even by the administrator.
    let hers = volume_of(&hearth, EVE).await?;
    let attach = AttachVolumeRequest {
        volume_id: hers.clone(),
        instance_id: instance_id.clone(),
        ..Default::default()
    };
    not_found("InvalidInstanceID.NotFound", "instance_id").check(
        hearth
            .volumes()
            .attach_volume(as_account(EVE, attach.clone()))
            .await,
    )?;
    let with_hers = RunInstancesRequest {
        image_id: hearth.probe_image().await?.to_owned(),
        block_devices: vec![BlockDeviceMapping {
            volume_id: hers,
            ..Default::default()
        }],
        ..Default::default()
    };
    not_found("InvalidVolume.NotFound", "block_devices[0].volume_id")
        .check(hearth.instances().run_instances(with_hers).await)?;
    probe.expect_ok("identify").await?;
    probe.guest.stop_by_force().await?;
    Expect::invalid("InvalidParameterCombination", "instance_id").check(
        hearth
            .volumes()
            .attach_volume(as_account("*", attach))
            .await,
    )?;
    drop(probe);
    hearth.finish().await
}

#[tokio::test]
async fn a_watch_tells_of_the_accounts_own_objects_only() -> Result<()> {
    let hearth = Hearth::start().await?;
    let from_the_start = || WatchRequest {
        after_sequence: Some(0),
        ..Default::default()
    };
    let mut hers = hearth
        .events()
        .watch(as_account(EVE, from_the_start()))
        .await?
        .into_inner();
    let ours = volume_of(&hearth, "local").await?;
    let mine = volume_of(&hearth, EVE).await?;
    let next = tokio::time::timeout(Duration::from_secs(30), hers.message()).await??;
    let next = next.unwrap_or_default();
    ensure!(next.resource_id == mine, "{next:?}");
    let mut all = hearth
        .events()
        .watch(as_account("*", from_the_start()))
        .await?
        .into_inner();
    let next = tokio::time::timeout(Duration::from_secs(30), all.message()).await??;
    let next = next.unwrap_or_default();
    ensure!(next.resource_id == ours, "{next:?}");
    drop((hers, all));
    hearth.finish().await
}
