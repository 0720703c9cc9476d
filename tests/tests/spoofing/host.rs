//! The host's own addresses and ports, and addresses that are everybody's.

use std::{
    io::ErrorKind,
    net::{IpAddr, TcpListener, UdpSocket},
};

use anyhow::{Result, ensure};
use hearth_tests::net::{Body, HOST_MAC, HOST4, HOST6, Packet, packet::tcp};

use crate::scene::{ATTACKER, Case, Scene};

const PORTS: [u16; 3] = [22, 2222, 8775];

/// What somebody on the host listens with, on all of its addresses.
pub struct Listeners {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
}

impl Listeners {
    pub fn new(scene: &Scene) -> Result<Self> {
        let netns = scene.hearth.netns()?;
        // Of the IPv6 sockets both families are, as is usual on Linux.
        let tcp = netns.enter(|| Ok([22, 2222].map(|it| TcpListener::bind(("::", it)))))?;
        let udp = netns.enter(|| Ok([22, 2222].map(|it| UdpSocket::bind(("::", it)))))?;
        let listeners = Self {
            tcp: tcp.into_iter().collect::<Result<_, _>>()?,
            udp: udp.into_iter().collect::<Result<_, _>>()?,
        };
        for socket in &listeners.tcp {
            socket.set_nonblocking(true)?;
        }
        for socket in &listeners.udp {
            socket.set_nonblocking(true)?;
        }
        Ok(listeners)
    }

    pub fn saw_nothing(&self) -> Result<()> {
        for socket in &self.tcp {
            let accepted = socket.accept();
            ensure!(
                accepted
                    .as_ref()
                    .is_err_and(|it| it.kind() == ErrorKind::WouldBlock),
                "{accepted:?}"
            );
        }
        for socket in &self.udp {
            let received = socket.recv_from(&mut [0; 2048]);
            ensure!(
                received
                    .as_ref()
                    .is_err_and(|it| it.kind() == ErrorKind::WouldBlock),
                "{received:?}"
            );
        }
        Ok(())
    }
}

fn to_all(scene: &mut Scene, destinations: &[IpAddr], cards: &[[u8; 6]]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for destination in destinations {
        let own = scene.address(ATTACKER, destination.is_ipv6())?;
        let mut frames = Vec::new();
        for port in PORTS {
            let source = 20_000 + u16::try_from(scene.tag() % 40_000)?;
            let bodies = [
                Body::Udp {
                    source,
                    destination: port,
                },
                Body::Tcp {
                    source,
                    destination: port,
                    flags: tcp::SYN,
                },
                Body::Tcp {
                    source,
                    destination: port,
                    flags: tcp::ACK,
                },
                Body::Other(99),
            ];
            for body in bodies {
                let packet = Packet::new(own, *destination, body, scene.tag());
                for card in cards {
                    frames.extend(packet.frames(scene.attacker().mac, *card));
                }
            }
        }
        // These are its own addresses: what refuses them is the host's chain, not the one that
        // counts false packets.
        cases.push(Case::ignored(format!("to {destination}"), frames));
    }
    Ok(cases)
}

pub fn own_addresses(scene: &mut Scene) -> Result<Vec<Case>> {
    let at = |text: &str| text.parse::<IpAddr>();
    let destinations = [
        HOST4,
        HOST6,
        [10, 20, 0, 1].into(),
        [10, 30, 0, 1].into(),
        [127, 0, 0, 1].into(),
        [127, 1, 2, 3].into(),
        [0, 0, 0, 0].into(),
        at("::1")?,
        at("fe80::1")?,
        at("fd12:3456:789a:1::1")?,
    ];
    to_all(scene, &destinations, &[HOST_MAC])
}

pub fn everybody(scene: &mut Scene) -> Result<Vec<Case>> {
    let at = |text: &str| text.parse::<IpAddr>();
    let destinations = [
        [255, 255, 255, 255].into(),
        [10, 20, 0, 255].into(),
        [10, 30, 0, 255].into(),
        [10, 20, 0, 0].into(),
        [198, 51, 100, 255].into(),
        [224, 0, 0, 1].into(),
        [224, 0, 0, 251].into(),
        [239, 255, 255, 250].into(),
        at("ff02::1")?,
        at("ff02::2")?,
        at("ff02::fb")?,
        at("ff05::2")?,
        at("ff0e::1")?,
    ];
    to_all(
        scene,
        &destinations,
        &[HOST_MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]],
    )
}
