//! Network interfaces on taps: what guests send arrives, and what is sent to them does.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{InstanceState, RunInstancesRequest, TapInterface};
use hearth_tests::{Expect, Hearth, Netns, Probe, needs_kvm, needs_network, probe::pattern};
use tonic::Code;

/// Ends a peer that waits for a guest in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's address on the first tap, and how the probe is told of it.
const GUEST: &str = "10.9.0.2";
const ADDRESS: &str = "ip=10.9.0.2 gateway=10.9.0.1";

/// An agent in a namespace of its own with these taps, and addresses on the host's side.
async fn hearth_with(taps: &[(&str, &str)]) -> Result<Hearth> {
    let netns = Netns::new()?;
    for (name, address) in taps {
        netns.tap(name, address)?;
    }
    Hearth::start_in(Some(netns)).await
}

async fn hearth_with_tap() -> Result<Hearth> {
    hearth_with(&[("tap0", "10.9.0.1/24")]).await
}

/// Asks for an interface on this tap.
fn on(tap: &str) -> impl FnOnce(&mut RunInstancesRequest) {
    let interface = TapInterface {
        tap_name: tap.to_owned(),
        ..Default::default()
    };
    move |request| request.tap_interfaces.push(interface)
}

fn udp(netns: &Netns, address: &str) -> Result<UdpSocket> {
    let socket = netns.enter(|| Ok(UdpSocket::bind(address)?))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Listens, and serves the first who connects, on a thread of its own.
fn tcp<T: Send + 'static>(
    netns: &Netns,
    address: &str,
    serve: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<JoinHandle<Result<T>>> {
    let listener = netns.enter(|| Ok(TcpListener::bind(address)?))?;
    Ok(thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        serve(stream)
    }))
}

fn joined<T>(peer: JoinHandle<Result<T>>) -> Result<T> {
    match peer.join() {
        Ok(result) => result.context("a guest's peer"),
        Err(_) => bail!("a guest's peer panicked"),
    }
}

