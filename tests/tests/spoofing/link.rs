//! Frames with tags, and of protocols that are not IP.

use anyhow::Result;
use hearth_tests::net::{HOST_MAC, OUTSIDE4, OUTSIDE6, packet};

use crate::scene::{ATTACKER, Case, NEIGHBOUR, STRANGER, Scene};

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;

/// Puts tags (IEEE 802.1Q) between a frame's addresses and its type.
fn with_tags(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (kind, id) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(id.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

pub fn tagged(scene: &mut Scene) -> Result<Vec<Case>> {
    let own = scene.address(ATTACKER, false)?;
    let own6 = scene.address(ATTACKER, true)?;
    let neighbour = scene.address(NEIGHBOUR, false)?;
    let neighbour6 = scene.address(NEIGHBOUR, true)?;
    let stranger = scene.address(STRANGER, false)?;
    let mut cases = Vec::new();
    let tags: [&[(u16, u16)]; 7] = [
        &[(VLAN, 5)],
        &[(SERVICE_VLAN, 5)],
        &[(VLAN, 5), (VLAN, 6)],
        &[(SERVICE_VLAN, 5), (VLAN, 6)],
        &[(SERVICE_VLAN, 0), (VLAN, 6)],
        &[(VLAN, 0), (VLAN, 6)],
        &[(VLAN, 0x0fff)],
    ];
    for tags in tags {
        // Honest but for the tags: there is no such network.
        for (from, to) in [
            (own, neighbour),
            (own, OUTSIDE4),
            (own6, neighbour6),
            (own6, OUTSIDE6),
            (neighbour, OUTSIDE4),
        ] {
            let packet = scene.udp(from, to);
            let frames = scene.frames(&packet);
            let frames = frames.iter().map(|it| with_tags(it, tags)).collect();
            let name = format!("tags {tags:04x?}, {from} to {to}");
            cases.push(Case::ignored(name, frames));
        }
    }
    // A tag of a priority alone is no other network, and so no way around the rules.
    let priority: [&[(u16, u16)]; 4] = [
        &[(VLAN, 0)],
        &[(VLAN, 0xe000)],
        &[(SERVICE_VLAN, 0)],
        &[(SERVICE_VLAN, 0), (VLAN, 0)],
    ];
    for tags in priority {
        for (from, to) in [
            (neighbour, OUTSIDE4),
            (stranger, neighbour),
            (own, stranger),
            ([203, 0, 113, 9].into(), neighbour),
            (neighbour6, OUTSIDE6),
        ] {
            let packet = scene.udp(from, to);
            let frames = scene.frames(&packet);
            let frames = frames.iter().map(|it| with_tags(it, tags)).collect();
            let name = format!("a priority {tags:04x?}, {from} to {to}");
            cases.push(Case::ignored(name, frames));
        }
    }
    Ok(cases)
}

pub fn other_protocols(scene: &mut Scene) -> Result<Vec<Case>> {
    let mac = scene.attacker().mac;
    let victim = scene.neighbour().mac;
    let all_bridges = [1, 0x80, 0xc2, 0, 0, 0];
    let all_neighbours = [1, 0x80, 0xc2, 0, 0, 0x0e];
    let mut cases = Vec::new();
    for (name, kind) in [
        ("LLDP", 0x88cc),
        ("EAPOL", 0x888e),
        ("MPLS", 0x8847),
        ("PPPoE discovery", 0x8863),
        ("PPPoE", 0x8864),
        ("IPX", 0x8137),
        ("a local experiment", 0x88b5),
        ("nobody's", 0x1234),
        ("TEB", 0x6558),
        ("loopback", 0x9000),
        // A length, as of 802.3: spanning trees and the like.
        ("802.3", 0x0026),
    ] {
        let mut frames = Vec::new();
        for to in [all_bridges, all_neighbours, [0xff; 6], HOST_MAC, victim] {
            let content = if kind == 0x0026 {
                // LLC of spanning trees, a bridge protocol data unit.
                [&[0x42, 0x42, 3, 0, 0, 0, 0, 0][..], &[0; 30], b"HtSt"].concat()
            } else {
                [&[0, 0, 0x10, 0][..], b"HtSt", &[0; 40]].concat()
            };
            frames.push(packet::frame(mac, to, kind, &content));
        }
        cases.push(Case::ignored(name, frames));
    }
    // Short of a header.
    let own = scene.address(ATTACKER, false)?;
    let whole = scene.udp(own, OUTSIDE4);
    let whole = scene.frames(&whole).remove(0);
    let cut = [14, 15, 20, 33].map(|it| whole[..it].to_vec());
    cases.push(Case::ignored("cut off", cut.to_vec()));
    Ok(cases)
}
