//! Disks, as the guest sees them: what it wrote is there, and what it asks for is kept apart.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    BlockDeviceMapping, CreateVolumeRequest, Instance, InstanceState, RunInstancesRequest,
};
use hearth_tests::{Hearth, needs_kvm, probe, processes};
use serde_json::Value;

/// Size of the root of the image used here, in bytes.
const ROOT: usize = 8 << 20;

/// Seed of the pattern on it.
const SEED: u64 = 5;

/// Asks for an empty second disk of 1 GiB.
fn with_second_disk(request: &mut RunInstancesRequest) {
    request.block_devices.push(BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(true),
        ..Default::default()
    });
}

/// The serial numbers that a guest has to see, by disk.
fn serials(instance: &Instance) -> Vec<String> {
    let devices = instance.block_devices.iter();
    devices
        .map(|device| device.volume_id.replace('-', ""))
        .collect()
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name]
        .as_u64()
        .with_context(|| format!("no number `{name}` in {value}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_sees_its_disks_as_they_are_described() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(ROOT, SEED)?).await?;
    let mut probe = hearth.probe_of(&image, with_second_disk).await?;
    let machine = probe.expect_ok("identify").await?;
    let disks = machine["disks"].as_array().context("no disks")?;
    let serials = serials(&probe.guest.describe().await?);
    ensure!(disks.len() == 2 && serials.len() == 2, "{machine}");
    for ((disk, serial), size) in disks.iter().zip(serials).zip([ROOT as u64, 1 << 30]) {
        // virtio-blk has room for 20 bytes.
        ensure!(disk["serial"] == serial[..serial.len().min(20)], "{disk}");
        ensure!(number(disk, "size_bytes")? == size, "{disk}");
        ensure!(disk["read_only"] == false, "{disk}");
        ensure!(disk["flush"] == true, "{disk}");
        ensure!(number(disk, "queues")? >= 1, "{disk}");
        ensure!(number(disk, "queue_size")? >= 2, "{disk}");
        ensure!(number(disk, "max_discard_bytes")? > 0, "{disk}");
        ensure!(number(disk, "max_write_zeroes_bytes")? > 0, "{disk}");
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_the_image_and_each_instance_writes_to_its_own() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(ROOT, SEED)?).await?;
    let mut first = hearth.probe_of(&image, |_| {}).await?;
    let whole = first.expect_ok("verify pattern=5").await?;
    ensure!(number(&whole, "bytes")? == ROOT as u64, "{whole}");
    first
        .expect_ok("write offset=1M length=1M pattern=6")
        .await?;
    first.expect_ok("flush").await?;

    let mut second = hearth.probe_of(&image, |_| {}).await?;
    second.expect_ok("verify pattern=5").await?;
    first
        .expect_ok("verify offset=1M length=1M pattern=6")
        .await?;
    first.expect_ok("verify offset=2M pattern=5").await?;
    let wrong = first.ask("verify pattern=5").await?;
    ensure!(wrong["ok"] == false, "{wrong}");
    ensure!(wrong["bad_sectors"] == 2048, "{wrong}");
    ensure!(wrong["first_mismatch"]["offset"] == 1 << 20, "{wrong}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_what_was_written_zeroed_or_discarded_last() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_second_disk).await?;
    // Never written: zeroes, also in the very last sector.
    for range in ["length=1M", "offset=1073741312"] {
        let command = format!("verify {range} pattern=zeroes");
        probe.expect_ok(&command).await?;
    }
    // Requests of all sizes, none of them aligned to a cluster.
    for (seed, request) in [(1, "512"), (2, "4k"), (3, "68k"), (4, "1M")] {
        let range = format!("offset={} length=2M", seed * (5 << 20) + 512);
        probe
            .expect_ok(&format!("write {range} pattern={seed} request={request}"))
            .await?;
    }
    probe.expect_ok("flush").await?;
    for seed in 1..=4 {
        let range = format!("offset={} length=2M", seed * (5 << 20) + 512);
        probe
            .expect_ok(&format!("verify {range} pattern={seed} request=256k"))
            .await?;
    }
    // A hole in the middle of data, by each of the ways to make one.
    for (at, command) in [
        (100u64, "discard"),
        (110, "write_zeroes"),
        (120, "write_zeroes unmap=true"),
        (130, "write pattern=zeroes"),
    ] {
        let (word, keys) = command.split_once(' ').unwrap_or((command, ""));
        let [start, hole, rest] = [at, at + 1, at + 3].map(|mib| mib << 20);
        for step in [
            format!("write offset={start} length=4M pattern={at}"),
            format!("{word} offset={hole} length=2M {keys}"),
            format!("verify offset={start} length=1M pattern={at}"),
            format!("verify offset={hole} length=2M pattern=zeroes"),
            format!("verify offset={rest} length=1M pattern={at}"),
        ] {
            probe.expect_ok(step.trim_end()).await?;
        }
    }
    let sector = probe.expect_ok("read offset=5243392 length=512").await?;
    let mut wanted = [0; 512];
    probe::pattern::fill(1, 5_243_392, &mut wanted);
    let wanted: String = wanted.iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(sector["hex"] == wanted, "{sector}");
    // What is beyond the end is refused, and changes nothing.
    for command in [
        "read offset=1G length=512",
        "write offset=1G length=512 pattern=1",
    ] {
        probe.expect_error(command).await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_there_after_a_stop_and_after_kill_9_of_the_vmm() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.import(&probe::image_with_root(ROOT, SEED)?).await?;
    let mut probe = hearth.probe_of(&image, with_second_disk).await?;
    probe.expect_ok("write disk=0 length=3M pattern=7").await?;
    probe.expect_ok("write disk=1 length=3M pattern=8").await?;
    probe.guest.stop_by_force().await?;
    probe.start().await?;
    probe.expect_ok("verify disk=0 length=3M pattern=7").await?;
    probe.expect_ok("verify disk=1 length=3M pattern=8").await?;

    probe.expect_ok("write disk=0 length=2M pattern=9").await?;
    probe
        .expect_ok("discard disk=1 offset=1M length=1M")
        .await?;
    probe.expect_ok("flush disk=0").await?;
    probe.expect_ok("flush disk=1").await?;
    // Not flushed: may be there or not, and must not hurt.
    probe
        .expect_ok("write disk=1 offset=64M length=8M pattern=10")
        .await?;
    processes::kill_9(probe.guest.describe().await?.vmm_pid);
    let reason = probe.stopped().await?.state_reason.unwrap_or_default();
    assert_eq!(reason.code, "Server.InternalError");
    let is_stop = |event: &hearth_proto::v1::Event| event.state == "stopped";
    let event = hearth.event(&probe.guest.id, is_stop).await?;
    ensure!(!event.message.is_empty(), "{event:?}");

    probe.start().await?;
    probe.expect_ok("verify disk=0 length=2M pattern=9").await?;
    probe
        .expect_ok("verify disk=0 offset=2M length=1M pattern=7")
        .await?;
    probe.expect_ok("verify disk=1 length=1M pattern=8").await?;
    probe
        .expect_ok("verify disk=1 offset=1M length=1M pattern=zeroes")
        .await?;
    probe
        .expect_ok("verify disk=1 offset=2M length=1M pattern=8")
        .await?;
    probe
        .expect_ok("write disk=1 offset=64M length=8M pattern=11")
        .await?;
    probe
        .expect_ok("verify disk=1 offset=64M length=8M pattern=11")
        .await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_disk_can_be_read_and_refuses_to_be_changed() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let request = CreateVolumeRequest {
        size_gib: 1,
        ..Default::default()
    };
    let answer = hearth.volumes().create_volume(request).await?.into_inner();
    let volume_id = answer.volume.context("no volume")?.volume_id;
    let attach = |read_only: bool| {
        let volume_id = volume_id.clone();
        move |request: &mut RunInstancesRequest| {
            request.block_devices.push(BlockDeviceMapping {
                volume_id,
                read_only,
                ..Default::default()
            });
        }
    };
    let mut writer = hearth.probe(attach(false)).await?;
    writer.expect_ok("write length=1M pattern=3").await?;
    writer.expect_ok("flush").await?;
    writer.guest.terminate().await?;

    let mut reader = hearth.probe(attach(true)).await?;
    let machine = reader.expect_ok("identify").await?;
    ensure!(machine["disks"][0]["read_only"] == true, "{machine}");
    reader.expect_ok("verify length=1M pattern=3").await?;
    for command in [
        "write length=512 pattern=4",
        "discard length=64k",
        "write_zeroes length=64k",
        "load size=4k depth=4 read_percent=0 seconds=0.05 region=1M",
    ] {
        let answer = reader.ask(command).await?;
        let refused = answer["ok"] == false || answer["errors"].as_u64() > Some(0);
        ensure!(refused, "`{command}` was answered with {answer}");
    }
    reader.expect_ok("verify length=1M pattern=3").await?;
    let instance = reader.guest.describe().await?;
    assert_eq!(instance.state(), InstanceState::Running);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_any_depth_is_served_without_an_error() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_second_disk).await?;
    for load in [
        "size=4k depth=1 read_percent=0 order=seq",
        "size=4k depth=1",
        "size=4k depth=32",
        "size=4k depth=32 read_percent=50 seed=3",
        "size=128k depth=8 order=seq",
        "size=512 depth=64 read_percent=30",
    ] {
        let command = format!("load {load} region=16M seconds=0.2");
        let answer = probe.expect_ok(&command).await?;
        ensure!(number(&answer, "count")? > 0, "{load}: {answer}");
        ensure!(number(&answer, "errors")? == 0, "{load}: {answer}");
        ensure!(number(&answer, "bytes_per_s")? > 0, "{load}: {answer}");
        let latency = &answer["latency_ns"];
        let [p50, p99, max] = [
            number(latency, "p50")?,
            number(latency, "p99")?,
            number(latency, "max")?,
        ];
        ensure!(0 < p50 && p50 <= p99 && p99 <= max, "{load}: {answer}");
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_reads_into_and_writes_from_memory_above_4_gib() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let large = |request: &mut RunInstancesRequest| {
        with_second_disk(request);
        request.memory_mib = 4096;
    };
    let mut probe = match hearth.probe(large).await {
        Err(error) if format!("{error:?}").contains("InsufficientInstanceCapacity") => {
            eprintln!("skipped: no 4 GiB of memory for a guest");
            return Ok(());
        }
        probe => probe?,
    };
    let machine = probe.expect_ok("identify").await?;
    let memory = number(&machine, "memory_bytes")?;
    ensure!(memory > (4 << 30) - (1 << 20), "{machine}");
    // Each way of where the data lies in memory, and the other way to see what came of it.
    probe
        .expect_ok("write length=3M pattern=3 above_4g=true")
        .await?;
    probe.expect_ok("verify length=3M pattern=3").await?;
    probe
        .expect_ok("write offset=3M length=3M pattern=4")
        .await?;
    let low = probe.expect_ok("read offset=3M length=3M").await?;
    let high = probe
        .expect_ok("read offset=3M length=3M above_4g=true")
        .await?;
    ensure!(low["fnv1a"] == high["fnv1a"], "{low} {high}");
    probe
        .expect_ok("verify offset=3M length=3M pattern=4 above_4g=true")
        .await?;
    // And it is looked at, wherever it lies.
    probe
        .expect_error("verify length=1M pattern=5 above_4g=true")
        .await?;
    hearth.finish().await
}
