//! What the VMM makes of an interface: pairs of queues, and the bandwidth of the instance type.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hearth_proto::v1::{
    DescribeInstanceTypesRequest, InstanceType, RunInstancesRequest, TapInterface,
};
use hearth_tests::{Hearth, Netns, Probe, SMP_BOOT, needs_kvm, needs_network};
use hearth_vmm::{
    config::{PROTOCOL_VERSION, run_files},
    control::{NetStatus, Reply, Request},
};

/// Ends a peer that waits for a guest in vain.
const PATIENCE: Duration = Duration::from_secs(120);

const ADDRESS: &str = "ip=10.9.0.2 gateway=10.9.0.1";

/// Types of the operator's: one with a megabyte per second in each direction.
const TYPES: &str = r#"[
    {"name": "x.slow", "vcpus": 1, "memory_mib": 32, "network_bandwidth_mbps": 8},
    {"name": "x.open", "vcpus": 1, "memory_mib": 32}
]"#;
const SLOW_BYTES_PER_SECOND: u64 = 1_000_000;

/// An agent with these types, in a namespace with a tap that takes several queues.
async fn agent() -> Result<Hearth> {
    let netns = Netns::new()?;
    netns.tap_of_queues("tap0", "10.9.0.1/24")?;
    let mut hearth = Hearth::start_in(Some(netns)).await?;
    hearth.stop_agent()?;
    fs::write(hearth.state_dir().join("instance-types.json"), TYPES)?;
    hearth.start_agent().await?;
    Ok(hearth)
}

/// Asks for an instance of this type on the tap; the probe gets along with little memory.
fn of_type(name: &str) -> impl FnOnce(&mut RunInstancesRequest) {
    move |request| {
        request.instance_type = name.to_owned();
        request.tap_interfaces.push(TapInterface {
            tap_name: "tap0".to_owned(),
            ..Default::default()
        });
    }
}

/// What the VMM of an instance says of its interfaces.
fn net_status(hearth: &Hearth, instance_id: &str) -> Result<NetStatus> {
    let run_dir = hearth.state_dir().join("instances").join(instance_id);
    let mut requests = UnixStream::connect(run_dir.join(run_files::CONTROL_SOCKET))?;
    requests.set_read_timeout(Some(PATIENCE))?;
    let mut replies = BufReader::new(requests.try_clone()?);
    let version = PROTOCOL_VERSION;
    let mut reply = String::new();
    for request in [Request::Hello { version }, Request::NetStatus] {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        requests.write_all(&line)?;
        reply.clear();
        replies.read_line(&mut reply)?;
    }
    match serde_json::from_str(&reply)? {
        Reply::NetStatus(status) => Ok(status),
        other => bail!("{other:?}"),
    }
}

async fn described_type(hearth: &Hearth, name: &str) -> Result<InstanceType> {
    let request = DescribeInstanceTypesRequest {};
    let answer = hearth.instances().describe_instance_types(request).await?;
    let mut types = answer.into_inner().instance_types.into_iter();
    types
        .find(|shape| shape.name == name)
        .context("no such type")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_of_a_type_reach_the_vmm_and_what_passes_is_counted() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = agent().await?;
    let shape = described_type(&hearth, "t.small").await?;
    let (baseline, burst) = (shape.network_bandwidth_mbps, shape.network_burst_mbps);
    ensure!(baseline > 0 && burst > baseline, "{shape:?}");

    let mut probe = hearth.probe(of_type("t.small")).await?;
    let bytes = |mbps: u32| u64::from(mbps) * 125_000;
    let before = net_status(&hearth, &probe.guest.id)?;
    ensure!(before.limits.received == before.limits.sent, "{before:?}");
    let limit = before.limits.sent.context("no limit")?;
    assert_eq!(limit.per_second, bytes(baseline));
    assert_eq!(limit.burst.context("no burst")?.per_second, bytes(burst));
    let most = limit.burst.map(|burst| burst.most_credits);
    assert_eq!(before.received_credits, most);
    let [interface] = &before.interfaces[..] else {
        bail!("{before:?}")
    };
    assert_eq!(interface.tap, "tap0");
    ensure!(interface.link_up, "{interface:?}");
    assert_eq!((interface.sent.frames, interface.queue_pairs), (0, 1));

    let ping = format!("ping address=10.9.0.1 count=10 size=1000 timeout=10 {ADDRESS}");
    probe.expect_ok(&ping).await?;
    let after = net_status(&hearth, &probe.guest.id)?;
    let interface = &after.interfaces[0];
    for passed in [interface.sent, interface.received] {
        // Ten pings and what ARP says; the host may have said more by itself.
        ensure!(passed.frames >= 11, "{interface:?}");
        ensure!(passed.bytes >= 10 * 1042 + 42, "{interface:?}");
        assert_eq!(passed.dropped, 0, "{interface:?}");
    }
    probe.guest.terminate().await?;

    // A type of the operator's without figures.
    let probe = hearth.probe(of_type("x.open")).await?;
    let status = net_status(&hearth, &probe.guest.id)?;
    ensure!(status.limits == Default::default(), "{status:?}");
    hearth.finish().await
}

