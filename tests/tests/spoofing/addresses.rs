//! Somebody else's addresses as the source.

use std::net::IpAddr;

use anyhow::Result;
use hearth_tests::net::{HOST_MAC, HOST4, HOST6, OUTSIDE4, OUTSIDE6};

use crate::scene::{ATTACKER, Case, NEIGHBOUR, STRANGER, Scene};

pub fn ethernet(scene: &mut Scene) -> Result<Vec<Case>> {
    let own = scene.address(ATTACKER, false)?;
    let own6 = scene.address(ATTACKER, true)?;
    let mut cases = Vec::new();
    for (name, mac) in [
        ("an address that nobody has", [2, 1, 2, 3, 4, 5]),
        ("the neighbour's", scene.neighbour().mac),
        ("the host's", HOST_MAC),
        ("broadcast", [0xff; 6]),
        ("multicast", [1, 0, 0x5e, 0, 0, 1]),
        ("zero", [0; 6]),
    ] {
        for (source, destination) in [
            (own, OUTSIDE4),
            (own6, OUTSIDE6),
            (own, scene.address(NEIGHBOUR, false)?),
        ] {
            let packet = scene.udp(source, destination);
            let name = format!("from {name}, as Ethernet has it, to {destination}");
            cases.push(Case::counted(name, packet.frames(mac, HOST_MAC)));
        }
    }
    Ok(cases)
}

fn from_all(
    scene: &mut Scene,
    sources: &[(&str, IpAddr)],
    destinations: &[IpAddr],
) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, source) in sources {
        let mut frames = Vec::new();
        for destination in destinations.iter().filter(|it| *it != source) {
            let packet = scene.udp(*source, *destination);
            frames.extend(scene.frames(&packet));
        }
        let name = format!("from {name}, {source}");
        // The kernel lets these two into no chain.
        let is_counted = !(source.is_ipv6() && (source.is_loopback() || source.is_multicast()));
        cases.push(Case {
            name,
            frames,
            is_counted,
        });
    }
    Ok(cases)
}

pub fn ipv4(scene: &mut Scene) -> Result<Vec<Case>> {
    let neighbour = scene.address(NEIGHBOUR, false)?;
    let sources = [
        ("the neighbour", neighbour),
        ("another network's guest", scene.address(STRANGER, false)?),
        ("nobody in the network", [10, 20, 0, 77].into()),
        ("the outside", [203, 0, 113, 9].into()),
        ("the gateway", [10, 20, 0, 1].into()),
        ("another gateway", [10, 30, 0, 1].into()),
        ("the host", HOST4),
        ("unspecified", [0, 0, 0, 0].into()),
        ("loopback", [127, 0, 0, 1].into()),
        ("link-local", [169, 254, 3, 4].into()),
        ("metadata", [169, 254, 169, 254].into()),
        ("multicast", [224, 0, 0, 1].into()),
        ("broadcast", [255, 255, 255, 255].into()),
        ("the network's broadcast", [10, 20, 0, 255].into()),
    ];
    let to = [
        OUTSIDE4,
        neighbour,
        scene.address(STRANGER, false)?,
        [10, 20, 0, 1].into(),
        HOST4,
    ];
    from_all(scene, &sources, &to)
}

pub fn ipv6(scene: &mut Scene) -> Result<Vec<Case>> {
    let neighbour = scene.address(NEIGHBOUR, true)?;
    let at = |text: &str| text.parse::<IpAddr>();
    let sources = [
        ("the neighbour", neighbour),
        ("nobody in the network", at("fd12:3456:789a:1::77")?),
        ("the outside", at("2001:db8:1::9")?),
        ("the gateway", at("fd12:3456:789a:1::1")?),
        ("the router", at("fe80::1")?),
        ("link-local", at("fe80::1234")?),
        ("the host", HOST6),
        ("unspecified", at("::")?),
        ("loopback", at("::1")?),
        ("an IPv4 address", at("::ffff:10.20.0.5")?),
        ("multicast", at("ff02::1")?),
    ];
    let to = [OUTSIDE6, neighbour, at("fd12:3456:789a:1::1")?, HOST6];
    from_all(scene, &sources, &to)
}
