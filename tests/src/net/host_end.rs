//! The host itself as one end: raw sockets in the agent's namespace. What they receive has passed
//! the firewall, unlike what a capture sees.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with, sockopt};

use super::packet::{Packet, Seen, protocol};
use crate::Netns;

/// Headers are given by who sends (raw(7)).
const RAW: u8 = 255;
const PROTOCOLS: [u8; 6] = [
    protocol::TCP,
    protocol::UDP,
    protocol::GRE,
    protocol::PRIVATE,
    protocol::ICMP,
    protocol::ICMPV6,
];
const BUFFER_BYTES: usize = 8 << 20;

/// The host.
pub struct HostEnd {
    send4: UdpSocket,
    send6: UdpSocket,
    /// By IP protocol number.
    receive4: Vec<UdpSocket>,
    receive6: Vec<(u8, UdpSocket)>,
}

fn raw(netns: &Netns, family: AddressFamily, number: u8) -> Result<UdpSocket> {
    let protocol = std::num::NonZeroU32::new(number.into()).map(Protocol::from_raw);
    let opened = netns.enter(|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::RAW, flags, protocol)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
        Ok(UdpSocket::from(socket))
    });
    opened.with_context(|| format!("a raw socket for protocol {number}"))
}

impl HostEnd {
    /// Opens the sockets.
    pub fn new(netns: &Netns) -> Result<Self> {
        let of = |family, other| {
            let numbers = PROTOCOLS.into_iter().filter(move |it| *it != other);
            numbers.map(move |it| Ok((it, raw(netns, family, it)?)))
        };
        let four: Vec<_> = of(AddressFamily::INET, protocol::ICMPV6).collect::<Result<_>>()?;
        let six = of(AddressFamily::INET6, protocol::ICMP).collect::<Result<_>>()?;
        Ok(Self {
            send4: raw(netns, AddressFamily::INET, RAW)?,
            send6: raw(netns, AddressFamily::INET6, RAW)?,
            receive4: four.into_iter().map(|it| it.1).collect(),
            receive6: six,
        })
    }

    /// Sends a packet; an error of the network, such as no route or a firewall's refusal, is none
    /// of the test's.
    pub fn send(&self, packet: &Packet) -> Result<()> {
        let socket = match packet.source {
            IpAddr::V4(_) => &self.send4,
            IpAddr::V6(_) => &self.send6,
        };
        for ip in packet.pieces() {
            match socket.send_to(&ip, SocketAddr::new(packet.destination, 0)) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::PermissionDenied
                            | io::ErrorKind::HostUnreachable
                            | io::ErrorKind::NetworkUnreachable
                            | io::ErrorKind::ConnectionRefused
                    ) => {}
                Err(error) => return Err(error).context("sending from the host"),
            }
        }
        Ok(())
    }

    /// Our packets that have come to the host.
    pub fn receive(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut bytes = [0; 4096];
        for socket in &self.receive4 {
            while let Some((length, _)) = next(socket, &mut bytes) {
                seen.extend(Packet::see(&bytes[..length]));
            }
        }
        for (number, socket) in &self.receive6 {
            while let Some((length, from)) = next(socket, &mut bytes) {
                // The header is not shown; all of it that matters is known.
                let IpAddr::V6(source) = from.ip() else {
                    continue;
                };
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend(u16::try_from(length).unwrap_or_default().to_be_bytes());
                ip.extend([*number, 64]);
                ip.extend(source.octets());
                ip.extend([0; 16]);
                ip.extend(&bytes[..length]);
                seen.extend(Packet::see(&ip));
            }
        }
        seen
    }
}

/// What came next. A raw socket may also have an error to tell, which an ICMP message brought.
fn next(socket: &UdpSocket, bytes: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(bytes) {
            Ok(got) => return Some(got),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => {}
        }
    }
}
