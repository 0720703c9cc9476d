//! Public addresses and port forwards.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    packet::{ACK, Packet},
    world::{End, HOST4, OUTSIDE4, OUTSIDE6, World, eni, in_namespace, interface, policy, sg},
};
use crate::firewall::policy::{Change, Direction, Forward, Group, Match, Peer, Rule};

const PUBLIC: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2)];

fn v4(number: usize) -> IpAddr {
    interface(number).ipv4.into()
}

fn admit(group: &mut Group, block: &str, port: u16) {
    let rule = Rule {
        direction: Direction::Ingress,
        matches: Match::Ports {
            protocol: 6,
            first: port,
            last: port,
        },
        peer: Peer::Block(block.parse().expect("block")),
    };
    group.rules.insert(format!("sgr-{block}-{port}"), rule);
}

#[test]
fn a_public_address_is_the_instances_both_ways() {
    in_namespace(|| {
        let mut policy = policy(4);
        for group in policy.groups.values_mut() {
            admit(group, "198.51.100.0/24", 80);
        }
        // Only who comes from the other's public address.
        admit(
            policy.groups.get_mut(&sg(1)).expect("there"),
            "203.0.113.1/32",
            443,
        );
        let mut world = World::new(policy);
        let out = |port| Packet::tcp((v4(0), port), (OUTSIDE4, 80), 2);
        let (_, seen) = world.pass(End::Guest(0), &out(40000)).expect("out");
        assert_eq!(seen.source, HOST4, "masqueraded");
        for (number, public) in PUBLIC.into_iter().enumerate() {
            world.apply(Change::PutAddress(public, eni(number)));
        }
        let (_, seen) = world.pass(End::Guest(0), &out(40001)).expect("out");
        assert_eq!(seen.source, IpAddr::V4(PUBLIC[0]));
        let outside = Packet::tcp((OUTSIDE4, 40000), (PUBLIC[0].into(), 80), 2);
        let (end, seen) = world.pass(End::Outside, &outside).expect("in");
        assert_eq!((end, seen.destination), (End::Guest(0), v4(0)));
        let (_, back) = world.pass(End::Guest(0), &seen.answer()).expect("answer");
        assert_eq!(back.source, IpAddr::V4(PUBLIC[0]));
        // From network to network there is only this way, and groups see public addresses.
        let hairpin = Packet::tcp((v4(0), 40002), (PUBLIC[1].into(), 443), 2);
        let (end, seen) = world.pass(End::Guest(0), &hairpin).expect("hairpin");
        assert_eq!((end, seen.source), (End::Guest(1), PUBLIC[0].into()));
        let (end, back) = world.pass(End::Guest(1), &seen.answer()).expect("answer");
        assert_eq!((end, back.source), (End::Guest(0), PUBLIC[1].into()));
        let direct = Packet::tcp((v4(0), 40003), (v4(1), 443), 2);
        assert_eq!(world.pass(End::Guest(0), &direct), None);

        // Taken away, its connections end, in and out.
        let cut = world.apply(Change::RemoveAddress(PUBLIC[0]));
        assert_eq!(cut, 3);
        let data = Packet::tcp((OUTSIDE4, 40000), (PUBLIC[0].into(), 80), ACK);
        let turned = |it: Option<(End, Packet)>| it.is_none_or(|(end, _)| end == End::Outside);
        assert!(turned(world.pass(End::Outside, &data)), "nobody's now");
        let (_, seen) = world.pass(End::Guest(0), &out(40004)).expect("out");
        assert_eq!(seen.source, HOST4);
    });
}

#[test]
fn egress_looks_at_what_the_guest_wrote() {
    in_namespace(|| {
        let mut policy = policy(2);
        let only = Rule {
            direction: Direction::Egress,
            matches: Match::Ports {
                protocol: 6,
                first: 443,
                last: 443,
            },
            peer: Peer::Block("203.0.113.2/32".parse().expect("block")),
        };
        policy.groups.get_mut(&sg(0)).expect("there").rules = [("sgr-x".to_owned(), only)].into();
        admit(
            policy.groups.get_mut(&sg(1)).expect("there"),
            "0.0.0.0/0",
            443,
        );
        policy.addresses.insert(PUBLIC[1], eni(1));
        let mut world = World::new(policy);
        let allowed = Packet::tcp((v4(0), 40000), (PUBLIC[1].into(), 443), 2);
        let (end, _) = world.pass(End::Guest(0), &allowed).expect("allowed");
        assert_eq!(end, End::Guest(1));
        let other = Packet::tcp((v4(0), 40000), (OUTSIDE4, 443), 2);
        assert_eq!(world.pass(End::Guest(0), &other), None);
    });
}

#[test]
fn a_forwarded_port_is_the_interfaces_and_its_groups_still_count() {
    in_namespace(|| {
        let mut policy = policy(4);
        admit(
            policy.groups.get_mut(&sg(0)).expect("there"),
            "198.51.100.0/24",
            22,
        );
        policy.forwards.insert(
            "pf-1".to_owned(),
            Forward {
                protocol: 6,
                host_port: 2222,
                interface: eni(0),
                port: 22,
            },
        );
        let mut world = World::new(policy);
        let ssh = |from, to| Packet::tcp((from, 40000), (to, 2222), 2);
        let (end, seen) = world
            .pass(End::Outside, &ssh(OUTSIDE4, HOST4))
            .expect("forwarded");
        assert_eq!(
            (end, seen.destination, seen.ports().1),
            (End::Guest(0), v4(0), 22)
        );
        let (_, back) = world.pass(End::Guest(0), &seen.answer()).expect("answer");
        assert_eq!((back.source, back.ports().0), (HOST4, 2222));
        // A neighbour is somebody else for the groups, and a gateway has no ports.
        assert_eq!(world.pass(End::Guest(2), &ssh(v4(2), HOST4)), None);
        let gateway = "10.1.0.1".parse().expect("ip");
        assert_eq!(world.pass(End::Guest(1), &ssh(v4(1), gateway)), None);
        let mut group = world.engine.policy().groups[&sg(0)].clone();
        admit(&mut group, "10.0.0.0/8", 22);
        world.apply(Change::PutGroup(sg(0), group));
        for from in [1, 2] {
            let (end, seen) = world
                .pass(End::Guest(from), &ssh(v4(from), HOST4))
                .expect("in");
            assert_eq!((end, seen.source), (End::Guest(0), v4(from)));
        }
        assert_eq!(world.apply(Change::RemoveForward("pf-1".to_owned())), 3);
        let data = Packet::tcp((OUTSIDE4, 40000), (HOST4, 2222), ACK);
        assert!(
            world
                .pass(End::Outside, &data)
                .is_none_or(|(end, _)| end == End::Outside)
        );
    });
}

#[test]
fn networks_without_nat_are_seen_as_they_are() {
    in_namespace(|| {
        let mut policy = policy(2);
        let id = interface(0).network;
        policy.networks.get_mut(&id).expect("there").nat = false;
        let mut world = World::new(policy);
        for (number, v4_is, v6_is) in [
            (0, v4(0), interface(0).ipv6.expect("given").into()),
            (1, HOST4, "2001:db8:ff::1".parse().expect("ip")),
        ] {
            let from6: IpAddr = interface(number).ipv6.expect("given").into();
            for (from, to, is) in [(v4(number), OUTSIDE4, v4_is), (from6, OUTSIDE6, v6_is)] {
                let packet = Packet::udp((from, 5000), (to, 5001), b"x");
                let (_, seen) = world.pass(End::Guest(number), &packet).expect("out");
                assert_eq!(seen.source, is);
            }
        }
    });
}
