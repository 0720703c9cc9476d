//! Frames: Ethernet, IPv4 and IPv6, TCP, UDP, ICMP and whatever else, with right checksums.

use std::net::IpAddr;

use crate::firewall::explain::Transport;

/// A packet as it is written and as it is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub payload: Vec<u8>,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

impl Packet {
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8, payload: Vec<u8>) -> Self {
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            source,
            destination,
            protocol,
            payload,
            options: Vec::new(),
        }
    }

    /// The first packet of a connection.
    pub fn first(source: IpAddr, destination: IpAddr, protocol: u8, transport: Transport) -> Self {
        let payload = match transport {
            Transport::Ports {
                source: from,
                destination: to,
            } if protocol == 6 => return Self::tcp((source, from), (destination, to), SYN),
            Transport::Ports {
                source: from,
                destination: to,
            } => return Self::udp((source, from), (destination, to), b"hello"),
            Transport::Icmp { kind, code } => {
                vec![kind, code, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3, 4]
            }
            // For GRE these are no flags, version 0.
            Transport::Other => vec![0; 24],
        };
        Self::new(source, destination, protocol, payload)
    }

    pub fn tcp(from: (IpAddr, u16), to: (IpAddr, u16), flags: u8) -> Self {
        let mut payload = Vec::new();
        payload.extend(from.1.to_be_bytes());
        payload.extend(to.1.to_be_bytes());
        payload.extend(1000u32.to_be_bytes());
        payload.extend(if flags & ACK != 0 { 1001u32 } else { 0 }.to_be_bytes());
        payload.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        Self::new(from.0, to.0, 6, payload)
    }

    pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Self {
        let mut payload = Vec::new();
        payload.extend(from.1.to_be_bytes());
        payload.extend(to.1.to_be_bytes());
        let len = u16::try_from(data.len() + 8).expect("short");
        payload.extend(len.to_be_bytes());
        payload.extend([0, 0]);
        payload.extend(data);
        Self::new(from.0, to.0, 17, payload)
    }

    /// What the receiver sends back to this packet as it came.
    pub fn answer(&self) -> Self {
        let mut payload = self.payload.clone();
        match self.protocol {
            6 => {
                payload[0..4].rotate_left(2);
                let asked = self.payload[4..8].try_into().expect("a sequence number");
                let next = u32::from_be_bytes(asked).wrapping_add(1);
                payload[8..12].copy_from_slice(&next.to_be_bytes());
                payload[13] = SYN | ACK;
            }
            17 => payload[0..4].rotate_left(2),
            1 => payload[0] = 0,
            58 => payload[0] = 129,
            _ => {}
        }
        Self::new(self.destination, self.source, self.protocol, payload)
    }

    pub fn ports(&self) -> (u16, u16) {
        let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (port(0), port(2))
    }

    pub fn frame(&self) -> Vec<u8> {
        self.frame_of(&self.with_checksum(), 0)
    }

    /// A part of an IPv4 packet, with the payload as it is, from byte `offset` on.
    pub fn fragment(&self, offset: u16, more: bool) -> Vec<u8> {
        self.frame_of(&self.payload, (offset / 8) | (u16::from(more) << 13))
    }

    /// The payload with its checksum.
    pub fn with_checksum(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        let field = match self.protocol {
            6 => Some(16),
            17 => Some(6),
            1 | 58 => Some(2),
            _ => None,
        };
        if let Some(field) = field.filter(|it| payload.len() >= it + 2) {
            payload[field..field + 2].fill(0);
            let sum = match self.protocol {
                1 => checksum(&[&payload]),
                _ => checksum(&[&self.pseudo_header(payload.len()), &payload]),
            };
            payload[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        }
        payload
    }

    fn frame_of(&self, payload: &[u8], fragment: u16) -> Vec<u8> {
        let mut frame = [self.destination_mac, self.source_mac].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00]);
                let words = 5 + self.options.len() / 4;
                let len = u16::try_from(words * 4 + payload.len()).expect("short");
                let mut header = vec![0x40 | u8::try_from(words).expect("few"), 0];
                header.extend(len.to_be_bytes());
                header.extend([0, 1]);
                header.extend(fragment.to_be_bytes());
                header.extend([64, self.protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                let len = u16::try_from(payload.len()).expect("short");
                frame.extend(len.to_be_bytes());
                frame.extend([self.protocol, 255]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("one family"),
        }
        frame.extend(payload);
        frame
    }

    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        let mut header = Vec::new();
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(it) => header.extend(it.octets()),
                IpAddr::V6(it) => header.extend(it.octets()),
            }
        }
        header.extend(u32::try_from(len).expect("short").to_be_bytes());
        header.extend([0, 0, 0, self.protocol]);
        header
    }

    /// An IP packet, or `None` for other frames.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let destination_mac = frame.get(..6)?.try_into().ok()?;
        let source_mac = frame.get(6..12)?.try_into().ok()?;
        let ip = frame.get(14..)?;
        let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
        let v6 = |at: usize| {
            Some(IpAddr::from(
                <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
            ))
        };
        let mut packet = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let header = usize::from(ip.first()? & 15) * 4;
                let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
                Self::new(v4(12)?, v4(16)?, ip[9], ip.get(header..len)?.to_vec())
            }
            [0x86, 0xdd] => Self::new(v6(8)?, v6(24)?, *ip.get(6)?, ip.get(40..)?.to_vec()),
            _ => return None,
        };
        packet.source_mac = source_mac;
        packet.destination_mac = destination_mac;
        Some(packet)
    }
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or_default(),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).expect("folded")
}
