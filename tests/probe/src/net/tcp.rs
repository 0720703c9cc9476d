//! TCP: connect, listen, send and receive streams.

use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::IpEndpoint;

use super::Stack;
use crate::command::Failure;
use crate::cpu::clock;
use crate::pattern;

const BUFFER_BYTES: usize = 256 << 10;
/// How long the other side may take to agree that a connection is closed, in nanoseconds.
const CLOSE_TIMEOUT_NS: u64 = 2_000_000_000;

fn socket(stack: &mut Stack, handle: SocketHandle) -> &mut Socket<'static> {
    stack.sockets.get_mut(handle)
}

/// A socket that does nothing yet.
pub fn add(stack: &mut Stack, buffer_bytes: usize) -> SocketHandle {
    let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    stack.sockets.add(socket)
}

/// Connects; tells a refusal from silence.
pub fn connect(
    stack: &mut Stack,
    to: IpEndpoint,
    timeout_ns: u64,
) -> Result<SocketHandle, Failure> {
    let handle = add(stack, BUFFER_BYTES);
    let port = stack.local_port();
    let Stack {
        interface, sockets, ..
    } = stack;
    let begun = sockets
        .get_mut::<Socket<'_>>(handle)
        .connect(interface.context(), to, port);
    let result = match begun {
        Err(error) => Err(alloc::format!("{to}: {error:?}").into()),
        Ok(()) => {
            let state = stack.wait(timeout_ns, |stack| match socket(stack, handle).state() {
                State::SynSent | State::SynReceived => None,
                state => Some(state),
            });
            match state {
                Some(State::Closed) => Err("refused".into()),
                Some(_) => return Ok(handle),
                None => Err("timed out".into()),
            }
        }
    };
    remove(stack, handle);
    result
}

/// Waits for one connection.
pub fn accept(stack: &mut Stack, port: u16, timeout_ns: u64) -> Result<SocketHandle, Failure> {
    let handle = add(stack, BUFFER_BYTES);
    if let Err(error) = socket(stack, handle).listen(port) {
        remove(stack, handle);
        return Err(alloc::format!("port {port}: {error:?}").into());
    }
    let connected = stack.wait(timeout_ns, |stack| {
        (!matches!(
            socket(stack, handle).state(),
            State::Listen | State::SynReceived
        ))
        .then_some(())
    });
    match connected {
        Some(()) => Ok(handle),
        None => {
            remove(stack, handle);
            Err("nobody has connected".into())
        }
    }
}

/// Who is at the other end.
pub fn peer(stack: &mut Stack, handle: SocketHandle) -> Option<IpEndpoint> {
    socket(stack, handle).remote_endpoint()
}

/// Sends `length` bytes that `fill` makes, given the offset of the first and a place for some.
/// Returns when all are acknowledged.
pub fn send(
    stack: &mut Stack,
    handle: SocketHandle,
    length: u64,
    timeout_ns: u64,
    mut fill: impl FnMut(u64, &mut [u8]),
) -> Result<(), Failure> {
    let mut sent = 0;
    loop {
        let step = stack.wait(timeout_ns, |stack| {
            let socket = socket(stack, handle);
            if !socket.may_send() {
                return Some(Err(Failure::from("the connection was closed")));
            }
            if sent == length {
                return (socket.send_queue() == 0).then_some(Ok(0));
            }
            let before = sent;
            // Twice, as the free part of the ring may have two pieces.
            for _ in 0..2 {
                let rest = length - sent;
                let taken = socket.send(|room| {
                    let count = room.len().min(rest as usize);
                    fill(sent, &mut room[..count]);
                    (count, count)
                });
                sent += taken.unwrap_or(0) as u64;
            }
            (sent != before).then_some(Ok(sent - before))
        });
        match step {
            None => return Err(alloc::format!("stalled after {sent} bytes").into()),
            Some(Err(failure)) => return Err(failure),
            Some(Ok(0)) => return Ok(()),
            Some(Ok(_)) => {}
        }
    }
}

