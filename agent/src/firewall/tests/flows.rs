//! Flows of logged interfaces, counted exactly.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    packet::{ACK, Packet, SYN},
    world::{self, End, OUTSIDE4, OUTSIDE6, World, eni, in_namespace, interface, nft, policy, sg},
};
use crate::firewall::{
    Counter,
    engine::Engine,
    explain::Transport,
    flows::{Flow, Side},
    policy::{Change, Direction, Match, Peer, Policy, Rule, Traffic, Windows},
};

const ALL: Traffic = Traffic {
    accepted: true,
    refused: true,
};

fn window(current: u64, retired: &[u64]) -> Change {
    Change::PutWindows(Windows {
        current: Some(current),
        retired: retired.iter().copied().collect(),
    })
}

/// Guests 0, 2 and 4 in a network; 0 and 2 are logged. Guest 0 takes web, names and echoes.
fn logged_policy() -> Policy {
    let mut policy = policy(5);
    policy.windows.current = Some(1000);
    for number in [0, 2] {
        policy.logged.insert(eni(number), ALL);
    }
    let group = policy.groups.get_mut(&sg(0)).expect("there");
    let ports = |protocol, port| Match::Ports {
        protocol,
        first: port,
        last: port,
    };
    let echo = |kind| Some(kind);
    let admitted = [
        ports(6, 80),
        ports(17, 53),
        Match::Icmp {
            kind: echo(8),
            code: None,
        },
        Match::Icmpv6 {
            kind: echo(128),
            code: None,
        },
        Match::Protocol(99),
    ];
    for (number, matches) in admitted.into_iter().enumerate() {
        for (family, block) in ["0.0.0.0/0", "::/0"].into_iter().enumerate() {
            let rule = Rule {
                direction: Direction::Ingress,
                matches: matches.clone(),
                peer: Peer::Block(block.parse().expect("block")),
            };
            group.rules.insert(format!("sgr-{number}-{family}"), rule);
        }
    }
    policy
}

fn v4(number: usize) -> IpAddr {
    interface(number).ipv4.into()
}

fn v6(number: usize) -> IpAddr {
    interface(number).ipv6.expect("given").into()
}

fn len(packet: &Packet) -> u64 {
    let header = if packet.source.is_ipv6() { 40 } else { 20 };
    (header + packet.payload.len()) as u64
}

type Key = (String, Side, bool, IpAddr, IpAddr, u8, u16, u16);

/// What should be counted.
#[derive(Default)]
struct Expected(BTreeMap<Key, (u64, u64)>);

impl Expected {
    /// As the guest sees it.
    fn count(&mut self, guest: usize, side: Side, accepted: bool, packet: &Packet) {
        let ports = match packet.protocol {
            6 | 17 => packet.ports(),
            _ => (0, 0),
        };
        let key = (
            world::tap_name(guest),
            side,
            accepted,
            packet.source,
            packet.destination,
            packet.protocol,
            ports.0,
            ports.1,
        );
        let sum = self.0.entry(key).or_default();
        *sum = (sum.0 + 1, sum.1 + len(packet));
    }

    /// From one logged guest to another: both have it.
    fn pass(&mut self, world: &mut World, from: usize, to: usize, packet: &Packet) -> Packet {
        let seen = world.pass(End::Guest(from), packet);
        let (end, seen) = seen.unwrap_or_else(|| panic!("{packet:?} passes"));
        assert_eq!(end, End::Guest(to));
        self.count(from, Side::Out, true, packet);
        self.count(to, Side::In, true, &seen);
        seen
    }

    /// Refused by the receiver, which the sender does not see.
    fn refused(&mut self, world: &mut World, from: usize, to: usize, packet: &Packet) {
        assert_eq!(world.pass(End::Guest(from), packet), None);
        self.count(from, Side::Out, true, packet);
        self.count(to, Side::In, false, packet);
    }

    fn is(&self, flows: Vec<Flow>) {
        let mut found = BTreeMap::new();
        for it in flows {
            let key = (
                it.tap,
                it.side,
                it.accepted,
                it.source,
                it.destination,
                it.protocol,
                it.source_port,
                it.destination_port,
            );
            let counts = (it.counter.packets, it.counter.bytes);
            assert_eq!(found.insert(key, counts), None);
        }
        assert_eq!(found, self.0);
    }
}

