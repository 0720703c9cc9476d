//! Fragments that contradict each other, or belong to somebody else.

use anyhow::{Result, ensure};
use hearth_tests::net::{Cut, End, HOST_MAC, OUTSIDE4, OUTSIDE6, Packet};

use crate::scene::{ATTACKER, Case, NEIGHBOUR, Scene};

/// Fragments that overlap: which bytes count would be the receiver's choice (RFC 5722).
pub fn overlapping(scene: &mut Scene) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for ipv6 in [false, true] {
        let own = scene.address(ATTACKER, ipv6)?;
        let outside = if ipv6 { OUTSIDE6 } else { OUTSIDE4 };
        for to in [scene.address(NEIGHBOUR, ipv6)?, outside] {
            // The same datagram cut at 32 bytes and at 48.
            let mut packet = scene.udp(own, to);
            packet.filler = 200;
            packet.cut = Cut::Fragments(32);
            let fine = scene.frames(&packet);
            packet.cut = Cut::Fragments(48);
            let coarse = scene.frames(&packet);
            let frames = [&fine[..1], &coarse].concat();
            cases.push(Case::ignored(format!("overlaps, to {to}"), frames));
        }
    }
    Ok(cases)
}

fn cut(packet: &mut Packet) {
    packet.filler = 100;
    packet.cut = Cut::Fragments(48);
}

/// The neighbour's datagram is not completed, and not spoilt either, by a fragment that the
/// attacker sends in its name.
pub fn another_guests_datagram(scene: &mut Scene) -> Result<()> {
    for ipv6 in [false, true] {
        let neighbour = scene.address(NEIGHBOUR, ipv6)?;
        let outside = if ipv6 { OUTSIDE6 } else { OUTSIDE4 };
        let mut packet = scene.udp(neighbour, outside);
        cut(&mut packet);
        let honest = packet.frames(scene.neighbour().mac, HOST_MAC);
        let false_ones = scene.frames(&packet);
        ensure!(honest.len() > 2, "{}", honest.len());
        let (first, rest) = honest.split_at(1);
        scene.lab.guests[NEIGHBOUR].send(first)?;
        scene.lab.guests[NEIGHBOUR].sent()?;
        scene.lab.guests[ATTACKER].send(&false_ones[1..])?;
        let arrived = scene.lab.arrived()?;
        ensure!(arrived.is_empty(), "completed by another: {arrived:?}");
        scene.lab.guests[NEIGHBOUR].send(rest)?;
        let wanted = [(End::Outside, packet.tag)];
        let arrived = scene.lab.arrived_with(&wanted)?;
        ensure!(arrived.len() == 1, "spoilt by another: {arrived:?}");
    }
    Ok(())
}
