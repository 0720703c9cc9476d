//! Claims to be where somebody else is.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use hearth_tests::net::{HOST_MAC, packet};

use crate::scene::{Case, Scene};

const EVERYBODY: [u8; 6] = [0xff; 6];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// An ARP message (RFC 826).
fn message(operation: u8, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    [
        &[0, 1, 8, 0, 6, 4, 0, operation][..],
        &sender.0,
        &sender.1.octets(),
        &target.0,
        &target.1.octets(),
    ]
    .concat()
}

pub fn arp(scene: &mut Scene) -> Result<Vec<Case>> {
    let (own, mac) = (scene.attacker().ipv4, scene.attacker().mac);
    let (victim, victim_mac) = (scene.neighbour().ipv4, scene.neighbour().mac);
    let gateway = Ipv4Addr::new(10, 20, 0, 1);
    let other_gateway = Ipv4Addr::new(10, 30, 0, 1);
    let host = Ipv4Addr::new(198, 51, 100, 1);
    let router = Ipv4Addr::new(198, 51, 100, 2);
    let mut cases = Vec::new();
    let mut case = |name: String, message: Vec<u8>| {
        let frames =
            [EVERYBODY, HOST_MAC, victim_mac].map(|to| packet::frame(mac, to, 0x0806, &message));
        cases.push(Case::ignored(name, frames.to_vec()));
    };
    for claimed in [victim, gateway, other_gateway, host, router] {
        let told = (HOST_MAC, gateway);
        case(
            format!("a reply: {claimed} is here"),
            message(REPLY, (mac, claimed), told),
        );
        case(
            format!("a request from {claimed}"),
            message(REQUEST, (mac, claimed), ([0; 6], gateway)),
        );
        case(
            format!("a gratuitous request for {claimed}"),
            message(REQUEST, (mac, claimed), ([0; 6], claimed)),
        );
        case(
            format!("a gratuitous reply for {claimed}"),
            message(REPLY, (mac, claimed), (EVERYBODY, claimed)),
        );
    }
    // The message says one thing and the frame another.
    case(
        "its own address at the neighbour's card".to_owned(),
        message(REPLY, (victim_mac, own), (HOST_MAC, gateway)),
    );
    let frame = packet::frame(
        victim_mac,
        HOST_MAC,
        0x0806,
        &message(REPLY, (mac, own), (HOST_MAC, gateway)),
    );
    cases.push(Case::ignored(
        "a frame of the neighbour's card",
        vec![frame],
    ));
    Ok(cases)
}

/// An ICMPv6 message of neighbour discovery (RFC 4861), with hop limit 255 as it asks for.
fn message6(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let content = [&[kind, 0, 0, 0][..], rest].concat();
    packet::raw_ipv6(
        source,
        destination,
        (packet::protocol::ICMPV6, 255),
        content,
    )
}

/// The link-layer address option, of the source (1) or the target (2).
fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn discovery_cases(scene: &Scene) -> Result<Vec<(String, Vec<u8>, bool)>> {
    let mac = scene.attacker().mac;
    let own = scene.attacker().ipv6.context("no IPv6")?;
    let victim = scene.neighbour().ipv6.context("no IPv6")?;
    let local: Ipv6Addr = "fe80::1234".parse()?;
    let router: Ipv6Addr = "fe80::1".parse()?;
    let gateway: Ipv6Addr = "fd12:3456:789a:1::1".parse()?;
    let all: Ipv6Addr = "ff02::1".parse()?;
    let mut cases = Vec::new();
    for claimed in [victim, gateway, router] {
        // Override, not solicited.
        let target = [&[0x20, 0, 0, 0][..], &claimed.octets(), &link_layer(2, mac)].concat();
        for source in [own, local, claimed] {
            for to in [all, router, gateway, victim] {
                let name = format!("an advertisement from {source} to {to}: {claimed} is here");
                // Of whom it claims to be it is false at once; its own ones the host may hear,
                // and does not believe.
                cases.push((name, message6(source, to, 136, &target), source == claimed));
            }
        }
        let target = [&[0; 4][..], &router.octets(), &link_layer(1, mac)].concat();
        let name = format!("a solicitation from {claimed}");
        cases.push((name, message6(claimed, router, 135, &target), true));
    }
    // A router with a prefix (on-link, autonomous), for half an hour.
    let prefix = [
        &[3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0][..],
        &"2001:db8:bad::".parse::<Ipv6Addr>()?.octets(),
    ]
    .concat();
    let advertisement = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &prefix].concat();
    for source in [local, own, router] {
        for to in [all, router, victim] {
            let name = format!("a router's advertisement from {source} to {to}");
            cases.push((name, message6(source, to, 134, &advertisement), true));
        }
    }
    for source in [local, router, own] {
        for to in [router, victim, gateway] {
            let redirect = [&[0; 4][..], &own.octets(), &victim.octets()].concat();
            let name = format!("a redirect from {source} to {to}");
            cases.push((name, message6(source, to, 137, &redirect), true));
        }
    }
    Ok(cases)
}

pub fn discovery(scene: &mut Scene) -> Result<Vec<Case>> {
    let mac = scene.attacker().mac;
    let cases = discovery_cases(scene)?.into_iter();
    Ok(cases
        .map(|(name, ip, is_counted)| Case {
            name,
            frames: vec![packet::frame(mac, HOST_MAC, 0x86dd, &ip)],
            is_counted,
        })
        .collect())
}
