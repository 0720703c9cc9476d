//! What passes is what the policy says, packet for packet, under policies that change all the time.

use super::{
    random::{GUESTS, Random},
    world::{End, HOST4, World, in_namespace, interface, policy},
};
use crate::firewall::{
    explain::{self, Point, Transport, explain},
    policy::{Change, Policy, Traffic},
};

/// Where a packet goes, if it is let through.
fn goes_to(policy: &Policy, packet: &explain::Packet) -> End {
    let by_id = |id: &str| {
        let number = (0..GUESTS).find(|it| super::world::eni(*it) == *id);
        End::Guest(number.expect("one of ours"))
    };
    if let std::net::IpAddr::V4(public) = packet.destination
        && let Some(id) = policy.addresses.get(&public)
    {
        return by_id(id);
    }
    if packet.to_host {
        let port = packet.transport.destination_port();
        let mut all = policy.forwards.values();
        let forward = all.find(|it| it.protocol == packet.protocol && Some(it.host_port) == port);
        return by_id(&forward.expect("passes").interface);
    }
    match explain::interface_of(policy, packet.destination) {
        Some((id, _)) => by_id(id),
        None => End::Outside,
    }
}

fn run(seed: u64, changes: usize, packets: usize) {
    let mut random = Random(seed);
    let mut world = World::new(policy(GUESTS));
    let mut target = random.policy();
    if seed % 2 == 1 {
        // That flows are counted changes nothing of what passes.
        let traffic = Traffic {
            accepted: true,
            refused: true,
        };
        target.logged = target
            .interfaces
            .keys()
            .map(|id| (id.clone(), traffic))
            .collect();
        target.windows.current = Some(1000);
    }
    world.engine.load(target).expect("loaded");
    let (mut passed, mut refused) = (0, 0);
    for round in 0..changes {
        let policy = world.engine.policy();
        let change = random.change(&policy);
        world.apply(change.clone());
        let policy = world.engine.policy();
        for _ in 0..packets {
            let (from, described, packet) = random.packet();
            world.forget_connections();
            let verdict = explain(&policy, &described);
            let to_host = verdict
                .steps
                .iter()
                .any(|it| it.point == Point::HostServices)
                || (from == End::Outside && described.destination == HOST4);
            let mut seen = world.pass(from, &packet);
            if from == End::Outside {
                // The host sends what is for nobody back to where its default route is.
                seen = seen.filter(|(end, _)| *end != from);
            }
            let context = || {
                format!(
                    "seed {seed}, round {round}, after {change:?}: {described:?} from {from:?}: \
                     {verdict:?}, but {seen:?}"
                )
            };
            if to_host
                && !verdict
                    .steps
                    .iter()
                    .any(|it| it.point == Point::Translation)
            {
                // The host may answer, but it goes nowhere else.
                assert!(
                    seen.as_ref().is_none_or(|(end, _)| *end == from),
                    "{}",
                    context()
                );
                continue;
            }
            if !verdict.allowed() {
                refused += 1;
                assert!(seen.is_none(), "{}", context());
                continue;
            }
            let end = goes_to(&policy, &described);
            // What turns round in the host is no business of ours, and protocols without ports have
            // no two connections between the same addresses: none to oneself by a public address.
            if end == from && (from == End::Outside || described.transport == Transport::Other) {
                continue;
            }
            passed += 1;
            assert_eq!(seen.as_ref().map(|it| it.0), Some(end), "{}", context());
            let (_, seen) = seen.clone().expect("arrived");
            // Answers pass whatever the other direction's rules say.
            let icmp_answers =
                !matches!(packet.protocol, 1 | 58) || matches!(packet.payload[0], 8 | 128);
            if icmp_answers && end != from {
                let back = world.pass(end, &seen.answer());
                let back = back.unwrap_or_else(|| panic!("no answer: {}", context()));
                assert_eq!(back.0, from, "{}", context());
                assert_eq!(back.1.source, packet.destination, "{}", context());
            }
        }
    }
    assert!(
        world.engine.reconcile().expect("read").is_none(),
        "seed {seed}"
    );
    assert!(
        passed > packets && refused > packets,
        "{passed} passed, {refused} refused"
    );
    println!("seed {seed}: {passed} passed, {refused} refused");
}

#[test]
fn what_passes_is_what_the_policy_says() {
    for seed in 1..=3 {
        in_namespace(move || run(seed, 60, 25));
    }
}

#[test]
fn a_removed_interface_is_nobody() {
    in_namespace(|| {
        let mut world = World::new(policy(2));
        let id = super::world::eni(0);
        world.apply(Change::RemoveInterface(id.clone()));
        let (from, to) = (interface(0).ipv4.into(), super::world::OUTSIDE4);
        let packet = super::packet::Packet::udp((from, 1), (to, 2), b"x");
        assert_eq!(world.pass(End::Guest(0), &packet), None);
        world.apply(Change::PutInterface(id, interface(0)));
        assert!(world.pass(End::Guest(0), &packet).is_some());
    });
}
