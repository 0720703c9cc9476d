//! IP packets, as they are sent and as they are seen. Each carries a number at the start and at
//! the end of its payload, by which it is known again wherever it arrives, also in fragments.

use std::net::IpAddr;

use super::{fragments, header};

/// Flags of TCP (RFC 9293, section 3.1).
#[allow(missing_docs)]
pub mod tcp {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PUSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URGENT: u8 = 32;
}

/// IP protocol numbers.
#[allow(missing_docs)]
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const GRE: u8 = 47;
    pub const ICMPV6: u8 = 58;
    /// "Any private encryption scheme": nobody's business.
    pub const PRIVATE: u8 = 99;
}

const START: [u8; 4] = *b"HtSt";
const END: [u8; 4] = *b"HtEn";
/// Of ICMP errors, which quote packets with the marks above.
const ERROR_START: [u8; 4] = *b"HtEs";
const ERROR_END: [u8; 4] = *b"HtEe";

/// The first sequence number of whoever speaks TCP in here.
const SEQUENCE: u32 = 1000;

/// What follows the IP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// TCP with ports and flags.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// See [`tcp`].
        flags: u8,
    },
    /// UDP with ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6, by the family of the addresses.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// Of echoes.
        id: u16,
    },
    /// An ICMP or ICMPv6 error about a packet, of which it quotes the start.
    Error {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// An IP packet.
        quoted: Vec<u8>,
    },
    /// Another protocol, by its number.
    Other(u8),
}

/// How a packet goes over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// In one.
    #[default]
    Whole,
    /// In fragments of so many bytes, a multiple of 8.
    Fragments(usize),
    /// The same, the last one first.
    Backwards(usize),
    /// All but the first fragment.
    WithoutFirst(usize),
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// What follows the IP header.
    pub body: Body,
    /// By which it is known again.
    pub tag: u32,
    /// Bytes of payload between the two marks.
    pub filler: usize,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and content, a multiple of 8 bytes whose first two are
    /// filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// In how many pieces it goes.
    pub cut: Cut,
}

/// A part of a packet that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As far as it can be told.
    pub packet: Packet,
    /// The mark at the start was in it.
    pub start: bool,
    /// The mark at the end was in it.
    pub end: bool,
}

impl Packet {
    /// A plain packet.
    pub fn new(source: IpAddr, destination: IpAddr, body: Body, tag: u32) -> Self {
        Self {
            source,
            destination,
            body,
            tag,
            filler: 16,
            options: Vec::new(),
            extensions: Vec::new(),
            cut: Cut::Whole,
        }
    }

    /// Its IP protocol number.
    pub fn protocol(&self) -> u8 {
        match &self.body {
            Body::Tcp { .. } => protocol::TCP,
            Body::Udp { .. } => protocol::UDP,
            Body::Icmp { .. } | Body::Error { .. } if self.source.is_ipv4() => protocol::ICMP,
            Body::Icmp { .. } | Body::Error { .. } => protocol::ICMPV6,
            Body::Other(number) => *number,
        }
    }

    /// What whoever got this one, as it came, sends back.
    pub fn answer(&self, tag: u32) -> Self {
        let body = match &self.body {
            Body::Tcp {
                source,
                destination,
                flags,
            } => Body::Tcp {
                source: *destination,
                destination: *source,
                flags: if flags & tcp::SYN != 0 && flags & tcp::ACK == 0 {
                    tcp::SYN | tcp::ACK
                } else {
                    tcp::ACK
                },
            },
            Body::Udp {
                source,
                destination,
            } => Body::Udp {
                source: *destination,
                destination: *source,
            },
            Body::Icmp { kind, code, id } => Body::Icmp {
                kind: match (kind, self.source.is_ipv4()) {
                    (8, true) => 0,
                    (0, true) => 8,
                    (128, false) => 129,
                    (129, false) => 128,
                    // Timestamps and the like: a request's answer is the next number.
                    (kind, _) => kind + 1,
                },
                code: *code,
                id: *id,
            },
            body => body.clone(),
        };
        Self::new(self.destination, self.source, body, tag)
    }

    /// What `from` says when it can't do anything with this packet as it came.
    pub fn error(&self, from: IpAddr, tag: u32) -> Self {
        // "Port unreachable" of both families.
        let (kind, code) = if from.is_ipv4() { (3, 3) } else { (1, 4) };
        let mut quoted = self.ip();
        let header = if from.is_ipv4() { 20 } else { 40 };
        quoted.truncate(header + self.options.len() + 8);
        let body = Body::Error { kind, code, quoted };
        Self::new(from, self.source, body, tag)
    }

    /// The IP packet, whole.
    pub fn ip(&self) -> Vec<u8> {
        header::ip(self, self.transport(), None)
    }

