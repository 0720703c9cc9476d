//! Commands for network cards. All but a few take `nic=`, and `ip=`, `prefix=`, `gateway=` to set
//! the card's address first; else the card has what an earlier command gave it.

mod streams;

use alloc::format;
use alloc::vec::Vec;

use smoltcp::wire::{IpAddress, IpCidr, IpEndpoint};

use super::{Arguments, Command, Failure, Json, Probe, parse_hex};
use crate::cpu::clock;
use crate::json::Hex;
use crate::net::ping::{self, Ping};
use crate::net::relay;
use crate::net::services::Service;
use crate::net::{Stack, dhcp, http, udp};

/// The keys that say which card and address, and further ones.
macro_rules! keys {
    ($($key:literal),*) => { &["nic", "ip", "prefix", "gateway", $($key),*] };
}
use keys;

pub const COMMANDS: &[Command] = &[
    Command {
        name: "network",
        keys: keys!(),
        run: network,
    },
    Command {
        name: "dhcp",
        keys: &["nic", "timeout"],
        run: run_dhcp,
    },
    Command {
        name: "ping",
        keys: keys!("address", "count", "size", "timeout"),
        run: run_ping,
    },
    Command {
        name: "udp_send",
        keys: keys!("to", "from_port", "text", "hex", "replies", "timeout"),
        run: udp_send,
    },
    Command {
        name: "udp_listen",
        keys: keys!("port", "count", "timeout"),
        run: udp_listen,
    },
    Command {
        name: "udp_echo",
        keys: keys!("port"),
        run: udp_echo,
    },
    Command {
        name: "http_get",
        keys: keys!("url", "method", "header", "body", "timeout"),
        run: http_get,
    },
    Command {
        name: "raw_frame",
        keys: &["nic", "hex", "count"],
        run: raw_frame,
    },
    Command {
        name: "receive_frame",
        keys: &["nic", "timeout", "ethertype", "count"],
        run: receive_frame,
    },
    Command {
        name: "relay",
        keys: &["nic", "control"],
        run: run_relay,
    },
    Command {
        name: "count_frames",
        keys: &["nic", "count", "timeout"],
        run: count_frames,
    },
    streams::TCP_CONNECT,
    streams::TCP_LISTEN,
    streams::TCP_ECHO,
    streams::TCP_THROUGHPUT,
];

/// How long a command waits where no time is given, in nanoseconds.
const TIMEOUT_NS: u64 = 5_000_000_000;

fn timeout(arguments: &Arguments) -> Result<u64, Failure> {
    Ok(arguments.duration("timeout")?.unwrap_or(TIMEOUT_NS))
}

fn card<'p>(probe: &'p mut Probe, arguments: &Arguments) -> Result<&'p mut Stack, Failure> {
    probe.nic(arguments.number_or("nic", 0)? as usize)
}

fn address(arguments: &Arguments, key: &str) -> Result<Option<IpAddress>, Failure> {
    Ok(arguments.parsed::<core::net::IpAddr>(key)?.map(Into::into))
}

fn endpoint(arguments: &Arguments, key: &str) -> Result<IpEndpoint, Failure> {
    let text = arguments.text(key)?;
    let parsed = text.parse::<core::net::SocketAddr>();
    parsed
        .map(Into::into)
        .map_err(|_| format!("{key}: {text:?} is no address:port").into())
}

fn port(arguments: &Arguments, key: &str) -> Result<u16, Failure> {
    let number = arguments.number(key)?;
    let port = u16::try_from(number).ok().filter(|&port| port != 0);
    port.ok_or_else(|| format!("{key} is 1 to 65535").into())
}

/// The card with the address that the command names.
fn addressed<'p>(probe: &'p mut Probe, arguments: &Arguments) -> Result<&'p mut Stack, Failure> {
    let stack = card(probe, arguments)?;
    stack.forget_neighbours();
    let Some(ip) = address(arguments, "ip")? else {
        return Ok(stack);
    };
    let (usual, most) = match ip {
        IpAddress::Ipv4(_) => (24, 32),
        IpAddress::Ipv6(_) => (64, 128),
    };
    let prefix = arguments.number_or("prefix", usual)?;
    if prefix > most {
        return Err("prefix is longer than the address".into());
    }
    stack.set_address(
        IpCidr::new(ip, prefix as u8),
        address(arguments, "gateway")?,
    )?;
    Ok(stack)
}