/// Connects to a guest that is about to listen.
fn connect(netns: &Netns, address: &str) -> Result<TcpStream> {
    let address: SocketAddr = address.parse()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match netns.enter(|| Ok(TcpStream::connect_timeout(&address, PATIENCE)?)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Does something again and again until the probe answers.
async fn answer_while(probe: &mut Probe<'_>, again: impl Fn()) -> Result<serde_json::Value> {
    loop {
        again();
        let pause = Duration::from_millis(100);
        if let Ok(answer) = tokio::time::timeout(pause, probe.answer()).await {
            return answer;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_pings_and_sends_datagrams_both_ways() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let described = probe.guest.describe().await?.tap_interfaces;
    let machine = probe.expect_ok("identify").await?;
    ensure!(described.len() == 1, "{described:?}");
    ensure!(described[0].tap_name == "tap0", "{described:?}");
    ensure!(
        machine["nics"][0]["mac"] == described[0].mac_address,
        "{machine} {described:?}"
    );

    let pinged = probe
        .expect_ok(&format!(
            "ping address=10.9.0.1 count=5 timeout=10 {ADDRESS}"
        ))
        .await?;
    ensure!(pinged["received"] == 5, "{pinged}");
    probe
        .expect_ok("ping address=10.9.0.1 size=1400 timeout=10")
        .await?;
    probe
        .expect_error("ping address=10.9.0.200 timeout=0.1")
        .await?;

    let echo = udp(netns, "10.9.0.1:7")?;
    let echo = thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (length, from) = echo.recv_from(&mut buffer)?;
        echo.send_to(&buffer[..length], from)?;
        Ok(from)
    });
    let sent = probe
        .expect_ok("udp_send to=10.9.0.1:7 text=hello replies=1 timeout=30")
        .await?;
    ensure!(sent["replies"][0]["data"] == "hello", "{sent}");
    assert_eq!(joined(echo)?.ip().to_string(), GUEST);

    probe.expect_ok("udp_echo port=7").await?;
    let host = udp(netns, "10.9.0.1:0")?;
    host.send_to(b"are you there", (GUEST, 7))?;
    let mut buffer = [0; 64];
    let (length, from) = host.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"are you there");
    assert_eq!(from.to_string(), format!("{GUEST}:7"));

    probe.send("udp_listen port=99 timeout=60").await?;
    let heard = answer_while(&mut probe, || {
        let _ = host.send_to(b"listen", (GUEST, 99));
    })
    .await?;
    ensure!(heard["datagrams"][0]["data"] == "listen", "{heard}");
    let told = probe.expect_ok("network").await?;
    ensure!(told["frames_received"].as_u64() > Some(0), "{told}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_counts_the_frames_that_come() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let mac = &probe.guest.describe().await?.tap_interfaces[0].mac_address;
    // Counted frames don't reach the guest's stack, which would answer ARP.
    netns.ip(&format!(
        "neigh replace {GUEST} lladdr {mac} nud permanent dev tap0"
    ))?;
    let host = udp(netns, "10.9.0.1:0")?;
    probe.send("count_frames count=20 timeout=60").await?;
    let counted = answer_while(&mut probe, || {
        let _ = host.send_to(&[0; 100], (GUEST, 9));
    })
    .await?;
    ensure!(
        counted["ok"] == true && counted["frames"] == 20,
        "{counted}"
    );
    ensure!(counted["bytes"].as_u64() >= Some(20 * 60), "{counted}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_carries_bytes_unchanged_both_ways() -> Result<()> {
    needs_kvm!();
    needs_network!();
    const SEED: u64 = 5;
    const BYTES: usize = 4 << 20;
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    let mut probe = hearth.probe(on("tap0")).await?;

    let echo = tcp(netns, "10.9.0.1:7", |mut stream| {
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes)?;
        Ok(stream.write_all(&bytes)?)
    })?;
    let command = format!("tcp_connect to=10.9.0.1:7 text=hello receive=5 timeout=30 {ADDRESS}");
    let connected = probe.expect_ok(&command).await?;
    ensure!(connected["received"] == "hello", "{connected}");
    joined(echo)?;
    let refused = probe.expect_error("tcp_connect to=10.9.0.1:8").await?;
    assert_eq!(refused, "refused");

    let sink = tcp(netns, "10.9.0.1:9", |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    })?;
    let to = "tcp_throughput to=10.9.0.1:9 direction=send";
    let sent = probe
        .expect_ok(&format!("{to} bytes={BYTES} pattern={SEED} timeout=60"))
        .await?;
    ensure!(sent["bytes"] == BYTES, "{sent}");
    let bytes = joined(sink)?;
    assert_eq!(bytes.len(), BYTES);
    assert_eq!(pattern::first_mismatch(SEED, 0, &bytes), None);

    let source = tcp(netns, "10.9.0.1:19", |mut stream| {
        let mut bytes = vec![0; BYTES];
        pattern::fill(SEED, 0, &mut bytes);
        Ok(stream.write_all(&bytes)?)
    })?;
    let from = "tcp_throughput to=10.9.0.1:19 direction=receive";
    let received = probe
        .expect_ok(&format!("{from} bytes={BYTES} pattern={SEED} timeout=60"))
        .await?;
    ensure!(received["bytes"] == BYTES, "{received}");
    joined(source)?;

    probe.expect_ok("tcp_echo port=7").await?;
    for _ in 0..3 {
        let mut stream = connect(netns, "10.9.0.2:7")?;
        stream.write_all(&[0x5a; 3000])?;
        let mut bytes = [0; 3000];
        stream.read_exact(&mut bytes)?;
        assert_eq!(bytes, [0x5a; 3000]);
    }
    probe
        .send("tcp_listen port=98 text=hi receive=5 timeout=60")
        .await?;
    let mut stream = connect(netns, "10.9.0.2:98")?;
    stream.write_all(b"hello")?;
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    assert_eq!(&bytes, b"hi");
    drop(stream);
    let listened = probe.answer().await?;
    ensure!(listened["received"] == "hello", "{listened}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_fetches_from_the_link_local_address_by_http() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    netns.ip("addr add 169.254.169.254/32 dev tap0")?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let server = tcp(netns, "169.254.169.254:80", |mut stream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.extend(byte);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Told: so\r\n\r\ni-123")?;
        Ok(String::from_utf8(request)?)
    })?;
    let url = "http://169.254.169.254/latest/meta-data/instance-id";
    let command = format!("http_get url={url} header=\"X-Token: abc\" timeout=30 {ADDRESS}");
    let fetched = probe.expect_ok(&command).await?;
    ensure!(fetched["status"] == 200, "{fetched}");
    ensure!(fetched["body"] == "i-123", "{fetched}");
    let request = joined(server)?;
    ensure!(
        request.starts_with("GET /latest/meta-data/instance-id HTTP/1.1\r\n"),
        "{request}"
    );
    ensure!(request.contains("X-Token: abc\r\n"), "{request}");
    hearth.finish().await
}

