//! Echo services that go on while the probe waits for commands.

use alloc::vec::Vec;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};

/// One socket of a service.
#[derive(Clone, Copy)]
pub enum Service {
    /// Sends each datagram back.
    UdpEcho {
        /// Bound.
        socket: SocketHandle,
        /// Datagrams so far.
        count: u64,
    },
    /// Sends back what comes on a connection, and listens again when it is closed.
    TcpEcho {
        /// Listens or is connected.
        socket: SocketHandle,
        /// Where it listens.
        port: u16,
        /// Bytes so far.
        bytes: u64,
        /// Connections so far, this one included.
        connections: u64,
        /// Whether this connection is counted.
        counted: bool,
    },
}

/// Serves what is there; whether there was anything.
pub fn step(services: &mut [Service], sockets: &mut SocketSet<'static>) -> bool {
    let mut served = false;
    for service in services {
        served |= match service {
            Service::UdpEcho { socket, count } => udp_echo(sockets.get_mut(*socket), count),
            Service::TcpEcho {
                socket,
                port,
                bytes,
                connections,
                counted,
            } => {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(*socket);
                if socket.may_send() && !*counted {
                    *counted = true;
                    *connections += 1;
                } else if !socket.is_open() {
                    *counted = false;
                    // Closed sockets may listen, and the port isn't 0.
                    let _ = socket.listen(*port);
                }
                tcp_echo(socket, bytes)
            }
        };
    }
    served
}

fn udp_echo(socket: &mut udp::Socket<'_>, count: &mut u64) -> bool {
    let mut served = false;
    while socket.can_send()
        && let Ok((data, from)) = socket.recv()
    {
        let data: Vec<u8> = data.into();
        // From the address that it was sent to.
        if socket.send_slice(&data, from).is_ok() {
            *count += 1;
        }
        served = true;
    }
    served
}

fn tcp_echo(socket: &mut tcp::Socket<'_>, bytes: &mut u64) -> bool {
    let mut served = false;
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let Ok(data) = socket.recv(|data| {
            let taken = data.len().min(room);
            (taken, Vec::from(&data[..taken]))
        }) else {
            return served;
        };
        if data.is_empty() {
            return served;
        }
        *bytes += data.len() as u64;
        // There is room.
        let _ = socket.send_slice(&data);
        served = true;
    }
    if socket.state() == tcp::State::CloseWait && !socket.can_recv() {
        socket.close();
        served = true;
    }
    served
}
