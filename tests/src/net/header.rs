//! IP headers, IPv6 extension headers, checksums.

use std::net::IpAddr;

use super::packet::{Packet, protocol};

/// Number of the fragment header (RFC 8200, section 4.5).
pub(super) const FRAGMENT: u8 = 44;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
const HOP_LIMIT: u8 = 64;

/// Which part of a packet a fragment has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment {
    /// In bytes.
    pub offset: usize,
    pub more: bool,
    pub id: u32,
}

/// An IP packet with this content.
pub(super) fn ip(packet: &Packet, content: Vec<u8>, fragment: Option<Fragment>) -> Vec<u8> {
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let words = 5 + packet.options.len() / 4;
            let length = short(4 * words + content.len());
            let mut header = vec![0x40 | u8::try_from(words).unwrap_or(15), 0];
            header.extend(length.to_be_bytes());
            let (id, place) = fragment.map_or((short(tag_id(packet)), 0), |it| {
                let more = u16::from(it.more) << 13;
                (short(it.id as usize & 0xffff), short(it.offset / 8) | more)
            });
            header.extend(id.to_be_bytes());
            header.extend(place.to_be_bytes());
            header.extend([HOP_LIMIT, packet.protocol(), 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header.extend(&packet.options);
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [header, content].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut rest = Vec::new();
            let fragment = fragment.map(|it| {
                let place = short(it.offset) | u16::from(it.more);
                let mut content = vec![0, 0];
                content.extend(place.to_be_bytes());
                content.extend(it.id.to_be_bytes());
                (FRAGMENT, content)
            });
            let headers: Vec<_> = packet.extensions.iter().cloned().chain(fragment).collect();
            let numbers = headers.iter().map(|it| it.0).chain([packet.protocol()]);
            let mut numbers = numbers.collect::<Vec<_>>().into_iter();
            let first = numbers.next().unwrap_or(packet.protocol());
            for ((number, mut header), next) in headers.into_iter().zip(numbers) {
                header[0] = next;
                if number != FRAGMENT {
                    header[1] = u8::try_from(header.len() / 8 - 1).unwrap_or(0);
                }
                rest.extend(header);
            }
            rest.extend(content);
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(short(rest.len()).to_be_bytes());
            header.extend([first, HOP_LIMIT]);
            header.extend(source.octets());
            header.extend(destination.octets());
            [header, rest].concat()
        }
        // A packet is of one family; nothing is what comes of another.
        _ => Vec::new(),
    }
}

fn tag_id(packet: &Packet) -> usize {
    packet.tag as usize & 0xffff
}

fn short(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// What is in an IP packet.
pub(super) struct Parsed<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Not a later fragment.
    pub is_first: bool,
    pub rest: &'a [u8],
}

pub(super) fn parse(ip: &[u8]) -> Option<Parsed<'_>> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| {
        Some(IpAddr::from(
            <[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?,
        ))
    };
    match ip.first()? >> 4 {
        4 => {
            let header = usize::from(ip[0] & 15) * 4;
            let length = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
            let place = u16::from_be_bytes(ip.get(6..8)?.try_into().ok()?);
            Some(Parsed {
                source: v4(12)?,
                destination: v4(16)?,
                protocol: *ip.get(9)?,
                is_first: place & 0x1fff == 0,
                rest: ip.get(header..length)?,
            })
        }
        6 => {
            let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
            let (mut protocol, mut rest) = (*ip.get(6)?, ip.get(40..40 + length)?);
            let mut is_first = true;
            loop {
                let length = match protocol {
                    FRAGMENT => {
                        let place = u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?);
                        is_first = place & 0xfff8 == 0;
                        8
                    }
                    HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS if is_first => {
                        8 * (1 + usize::from(*rest.get(1)?))
                    }
                    _ => break,
                };
                protocol = *rest.first()?;
                rest = rest.get(length..)?;
            }
            Some(Parsed {
                source: v6(8)?,
                destination: v6(24)?,
                protocol,
                is_first,
                rest,
            })
        }
        _ => None,
    }
}

/// Writes the checksum of TCP, UDP and ICMP into what follows the IP header.
pub(super) fn set_checksum(packet: &Packet, transport: &mut [u8]) {
    let at = match packet.protocol() {
        protocol::TCP => 16,
        protocol::UDP => 6,
        protocol::ICMP | protocol::ICMPV6 => 2,
        _ => return,
    };
    let sum = match packet.protocol() {
        protocol::ICMP => checksum(&[transport]),
        number => checksum(&[&pseudo_header(packet, transport.len(), number), transport]),
    };
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn pseudo_header(packet: &Packet, length: usize, number: u8) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [packet.source, packet.destination] {
        match address {
            IpAddr::V4(it) => header.extend(it.octets()),
            IpAddr::V6(it) => header.extend(it.octets()),
        }
    }
    header.extend([0, 0]);
    header.extend(short(length).to_be_bytes());
    header.extend([0, 0, 0, number]);
    header
}

/// The Internet checksum (RFC 1071).
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or_default()
}
