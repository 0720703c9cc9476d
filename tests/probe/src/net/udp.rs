//! UDP: send, listen, echo.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::IpEndpoint;

use super::Stack;
use crate::command::Failure;

const PACKETS: usize = 64;
const BUFFER_BYTES: usize = 128 << 10;
/// How long a datagram may wait for its neighbour's address, in nanoseconds.
const SEND_TIMEOUT_NS: u64 = 3_000_000_000;

/// A datagram.
pub struct Datagram {
    /// From whom.
    pub from: IpEndpoint,
    /// What.
    pub data: Vec<u8>,
}

/// A bound socket.
pub fn bind(stack: &mut Stack, port: u16) -> Result<SocketHandle, Failure> {
    let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; PACKETS], vec![0; BUFFER_BYTES]);
    let mut socket = Socket::new(buffer(), buffer());
    socket
        .bind(port)
        .map_err(|error| alloc::format!("port {port}: {error:?}"))?;
    Ok(stack.sockets.add(socket))
}

/// Sends a datagram; fails if it can't leave, which is so if nobody answers for its next hop.
pub fn send(
    stack: &mut Stack,
    socket: SocketHandle,
    to: IpEndpoint,
    data: &[u8],
) -> Result<(), Failure> {
    let handle = socket;
    let socket = stack.sockets.get_mut::<Socket<'_>>(handle);
    socket
        .send_slice(data, to)
        .map_err(|error| alloc::format!("{to}: {error:?}"))?;
    let left = |stack: &mut Stack| {
        let socket = stack.sockets.get_mut::<Socket<'_>>(handle);
        (socket.send_queue() == 0).then_some(())
    };
    stack
        .wait(SEND_TIMEOUT_NS, left)
        .ok_or_else(|| "nobody answers for its next hop".into())
}

/// Up to `count` datagrams.
pub fn receive(
    stack: &mut Stack,
    socket: SocketHandle,
    count: usize,
    timeout_ns: u64,
) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    stack.wait(timeout_ns, |stack| {
        let socket = stack.sockets.get_mut::<Socket<'_>>(socket);
        while datagrams.len() < count
            && let Ok((data, from)) = socket.recv()
        {
            datagrams.push(Datagram {
                from: from.endpoint,
                data: data.into(),
            });
        }
        (datagrams.len() >= count).then_some(())
    });
    datagrams
}
