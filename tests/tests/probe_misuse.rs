//! Guests that break the rules of virtio: nobody but them may suffer.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{BlockDeviceMapping, InstanceState, RunInstancesRequest, TapInterface};
use hearth_tests::{Hearth, Netns, Probe, needs_kvm, needs_network};

/// Asks for an empty disk.
fn with_disk(request: &mut RunInstancesRequest) {
    request.block_devices.push(BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(true),
        ..Default::default()
    });
}

/// A device that is misused, and how to see that it works.
struct Victim {
    /// What `misuse` is told.
    device: &'static str,
    /// A command that works when the device does.
    works: &'static str,
}

/// The kinds of misuse that the probe knows for this device.
async fn kinds(probe: &mut Probe<'_>, device: &str) -> Result<Vec<String>> {
    let command = format!("misuse {device} kind=unknown");
    let error = probe.expect_error(&command).await?;
    let (_, list) = error.split_once("one of ").context("no list of kinds")?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

/// Misuses a device, after which either the guest runs on, or it is stopped and events say why.
async fn misuse(hearth: &Hearth, probe: &mut Probe<'_>, victim: &Victim, kind: &str) -> Result<()> {
    let command = format!("misuse {} kind={kind} timeout=0.1", victim.device);
    if let Err(error) = probe.ask(&command).await {
        let instance = probe.guest.describe().await?;
        let ended = [InstanceState::Stopping, InstanceState::Stopped];
        ensure!(ended.contains(&instance.state()), "{error:#}");
        probe.stopped().await?;
        let is_stop = |event: &hearth_proto::v1::Event| event.state == "stopped";
        let event = hearth.event(&probe.guest.id, is_stop).await?;
        ensure!(!event.reason_code.is_empty(), "{event:?}");
        ensure!(!event.message.is_empty(), "{event:?}");
        probe.start().await?;
    }
    // A reset brings the device back, and a disk has all that it had.
    probe.expect_ok(victim.works).await?;
    Ok(())
}

/// Does every kind; gives how many there are.
async fn misuse_in_every_way(
    hearth: &Hearth,
    probe: &mut Probe<'_>,
    victim: &Victim,
) -> Result<usize> {
    let kinds = kinds(probe, victim.device).await?;
    for kind in &kinds {
        let done = misuse(hearth, probe, victim, kind).await;
        done.with_context(|| format!("{}, kind {kind}", victim.device))?;
    }
    Ok(kinds.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_misuses_a_virtqueue_harms_nobody_else() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut witness = hearth.probe(with_disk).await?;
    witness.expect_ok("write length=1M pattern=4").await?;

    let mut hostile = hearth.probe(with_disk).await?;
    hostile.expect_ok("write length=64k pattern=3").await?;
    let disk = Victim {
        device: "device=disk",
        works: "verify length=64k pattern=3",
    };
    let count = misuse_in_every_way(&hearth, &mut hostile, &disk).await?;
    ensure!(count >= 50, "{count}");
    let random = Victim {
        device: "device=random",
        works: "random bytes=16",
    };
    let count = misuse_in_every_way(&hearth, &mut hostile, &random).await?;
    ensure!(count >= 30, "{count}");

    witness.expect_ok("verify length=1M pattern=4").await?;
    let mut another = hearth.probe(with_disk).await?;
    another.expect_ok("write length=64k pattern=5").await?;
    another.expect_ok("verify length=64k pattern=5").await?;
    hearth.finish().await
}

/// Sends datagrams to everybody on the tap until it is dropped: a queue that receives is only
/// looked at when there is something to receive.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn start(netns: &Netns) -> Result<Self> {
        let socket = netns.enter(|| Ok(UdpSocket::bind("10.9.0.1:0")?))?;
        socket.set_broadcast(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = socket.send_to(&[7; 200], "10.9.0.255:9");
                thread::sleep(Duration::from_millis(5));
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_misuses_its_network_card_harms_nobody_else() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let netns = Netns::new()?;
    netns.tap_of_queues("tap0", "10.9.0.1/24")?;
    netns.tap("tap1", "10.9.1.1/24")?;
    let hearth = Hearth::start_in(Some(netns)).await?;
    let on = |tap: &str| {
        let interface = TapInterface {
            tap_name: tap.to_owned(),
            ..Default::default()
        };
        move |request: &mut RunInstancesRequest| request.tap_interfaces.push(interface)
    };
    let mut witness = hearth.probe(on("tap1")).await?;
    let ping = "ping address=10.9.1.1 timeout=10 ip=10.9.1.2";
    witness.expect_ok(ping).await?;

    // With two vCPUs it has two pairs of queues, and so a control queue.
    let two_vcpus = |request: &mut RunInstancesRequest| {
        request.vcpus = 2;
        on("tap0")(request);
    };
    let mut hostile = hearth.probe(two_vcpus).await?;
    let _traffic = Traffic::start(hearth.netns()?)?;
    for device in [
        "device=nic queue=0",
        "device=nic queue=1",
        "device=nic queue=2",
    ] {
        let card = Victim {
            device,
            works: "ping address=10.9.0.1 timeout=10 ip=10.9.0.2",
        };
        let count = misuse_in_every_way(&hearth, &mut hostile, &card).await?;
        ensure!(count >= 40, "{count}");
    }

    witness.expect_ok(ping).await?;
    let instance = witness.guest.describe().await?;
    ensure!(instance.state() == InstanceState::Running, "{instance:?}");
    hearth.finish().await
}
