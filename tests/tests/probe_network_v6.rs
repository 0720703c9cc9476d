//! IPv6 over a tap: neighbours, pings, datagrams, TCP, and what passes on the wire.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use hearth_proto::v1::{RunInstancesRequest, TapInterface};
use hearth_tests::{Hearth, Netns, eventually, needs_kvm, needs_network, netns::EVERY_FRAME};

/// Ends a peer that waits for a guest in vain.
const PATIENCE: Duration = Duration::from_secs(60);

const HOST: &str = "fd00:9::1";
const GUEST: &str = "fd00:9::2";

const IPV6: [u8; 2] = [0x86, 0xdd];
/// Offsets in a frame: its type, the next header of IPv6, and the type of ICMPv6 behind it.
const ETHERTYPE: usize = 12;
const NEXT_HEADER: usize = 14 + 6;
const ICMPV6_TYPE: usize = 14 + 40;
const ICMPV6: u8 = 58;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

fn with_tap(request: &mut RunInstancesRequest) {
    request.tap_interfaces.push(TapInterface {
        tap_name: "tap0".to_owned(),
        ..Default::default()
    });
}

/// The source addresses of Ethernet, in hexadecimal, and the ICMPv6 types of all that passed.
fn icmpv6_types(capture: &UdpSocket) -> Vec<(String, u8)> {
    let mut seen = Vec::new();
    let mut frame = [0; 2048];
    while let Ok(length) = capture.recv(&mut frame) {
        let is_ipv6 = frame[ETHERTYPE..][..2] == IPV6;
        if length > ICMPV6_TYPE && is_ipv6 && frame[NEXT_HEADER] == ICMPV6 {
            let source = frame[6..12].iter().map(|byte| format!("{byte:02x}:"));
            let source = source.collect::<String>().trim_end_matches(':').to_owned();
            seen.push((source, frame[ICMPV6_TYPE]));
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_speaks_ipv6_with_the_host() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let netns = Netns::new()?;
    netns.tap("tap0", "10.9.0.1/24")?;
    if netns
        .ip(&format!("addr add {HOST}/64 dev tap0 nodad"))
        .is_err()
    {
        eprintln!("skipped: no IPv6");
        return Ok(());
    }
    let capture = netns.capture(EVERY_FRAME)?;
    capture.set_nonblocking(true)?;
    let hearth = Hearth::start_in(Some(netns)).await?;
    let netns = hearth.netns()?;
    let mut probe = hearth.probe(with_tap).await?;
    let mac = probe.expect_ok("identify").await?["nics"][0]["mac"].clone();
    let mac = mac.as_str().unwrap_or_default().to_owned();

    // Neighbour discovery and pings, from the guest.
    let ping = format!("ping address={HOST} count=3 timeout=10 ip={GUEST} prefix=64");
    let pinged = probe.expect_ok(&ping).await?;
    ensure!(pinged["received"] == 3, "{pinged}");
    let seen = icmpv6_types(&capture);
    let sent = seen.iter().filter(|(_, kind)| *kind == ECHO_REQUEST);
    ensure!(sent.clone().count() == 3, "{seen:?}");
    ensure!(sent.clone().all(|(from, _)| *from == mac), "{seen:?}");
    let back = seen.iter().filter(|(_, kind)| *kind == ECHO_REPLY);
    ensure!(back.count() == 3, "{seen:?}");

    // Datagrams from the host: the guest answers the question who has its address.
    probe.expect_ok("udp_echo port=7").await?;
    netns.ip("neigh flush dev tap0")?;
    let host = netns.enter(|| Ok(UdpSocket::bind((HOST, 0))?))?;
    host.set_read_timeout(Some(PATIENCE))?;
    host.send_to(b"are you there", (GUEST, 7))?;
    let mut buffer = [0; 64];
    let (length, from) = host.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"are you there");
    assert_eq!(from.to_string(), format!("[{GUEST}]:7"));
    let seen = icmpv6_types(&capture);
    let advertised = (mac, NEIGHBOUR_ADVERTISEMENT);
    ensure!(seen.contains(&advertised), "{seen:?}");

    // And from the guest.
    let echo = netns.enter(|| Ok(UdpSocket::bind((HOST, 7))?))?;
    echo.set_read_timeout(Some(PATIENCE))?;
    let echo = thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 2048];
        let (length, from) = echo.recv_from(&mut buffer)?;
        echo.send_to(&buffer[..length], from)?;
        Ok(())
    });
    let command = format!("udp_send to=[{HOST}]:7 text=hello replies=1 timeout=30");
    let sent = probe.expect_ok(&command).await?;
    ensure!(sent["replies"][0]["data"] == "hello", "{sent}");
    echo.join().map_err(|_| anyhow!("the peer panicked"))??;

    // TCP, the guest connects.
    let listener = netns.enter(|| Ok(TcpListener::bind((HOST, 80))?))?;
    let peer = thread::spawn(move || -> Result<Vec<u8>> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut heard = vec![0; 5];
        stream.read_exact(&mut heard)?;
        stream.write_all(b"world")?;
        Ok(heard)
    });
    let command = format!("tcp_connect to=[{HOST}]:80 text=hello receive=5 timeout=30");
    let answer = probe.expect_ok(&command).await?;
    ensure!(answer["received"] == "world", "{answer}");
    let heard = peer.join().map_err(|_| anyhow!("the peer panicked"))??;
    assert_eq!(heard, b"hello");

    // TCP, the host connects.
    probe.expect_ok("tcp_echo port=8").await?;
    let mut stream =
        eventually(async || netns.enter(|| Ok(TcpStream::connect((GUEST, 8))?))).await?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let bytes: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    let mut back = vec![0; bytes.len()];
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| writer.write_all(&bytes));
        stream.read_exact(&mut back)?;
        writing.join().map_err(|_| anyhow!("the peer panicked"))??;
        Ok(())
    })?;
    ensure!(back == bytes, "what came back is not what was sent");
    hearth.finish().await
}