fn counted(world: &mut World, window: u64) -> Vec<Flow> {
    let counted = world.engine.flows(window).expect("read");
    assert_eq!(counted.skipped, BTreeMap::new());
    counted.flows
}

#[test]
fn accepted_and_refused_packets_are_counted_exactly() {
    in_namespace(|| {
        let mut world = World::new(logged_policy());
        let mut expected = Expected::default();
        for (own, peer) in [(v4(0), v4(2)), (v6(0), v6(2))] {
            let echo = if own.is_ipv6() { (58, 128) } else { (1, 8) };
            let icmp = Transport::Icmp {
                kind: echo.1,
                code: 0,
            };
            for packet in [
                Packet::tcp((peer, 40000), (own, 80), SYN),
                Packet::udp((peer, 40000), (own, 53), b"a question"),
                Packet::first(peer, own, echo.0, icmp),
                Packet::first(peer, own, 99, Transport::Other),
            ] {
                let seen = expected.pass(&mut world, 2, 0, &packet);
                expected.pass(&mut world, 0, 2, &seen.answer());
                if packet.protocol == 6 {
                    let data = Packet::tcp((peer, 40000), (own, 80), ACK);
                    for _ in 0..3 {
                        expected.pass(&mut world, 2, 0, &data);
                    }
                }
            }
            for packet in [
                Packet::tcp((peer, 40001), (own, 22), SYN),
                Packet::udp((peer, 40001), (own, 5353), b"who?"),
                Packet::first(peer, own, 98, Transport::Other),
            ] {
                expected.refused(&mut world, 2, 0, &packet);
                expected.refused(&mut world, 2, 0, &packet);
            }
            // Refused to the sender itself: not the beginning of a connection.
            let stray = Packet::tcp((peer, 40002), (own, 80), ACK);
            assert_eq!(world.pass(End::Guest(2), &stray), None);
            expected.count(2, Side::Out, false, &stray);
            // An interface that is not logged: only the other end counts.
            let unlogged = if own.is_ipv6() { v6(4) } else { v4(4) };
            let packet = Packet::tcp((unlogged, 40000), (own, 80), SYN);
            let (_, seen) = world.pass(End::Guest(4), &packet).expect("passes");
            expected.count(0, Side::In, true, &seen);
            let packet = Packet::tcp((unlogged, 40001), (own, 22), SYN);
            assert_eq!(world.pass(End::Guest(4), &packet), None);
            expected.count(0, Side::In, false, &packet);
            // From and to outside, under the host's address.
            let outside = if own.is_ipv6() { OUTSIDE6 } else { OUTSIDE4 };
            let packet = Packet::udp((own, 40000), (outside, 123), b"time");
            let (_, seen) = world.pass(End::Guest(0), &packet).expect("out");
            expected.count(0, Side::Out, true, &packet);
            let (_, seen) = world.pass(End::Outside, &seen.answer()).expect("in");
            expected.count(0, Side::In, true, &seen);
            assert_eq!((seen.source, seen.destination), (outside, own));
        }
        // From addresses that are not its own: nobody's flow.
        let mut spoofed = Packet::tcp((v4(4), 1), (v4(0), 80), SYN);
        assert_eq!(world.pass(End::Guest(2), &spoofed), None);
        spoofed.source = OUTSIDE4;
        assert_eq!(world.pass(End::Guest(2), &spoofed), None);
        world.apply(window(2000, &[1000]));
        let again = Packet::udp((v4(2), 40000), (v4(0), 53), b"again");
        let mut second = Expected::default();
        second.pass(&mut world, 2, 0, &again);
        expected.is(counted(&mut world, 1000));
        expected.is(counted(&mut world, 1000));
        second.is(counted(&mut world, 2000));
        world.apply(window(2000, &[]));
        Expected::default().is(counted(&mut world, 1000));
        second.is(counted(&mut world, 2000));
        assert_eq!(world.engine.reconcile().expect("read"), None);
        assert!(!nft("list table inet hearth").contains("-1000"));
    });
}

