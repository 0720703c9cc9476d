//! Classes of volumes: what is refused, and that the limits are those of the class, of the
//! modified class, of the instance type.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, CreateVolumeRequest, DescribeVolumeClassesRequest, DescribeVolumesRequest,
    InstanceState, ModifyVolumeRequest, RunInstancesRequest, Volume, VolumeModificationState,
};
use hearth_tests::{Expect, Hearth, Probe, needs_kvm};

/// Classes of the operator's, made for these tests.
const CLASSES: &str = r#"[
    {"name": "slow", "medium": "ssd", "min_gib": 1, "max_gib": 100, "iops": {"max": 100}},
    {"name": "local", "medium": "ssd", "min_gib": 1, "max_gib": 100},
    {"name": "bursting", "medium": "ssd", "min_gib": 1, "max_gib": 100,
     "iops": {"max": 10, "burst": {"max": 100000, "credits": 3000}}}
]"#;

/// A type of the operator's.
const TYPES: &str = r#"[{"name": "x.slow", "vcpus": 1, "memory_mib": 64, "disk_iops": 100}]"#;

/// An agent with these classes and types.
async fn agent() -> Result<Hearth> {
    let mut hearth = Hearth::start().await?;
    hearth.stop_agent()?;
    fs::write(hearth.state_dir().join("volume-classes.json"), CLASSES)?;
    fs::write(hearth.state_dir().join("instance-types.json"), TYPES)?;
    hearth.start_agent().await?;
    Ok(hearth)
}

/// A second disk of 1 GiB; the probe has no root, so it is its first.
fn disk(volume_class: &str) -> BlockDeviceMapping {
    BlockDeviceMapping {
        size_gib: 1,
        volume_class: volume_class.to_owned(),
        delete_on_termination: Some(true),
        ..Default::default()
    }
}

async fn volume(hearth: &Hearth, id: &str) -> Result<Volume> {
    let request = DescribeVolumesRequest {
        volume_ids: vec![id.to_owned()],
        ..Default::default()
    };
    let answer = hearth.volumes().describe_volumes(request).await?;
    let volumes = answer.into_inner().volumes;
    volumes.into_iter().next().context("no volume")
}

async fn disk_of(probe: &Probe<'_>) -> Result<String> {
    let devices = probe.guest.describe().await?.block_devices;
    Ok(devices.first().context("no disk")?.volume_id.clone())
}

