//! Snapshots and images that belong to one account and are shared with others.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CopySnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeregisterImageRequest,
    DescribeImagesRequest, DescribeLaunchPermissionRequest, DescribeSnapshotAttributeRequest,
    DescribeSnapshotsRequest, DescribeVolumesRequest, InstanceState, ModifyLaunchPermissionRequest,
    ModifySnapshotAttributeRequest, PermissionChange, Permissions, RunInstancesRequest,
    TerminateInstancesRequest,
};
use hearth_tests::{
    Expect, Hearth, as_account, needs_kvm, probe,
    snapshots::{BLOCK, pattern_at},
};
use tonic::{Code, Request};

const NOT_FOUND: Expect = Expect {
    code: Code::NotFound,
    reason: "InvalidSnapshot.NotFound",
    field: "snapshot_id",
};

const UNAUTHORIZED: Expect = Expect {
    code: Code::PermissionDenied,
    reason: "UnauthorizedOperation",
    field: "snapshot_id",
};

fn add(account: &str) -> PermissionChange {
    PermissionChange {
        add_accounts: vec![account.to_owned()],
        ..Default::default()
    }
}

fn remove(account: &str) -> PermissionChange {
    PermissionChange {
        remove_accounts: vec![account.to_owned()],
        ..Default::default()
    }
}

fn public(public: bool) -> PermissionChange {
    PermissionChange {
        public: Some(public),
        ..Default::default()
    }
}

async fn share(hearth: &Hearth, id: &str, change: PermissionChange) -> Result<Permissions> {
    let request = ModifySnapshotAttributeRequest {
        snapshot_id: id.to_owned(),
        create_volume_permission: Some(change),
    };
    let answer = hearth.snapshots().modify_snapshot_attribute(request).await;
    let permissions = answer?.into_inner().create_volume_permission;
    permissions.context("no permissions")
}

/// The ids of the snapshots that an account sees.
async fn seen(hearth: &Hearth, account: &str) -> Result<Vec<String>> {
    let all = as_account(account, DescribeSnapshotsRequest::default());
    let answer = hearth.snapshots().describe_snapshots(all).await?;
    let snapshots = answer.into_inner().snapshots;
    Ok(snapshots.into_iter().map(|s| s.snapshot_id).collect())
}