/// Listens on a port in the namespace, and serves the first who connects.
fn serve(
    hearth: &Hearth,
    port: u16,
    serve: impl FnOnce(TcpStream) -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let listener = hearth
        .netns()?
        .enter(|| Ok(TcpListener::bind(("10.9.0.1", port))?))?;
    Ok(thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        serve(stream)
    }))
}

fn joined(peer: JoinHandle<Result<()>>) -> Result<()> {
    peer.join().map_err(|_| anyhow!("a peer panicked"))?
}

/// Carries a stream, and checks by the guest's own clock that it did not come faster than the
/// type allows.
async fn stream(hearth: &Hearth, probe: &mut Probe<'_>, direction: &str) -> Result<()> {
    const BYTES: u64 = 3 << 20;
    let sends = direction == "send";
    let peer = serve(hearth, 9, move |mut stream| {
        if sends {
            let mut received = Vec::new();
            stream.read_to_end(&mut received)?;
        } else {
            stream.write_all(&vec![7; BYTES as usize])?;
        }
        Ok(())
    })?;
    let command = format!(
        "tcp_throughput to=10.9.0.1:9 direction={direction} bytes={BYTES} timeout=60 {ADDRESS}"
    );
    let answer = probe.expect_ok(&command).await?;
    joined(peer)?;
    let ns = answer["ns"].as_u64().context("no time")?;
    // What a late thread may make up for (50 ms), and the part that is on its way unseen.
    let least = (BYTES - (128 << 10)) * 1_000_000_000 / SLOW_BYTES_PER_SECOND - 50_000_000;
    ensure!(ns >= least, "{direction}: {answer}, at least {least} ns");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_no_more_than_its_type_allows_in_either_direction() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = agent().await?;
    let mut probe = hearth.probe(of_type("x.slow")).await?;
    let status = net_status(&hearth, &probe.guest.id)?;
    let limit = status.limits.sent.context("no limit")?;
    assert_eq!(
        (limit.per_second, limit.burst),
        (SLOW_BYTES_PER_SECOND, None)
    );
    stream(&hearth, &mut probe, "send").await?;
    stream(&hearth, &mut probe, "receive").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_of_several_queues_gets_a_pair_for_each_vcpu_and_serves_one_guest() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = agent().await?;
    let two_vcpus = |request: &mut RunInstancesRequest| {
        request.vcpus = 2;
        of_type("x.open")(request);
    };
    let mut probe = hearth.probe(two_vcpus).await?;
    let ping = format!("ping address=10.9.0.1 timeout=10 {ADDRESS}");
    probe.expect_ok(&ping).await?;
    let status = net_status(&hearth, &probe.guest.id)?;
    let interface = &status.interfaces[0];
    // The probe's driver knows nothing of the second.
    assert_eq!(
        (interface.queue_pairs, interface.queue_pairs_in_use),
        (2, 1)
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn linux_with_two_vcpus_uses_two_pairs_of_queues() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = agent().await?;
    let image = hearth.base_image().await?;
    let two_vcpus = |request: &mut RunInstancesRequest| {
        request.vcpus = 2;
        request.memory_mib = 128;
        of_type("x.open")(request);
    };
    let guest = hearth.run(&image, two_vcpus).await?;
    let mut console = guest.ready_within(SMP_BOOT).await?;
    console
        .shell("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 10.9.0.1")
        .await?;
    let status = net_status(&hearth, &guest.id)?;
    let interface = &status.interfaces[0];
    assert_eq!(
        (interface.queue_pairs, interface.queue_pairs_in_use),
        (2, 2)
    );
    ensure!(interface.sent.frames >= 3, "{interface:?}");
    hearth.finish().await
}