/// What `text=` or `hex=` says; nothing if neither is there.
fn data(arguments: &Arguments) -> Result<Vec<u8>, Failure> {
    match (arguments.get("text"), arguments.get("hex")) {
        (Some(text), None) => Ok(text.as_bytes().to_vec()),
        (None, Some(hex)) => parse_hex(hex),
        (None, None) => Ok(Vec::new()),
        _ => Err("text and hex can't both be given".into()),
    }
}

fn network(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let counters = stack.card.counters();
    json.shown("mac", stack.card.mac())
        .array("addresses", |json| {
            for address in stack.interface.ip_addrs() {
                json.item(&format!("{address}"));
            }
        })
        .number("frames_received", counters.received)
        .number("frames_sent", counters.sent)
        .number("frames_dropped", counters.dropped)
        .array("services", |json| {
            for service in &stack.services {
                json.element(|json| match service {
                    Service::UdpEcho { count, .. } => {
                        json.text("kind", "udp_echo").number("datagrams", count);
                    }
                    Service::TcpEcho {
                        port,
                        bytes,
                        connections,
                        ..
                    } => {
                        json.text("kind", "tcp_echo")
                            .number("port", port)
                            .number("bytes", bytes)
                            .number("connections", connections);
                    }
                });
            }
        });
    Ok(())
}

fn run_dhcp(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let timeout = arguments.duration("timeout")?.unwrap_or(2 * TIMEOUT_NS);
    let start = clock::now();
    dhcp::lease(card(probe, arguments)?, timeout, json)?;
    json.number("ns", clock::now() - start);
    Ok(())
}

fn run_ping(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let ping = Ping {
        address: address(arguments, "address")?.ok_or("address is missing")?,
        count: arguments.number_or("count", 1)?.clamp(1, 10_000) as u16,
        size: arguments.number_or("size", 56)?.min(1472 - 20) as usize,
        timeout_ns: arguments.duration("timeout")?.unwrap_or(1_000_000_000),
    };
    let round_trips = ping::run(stack, &ping)?;
    json.number("sent", ping.count)
        .number("received", round_trips.count());
    if round_trips.count() == 0 {
        return Err("nobody has answered".into());
    }
    json.object("round_trip_ns", |json| {
        json.number("p50", round_trips.percentile(50_000))
            .number("max", round_trips.max())
            .number("mean", round_trips.mean());
    });
    Ok(())
}

fn tell_datagrams(json: &mut Json, key: &str, datagrams: &[udp::Datagram]) {
    json.array(key, |json| {
        for datagram in datagrams {
            json.element(|json| {
                json.shown("from", datagram.from)
                    .bytes("data", &datagram.data);
            });
        }
    });
}

/// With `replies=N` it waits for so many datagrams in return.
fn udp_send(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let (to, data, timeout) = (
        endpoint(arguments, "to")?,
        data(arguments)?,
        timeout(arguments)?,
    );
    let port = match arguments.get("from_port") {
        Some(_) => port(arguments, "from_port")?,
        None => stack.local_port(),
    };
    let replies = arguments.number_or("replies", 0)? as usize;
    let socket = udp::bind(stack, port)?;
    let start = clock::now();
    let mut result = udp::send(stack, socket, to, &data);
    json.number("from_port", port).number("bytes", data.len());
    if result.is_ok() && replies > 0 {
        let datagrams = udp::receive(stack, socket, replies, timeout);
        json.number("ns", clock::now() - start);
        tell_datagrams(json, "replies", &datagrams);
        if datagrams.len() < replies {
            result = Err("no reply".into());
        }
    }
    stack.sockets.remove(socket);
    result
}

fn udp_listen(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let (port, timeout) = (port(arguments, "port")?, timeout(arguments)?);
    let count = arguments.number_or("count", 1)? as usize;
    let socket = udp::bind(stack, port)?;
    let datagrams = udp::receive(stack, socket, count, timeout);
    stack.sockets.remove(socket);
    tell_datagrams(json, "datagrams", &datagrams);
    if datagrams.len() < count {
        Err("timed out".into())
    } else {
        Ok(())
    }
}

/// Goes on while the probe waits for commands.
fn udp_echo(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let port = port(arguments, "port")?;
    let socket = udp::bind(stack, port)?;
    stack.services.push(Service::UdpEcho { socket, count: 0 });
    json.number("port", port);
    Ok(())
}

