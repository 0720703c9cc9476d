//! What a change costs, with few and with many rules. Prints figures:
//! `cargo test --release --workspace --lib firewall::tests::size -- --ignored --nocapture`.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{
    packet::Packet,
    world::{self, End, OUTSIDE4, World, eni, in_namespace, interface, nft, policy, sg},
};
use crate::firewall::{
    engine::{Engine, Request},
    policy::{Change, Direction, Group, Match, Peer, Policy, Rule, Traffic, Windows},
};

/// Rules as groups have them: mostly blocks and ports, some of which overlap, groups, both families.
fn rule(groups: usize, group: usize, number: u16) -> Rule {
    let first = 1000 + number * 10;
    let third = u8::try_from(number).expect("few");
    let ipv4 = |bits| {
        let block = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 16, third, 0), bits);
        Peer::Block(block.trunc().into())
    };
    let peer = match number {
        0..4 => Peer::Group(sg((group + 7 * usize::from(number)) % groups)),
        4..10 => {
            let block = format!("2001:db8:{group:x}:{number:x}00::/56");
            Peer::Block(block.parse().expect("block"))
        }
        10 | 20 | 30 => ipv4(12),
        _ => ipv4(24),
    };
    let last = if number.is_multiple_of(10) {
        2000
    } else {
        first + 5
    };
    Rule {
        direction: if number < 50 {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        matches: Match::Ports {
            protocol: 6,
            first,
            last,
        },
        peer,
    }
}

/// `groups` groups of 60 rules, `interfaces` interfaces in 5 of them each.
fn large(groups: usize, interfaces: usize) -> Policy {
    let mut policy = policy(0);
    let id = interface(0).network;
    policy.networks.remove(&interface(1).network);
    policy.groups.remove(&sg(1));
    for number in 0..groups {
        let mut group = Group {
            network: id.clone(),
            ..Group::default()
        };
        for rule_number in 0..60 {
            group.rules.insert(
                format!("sgr-{number:08x}{rule_number:09x}"),
                rule(groups, number, rule_number),
            );
        }
        policy.groups.insert(sg(number), group);
    }
    for number in 0..interfaces {
        let mut it = interface(0);
        let [high, low] = u16::try_from(number + 4).expect("few").to_be_bytes();
        it.tap = world::tap_name(number * 2);
        it.mac = [2, 0, 0, 0, high, low];
        it.ipv4 = Ipv4Addr::new(10, 0, high, low);
        it.ipv6 = Some(std::net::Ipv6Addr::from(
            0xfd00_0010_u128 << 96 | u128::from(u16::from_be_bytes([high, low])),
        ));
        it.groups = (0..5).map(|it| sg((number * 2 + it) % groups)).collect();
        policy.interfaces.insert(eni(number * 2), it);
    }
    policy
}