/// What a DHCP server says to a request: its address is 10.9.0.1, the guest's 10.9.0.77.
fn dhcp_answer(request: &[u8]) -> Result<Vec<u8>> {
    ensure!(request.len() > 240, "too short for DHCP");
    let mut options = &request[240..];
    let mut kind = None;
    while let [code, length, rest @ ..] = options {
        let length = usize::from(*length);
        if *code == 255 || rest.len() < length {
            break;
        }
        if *code == 53 {
            kind = rest.first().copied();
        }
        options = &rest[length..];
    }
    let mut answer = vec![0; 240];
    // BOOTREPLY, Ethernet.
    answer[..3].copy_from_slice(&[2, 1, 6]);
    answer[4..8].copy_from_slice(&request[4..8]);
    answer[16..20].copy_from_slice(&[10, 9, 0, 77]);
    answer[20..24].copy_from_slice(&[10, 9, 0, 1]);
    answer[28..44].copy_from_slice(&request[28..44]);
    answer[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    // DHCPOFFER to DHCPDISCOVER, DHCPACK to all else.
    answer.extend([53, 1, if kind == Some(1) { 2 } else { 5 }]);
    answer.extend([54, 4, 10, 9, 0, 1]);
    answer.extend([51, 4, 0, 0, 14, 16]);
    answer.extend([1, 4, 255, 255, 255, 0]);
    answer.extend([3, 4, 10, 9, 0, 1]);
    answer.extend([6, 4, 10, 9, 0, 53]);
    answer.push(255);
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_its_address_by_dhcp() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    netns.ip("route add 255.255.255.255 dev tap0")?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let server = udp(netns, "0.0.0.0:67")?;
    server.set_broadcast(true)?;
    let server = thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            let (length, _) = server.recv_from(&mut buffer)?;
            let answer = dhcp_answer(&buffer[..length])?;
            server.send_to(&answer, "255.255.255.255:68")?;
            if answer[242] == 5 {
                return Ok(());
            }
        }
    });
    let lease = probe.expect_ok("dhcp timeout=50").await?;
    joined(server)?;
    ensure!(lease["ip"] == "10.9.0.77", "{lease}");
    ensure!(lease["prefix"] == 24, "{lease}");
    ensure!(lease["gateway"] == "10.9.0.1", "{lease}");
    ensure!(lease["dns"] == serde_json::json!(["10.9.0.53"]), "{lease}");
    ensure!(lease["lease_seconds"] == 3600, "{lease}");
    // From now on it has that address.
    probe.expect_ok("ping address=10.9.0.1 timeout=10").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_any_kind_pass_as_they_are() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let netns = hearth.netns()?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let capture = netns.capture(0x88b5)?;
    capture.set_read_timeout(Some(PATIENCE))?;
    // From an address that is not the guest's: to judge that is not the VMM's task.
    let hex = format!("ffffffffffff02aabbccddee88b5{}", "cafe".repeat(30));
    let command = format!("raw_frame hex={hex} count=3");
    probe.expect_ok(&command).await?;
    for _ in 0..3 {
        let mut frame = [0; 2048];
        let length = capture.recv(&mut frame)?;
        let seen: String = frame[..length].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(seen, hex);
    }

    // The host asks for an address that nobody has.
    probe
        .send("receive_frame ethertype=0806 timeout=60")
        .await?;
    let host = udp(netns, "10.9.0.1:0")?;
    let heard = answer_while(&mut probe, || {
        let _ = host.send_to(b"?", "10.9.0.99:9");
    })
    .await?;
    let frame = heard["frames"][0].as_str().unwrap_or_default();
    ensure!(frame.starts_with("ffffffffffff"), "{heard}");
    ensure!(frame.contains("0a090063"), "{heard}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_on_two_taps_reach_each_other_through_the_host() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with(&[("tap0", "10.9.0.1/24"), ("tap1", "10.9.1.1/24")]).await?;
    let forward = || Ok(fs::write("/proc/sys/net/ipv4/ip_forward", "1")?);
    hearth.netns()?.enter(forward)?;
    let mut first = hearth.probe(on("tap0")).await?;
    let mut second = hearth.probe(on("tap1")).await?;
    second
        .expect_ok("tcp_echo port=7 ip=10.9.1.2 gateway=10.9.1.1")
        .await?;
    first
        .expect_ok(&format!("ping address=10.9.1.2 timeout=10 {ADDRESS}"))
        .await?;
    let echoed = first
        .expect_ok("tcp_connect to=10.9.1.2:7 text=neighbour receive=9 timeout=30")
        .await?;
    ensure!(echoed["received"] == "neighbour", "{echoed}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tap_serves_one_instance_at_a_time() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let mut probe = hearth.probe(on("tap0")).await?;
    let mut request = RunInstancesRequest {
        image_id: hearth.probe_image().await?.to_owned(),
        memory_mib: 32,
        ..Default::default()
    };
    on("tap0")(&mut request);
    let answer = hearth.instances().run_instances(request).await;
    let message = Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidNetworkInterface.InUse",
        field: "tap_interfaces[0].tap_name",
    }
    .check(answer)?;
    ensure!(message.contains(&probe.guest.id), "{message}");
    // Whom it serves did not notice.
    probe
        .expect_ok(&format!("ping address=10.9.0.1 timeout=10 {ADDRESS}"))
        .await?;
    // Afterwards it is there for another.
    probe.guest.terminate().await?;
    let mut next = hearth.probe(on("tap0")).await?;
    next.expect_ok(&format!("ping address=10.9.0.1 timeout=10 {ADDRESS}"))
        .await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_tap_is_removed_runs_on() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with_tap().await?;
    let mut probe = hearth.probe(on("tap0")).await?;
    probe
        .expect_ok(&format!("ping address=10.9.0.1 timeout=10 {ADDRESS}"))
        .await?;
    hearth.netns()?.ip("link del tap0")?;
    probe
        .expect_error("ping address=10.9.0.1 timeout=0.5")
        .await?;
    probe.expect_ok("echo text=here").await?;
    let instance = probe.guest.describe().await?;
    assert_eq!(instance.state(), InstanceState::Running);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_a_tap_that_is_not_there_says_so() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = hearth_with(&[]).await?;
    let image = hearth.probe_image().await?.to_owned();
    let guest = hearth.run(&image, on("tap7")).await?;
    let ended = guest.wait_state(InstanceState::Terminated).await?;
    let reason = ended.state_reason.context("no reason")?;
    ensure!(reason.message.contains("tap7"), "{reason:?}");
    hearth.finish().await
}
