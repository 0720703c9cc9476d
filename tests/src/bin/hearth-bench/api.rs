//! Calls of the API per second.

use std::time::{Duration, Instant};

use anyhow::Result;
use hearth_proto::v1::{
    CreateVolumeRequest, DescribeInstancesRequest, DescribeVolumesRequest, PageRequest,
};
use hearth_tests::Hearth;

use crate::table::{Row, Section};

/// Volumes that are made; fewer if that takes longer than [`MAKING`].
const VOLUMES: usize = 1000;
const MAKING: Duration = Duration::from_secs(30);

/// For each kind of call.
const CALLING: Duration = Duration::from_secs(2);

/// Calls on one connection, one after the other.
pub async fn measure(hearth: &Hearth) -> Result<Section> {
    let start = Instant::now();
    let mut made = Vec::new();
    while made.len() < VOLUMES && start.elapsed() < MAKING {
        let request = CreateVolumeRequest {
            size_gib: 1,
            ..Default::default()
        };
        let answer = hearth.volumes().create_volume(request).await?.into_inner();
        made.extend(answer.volume.map(|volume| volume.volume_id));
    }
    let making = made.len() as f64 / start.elapsed().as_secs_f64();
    let mut rows = vec![Row::alone("CreateVolume", making)];

    let page = PageRequest {
        max_results: u32::try_from(VOLUMES)?,
        ..Default::default()
    };
    let whole = DescribeVolumesRequest {
        page: Some(page.clone()),
        ..Default::default()
    };
    let one = DescribeVolumesRequest {
        volume_ids: made.first().cloned().into_iter().collect(),
        ..Default::default()
    };
    for request in [whole, one] {
        let (calls, objects) = repeat(async || {
            let answer = hearth.volumes().describe_volumes(request.clone()).await?;
            Ok(answer.into_inner().volumes.len())
        })
        .await?;
        let what = format!("DescribeVolumes, {objects} of {}", made.len());
        rows.push(Row::alone(what, calls));
    }
    let request = DescribeInstancesRequest {
        page: Some(page),
        ..Default::default()
    };
    let (calls, objects) = repeat(async || {
        let request = request.clone();
        let answer = hearth.instances().describe_instances(request).await?;
        Ok(answer.into_inner().instances.len())
    })
    .await?;
    rows.push(Row::alone(
        format!("DescribeInstances, {objects} of them"),
        calls,
    ));
    Ok(Section::new("gRPC calls per second", rows))
}

/// Calls per second, and how many objects an answer has.
async fn repeat(call: impl AsyncFn() -> Result<usize>) -> Result<(f64, usize)> {
    let start = Instant::now();
    let (mut calls, mut objects) = (0.0, 0);
    while start.elapsed() < CALLING {
        objects = call().await?;
        calls += 1.0;
    }
    Ok((calls / start.elapsed().as_secs_f64(), objects))
}
