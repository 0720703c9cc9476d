//! Sockets that belong to one tap.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

fn bound(tap: &str, address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(tap.as_bytes()))?;
    // One set of sockets for each tap, all with the same ports.
    socket.set_reuse_address(true)?;
    // The tap may get its addresses later.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Datagrams that come in by the tap, to `address`.
pub fn udp(tap: &str, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(tap, address, Type::DGRAM, Protocol::UDP)?;
    if address.is_ipv4() {
        socket.set_broadcast(true)?;
    }
    UdpSocket::from_std(socket.into())
}

/// Connections that come in by the tap, to `address`.
pub fn tcp(tap: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(tap, address, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Joins a group on the tap, and sends to groups by the tap.
pub fn join(socket: &UdpSocket, tap: &str, group: &Ipv6Addr) -> io::Result<()> {
    let index = rustix::net::netdevice::name_to_index(socket, tap)?;
    let socket = SockRef::from(socket);
    socket.join_multicast_v6(group, index)?;
    socket.set_multicast_if_v6(index)
}