/// How many operations a second the guest gets, of any number in flight.
async fn iops(probe: &mut Probe<'_>) -> Result<f64> {
    let load = probe
        .expect_ok("load depth=8 seconds=2 read_percent=50")
        .await?;
    ensure!(load["errors"] == 0, "{load}");
    load["iops"].as_f64().with_context(|| load.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_out_of_range_are_refused_with_the_range() -> Result<()> {
    let hearth = Hearth::start().await?;
    let create = |class: &str, size_gib, iops, throughput_mib| CreateVolumeRequest {
        volume_class: class.to_owned(),
        size_gib,
        iops,
        throughput_mib,
        ..Default::default()
    };
    let invalid = |field| Expect::invalid("InvalidParameterValue", field);
    for (request, expected, range) in [
        (create("fast", 1, 0, 0), invalid("volume_class"), "gp3"),
        (
            create("st1", 124, 0, 0),
            invalid("size_gib"),
            "125 to 16384 GiB",
        ),
        (create("gp3", 10, 6000, 0), invalid("iops"), "3000 to 5000"),
        (
            create("gp3", 100, 0, 800),
            invalid("throughput_mib"),
            "125 to 750",
        ),
        (
            create("gp2", 100, 400, 0),
            Expect::invalid("InvalidParameterCombination", "iops"),
            "gp2",
        ),
        (
            create("io2", 10, 0, 0),
            Expect::invalid("MissingParameter", "iops"),
            "100 to 10000",
        ),
    ] {
        let message = expected.check(hearth.volumes().create_volume(request).await)?;
        ensure!(message.contains(range), "{message}");
    }
    let made = hearth
        .volumes()
        .create_volume(create("io2", 10, 5000, 0))
        .await?;
    let made = made.into_inner().volume.context("a volume")?;
    ensure!((made.iops, made.throughput_mib) == (5000, 4000), "{made:?}");
    ensure!(made.burst_balance_percent.is_none(), "{made:?}");
    let default = hearth.volumes().create_volume(create("", 1, 0, 0)).await?;
    let default = default.into_inner().volume.context("a volume")?;
    ensure!(default.volume_class == "gp3", "{default:?}");
    ensure!(
        (default.iops, default.throughput_mib) == (3000, 125),
        "{default:?}"
    );

    let modify = |class: &str, size_gib, iops| ModifyVolumeRequest {
        volume_id: made.volume_id.clone(),
        volume_class: class.to_owned(),
        size_gib,
        iops,
        throughput_mib: 0,
    };
    for (request, expected) in [
        (modify("", 9, 0), invalid("size_gib")),
        (modify("", 0, 10_001), invalid("iops")),
        (modify("st1", 0, 0), invalid("size_gib")),
        (modify("", 0, 0), Expect::invalid("MissingParameter", "")),
    ] {
        expected.check(hearth.volumes().modify_volume(request).await)?;
    }
    ensure!(
        volume(&hearth, &made.volume_id).await? == made,
        "it has changed"
    );
    let answer = hearth.volumes().modify_volume(modify("gp2", 50, 0)).await?;
    let after = answer.into_inner().volume.context("a volume")?;
    ensure!(
        (after.size_bytes, after.iops) == (50 << 30, 150),
        "{after:?}"
    );
    ensure!(after.burst_balance_percent == Some(100.0), "{after:?}");
    let modification = after.modification.context("a modification")?;
    ensure!(
        modification.state() == VolumeModificationState::Completed
            && modification.progress_percent == 100,
        "{modification:?}"
    );
    let original = modification.original.context("the original")?;
    ensure!(
        (original.iops, original.size_bytes) == (5000, 10 << 30),
        "{original:?}"
    );

    let classes = hearth
        .volumes()
        .describe_volume_classes(DescribeVolumeClassesRequest {})
        .await?
        .into_inner()
        .volume_classes;
    let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
    ensure!(names == ["gp3", "gp2", "io1", "io2", "st1", "sc1", "standard"]);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_guests_disk_gets_larger_and_faster_at_once() -> Result<()> {
    needs_kvm!();
    let hearth = agent().await?;
    let mut probe = hearth
        .probe(|request| request.block_devices.push(disk("slow")))
        .await?;
    let id = disk_of(&probe).await?;
    let slow = iops(&mut probe).await?;
    ensure!(slow < 130.0, "{slow} IOPS where 100 are allowed");
    let request = ModifyVolumeRequest {
        volume_id: id.clone(),
        size_gib: 2,
        volume_class: "local".to_owned(),
        ..Default::default()
    };
    hearth.volumes().modify_volume(request).await?;
    let fast = iops(&mut probe).await?;
    ensure!(fast > 3.0 * slow, "{slow} IOPS before, {fast} after");
    let machine = probe.expect_ok("identify").await?;
    ensure!(machine["disks"][0]["size_bytes"] == 2u64 << 30, "{machine}");
    probe
        .expect_ok("write offset=1536M length=1M pattern=7")
        .await?;
    probe.expect_ok("flush").await?;
    let request = ModifyVolumeRequest {
        volume_id: id.clone(),
        volume_class: "slow".to_owned(),
        ..Default::default()
    };
    hearth.volumes().modify_volume(request).await?;
    let slow = iops(&mut probe).await?;
    ensure!(slow < 130.0, "{slow} IOPS where 100 are allowed");
    // The next VMM does what this one was told.
    probe.guest.stop_by_force().await?;
    probe.start().await?;
    probe
        .expect_ok("verify offset=1536M length=1M pattern=7")
        .await?;
    let slow = iops(&mut probe).await?;
    ensure!(slow < 130.0, "{slow} IOPS where 100 are allowed");
    let after = volume(&hearth, &id).await?;
    ensure!(
        (after.size_bytes, after.iops) == (2 << 30, 100),
        "{after:?}"
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_credits_are_spent_and_outlive_a_stop() -> Result<()> {
    needs_kvm!();
    let hearth = agent().await?;
    let mut probe = hearth
        .probe(|request| request.block_devices.push(disk("bursting")))
        .await?;
    let id = disk_of(&probe).await?;
    let balance = async || {
        let volume = volume(&hearth, &id).await?;
        volume.burst_balance_percent.context("no burst balance")
    };
    ensure!(balance().await? == 100.0);
    // Until they are spent, and slowly from then on: 10 a second come in.
    let start = Instant::now();
    iops(&mut probe).await?;
    let mut spent = balance().await?;
    while spent > 50.0 && start.elapsed().as_secs() < 60 {
        iops(&mut probe).await?;
        spent = balance().await?;
    }
    ensure!(spent <= 50.0, "{spent} % are left");
    let spent_at = Instant::now();
    // In percent, with a little for what was on its way.
    let most = || spent + spent_at.elapsed().as_secs_f64() * 10.0 / 30.0 + 1.0;
    probe.guest.stop_by_force().await?;
    let stopped = balance().await?;
    ensure!(
        (spent - 1.0..=most()).contains(&stopped),
        "{spent}, then {stopped} %"
    );
    probe.start().await?;
    let started = balance().await?;
    ensure!(
        (stopped - 1.0..=most()).contains(&started),
        "{stopped}, then {started} %"
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_type_limits_all_disks_together() -> Result<()> {
    needs_kvm!();
    let hearth = agent().await?;
    let of_type = |instance_type: &'static str| {
        move |request: &mut RunInstancesRequest| {
            request.instance_type = instance_type.to_owned();
            request.block_devices.push(disk("local"));
        }
    };
    let mut limited = hearth.probe(of_type("x.slow")).await?;
    let mut other = hearth.probe(of_type("m.medium")).await?;
    let slow = iops(&mut limited).await?;
    ensure!(slow < 130.0, "{slow} IOPS where 100 are allowed");
    let fast = iops(&mut other).await?;
    ensure!(fast > 3.0 * slow, "{fast} IOPS, and {slow} with the limit");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modification_that_was_cut_off_is_carried_through() -> Result<()> {
    needs_kvm!();
    let mut hearth = agent().await?;
    let request = RunInstancesRequest {
        image_id: hearth.probe_image().await?.to_owned(),
        memory_mib: 32,
        block_devices: vec![disk("slow")],
        ..Default::default()
    };
    let answer = hearth
        .instances()
        .run_instances(request)
        .await?
        .into_inner();
    let instance_id = answer.instances[0].instance_id.clone();
    let id = answer.instances[0].block_devices[0].volume_id.clone();
    hearth_tests::Guest::new(&hearth, instance_id.clone())
        .wait_state(InstanceState::Running)
        .await?;
    let mut client = hearth.volumes();
    let request = ModifyVolumeRequest {
        volume_id: id.clone(),
        size_gib: 3,
        volume_class: "local".to_owned(),
        ..Default::default()
    };
    let call = client.modify_volume(request);
    let cut_off = hearth.crash_at("volume.row-growing", call).await?;
    ensure!(cut_off.is_err(), "the agent was not cut off");
    loop {
        let volume = volume(&hearth, &id).await?;
        let modification = volume.modification.context("a modification")?;
        match modification.state() {
            VolumeModificationState::Completed => break,
            VolumeModificationState::Modifying => {}
            state => anyhow::bail!("{state:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let mut probe = Probe::attach(hearth_tests::Guest::new(&hearth, instance_id)).await?;
    let machine = probe.expect_ok("identify").await?;
    ensure!(machine["disks"][0]["size_bytes"] == 3u64 << 30, "{machine}");
    let fast = iops(&mut probe).await?;
    ensure!(fast > 300.0, "{fast} IOPS of a disk without limits");
    drop(probe);
    hearth.finish().await
}
