//! Commands for TCP.

use super::{addressed, data, endpoint, keys, port, timeout};
use crate::command::{Arguments, Command, Failure, Json, Probe};
use crate::cpu::clock;
use crate::net::services::Service;
use crate::net::{Stack, tcp};
use smoltcp::iface::SocketHandle;

pub const TCP_CONNECT: Command = Command {
    name: "tcp_connect",
    keys: keys!("to", "text", "hex", "receive", "timeout"),
    run: tcp_connect,
};
pub const TCP_LISTEN: Command = Command {
    name: "tcp_listen",
    keys: keys!("port", "text", "hex", "receive", "timeout"),
    run: tcp_listen,
};
pub const TCP_ECHO: Command = Command {
    name: "tcp_echo",
    keys: keys!("port", "connections"),
    run: tcp_echo,
};
pub const TCP_THROUGHPUT: Command = Command {
    name: "tcp_throughput",
    keys: keys!("to", "port", "direction", "bytes", "pattern", "timeout"),
    run: tcp_throughput,
};

/// Buffers of a connection of the echo service.
const ECHO_BUFFER_BYTES: usize = 16 << 10;

/// Sends `text=` or `hex=`, then receives up to `receive=` bytes, or until the other side closes
/// or says nothing for the timeout.
fn exchange(
    stack: &mut Stack,
    socket: SocketHandle,
    arguments: &Arguments,
    json: &mut Json,
) -> Result<(), Failure> {
    let (bytes, timeout) = (data(arguments)?, timeout(arguments)?);
    let limit = arguments.number_or("receive", 0)?.min(64 << 10) as usize;
    tcp::send(
        stack,
        socket,
        bytes.len() as u64,
        timeout,
        |offset, room| {
            room.copy_from_slice(&bytes[offset as usize..][..room.len()]);
        },
    )?;
    if limit == 0 {
        return Ok(());
    }
    let (received, result) = tcp::receive_some(stack, socket, limit, timeout);
    json.bytes("received", &received);
    json.number("closed", result?);
    Ok(())
}

fn tcp_connect(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let to = endpoint(arguments, "to")?;
    let start = clock::now();
    let socket = tcp::connect(stack, to, timeout(arguments)?)?;
    json.number("connect_ns", clock::now() - start);
    let result = exchange(stack, socket, arguments, json);
    tcp::close(stack, socket);
    json.number("ns", clock::now() - start);
    result
}

fn tcp_listen(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let socket = tcp::accept(stack, port(arguments, "port")?, timeout(arguments)?)?;
    json.optional_shown("from", tcp::peer(stack, socket));
    let result = exchange(stack, socket, arguments, json);
    tcp::close(stack, socket);
    result
}

/// Goes on while the probe waits for commands; for so many connections at a time.
fn tcp_echo(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let port = port(arguments, "port")?;
    let count = arguments.number_or("connections", 4)?.clamp(1, 64);
    for _ in 0..count {
        let socket = tcp::add(stack, ECHO_BUFFER_BYTES);
        stack.services.push(Service::TcpEcho {
            socket,
            port,
            bytes: 0,
            connections: 0,
            counted: false,
        });
    }
    json.number("port", port).number("connections", count);
    Ok(())
}

/// Connects with `to=`, or listens with `port=`; sends or receives `bytes=` of the pattern.
fn tcp_throughput(
    probe: &mut Probe,
    arguments: &Arguments,
    json: &mut Json,
) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let (bytes, timeout) = (arguments.number("bytes")?, timeout(arguments)?);
    let sends = match arguments.text("direction")? {
        "send" => true,
        "receive" => false,
        _ => return Err("direction is send or receive".into()),
    };
    let seed = arguments
        .get("pattern")
        .map(|_| arguments.number("pattern"))
        .transpose()?;
    let socket = match (arguments.get("to"), arguments.get("port")) {
        (Some(_), None) => tcp::connect(stack, endpoint(arguments, "to")?, timeout)?,
        (None, Some(_)) => tcp::accept(stack, port(arguments, "port")?, timeout)?,
        _ => return Err("to or port must be given".into()),
    };
    let result = if sends {
        tcp::send_pattern(stack, socket, bytes, seed.unwrap_or(1), timeout)
    } else {
        tcp::receive_pattern(stack, socket, bytes, seed, timeout)
    };
    tcp::close(stack, socket);
    let done = result?;
    let rate = u128::from(done.bytes) * 1_000_000_000 / u128::from(done.ns.max(1));
    json.number("bytes", done.bytes)
        .number("ns", done.ns)
        .number("bytes_per_s", rate);
    match (done.mismatch, done.bytes < bytes) {
        (Some(offset), _) => Err(alloc::format!("byte {offset} is not the pattern's").into()),
        (None, true) => Err("the connection was closed early".into()),
        (None, false) => Ok(()),
    }
}