fn from(account: &str, id: &str) -> Request<CreateVolumeRequest> {
    let request = CreateVolumeRequest {
        snapshot_id: id.to_owned(),
        ..Default::default()
    };
    as_account(account, request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_its_owners_until_it_is_shared() -> Result<()> {
    let hearth = Hearth::start().await?;
    let volume = hearth.volume_with(3, 2).await?;
    let id = hearth.snapshot_of(&volume).await?.snapshot_id;
    let mut volumes = hearth.volumes();
    let mut client = hearth.snapshots();
    let delete = |account: &str| {
        let snapshot_id = id.clone();
        as_account(account, DeleteSnapshotRequest { snapshot_id })
    };
    let attribute = |account: &str| {
        let snapshot_id = id.clone();
        as_account(account, DescribeSnapshotAttributeRequest { snapshot_id })
    };
    // As if it were not there.
    ensure!(seen(&hearth, "bob").await?.is_empty());
    NOT_FOUND.check(volumes.create_volume(from("bob", &id)).await)?;
    NOT_FOUND.check(client.delete_snapshot(delete("bob")).await)?;
    NOT_FOUND.check(client.describe_snapshot_attribute(attribute("bob")).await)?;

    let permissions = share(&hearth, &id, add("bob")).await?;
    ensure!(permissions.accounts == ["bob"], "{permissions:?}");
    ensure!(!permissions.public, "{permissions:?}");
    ensure!(seen(&hearth, "bob").await? == std::slice::from_ref(&id));
    ensure!(seen(&hearth, "eve").await?.is_empty());
    NOT_FOUND.check(volumes.create_volume(from("eve", &id)).await)?;

    // He uses it, and can't change it.
    let made = volumes.create_volume(from("bob", &id)).await?.into_inner();
    let made = made.volume.context("no volume")?;
    ensure!(made.owner_id == "bob", "{made:?}");
    ensure!(made.snapshot_id == id, "{made:?}");
    let request = CopySnapshotRequest {
        source_snapshot_id: id.clone(),
        ..Default::default()
    };
    let copy = client.copy_snapshot(as_account("bob", request)).await?;
    let copy = copy.into_inner().snapshot.context("no copy")?;
    ensure!(copy.owner_id == "bob", "{copy:?}");
    UNAUTHORIZED.check(client.delete_snapshot(delete("bob")).await)?;
    UNAUTHORIZED.check(client.describe_snapshot_attribute(attribute("bob")).await)?;
    let request = ModifySnapshotAttributeRequest {
        snapshot_id: id.clone(),
        create_volume_permission: Some(public(true)),
    };
    let request = as_account("bob", request);
    UNAUTHORIZED.check(client.modify_snapshot_attribute(request).await)?;

    // Revoked: nothing new, and what was made lives on; also after the deletion.
    let permissions = share(&hearth, &id, remove("bob")).await?;
    ensure!(permissions == Permissions::default(), "{permissions:?}");
    ensure!(seen(&hearth, "bob").await? == std::slice::from_ref(&copy.snapshot_id));
    NOT_FOUND.check(volumes.create_volume(from("bob", &id)).await)?;
    client.delete_snapshot(delete("local")).await?;
    ensure!(seen(&hearth, "local").await?.is_empty());
    let request = DescribeVolumesRequest {
        volume_ids: vec![made.volume_id],
        ..Default::default()
    };
    volumes.describe_volumes(as_account("bob", request)).await?;
    let again = volumes
        .create_volume(from("bob", &copy.snapshot_id))
        .await?;
    let again = again.into_inner().volume.context("no volume")?;
    ensure!(again.size_bytes == 2 * BLOCK as u64, "{again:?}");
    let request = hearth_proto::v1::GetSnapshotBlockRequest {
        snapshot_id: copy.snapshot_id,
        block_indexes: vec![1],
    };
    let blocks = client
        .get_snapshot_block(as_account("bob", request))
        .await?;
    let block = blocks.into_inner().message().await?.context("no block")?;
    ensure!(block.data == pattern_at(3, BLOCK as u64, BLOCK));
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_snapshot_is_everybodys_to_use() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let volume = hearth.volume_with(3, 1).await?;
    let id = hearth.snapshot_of(&volume).await?.snapshot_id;
    let permissions = share(&hearth, &id, public(true)).await?;
    ensure!(permissions.public, "{permissions:?}");
    hearth.kill_agent()?;
    hearth.start_agent().await?;
    ensure!(seen(&hearth, "eve").await? == std::slice::from_ref(&id));
    hearth.volumes().create_volume(from("eve", &id)).await?;
    share(&hearth, &id, public(false)).await?;
    NOT_FOUND.check(hearth.volumes().create_volume(from("eve", &id)).await)?;

    for (change, reason, field) in [
        (PermissionChange::default(), "MissingParameter", ""),
        (add("Bob"), "InvalidParameterValue", ".add_accounts[0]"),
        (add("*"), "InvalidParameterValue", ".add_accounts[0]"),
        (remove(""), "InvalidParameterValue", ".remove_accounts[0]"),
        (
            PermissionChange {
                remove_accounts: vec!["bob".to_owned()],
                ..add("bob")
            },
            "InvalidParameterCombination",
            ".add_accounts[0]",
        ),
        (
            PermissionChange {
                add_accounts: (0..101).map(|n| format!("a{n}")).collect(),
                ..Default::default()
            },
            "InvalidParameterValue",
            ".add_accounts",
        ),
    ] {
        let request = ModifySnapshotAttributeRequest {
            snapshot_id: id.clone(),
            create_volume_permission: Some(change),
        };
        let answer = hearth.snapshots().modify_snapshot_attribute(request).await;
        let field: &'static str = format!("create_volume_permission{field}").leak();
        Expect::invalid(reason, field).check(answer)?;
    }
    let snapshot_id = id.clone();
    let request = DescribeSnapshotAttributeRequest { snapshot_id };
    let after = hearth
        .snapshots()
        .describe_snapshot_attribute(request)
        .await?;
    let after = after.into_inner().create_volume_permission;
    ensure!(after == Some(Permissions::default()), "{after:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_launched_by_those_with_whom_it_is_shared() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image_id = hearth.import(&probe::image_with_root(1 << 20, 5)?).await?;
    let run = |account: &str| {
        let request = RunInstancesRequest {
            image_id: image_id.clone(),
            memory_mib: 32,
            ..Default::default()
        };
        as_account(account, request)
    };
    let modify = |account: &str, change| {
        let request = ModifyLaunchPermissionRequest {
            image_id: image_id.clone(),
            launch_permission: Some(change),
        };
        as_account(account, request)
    };
    let not_found = Expect {
        reason: "InvalidAMIID.NotFound",
        field: "image_id",
        ..NOT_FOUND
    };
    let unauthorized = Expect {
        field: "image_id",
        ..UNAUTHORIZED
    };
    let (mut images, mut instances) = (hearth.images(), hearth.instances());
    not_found.check(instances.run_instances(run("bob")).await)?;
    let answer = images.modify_launch_permission(modify("bob", add("bob")));
    not_found.check(answer.await)?;

    images
        .modify_launch_permission(modify("local", add("bob")))
        .await?;
    let all = as_account("bob", DescribeImagesRequest::default());
    let listed = images.describe_images(all).await?.into_inner().images;
    ensure!(
        listed.len() == 1 && listed[0].owner_id == "local",
        "{listed:?}"
    );
    let launched = instances.run_instances(run("bob")).await?.into_inner();
    let instance = launched.instances.first().context("no instance")?;
    ensure!(instance.owner_id == "bob", "{instance:?}");
    let request = DeregisterImageRequest {
        image_id: image_id.clone(),
    };
    let answer = images.deregister_image(as_account("bob", request.clone()));
    unauthorized.check(answer.await)?;
    let asked = DescribeLaunchPermissionRequest {
        image_id: image_id.clone(),
    };
    let answer = images.describe_launch_permission(as_account("bob", asked.clone()));
    unauthorized.check(answer.await)?;
    let answer = images.describe_launch_permission(asked).await?;
    let permissions = answer.into_inner().launch_permission;
    ensure!(
        permissions.is_some_and(|p| p.accounts == ["bob"]),
        "who may launch"
    );

    // Revoked and gone: what was launched runs on.
    images
        .modify_launch_permission(modify("local", remove("bob")))
        .await?;
    not_found.check(instances.run_instances(run("bob")).await)?;
    images.deregister_image(request).await?;
    let id = instance.instance_id.clone();
    let request = hearth_proto::v1::DescribeInstancesRequest {
        instance_ids: vec![id.clone()],
        ..Default::default()
    };
    hearth_tests::eventually(async || {
        let asked = as_account("bob", request.clone());
        let answer = hearth.instances().describe_instances(asked).await?;
        let found = answer.into_inner().instances;
        ensure!(found[0].state() == InstanceState::Running, "{found:?}");
        Ok(())
    })
    .await?;
    let request = TerminateInstancesRequest {
        instance_ids: vec![id],
    };
    let ended = instances.terminate_instances(as_account("bob", request.clone()));
    ended.await?;
    hearth_tests::eventually(async || {
        let all = as_account("*", hearth_proto::v1::DescribeInstancesRequest::default());
        let answer = hearth.instances().describe_instances(all).await?;
        let found = answer.into_inner().instances;
        let over = found.iter().all(|i| i.state() == InstanceState::Terminated);
        ensure!(over, "{found:?}");
        Ok(())
    })
    .await?;
    hearth.finish().await
}