fn http_get(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = addressed(probe, arguments)?;
    let request = http::Request {
        url: arguments.text("url")?,
        method: arguments.get("method").unwrap_or("GET"),
        headers: arguments.all("header").collect(),
        body: arguments.get("body").unwrap_or(""),
        timeout_ns: timeout(arguments)?,
    };
    let start = clock::now();
    let answer = http::fetch(stack, &request)?;
    json.number("status", answer.status)
        .number("ns", clock::now() - start);
    json.array("headers", |json| {
        for (name, value) in &answer.headers {
            json.item(&format!("{name}: {value}"));
        }
    });
    match core::str::from_utf8(&answer.body) {
        Ok(text) => json.text("body", text),
        Err(_) => json.shown("body_hex", Hex(&answer.body)),
    };
    Ok(())
}

/// As it is, whatever it says: a false source, ARP for others, a broken DHCP message.
fn raw_frame(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = card(probe, arguments)?;
    let frame = parse_hex(arguments.text("hex")?)?;
    let count = arguments.number_or("count", 1)?;
    let start = clock::now();
    for _ in 0..count {
        stack.card.send_frame(&frame)?;
    }
    stack.card.flush();
    json.number("bytes", frame.len())
        .number("frames", count)
        .number("ns", clock::now() - start);
    Ok(())
}

/// Frames that come while it waits don't reach the stack. The doorbell for the buffers that are
/// given back is rung once for many, as a driver does.
fn count_frames(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    /// Buffers that the device may wait for; a part of those that there are.
    const UNRUNG: u64 = 32;
    let stack = card(probe, arguments)?;
    let (count, timeout) = (arguments.number("count")?, timeout(arguments)?);
    let (mut frames, mut bytes) = (0, 0);
    let start = clock::now();
    let (mut first, mut last) = (start, start);
    while frames < count && clock::now() - start < timeout {
        let Some(length) = stack.card.discard_frame() else {
            stack.card.flush();
            core::hint::spin_loop();
            continue;
        };
        last = clock::now();
        if frames == 0 {
            first = last;
        }
        frames += 1;
        bytes += length as u64;
        if frames % UNRUNG == 0 {
            stack.card.flush();
        }
    }
    stack.card.flush();
    json.number("frames", frames)
        .number("bytes", bytes)
        .number("ns", last - first);
    if frames < count {
        Err("timed out".into())
    } else {
        Ok(())
    }
}

/// Frames that come while it waits don't reach the stack.
fn receive_frame(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let stack = card(probe, arguments)?;
    let (count, timeout) = (arguments.number_or("count", 1)?, timeout(arguments)?);
    let kind = match arguments.get("ethertype") {
        Some(hex) => Some(parse_hex(hex)?),
        None => None,
    };
    let mut frames = Vec::new();
    let start = clock::now();
    while (frames.len() as u64) < count && clock::now() - start < timeout {
        let Some(frame) = stack.card.receive_frame() else {
            core::hint::spin_loop();
            continue;
        };
        if kind
            .as_ref()
            .is_none_or(|kind| frame.get(12..12 + kind.len()) == Some(kind))
        {
            frames.push(frame);
        }
    }
    json.array("frames", |json| {
        for frame in &frames {
            json.item(&format!("{}", Hex(frame)));
        }
    });
    if (frames.len() as u64) < count {
        Err("timed out".into())
    } else {
        Ok(())
    }
}

/// Goes on until the other end of the control card ends it. Nothing reaches the stack.
fn run_relay(probe: &mut Probe, arguments: &Arguments, json: &mut Json) -> Result<(), Failure> {
    let control = arguments.number("control")? as usize;
    let lent = arguments.get("nic").unwrap_or("0").split(',');
    let lent: Result<Vec<usize>, _> = lent.map(str::parse).collect();
    let lent = lent.map_err(|_| "nic: numbers with commas between them")?;
    if lent.contains(&control) {
        return Err("control is not one of the lent cards".into());
    }
    for nic in lent.iter().chain([&control]) {
        probe.nic(*nic)?;
    }
    let card = |nic: &usize| Some(&probe.nics.get(*nic)?.as_ref()?.card);
    let cards: Option<Vec<_>> = lent.iter().map(card).collect();
    let (Some(cards), Some(control)) = (cards, card(&control)) else {
        return Err("no such card".into());
    };
    let carried = relay::run(&cards, control)?;
    json.number("frames_received", carried.received)
        .number("frames_sent", carried.sent);
    Ok(())
}
