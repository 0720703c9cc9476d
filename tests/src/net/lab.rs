//! All the ends between which packets go.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    GuestEnd, Outside, Packet, host_end::HostEnd, outside::marker, packet::Seen, packet::ip_of,
};
use crate::Netns;

/// Ends a test in which something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The host that the agent runs on.
    Host,
    /// Beyond the host's uplink.
    Outside,
    /// A guest, by its number in [`Lab::guests`].
    Guest(usize),
}

/// A packet of ours, and where it has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub end: End,
    /// How it looked there.
    pub packet: Packet,
}

/// All ends.
pub struct Lab {
    /// The outside.
    pub outside: Outside,
    /// Guests that lend their card.
    pub guests: Vec<GuestEnd>,
    host: HostEnd,
    marker: u32,
    /// Packets of which a part has arrived, by end and number: the start and the end of it.
    parts: BTreeMap<(End, u32), (Option<Packet>, bool)>,
}

impl Lab {
    /// Opens the host's end, and takes the others.
    pub fn new(host: &Netns, outside: Outside, guests: Vec<GuestEnd>) -> Result<Self> {
        Ok(Self {
            host: HostEnd::new(host)?,
            outside,
            guests,
            marker: 0,
            parts: BTreeMap::new(),
        })
    }

    /// Sends packets of one end. A guest's may be on their way yet when it returns.
    pub fn send(&mut self, from: End, packets: &[Packet]) -> Result<()> {
        match from {
            End::Host => packets.iter().try_for_each(|it| self.host.send(it)),
            End::Outside => packets.iter().try_for_each(|it| self.outside.send(it)),
            End::Guest(number) => {
                let guest = &mut self.guests[number];
                let frames = guest.frames_of(packets);
                guest.send(&frames)
            }
        }
    }

    /// Waits until everything that was sent has come to where it comes to; gives every frame that
    /// a guest or the outside got, without our markers, by end.
    pub fn settle(&mut self) -> Result<Vec<(End, Vec<u8>)>> {
        for guest in &mut self.guests {
            guest.sent()?;
        }
        self.marker += 1;
        let mut frames = Vec::new();
        // Twice around: what one end answered by itself has come to another.
        for (number, guest) in self.guests.iter_mut().enumerate() {
            guest.caught_up(self.marker)?;
            let inbox = std::mem::take(&mut guest.inbox).into_iter();
            frames.extend(inbox.map(|it| (End::Guest(number), it)));
        }
        let deadline = Instant::now() + PATIENCE;
        self.outside.mark(self.marker)?;
        loop {
            let Some(frame) = self.outside.receive()? else {
                ensure!(Instant::now() < deadline, "the uplink has gone silent");
                self.outside.wait(deadline)?;
                continue;
            };
            if marker(&frame) == Some(self.marker) {
                break;
            }
            self.outside.inbox.push(frame);
        }
        let inbox = std::mem::take(&mut self.outside.inbox).into_iter();
        frames.extend(inbox.map(|it| (End::Outside, it)));
        frames.retain(|it| marker(&it.1).is_none());
        Ok(frames)
    }

    /// Waits until everything that was sent has come to where it comes to; gives our packets that
    /// have arrived whole.
    pub fn arrived(&mut self) -> Result<Vec<Arrival>> {
        let mut arrivals = Vec::new();
        for (end, frame) in self.settle()? {
            if let Some(seen) = ip_of(&frame).and_then(Packet::see) {
                self.part(end, seen, &mut arrivals);
            }
        }
        for seen in self.host.receive() {
            self.part(End::Host, seen, &mut arrivals);
        }
        Ok(arrivals)
    }

    /// [`Self::arrived`], until all these have arrived: some may be a little late.
    pub fn arrived_with(&mut self, wanted: &[(End, u32)]) -> Result<Vec<Arrival>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut all = self.arrived()?;
        loop {
            let is_there = |it: &(End, u32)| all.iter().any(|at| (at.end, at.packet.tag) == *it);
            if wanted.iter().all(is_there) || Instant::now() > deadline {
                return Ok(all);
            }
            std::thread::sleep(Duration::from_millis(20));
            all.extend(self.arrived()?);
        }
    }

    fn part(&mut self, end: End, seen: Seen, arrivals: &mut Vec<Arrival>) {
        if seen.start && seen.end {
            let packet = seen.packet;
            arrivals.push(Arrival { end, packet });
            return;
        }
        let key = (end, seen.packet.tag);
        let parts = self.parts.entry(key).or_default();
        if seen.start {
            parts.0 = Some(seen.packet);
        }
        parts.1 |= seen.end;
        if let (Some(packet), true) = parts.clone() {
            self.parts.remove(&key);
            arrivals.push(Arrival { end, packet });
        }
    }

    /// What has come to the host itself of our packets, whole or in part.
    pub fn at_the_host(&self) -> Vec<Seen> {
        self.host.receive()
    }

    /// Packets of which only a part has arrived.
    pub fn in_part(&self) -> Vec<(End, u32)> {
        self.parts.keys().copied().collect()
    }

    /// Which guest has an address.
    pub fn guest_with(&self, address: std::net::IpAddr) -> Option<usize> {
        self.guests.iter().position(|it| it.has(address))
    }

    /// Sends one packet; gives where it arrived, if it did.
    pub fn pass(&mut self, from: End, packet: &Packet) -> Result<Option<Arrival>> {
        self.send(from, std::slice::from_ref(packet))?;
        let mut arrived = self.arrived()?;
        arrived.retain(|it| it.packet.tag == packet.tag);
        ensure!(arrived.len() < 2, "{packet:?} became {arrived:#?}");
        Ok(arrived.pop())
    }

    /// Sends one packet that has to arrive there; gives how it looked.
    pub fn passes(&mut self, from: End, packet: &Packet, to: End) -> Result<Packet> {
        let arrival = self.pass(from, packet)?;
        let arrival =
            arrival.with_context(|| format!("from {from:?} never arrived: {packet:?}"))?;
        ensure!(arrival.end == to, "{packet:?} came to {arrival:?}");
        Ok(arrival.packet)
    }
}
