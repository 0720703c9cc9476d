//! Echo requests that wait for their answer's way. smoltcp answers a ping at once or never: while
//! it asks who the asker's neighbour is, the answer is lost, and an asker that the host's kernel
//! knows by a permanent entry has not sent ARP before. So such a request is kept, and given to
//! smoltcp again once a neighbour has answered, and after a second, as smoltcp asks for one
//! neighbour a second.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet,
    Icmpv6Message, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet,
};

use crate::cpu::clock;

/// Requests that wait at a time; of more, the oldest are dropped.
const MOST: usize = 16;

/// How long one waits, in nanoseconds; as Linux does for a neighbour.
const PATIENCE_NS: u64 = 3_000_000_000;

/// When one is tried again, in nanoseconds.
const AGAIN_NS: u64 = 1_010_000_000;

/// What of a frame matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    EchoRequest,
    EchoReply,
    /// Somebody says which address it has.
    Neighbour,
}

/// A request that smoltcp has had.
struct Request {
    came: u64,
    tried: u64,
    frame: Vec<u8>,
}

/// The requests, in the order in which they were tried.
#[derive(Default)]
pub struct Unanswered {
    requests: VecDeque<Request>,
    /// How many of them are to be given again.
    due: usize,
    /// An answer was sent since the last request came.
    answered: bool,
}

impl Unanswered {
    /// Smoltcp gets this frame.
    pub fn delivers(&mut self, frame: &[u8]) {
        self.answered = false;
        if kind(frame) == Some(Kind::Neighbour) {
            self.due = self.requests.len();
        }
    }

    /// Smoltcp has sent this frame.
    pub fn sends(&mut self, frame: &[u8]) {
        self.answered |= kind(frame) == Some(Kind::EchoReply);
    }

    /// Smoltcp is done with this frame, which came at this time.
    pub fn delivered(&mut self, frame: &[u8], came: u64) {
        if self.answered || kind(frame) != Some(Kind::EchoRequest) {
            return;
        }
        let tried = clock::now();
        if tried - came < PATIENCE_NS {
            if self.requests.len() == MOST {
                self.requests.pop_front();
                self.due = self.due.min(MOST - 1);
            }
            self.requests.push_back(Request {
                came,
                tried,
                frame: frame.to_vec(),
            });
        }
    }

    /// The next request to be given again, with the time when it came.
    pub fn next(&mut self) -> Option<(u64, Vec<u8>)> {
        if self.wait()? > 0 {
            return None;
        }
        self.due = self.due.saturating_sub(1);
        let request = self.requests.pop_front()?;
        Some((request.came, request.frame))
    }

    /// How long until there is one, in nanoseconds, if nobody answers.
    pub fn wait(&self) -> Option<u64> {
        let first = self.requests.front()?;
        let passed = clock::now() - first.tried;
        Some(match self.due {
            0 => AGAIN_NS.saturating_sub(passed),
            _ => 0,
        })
    }
}

fn kind(frame: &[u8]) -> Option<Kind> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    match frame.ethertype() {
        EthernetProtocol::Arp => {
            let arp = ArpPacket::new_checked(frame.payload()).ok()?;
            (arp.operation() == ArpOperation::Reply).then_some(Kind::Neighbour)
        }
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
            if ip.next_header() != IpProtocol::Icmp {
                return None;
            }
            match Icmpv4Packet::new_checked(ip.payload()).ok()?.msg_type() {
                Icmpv4Message::EchoRequest => Some(Kind::EchoRequest),
                Icmpv4Message::EchoReply => Some(Kind::EchoReply),
                _ => None,
            }
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(frame.payload()).ok()?;
            if ip.next_header() != IpProtocol::Icmpv6 {
                return None;
            }
            match Icmpv6Packet::new_checked(ip.payload()).ok()?.msg_type() {
                Icmpv6Message::EchoRequest => Some(Kind::EchoRequest),
                Icmpv6Message::EchoReply => Some(Kind::EchoReply),
                Icmpv6Message::NeighborAdvert => Some(Kind::Neighbour),
                _ => None,
            }
        }
        _ => None,
    }
}
