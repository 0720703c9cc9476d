//! Calls of the API per second, with many objects.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hearth_proto::v1::{
    CreateVolumeRequest, DescribeInstancesRequest, DescribeVolumesRequest, Filter, PageRequest,
    TerminateInstancesRequest,
};
use hearth_tests::Hearth;

use crate::{
    Bench,
    table::{Row, Section},
};

const VOLUMES: usize = 10_000;

/// Most of one page.
const PAGE: u32 = 1000;

/// Instances that are described: idle probes.
const INSTANCES: u32 = 50;

/// For each kind of call.
const CALLING: Duration = Duration::from_secs(2);

/// Calls on one connection, one after the other.
pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let hearth = bench.hearth().await?;
    let mut rows = Vec::new();
    let start = Instant::now();
    let mut ids = Vec::new();
    for _ in 0..VOLUMES {
        let request = CreateVolumeRequest {
            size_gib: 1,
            ..Default::default()
        };
        let answer = hearth.volumes().create_volume(request).await?.into_inner();
        ids.extend(answer.volume.map(|volume| volume.volume_id));
    }
    let making = ids.len() as f64 / start.elapsed().as_secs_f64();
    rows.push(Row::alone("CreateVolume", making));

    let whole_page = DescribeVolumesRequest {
        page: Some(PageRequest {
            max_results: PAGE,
            ..Default::default()
        }),
        ..Default::default()
    };
    let one = DescribeVolumesRequest {
        volume_ids: vec![ids[VOLUMES / 2].clone()],
        ..Default::default()
    };
    let none = DescribeVolumesRequest {
        filters: vec![Filter {
            name: "tag:owner".to_owned(),
            values: vec!["nobody".to_owned()],
        }],
        ..Default::default()
    };
    for (what, request, expected) in [
        ("one by its id", one, 1),
        ("a page of 1000", whole_page, PAGE as usize),
        ("a filter that none matches", none, 0),
    ] {
        let calls = repeat(async || {
            let answer = hearth.volumes().describe_volumes(request.clone()).await?;
            let found = answer.into_inner().volumes.len();
            ensure!(found == expected, "{found} volumes instead of {expected}");
            Ok(())
        });
        let what = format!("DescribeVolumes, {what}");
        rows.push(Row::alone(what, calls.await?));
    }
    let calls = repeat(async || all_volumes(hearth).await).await?;
    rows.push(Row::alone(
        format!("DescribeVolumes, all {VOLUMES} in pages of 1000"),
        calls,
    ));

    let instances = hearth.probes(INSTANCES).await?;
    let instance_ids: Vec<String> = instances
        .iter()
        .map(|probe| probe.guest.id.clone())
        .collect();
    let calls = repeat(async || {
        let request = DescribeInstancesRequest {
            instance_ids: instance_ids.clone(),
            ..Default::default()
        };
        let answer = hearth.instances().describe_instances(request).await?;
        let found = answer.into_inner().instances.len();
        ensure!(found == instance_ids.len(), "{found} instances");
        Ok(())
    });
    let what = format!("DescribeInstances, {INSTANCES} that run, by id");
    rows.push(Row::alone(what, calls.await?));
    let request = TerminateInstancesRequest { instance_ids };
    hearth.instances().terminate_instances(request).await?;
    let title = format!("gRPC calls per second, {VOLUMES} volumes");
    Ok(vec![Section::new(title, rows)])
}

/// Follows the pages to the last one.
async fn all_volumes(hearth: &Hearth) -> Result<()> {
    let (mut found, mut next_token) = (0, String::new());
    loop {
        let request = DescribeVolumesRequest {
            page: Some(PageRequest {
                max_results: PAGE,
                next_token,
            }),
            ..Default::default()
        };
        let page = hearth.volumes().describe_volumes(request).await?;
        let page = page.into_inner();
        found += page.volumes.len();
        next_token = page.next_token;
        if next_token.is_empty() {
            ensure!(found >= VOLUMES, "{found} volumes");
            return Ok(());
        }
    }
}

/// Calls per second.
async fn repeat(call: impl AsyncFn() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut calls = 0.0;
    while start.elapsed() < CALLING {
        call().await?;
        calls += 1.0;
    }
    Ok(calls / start.elapsed().as_secs_f64())
}