#[test]
fn addresses_are_those_that_the_guest_sees() {
    in_namespace(|| {
        let mut policy = logged_policy();
        // A guest of another network, by public addresses.
        policy.logged = [(eni(0), ALL), (eni(1), ALL)].into();
        let public = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];
        for (number, public) in public.into_iter().enumerate() {
            policy.addresses.insert(public, eni(number));
        }
        let public = public.map(IpAddr::V4);
        let mut world = World::new(policy);
        let mut expected = Expected::default();
        let syn = Packet::tcp((v4(1), 40000), (public[0], 80), SYN);
        let seen = expected.pass(&mut world, 1, 0, &syn);
        assert_eq!((seen.source, seen.destination), (public[1], v4(0)));
        let back = expected.pass(&mut world, 0, 1, &seen.answer());
        assert_eq!((back.source, back.destination), (public[0], v4(1)));
        let closed = Packet::tcp((v4(1), 40001), (public[0], 22), SYN);
        assert_eq!(world.pass(End::Guest(1), &closed), None);
        expected.count(1, Side::Out, true, &closed);
        let arrives = Packet::tcp((public[1], 40001), (v4(0), 22), SYN);
        expected.count(0, Side::In, false, &arrives);
        // Isolation: refused to the sender, with the address that it asked for.
        let direct = Packet::tcp((v4(1), 40002), (v4(0), 80), SYN);
        assert_eq!(world.pass(End::Guest(1), &direct), None);
        expected.count(1, Side::Out, false, &direct);
        // A connection that is gone, from outside.
        let stray = Packet::tcp((OUTSIDE4, 1), (v4(0), 80), ACK);
        assert_eq!(world.pass(End::Outside, &stray), None);
        expected.count(0, Side::In, false, &stray);
        expected.is(counted(&mut world, 1000));
    });
}

#[test]
fn what_the_host_serves_is_not_logged_and_what_it_refuses_is() {
    in_namespace(|| {
        let mut world = World::new(logged_policy());
        let mut expected = Expected::default();
        let gateways = [
            IpAddr::V4(world::network(0).gateway_ipv4),
            IpAddr::V6(world::network(0).gateway_ipv6.expect("given")),
        ];
        for (own, gateway) in [v4(0), v6(0)].into_iter().zip(gateways) {
            let (protocol, kind) = if own.is_ipv6() { (58, 128) } else { (1, 8) };
            let icmp = Transport::Icmp { kind, code: 0 };
            let echo = Packet::first(own, gateway, protocol, icmp);
            let (end, _) = world.pass(End::Guest(0), &echo).expect("answered");
            assert_eq!(end, End::Guest(0));
            let names = Packet::udp((own, 40000), (gateway, 53), b"nobody listens here");
            world.drain();
            world.send(End::Guest(0), &names);
            let ssh = Packet::tcp((own, 40000), (gateway, 22), SYN);
            assert_eq!(world.pass(End::Guest(0), &ssh), None);
            expected.count(0, Side::Out, false, &ssh);
        }
        // The host asks the guest.
        let to = std::net::SocketAddr::new(v4(0), 80);
        let (end, seen) = world.connect(to).expect("admitted");
        assert_eq!(end, End::Guest(0));
        expected.count(0, Side::In, true, &seen);
        let mut answer = seen.answer();
        let sequence = seen.payload[4..8].try_into().expect("a word");
        let next = u32::from_be_bytes(sequence).wrapping_add(1);
        answer.payload[8..12].copy_from_slice(&next.to_be_bytes());
        world.send(End::Guest(0), &answer);
        expected.count(0, Side::Out, true, &answer);
        for (_, packet) in world.arrived() {
            expected.count(0, Side::In, true, &packet);
        }
        expected.is(counted(&mut world, 1000));
    });
}