fn put(group: &mut Group, id: String, port: Option<u16>) -> Request {
    match port {
        Some(port) => {
            group.rules.insert(
                id,
                Rule {
                    direction: Direction::Ingress,
                    matches: Match::Ports {
                        protocol: 6,
                        first: port,
                        last: port,
                    },
                    peer: Peer::Block("198.51.100.0/24".parse().expect("block")),
                },
            );
        }
        None => drop(group.rules.remove(&id)),
    }
    Request {
        changes: vec![Change::PutGroup(sg(0), group.clone())],
        cut: true,
    }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

fn measure(groups: usize, interfaces: usize) {
    let policy = large(groups, interfaces);
    println!("{groups} groups of 60 rules, {interfaces} interfaces");
    let took = |what: &str, since: Instant| println!("  {what}: {:?}", since.elapsed());
    let mut engine = Engine::default();
    let start = Instant::now();
    engine.load(policy.clone()).expect("loaded");
    took("first load", start);
    // One agent at a time.
    drop(engine);
    let start = Instant::now();
    let mut engine = Engine::default();
    assert_eq!(engine.load(policy.clone()).expect("loaded"), None);
    took("load with the rules in place", start);
    let mut group = policy.groups[&sg(0)].clone();
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for round in 0..30u16 {
        let id = format!("sgr-measured-{round}");
        let request = put(&mut group, id.clone(), Some(5000 + round));
        let start = Instant::now();
        engine.apply(&[request]).expect("applied");
        adds.push(start.elapsed());
        let request = put(&mut group, id, None);
        let start = Instant::now();
        engine.apply(&[request]).expect("applied");
        removes.push(start.elapsed());
    }
    println!("  a rule more: median {:?}", median(adds));
    println!(
        "  a rule less, looking for connections to cut: median {:?}",
        median(removes)
    );
    let mut moves = Vec::new();
    for round in 0..30 {
        let id = eni(0);
        let mut it = engine.policy().interfaces[&id].clone();
        it.groups = [sg(round % groups), sg((round + 1) % groups)].into();
        let request = Request {
            changes: vec![Change::PutInterface(id, it)],
            cut: true,
        };
        let start = Instant::now();
        engine.apply(&[request]).expect("applied");
        moves.push(start.elapsed());
    }
    println!("  an interface in other groups: median {:?}", median(moves));
    let start = Instant::now();
    assert_eq!(engine.reconcile().expect("read"), None);
    took("reconcile when nobody touched anything", start);
    nft("table inet theirs { }");
    let start = Instant::now();
    assert_eq!(engine.reconcile().expect("read"), None);
    took("reconcile that reads everything", start);
    let mut text = String::new();
    let set = format!("{}-rules4", sg(0));
    writeln!(
        text,
        "add element inet hearth {set} {{ 0 . 203.0.113.0/24 . tcp . 7 }}"
    )
    .expect("text");
    let start = Instant::now();
    nft(&text);
    took("one element by the nft program", start);
}

#[test]
#[ignore = "prints figures"]
fn cost_of_changes() {
    in_namespace(|| measure(1, 1));
    in_namespace(|| measure(1000, 500));
}

fn packets(groups: usize, interfaces: usize, logged: bool) {
    let mut policy = large(groups, interfaces);
    let mut group = policy.groups[&sg(0)].clone();
    put(&mut group, "sgr-open".to_owned(), Some(80));
    policy.groups.insert(sg(0), group);
    let mut it = interface(0);
    it.groups = policy.interfaces[&eni(0)].groups.clone();
    policy.interfaces.insert(eni(0), it);
    if logged {
        let traffic = Traffic {
            accepted: true,
            refused: true,
        };
        policy.logged.insert(eni(0), traffic);
        policy.windows.current = Some(1000);
    }
    let all = policy.clone();
    policy.interfaces.retain(|id, _| *id == eni(0));
    let mut world = World::new(policy);
    world.engine.load(all).expect("loaded");
    let (mut opens, mut follows) = (Vec::new(), Vec::new());
    for round in 0..2000u16 {
        let packet = Packet::tcp((OUTSIDE4, 10000 + round), (interface(0).ipv4.into(), 80), 2);
        let start = Instant::now();
        world.send(End::Outside, &packet);
        opens.push(start.elapsed());
        let start = Instant::now();
        world.send(End::Outside, &packet);
        follows.push(start.elapsed());
        if round % 100 == 0 {
            assert_eq!(world.arrived().len(), if round == 0 { 2 } else { 200 });
        }
    }
    println!(
        "{groups} groups, {interfaces} interfaces{}: a packet into the host and out of it, median: \
         {:?} that opens a connection, {:?} that follows",
        if logged { ", with a flow log" } else { "" },
        median(opens),
        median(follows)
    );
}

/// A window of so many flows that ends: the transaction, reading, and giving up the old sets.
fn windows(flows: u16) {
    let mut policy = policy(1);
    policy.logged.insert(
        eni(0),
        Traffic {
            accepted: false,
            refused: true,
        },
    );
    policy.windows.current = Some(1000);
    let mut world = World::new(policy);
    for port in 0..flows {
        let own = std::net::IpAddr::V4(interface(0).ipv4);
        // Refused before any group is asked.
        let nobody = std::net::IpAddr::V4(Ipv4Addr::new(169, 254, 7, 1));
        let packet = Packet::udp((own, port), (nobody, 53), b"refused");
        world.send(End::Guest(0), &packet);
    }
    let put = |world: &mut World, retired: &[u64]| {
        let start = Instant::now();
        world.apply(Change::PutWindows(Windows {
            current: Some(2000),
            retired: retired.iter().copied().collect(),
        }));
        start.elapsed()
    };
    let turned = put(&mut world, &[1000]);
    let start = Instant::now();
    let counted = world.engine.flows(1000).expect("read");
    let read = start.elapsed();
    assert_eq!(counted.flows.len(), usize::from(flows));
    let forgotten = put(&mut world, &[]);
    println!(
        "a window of {flows} flows: {turned:?} to turn to the next, {read:?} to read, \
         {forgotten:?} to give up"
    );
}

#[test]
#[ignore = "prints figures"]
fn cost_of_windows() {
    in_namespace(|| windows(10));
    in_namespace(|| windows(10_000));
    in_namespace(|| windows(65_000));
}

#[test]
#[ignore = "prints figures"]
fn cost_of_packets() {
    in_namespace(|| packets(1, 1, false));
    in_namespace(|| packets(1, 1, true));
    in_namespace(|| packets(1000, 500, false));
    in_namespace(|| packets(1000, 500, true));
}
