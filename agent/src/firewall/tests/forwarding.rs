//! What passes by which way.

use std::net::IpAddr;

use super::{
    packet::{ACK, Packet},
    world::{End, HOST4, OUTSIDE4, World, eni, in_namespace, interface, policy, sg},
};
use crate::firewall::policy::{Change, Direction, Match, Peer, Rule};

fn ipv4(number: usize) -> IpAddr {
    IpAddr::V4(interface(number).ipv4)
}

fn rule(direction: Direction, matches: Match, peer: Peer) -> Rule {
    Rule {
        direction,
        matches,
        peer,
    }
}

#[test]
fn a_guest_reaches_the_outside_and_answers_come_back_but_nobody_reaches_it() {
    in_namespace(|| {
        let mut world = World::new(policy(3));
        let syn = Packet::tcp((ipv4(0), 40000), (OUTSIDE4, 443), 2);
        let (end, seen) = world.pass(End::Guest(0), &syn).expect("goes out");
        assert_eq!(end, End::Outside);
        assert_eq!(seen.source, HOST4, "under the host's address");
        let (end, seen) = world
            .pass(End::Outside, &seen.answer())
            .expect("comes back");
        assert_eq!((end, seen.destination), (End::Guest(0), ipv4(0)));

        let from_outside = Packet::tcp((OUTSIDE4, 40000), (ipv4(0), 22), 2);
        assert_eq!(world.pass(End::Outside, &from_outside), None);
        let from_neighbour = Packet::tcp((ipv4(2), 40000), (ipv4(0), 22), 2);
        assert_eq!(world.pass(End::Guest(2), &from_neighbour), None);

        let mut group = super::world::closed(0);
        let ssh = Match::Ports {
            protocol: 6,
            first: 22,
            last: 22,
        };
        let from = Peer::Group(sg(0));
        group
            .rules
            .insert("sgr-ssh".to_owned(), rule(Direction::Ingress, ssh, from));
        world.apply(Change::PutGroup(sg(0), group));
        assert_eq!(world.pass(End::Outside, &from_outside), None);
        let (end, seen) = world
            .pass(End::Guest(2), &from_neighbour)
            .expect("a member");
        assert_eq!(end, End::Guest(0));
        world
            .pass(End::Guest(0), &seen.answer())
            .expect("an answer");
        let data = Packet::tcp((ipv4(2), 40000), (ipv4(0), 22), ACK);
        assert!(world.pass(End::Guest(2), &data).is_some());

        let counters = world.engine.counters(&[sg(0)].into()).expect("counters");
        assert_eq!(counters["sgr-ssh"].packets, 1, "connections are counted");
        let cut = world.apply(Change::PutGroup(sg(0), super::world::closed(0)));
        assert_eq!(cut, 1);
        assert_eq!(world.pass(End::Guest(2), &data), None);
        let back = Packet::tcp((ipv4(0), 22), (ipv4(2), 40000), ACK);
        assert_eq!(world.pass(End::Guest(0), &back), None, "nor the other way");
        let dropped = world.engine.dropped().expect("dropped");
        assert!(dropped[&eni(0)].ingress.packets > 0, "{dropped:?}");
    });
}