#[test]
fn only_the_traffic_that_is_asked_for_is_counted() {
    in_namespace(|| {
        let mut world = World::new(logged_policy());
        let refused = Traffic {
            accepted: false,
            refused: true,
        };
        let accepted = Traffic {
            accepted: true,
            refused: false,
        };
        let good = Packet::tcp((v4(2), 40000), (v4(0), 80), SYN);
        let bad = Packet::tcp((v4(2), 40001), (v4(0), 22), SYN);
        let mut at = 1000;
        for traffic in [Some(refused), Some(accepted), None, Some(ALL)] {
            for number in [0, 2] {
                world.apply(match traffic {
                    Some(traffic) => Change::PutLogged(eni(number), traffic),
                    None => Change::RemoveLogged(eni(number)),
                });
            }
            at += 1000;
            world.apply(window(at, &[]));
            let traffic = traffic.unwrap_or_default();
            let mut expected = Expected::default();
            assert!(world.pass(End::Guest(2), &good).is_some());
            assert_eq!(world.pass(End::Guest(2), &bad), None);
            if traffic.accepted {
                expected.count(2, Side::Out, true, &good);
                expected.count(0, Side::In, true, &good);
                expected.count(2, Side::Out, true, &bad);
            }
            if traffic.refused {
                expected.count(0, Side::In, false, &bad);
            }
            expected.is(counted(&mut world, at));
        }
        // Who goes leaves its counts behind.
        world.apply(window(7000, &[]));
        let mut expected = Expected::default();
        expected.pass(&mut world, 2, 0, &good);
        world.apply(Change::RemoveInterface(eni(0)));
        expected.is(counted(&mut world, 7000));
        assert_eq!(world.engine.policy().logged.len(), 1);
        world.apply(Change::PutWindows(Windows::default()));
        assert!(!nft("list table inet hearth").contains("flows"));
        assert_eq!(world.engine.reconcile().expect("read"), None);
    });
}

#[test]
fn counts_stay_when_rules_are_repaired_and_when_the_agent_starts_anew() {
    in_namespace(|| {
        let mut world = World::new(logged_policy());
        let mut expected = Expected::default();
        let packet = Packet::udp((v4(2), 40000), (v4(0), 53), b"a question");
        expected.pass(&mut world, 2, 0, &packet);
        nft("table inet theirs { }");
        assert_eq!(world.engine.reconcile().expect("read"), None);
        for what in [
            "flush chain inet hearth flows-forwarded",
            "flush chain inet hearth flows-in4-accepted",
            "insert rule inet hearth flows-out4-accepted return",
            "flush set inet hearth logged-accepted",
            "insert rule inet hearth refused-in drop",
        ] {
            nft(what);
            let repair = world.engine.reconcile().expect("repaired").expect(what);
            assert!(repair.differences > 0);
            assert_eq!(world.engine.reconcile().expect("read"), None);
            expected.pass(&mut world, 2, 0, &packet);
            expected.is(counted(&mut world, 1000));
        }
        // Its own idea of the window does not matter, nor that one was not read.
        world.apply(window(2000, &[1000]));
        let mut policy = (*world.engine.policy()).clone();
        policy.windows = Windows {
            current: Some(9000),
            retired: [].into(),
        };
        // The first one ends.
        world.engine = Engine::default();
        let again = world.engine.load(policy).expect("loaded");
        assert_eq!(again, None, "all is right");
        let mut second = Expected::default();
        second.pass(&mut world, 2, 0, &packet);
        assert_eq!(window(2000, &[1000]), {
            Change::PutWindows(world.engine.policy().windows.clone())
        });
        expected.is(counted(&mut world, 1000));
        second.is(counted(&mut world, 2000));
    });
}

#[test]
fn what_finds_no_room_is_counted_as_skipped() {
    in_namespace(|| {
        let mut world = World::new(logged_policy());
        // Refused at once, so that no connection is kept for any of them.
        let link_local = |port: u16, address: u8| {
            let to = IpAddr::V4(Ipv4Addr::new(169, 254, 7, address));
            Packet::udp((v4(0), 40000), (to, port), b"x")
        };
        const ROOM: u64 = 65_535;
        let mut sent = 0;
        for address in 1..=2 {
            for port in 0..40_000 {
                world.send(End::Guest(0), &link_local(port, address));
                sent += 1;
            }
        }
        // One that is there still counts, and so do other kinds.
        world.send(End::Guest(0), &link_local(7, 1));
        let other = Packet::tcp(
            (v4(0), 40000),
            (IpAddr::V4(Ipv4Addr::new(169, 254, 7, 1)), 7),
            SYN,
        );
        world.send(End::Guest(0), &other);
        let counted = world.engine.flows(1000).expect("read");
        assert_eq!(counted.flows.len() as u64, ROOM + 1);
        let packets: u64 = counted.flows.iter().map(|it| it.counter.packets).sum();
        assert_eq!(packets, ROOM + 2);
        let skipped = Counter {
            packets: sent - ROOM,
            bytes: (sent - ROOM) * len(&link_local(0, 1)),
        };
        assert_eq!(counted.skipped, [(world::tap_name(0), skipped)].into());
    });
}