/// Receives until `visit`, which is given what came, says that it is enough, or the other side
/// closes. True if it closed.
pub fn receive(
    stack: &mut Stack,
    handle: SocketHandle,
    timeout_ns: u64,
    mut visit: impl FnMut(&[u8]) -> bool,
) -> Result<bool, Failure> {
    loop {
        let step = stack.wait(timeout_ns, |stack| {
            let socket = socket(stack, handle);
            if socket.can_recv() {
                let enough = socket.recv(|data| (data.len(), visit(data)));
                return Some(Ok((enough.unwrap_or(true), false)));
            }
            match socket.state() {
                State::Closed => Some(Err(Failure::from("the connection was reset"))),
                _ if !socket.may_recv() => Some(Ok((true, true))),
                _ => None,
            }
        });
        match step {
            None => return Err("timed out".into()),
            Some(Err(failure)) => return Err(failure),
            Some(Ok((true, closed))) => return Ok(closed),
            Some(Ok((false, _))) => {}
        }
    }
}

/// Receives until it is closed, `limit` bytes are there, or nothing comes for `timeout_ns`.
pub fn receive_some(
    stack: &mut Stack,
    handle: SocketHandle,
    limit: usize,
    timeout_ns: u64,
) -> (Vec<u8>, Result<bool, Failure>) {
    let mut data = Vec::new();
    let result = receive(stack, handle, timeout_ns, |bytes| {
        data.extend_from_slice(&bytes[..bytes.len().min(limit - data.len())]);
        data.len() >= limit
    });
    (data, result)
}

/// Closes in order, waits a little for the other side, and gives the socket up.
pub fn close(stack: &mut Stack, handle: SocketHandle) {
    socket(stack, handle).close();
    stack.wait(CLOSE_TIMEOUT_NS, |stack| {
        let state = socket(stack, handle).state();
        matches!(state, State::Closed | State::TimeWait | State::FinWait2).then_some(())
    });
    remove(stack, handle);
}

/// Resets the connection, if there still is one, and gives the socket up.
pub fn remove(stack: &mut Stack, handle: SocketHandle) {
    let socket = socket(stack, handle);
    if socket.state() != State::TimeWait {
        socket.abort();
    }
    stack.step();
    stack.sockets.remove(handle);
}

/// What a transfer of many bytes came to.
pub struct Throughput {
    /// Bytes.
    pub bytes: u64,
    /// Nanoseconds from the first byte on.
    pub ns: u64,
    /// Offset of the first byte that is not the pattern's.
    pub mismatch: Option<u64>,
}

/// Sends that much of the pattern.
pub fn send_pattern(
    stack: &mut Stack,
    handle: SocketHandle,
    bytes: u64,
    seed: u64,
    timeout_ns: u64,
) -> Result<Throughput, Failure> {
    let start = clock::now();
    send(stack, handle, bytes, timeout_ns, |offset, room| {
        pattern::fill(seed, offset, room)
    })?;
    Ok(Throughput {
        bytes,
        ns: clock::now() - start,
        mismatch: None,
    })
}

/// Receives up to that much, and compares it with the pattern if there is a seed.
pub fn receive_pattern(
    stack: &mut Stack,
    handle: SocketHandle,
    bytes: u64,
    seed: Option<u64>,
    timeout_ns: u64,
) -> Result<Throughput, Failure> {
    let (mut received, mut start, mut mismatch) = (0, None, None);
    receive(stack, handle, timeout_ns, |data| {
        start.get_or_insert_with(clock::now);
        if let (Some(seed), None) = (seed, mismatch) {
            let at = pattern::first_mismatch(seed, received, data);
            mismatch = at.map(|at| received + at as u64);
        }
        received += data.len() as u64;
        received >= bytes
    })?;
    let ns = start.map_or(0, |start| clock::now() - start);
    Ok(Throughput {
        bytes: received,
        ns,
        mismatch,
    })
}
