//! A guest's card, lent to the test by the probe's command `relay`: its messages are in
//! `tests/probe/src/net/relay.rs`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{NetworkInterface, RunInstancesRequest, TapInterface};

use super::{HOST_MAC, Packet, Wire, mac, outside::MARKER, outside::marker, packet};
use crate::{Netns, Probe};

const CONTROL: u16 = 0x88b5;
const SEND: u8 = 1;
const END: u8 = 2;
const RECEIVED: u8 = 3;
const SENT: u8 = 4;
const HEADER_BYTES: usize = 14;
/// Most bytes of frames in a message.
const MESSAGE_BYTES: usize = 1900;
/// Messages that may be under way.
const WINDOW: usize = 16;
/// Ends a test whose guest has gone silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks whether the relay works.
const LOOK: Duration = Duration::from_millis(5);
/// Between two of those.
const AGAIN: Duration = Duration::from_millis(500);

/// A guest's card.
pub struct GuestEnd {
    /// `i-…`
    pub instance: String,
    /// Its interface in the network.
    pub interface: NetworkInterface,
    /// Its card's address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub ipv6: Option<Ipv6Addr>,
    control: Wire,
    /// Its place among the cards that the guest lends.
    place: u8,
    /// The host's side of its tap, to send markers.
    tap: Wire,
    number: u32,
    /// Numbers of messages that were not answered.
    waiting: Vec<u32>,
    /// Frames that came in.
    pub(super) inbox: Vec<Vec<u8>>,
}

/// Makes the tap by which the probe will lend its first card, and asks for it: to be put behind
/// the interface in a network.
pub fn relayed(netns: &Netns, control: &str) -> Result<impl FnOnce(&mut RunInstancesRequest)> {
    netns.ip(&format!("tuntap add {control} mode tap"))?;
    netns.sysctl(&format!("ipv6.conf.{control}.disable_ipv6"), "1")?;
    netns.ip(&format!("link set {control} mtu 2000 up"))?;
    let interface = TapInterface {
        tap_name: control.to_owned(),
        ..Default::default()
    };
    Ok(move |request: &mut RunInstancesRequest| request.tap_interfaces.push(interface))
}

impl GuestEnd {
    /// Takes the card of a probe that was started with [`relayed`] and one interface.
    pub async fn new(netns: &Netns, probe: Probe<'_>, control: &str) -> Result<Self> {
        let mut all = Self::all_of(netns, probe, control).await?;
        ensure!(all.len() == 1, "{} interfaces", all.len());
        all.pop().context("no card")
    }

    /// Takes the cards of all interfaces in networks of a probe that was started with [`relayed`].
    pub async fn all_of(netns: &Netns, mut probe: Probe<'_>, control: &str) -> Result<Vec<Self>> {
        let interfaces = probe.guest.describe().await?.network_interfaces;
        let machine = probe.expect_ok("identify").await?;
        let nics = machine["nics"].as_array().context("no cards")?;
        let mut free: Vec<usize> = (0..nics.len()).collect();
        let mut lent = Vec::new();
        let mut ends = Vec::new();
        for (place, interface) in (0..).zip(interfaces) {
            let nic = nics
                .iter()
                .position(|it| it["mac"] == interface.mac_address);
            let nic = nic.with_context(|| format!("no card of {interface:?}: {machine}"))?;
            free.retain(|it| *it != nic);
            lent.push(nic.to_string());
            ends.push(Self {
                instance: probe.guest.id.clone(),
                mac: mac(&interface.mac_address)?,
                ipv4: interface.private_ipv4.parse()?,
                ipv6: match interface.private_ipv6.as_str() {
                    "" => None,
                    text => Some(text.parse()?),
                },
                control: Wire::open(netns, control, CONTROL)?,
                place,
                tap: Wire::open(netns, &interface.tap_name, 0)?,
                interface,
                number: 0,
                waiting: Vec::new(),
                inbox: Vec::new(),
            });
        }
        let [other] = free[..] else {
            anyhow::bail!("not one card for control: {machine}");
        };
        let command = format!("relay nic={} control={other}", lent.join(","));
        probe.send(&command).await?;
        for end in &mut ends {
            end.listens(&mut probe, &command).await?;
        }
        Ok(ends)
    }

    /// Waits until the probe relays. It answers only when it ends, or when it can't. What comes
    /// before it listens is lost.
    async fn listens(&mut self, probe: &mut Probe<'_>, command: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now();
        while self.number == 0 || !self.waiting.is_empty() {
            if Instant::now() >= again {
                self.waiting.clear();
                self.message(SEND, &[])?;
                again = Instant::now() + AGAIN;
            }
            if let Ok(answer) = tokio::time::timeout(LOOK, probe.answer()).await {
                anyhow::bail!("`{command}` was answered with {:?}", answer?);
            }
            ensure!(
                Instant::now() < deadline,
                "no relay: {}",
                probe.guest.logs()
            );
            self.take()?;
        }
        Ok(())
    }