    /// The IP packets that it goes in.
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        fragments::pieces(self, self.transport())
    }

    /// Ethernet frames of it.
    pub fn frames(&self, source: [u8; 6], destination: [u8; 6]) -> Vec<Vec<u8>> {
        let kind = if self.source.is_ipv4() {
            0x0800
        } else {
            0x86dd
        };
        let pieces = self.pieces().into_iter();
        pieces
            .map(|ip| frame(source, destination, kind, &ip))
            .collect()
    }

    fn payload(&self) -> Vec<u8> {
        let (start, end) = match self.body {
            Body::Error { .. } => (ERROR_START, ERROR_END),
            _ => (START, END),
        };
        let tag = self.tag.to_be_bytes();
        let filler = vec![0x5a; self.filler];
        [&start[..], &tag, &filler, &end, &tag].concat()
    }

    /// Everything after the IP header, with its checksum.
    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match &self.body {
            Body::Tcp {
                source,
                destination,
                flags,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                // Always of the start of the stream, so that it is within every window.
                let first = flags & tcp::SYN != 0;
                bytes.extend((SEQUENCE + u32::from(!first)).to_be_bytes());
                let seen = if flags & tcp::ACK != 0 {
                    SEQUENCE + 1
                } else {
                    0
                };
                bytes.extend(seen.to_be_bytes());
                bytes.extend([0x50, *flags, 0xff, 0xff, 0, 0, 0, 0]);
            }
            Body::Udp {
                source,
                destination,
            } => {
                bytes.extend(source.to_be_bytes());
                bytes.extend(destination.to_be_bytes());
                let length = 8 + self.payload().len();
                bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
                bytes.extend([0, 0]);
            }
            Body::Icmp { kind, code, id } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend([0, 1]);
            }
            Body::Error { kind, code, quoted } => {
                bytes.extend([*kind, *code, 0, 0, 0, 0, 0, 0]);
                bytes.extend(quoted);
            }
            // Also a header of GRE (RFC 2784): version 0, IPv4 inside.
            Body::Other(_) => bytes.extend([0, 0, 8, 0]),
        }
        bytes.extend(self.payload());
        header::set_checksum(self, &mut bytes);
        bytes
    }

    /// Looks for one of our packets, or a fragment of it, in what starts with an IP header.
    pub fn see(ip: &[u8]) -> Option<Seen> {
        let parsed = header::parse(ip)?;
        let rest = parsed.rest;
        let word = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let is_error = match parsed.protocol {
            protocol::ICMP => matches!(rest.first()?, 3 | 4 | 5 | 11 | 12),
            protocol::ICMPV6 => rest.first()? & 0x80 == 0,
            _ => false,
        } && parsed.is_first;
        let body = match parsed.protocol {
            _ if !parsed.is_first => Body::Other(parsed.protocol),
            protocol::TCP => Body::Tcp {
                source: word(0)?,
                destination: word(2)?,
                flags: *rest.get(13)?,
            },
            protocol::UDP => Body::Udp {
                source: word(0)?,
                destination: word(2)?,
            },
            protocol::ICMP | protocol::ICMPV6 if is_error => Body::Error {
                kind: *rest.first()?,
                code: *rest.get(1)?,
                quoted: Vec::new(),
            },
            protocol::ICMP | protocol::ICMPV6 => Body::Icmp {
                kind: *rest.first()?,
                code: *rest.get(1)?,
                id: word(4)?,
            },
            other => Body::Other(other),
        };
        let marks = if is_error {
            [ERROR_START, ERROR_END]
        } else {
            [START, END]
        };
        let [start, end] = marks.map(|mark| tag_after(rest, mark));
        let tag = start.or(end)?;
        Some(Seen {
            packet: Self::new(parsed.source, parsed.destination, body, tag),
            start: start.is_some(),
            end: end.is_some(),
        })
    }
}

fn tag_after(bytes: &[u8], mark: [u8; 4]) -> Option<u32> {
    let at = bytes.windows(4).position(|it| it == mark)?;
    let tag = bytes.get(at + 4..at + 8)?.try_into().ok()?;
    Some(u32::from_be_bytes(tag))
}

/// An Ethernet frame, not shorter than Ethernet wants it.
pub fn frame(source: [u8; 6], destination: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &kind.to_be_bytes(), content].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv6 packet with this protocol, hop limit and content, in which the checksum is filled in.
pub fn raw_ipv6(
    source: std::net::Ipv6Addr,
    destination: std::net::Ipv6Addr,
    (protocol, hop_limit): (u8, u8),
    mut content: Vec<u8>,
) -> Vec<u8> {
    let body = Body::Other(protocol);
    let packet = Packet::new(source.into(), destination.into(), body, 0);
    header::set_checksum(&packet, &mut content);
    let mut ip = header::ip(&packet, content, None);
    ip[7] = hop_limit;
    ip
}

/// The IP packet in a frame, if there is one.
pub fn ip_of(frame: &[u8]) -> Option<&[u8]> {
    matches!(frame.get(12..14)?, [0x08, 0x00] | [0x86, 0xdd]).then(|| &frame[14..])
}
