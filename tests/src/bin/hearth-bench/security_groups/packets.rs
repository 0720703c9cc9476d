//! What a packet costs on its way from the outside to a tap that nobody reads. The kernel forwards
//! a frame before the call that sends it is over, so that the time of sending is all of it.

use std::{
    fs,
    net::Ipv4Addr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hearth_tests::Netns;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send,
    socket_with,
};

use super::{
    frames::{End, FAR_MAC, Frame, Link, NEAR_MAC},
    policy::OPEN_PORT,
    world::{DOWNLINK, PEER, UPLINK},
};
use crate::table::quantile;

/// A port that nobody opens.
const CLOSED_PORT: u16 = 7999;

/// Connections that are opened before the table of connections is emptied.
const CONNECTIONS: usize = 150_000;

/// Of one address.
const PORTS: usize = 50_000;

/// At most, for one figure of a round.
const LONG: Duration = Duration::from_millis(700);

/// Frames that wait at a tap, if nobody changed it.
const TAP_QUEUE: usize = 1000;

/// Frames between looks at the clock.
const CHUNK: usize = 32;

const ROUNDS: usize = 3;

/// From where an established stream comes.
const STREAM_PORT: u16 = 40_000;

/// The way of the packets.
pub struct Way<'a> {
    pub host: &'a Netns,
    pub sender: Arc<Link>,
    pub tap: String,
    pub guest: Ipv4Addr,
}

/// Packets per second.
pub struct Rates {
    /// That open a connection.
    pub opening: f64,
    /// Of a connection that there is.
    pub established: f64,
    /// That would open one, and are refused; not without rules.
    pub refused: Option<f64>,
}

impl<'a> Way<'a> {
    pub fn new(host: &'a Netns, outside: &Netns, tap: &str, guest: Ipv4Addr) -> Result<Self> {
        Ok(Self {
            host,
            sender: Arc::new(Link::sender(outside, DOWNLINK)?),
            tap: tap.to_owned(),
            guest,
        })
    }

    /// A datagram from the outside.
    pub fn frame(&self, from: End, port: u16, number: u64) -> Frame {
        Self::frame_to(self.guest, from, port, number)
    }

    /// The same, without the way.
    pub fn frame_to(guest: Ipv4Addr, from: End, port: u16, number: u64) -> Frame {
        Frame::udp([FAR_MAC, NEAR_MAC], from, (guest, port), number)
    }

    /// Medians of some rounds. `establish` makes the stream from this port one that the guest
    /// has answered.
    pub fn rates(
        &self,
        refuses: bool,
        establish: impl Fn(&Self, u16) -> Result<()>,
    ) -> Result<Rates> {
        let from = |number: usize| {
            let address = u32::from(PEER) + u32::try_from(number / PORTS).unwrap_or_default();
            let port = 10_000 + u16::try_from(number % PORTS).unwrap_or_default();
            (Ipv4Addr::from(address), port)
        };
        let frames = |port: u16| -> Vec<Frame> {
            (0..CONNECTIONS)
                .map(|number| self.frame(from(number), port, 0))
                .collect()
        };
        let opening = frames(OPEN_PORT);
        let closed = frames(CLOSED_PORT);
        let stream: Vec<Frame> = (0..CHUNK)
            .map(|_| self.frame((PEER, STREAM_PORT), OPEN_PORT, 0))
            .collect();
        let (mut opened, mut established, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        // A tap counts what waits at it only when there is room no more.
        let prepare = || -> Result<()> {
            forget_connections(self.host)?;
            establish(self, STREAM_PORT)?;
            (0..=TAP_QUEUE / CHUNK).try_for_each(|_| self.sender.send(&stream))
        };
        for _ in 0..ROUNDS {
            prepare()?;
            opened.push(self.flood(&opening, false, true).context("opening")?);
            prepare()?;
            established.push(self.flood(&stream, true, true).context("established")?);
            if refuses {
                refused.push(self.flood(&closed, true, false).context("refused")?);
            }
        }
        let median = |rates: &[f64]| quantile(rates, 0.5);
        Ok(Rates {
            opening: median(&opened),
            established: median(&established),
            refused: refuses.then(|| median(&refused)),
        })
    }

    /// Sends these, again and again or once, for a while; gives packets per second, and fails
    /// when not as many come through as should.
    fn flood(&self, frames: &[Frame], again: bool, admitted: bool) -> Result<f64> {
        let before = self.settled()?;
        let start = Instant::now();
        'time: loop {
            for chunk in frames.chunks(CHUNK) {
                self.sender.send(chunk)?;
                if start.elapsed() > LONG {
                    break 'time;
                }
            }
            if !again {
                break;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let after = self.settled()?;
        let [came, went] = [after.came - before.came, after.went - before.went];
        // The kernel may say something of its own meanwhile.
        let expected = if admitted { came } else { 0 };
        let allowed = 20 + came / 100;
        ensure!(came > 0, "nothing came in by {UPLINK}");
        ensure!(
            went.abs_diff(expected) <= allowed,
            "of {came} packets {went} went through instead of {expected}"
        );
        Ok(came as f64 / seconds)
    }

    /// The counters, when they no longer change.
    fn settled(&self) -> Result<Counters> {
        let mut last = self.counters()?;
        loop {
            thread::sleep(Duration::from_millis(10));
            let now = self.counters()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    fn counters(&self) -> Result<Counters> {
        let text = self
            .host
            .enter(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let of = |interface: &str, columns: &[usize]| {
            let line = text
                .lines()
                .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
            let line = line.with_context(|| format!("no {interface}"))?;
            let values: Vec<u64> = line
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            Ok::<u64, anyhow::Error>(columns.iter().map(|column| values[*column]).sum())
        };
        Ok(Counters {
            came: of(UPLINK, &[1])?,
            // Taken, or thrown away since there is no room.
            went: of(&self.tap, &[9, 11])?,
        })
    }
}

/// In packets.
#[derive(Clone, Copy, PartialEq)]
struct Counters {
    came: u64,
    went: u64,
}

/// Empties a namespace's table of connections.
pub fn forget_connections(netns: &Netns) -> Result<()> {
    netns.enter(|| {
        let kind = SocketType::RAW;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(
            AddressFamily::NETLINK,
            kind,
            flags,
            Some(netlink::NETFILTER),
        )?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        // struct nlmsghdr: IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK, NLM_F_REQUEST and
        // NLM_F_ACK; struct nfgenmsg: all families.
        let mut message = Vec::new();
        message.extend(20u32.to_ne_bytes());
        message.extend((1u16 << 8 | 2).to_ne_bytes());
        message.extend(5u16.to_ne_bytes());
        message.extend([0; 12]);
        send(&socket, &message, SendFlags::empty())?;
        let mut answer = [0; 256];
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        ensure!(length >= 20, "an answer of {length} bytes");
        let error = i32::from_ne_bytes(answer[16..20].try_into()?);
        ensure!(
            error == 0,
            "emptying the table of connections: error {error}"
        );
        Ok(())
    })
}