    /// Its address of a family.
    pub fn address(&self, ipv6: bool) -> Option<IpAddr> {
        if ipv6 {
            self.ipv6.map(IpAddr::V6)
        } else {
            Some(IpAddr::V4(self.ipv4))
        }
    }

    /// Whether an address is its.
    pub fn has(&self, address: IpAddr) -> bool {
        self.address(address.is_ipv6()) == Some(address)
    }

    /// Packets as an honest guest sends them, by way of the host.
    pub fn frames_of(&self, packets: &[Packet]) -> Vec<Vec<u8>> {
        let frames = packets.iter().map(|it| it.frames(self.mac, HOST_MAC));
        frames.flatten().collect()
    }

    /// Has it send frames as they are. They may be on their way yet when it returns.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        let mut content = Vec::new();
        for frame in frames {
            if content.len() + 2 + frame.len() > MESSAGE_BYTES && !content.is_empty() {
                self.message(SEND, &content)?;
                content.clear();
            }
            content.extend(u16::try_from(frame.len())?.to_be_bytes());
            content.extend(frame);
        }
        if !content.is_empty() {
            self.message(SEND, &content)?;
        }
        Ok(())
    }

    fn message(&mut self, kind: u8, content: &[u8]) -> Result<()> {
        while self.waiting.len() >= WINDOW {
            self.hear(Instant::now() + PATIENCE)?;
        }
        self.number += 1;
        let kind = self.place << 4 | kind;
        let message = [&[kind], &self.number.to_be_bytes()[..], content].concat();
        let frame = packet::frame([2, 0, 0, 0, 0, 1], [0xff; 6], CONTROL, &message);
        self.control.send(&frame)?;
        self.waiting.push(self.number);
        Ok(())
    }

    /// Takes in what the probe has said; waits for something, if there is nothing yet.
    fn hear(&mut self, deadline: Instant) -> Result<()> {
        let silent = || {
            format!(
                "the probe of {} has gone silent: {:?}",
                self.instance, self.waiting
            )
        };
        ensure!(Instant::now() < deadline, silent());
        if !self.take()? {
            self.control.wait(deadline)?;
            self.take()?;
        }
        Ok(())
    }

    /// Takes in what the probe has said; whether it has said anything.
    pub(super) fn take(&mut self) -> Result<bool> {
        let mut any = false;
        while let Some(message) = self.control.receive()? {
            any = true;
            let body = message.get(HEADER_BYTES..).context("a short message")?;
            let (head, mut rest) = body.split_at_checked(5).context("a short message")?;
            let number = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
            // Those of the guest's other cards come here as well.
            if head[0] >> 4 != self.place {
                continue;
            }
            match head[0] & 15 {
                SENT => self.waiting.retain(|it| *it != number),
                RECEIVED => {
                    while let Some((length, after)) = rest.split_first_chunk() {
                        let length = usize::from(u16::from_be_bytes(*length));
                        if length == 0 {
                            break;
                        }
                        let frame = after.get(..length).context("a frame that is cut off")?;
                        self.inbox.push(frame.to_vec());
                        rest = &after[length..];
                    }
                }
                _ => {}
            }
        }
        Ok(any)
    }

    /// Waits until all that it was told to send has been taken in by the host.
    pub fn sent(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.waiting.is_empty() {
            self.hear(deadline)?;
        }
        Ok(())
    }

    /// Waits until the guest has all that the host has sent to it so far.
    pub(super) fn caught_up(&mut self, number: u32) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let content = number.to_be_bytes();
        let frame = packet::frame(HOST_MAC, self.mac, MARKER, &content);
        let mut again = Instant::now();
        loop {
            let found = self.inbox.iter().any(|it| marker(it) == Some(number));
            if found {
                return Ok(());
            }
            if Instant::now() >= again {
                self.tap.send(&frame)?;
                again = Instant::now() + Duration::from_secs(1);
            }
            if !self.take()? {
                self.control.wait(again.min(deadline))?;
            }
            ensure!(
                Instant::now() < deadline,
                "the probe of {} has gone silent",
                self.instance
            );
        }
    }

    /// Gives the card back to the probe.
    pub async fn end(mut self, probe: &mut Probe<'_>) -> Result<()> {
        self.message(END, &[])?;
        let answer = probe.answer().await?;
        ensure!(answer["ok"] == true, "{answer}");
        Ok(())
    }
}
