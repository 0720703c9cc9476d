//! Servers that a guest is not, ways that it may not choose, headers that nobody should like.

use std::net::IpAddr;

use anyhow::Result;
use hearth_tests::net::{Body, HOST_MAC, OUTSIDE4, OUTSIDE6, Packet};

use crate::scene::{ATTACKER, Case, NEIGHBOUR, Scene};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// DHCP and DHCPv6 servers.
pub fn servers(scene: &mut Scene) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (ipv6, source, destination) in [(false, 67, 68), (true, 547, 546)] {
        let own = scene.address(ATTACKER, ipv6)?;
        let neighbour = scene.address(NEIGHBOUR, ipv6)?;
        let everybody: IpAddr = if ipv6 {
            "ff02::1".parse()?
        } else {
            [255; 4].into()
        };
        let outside = if ipv6 { OUTSIDE6 } else { OUTSIDE4 };
        for (from, to) in [(own, neighbour), (own, everybody), (own, outside)] {
            let body = Body::Udp {
                source,
                destination,
            };
            let packet = Packet::new(from, to, body, scene.tag());
            let mut frames = scene.frames(&packet);
            frames.extend(packet.frames(scene.attacker().mac, [0xff; 6]));
            frames.extend(packet.frames(scene.attacker().mac, scene.neighbour().mac));
            // The last is for another card: the kernel takes it for nothing.
            let name = format!("port {source} to port {destination} of {to}");
            let wanted = frames.split_off(2);
            cases.push(Case::counted(name.clone(), frames));
            cases.push(Case::ignored(format!("{name}, to its card"), wanted));
        }
    }
    Ok(cases)
}

/// Source routes of IPv4 (RFC 791) and of IPv6 (RFC 5095).
pub fn routes(scene: &mut Scene) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let own = scene.address(ATTACKER, false)?;
    let neighbour = scene.address(NEIGHBOUR, false)?;
    for (name, kind) in [
        ("record route", 7),
        ("loose source route", 131),
        ("strict source route", 137),
    ] {
        for place in [4, 8] {
            for before in [0, 4] {
                // Behind options that do nothing, too; the way is over, or goes on to the
                // neighbour.
                let mut options = vec![1; before];
                options.extend([kind, 7, place, 10, 20, 0, 5, 0]);
                for to in [neighbour, OUTSIDE4, [10, 20, 0, 1].into()] {
                    let mut packet = scene.udp(own, to);
                    packet.options = options.clone();
                    let frames = scene.frames(&packet);
                    // A way that is over is no option that nftables knows; the kernel itself
                    // refuses it, by `accept_source_route`.
                    cases.push(Case {
                        is_counted: place == 4,
                        ..Case::counted(format!("{name} to {to}"), frames)
                    });
                }
            }
        }
    }
    let own = scene.address(ATTACKER, true)?;
    let neighbour = scene.address(NEIGHBOUR, true)?;
    let IpAddr::V6(next) = neighbour else {
        return Ok(cases);
    };
    let gateway: IpAddr = "fd12:3456:789a:1::1".parse()?;
    for left in [0, 1, 255] {
        for to in [neighbour, OUTSIDE6, gateway] {
            for before in [false, true] {
                let mut packet = scene.udp(own, to);
                let mut route = vec![0, 0, 0, left, 0, 0, 0, 0];
                route.extend(next.octets());
                if before {
                    let padding = vec![0, 0, 1, 4, 0, 0, 0, 0];
                    packet.extensions.push((DESTINATION_OPTIONS, padding));
                }
                packet.extensions.push((ROUTING, route));
                let frames = scene.frames(&packet);
                let name = format!("routing header 0 with {left} left, to {to}");
                cases.push(Case::counted(name, frames));
            }
        }
    }
    Ok(cases)
}

/// Options that a router has to refuse (RFC 8200, section 4.2).
pub fn hop_by_hop(scene: &mut Scene) -> Result<Vec<Case>> {
    let own = scene.address(ATTACKER, true)?;
    let mut cases = Vec::new();
    for to in [scene.address(NEIGHBOUR, true)?, OUTSIDE6] {
        for (name, option) in [
            ("unknown, discard", [0x40, 4, 0, 0, 0, 0]),
            ("unknown, discard and tell", [0x80, 4, 0, 0, 0, 0]),
            (
                "unknown, discard and tell unless it was for many",
                [0xc0, 4, 0, 0, 0, 0],
            ),
            ("a jumbo payload that is none", [0xc2, 4, 0, 0, 0, 16]),
            (
                "an option that goes beyond the header",
                [1, 200, 0, 0, 0, 0],
            ),
        ] {
            let mut packet = scene.udp(own, to);
            let content = [&[0, 0][..], &option].concat();
            packet.extensions = vec![(HOP_BY_HOP, content)];
            // Frames are for the host; what comes after is its kernel's to refuse.
            let frames = packet.frames(scene.attacker().mac, HOST_MAC);
            cases.push(Case::ignored(format!("{name}, to {to}"), frames));
        }
    }
    Ok(cases)
}
