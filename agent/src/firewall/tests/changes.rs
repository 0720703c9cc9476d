//! Changes while packets pass, many at once, and under somebody else's hands.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    packet::{ACK, Packet},
    world::{End, OUTSIDE4, World, closed, in_namespace, interface, nft, policy, sg},
};
use crate::firewall::{
    Connections, Firewall,
    engine::Request,
    policy::{Change, Direction, Group, Match, Peer, Rule},
    watch,
};

fn open(group: &mut Group, port: u16, peer: Peer) {
    let rule = Rule {
        direction: Direction::Ingress,
        matches: Match::Ports {
            protocol: 6,
            first: port,
            last: port,
        },
        peer,
    };
    group.rules.insert(format!("sgr-{port}"), rule);
}

fn everybody() -> Peer {
    Peer::Block("0.0.0.0/0".parse().expect("block"))
}

#[test]
fn a_change_is_all_there_or_not_at_all_for_every_packet() {
    in_namespace(|| {
        let mut policy = policy(3);
        let mut group = closed(0);
        open(&mut group, 80, everybody());
        policy.groups.insert(sg(0), group.clone());
        let mut world = World::new(policy);
        let mut engine = std::mem::take(&mut world.engine);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // Port 80 is open in each of these; their chains and sets are others.
        let changing = std::thread::spawn(move || {
            let mut changes = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut more = group.clone();
                open(&mut more, 81, Peer::Group(sg(0)));
                open(&mut more, 79, everybody());
                let mut other = closed(0);
                open(
                    &mut other,
                    80,
                    Peer::Block("198.51.100.0/24".parse().expect("block")),
                );
                other
                    .rules
                    .insert("sgr-more".to_owned(), more.rules["sgr-80"].clone());
                for group in [more, other, group.clone()] {
                    let request = Request {
                        changes: vec![Change::PutGroup(sg(0), group)],
                        cut: true,
                    };
                    for result in engine.apply(&[request]).expect("applied") {
                        assert_eq!(result.expect("looked"), 0, "nothing to cut");
                    }
                    changes += 1;
                }
            }
            changes
        });
        for port in 10000..14000 {
            let packet = |to| Packet::tcp((OUTSIDE4, port), (interface(0).ipv4.into(), to), 2);
            let seen = world.pass(End::Outside, &packet(80));
            assert!(matches!(seen, Some((End::Guest(0), _))), "{port}: {seen:?}");
            assert_eq!(world.pass(End::Outside, &packet(22)), None);
        }
        stop.store(true, Ordering::Relaxed);
        let changes = changing.join().expect("changed");
        println!("{changes} changes under 8000 packets");
        assert!(changes > 3);
    });
}

fn in_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(test);
}

#[test]
fn changes_at_once_are_all_made_and_one_that_cannot_be_does_not_stop_the_others() {
    in_namespace(|| {
        in_runtime(async {
            let firewall = Firewall::default();
            firewall.load(policy(2)).await.expect("loaded");
            let mut tasks = Vec::new();
            for number in 0..40usize {
                let firewall = firewall.clone();
                tasks.push(tokio::spawn(async move {
                    let mut group = closed(0);
                    open(&mut group, 80, everybody());
                    let mut put = vec![Change::PutGroup(sg(number + 10), group)];
                    if number == 7 {
                        // A name that the kernel has no room for.
                        put.push(Change::PutPrefixList("pl-".repeat(100), Default::default()));
                    }
                    (number, firewall.apply(put, Connections::Cut).await)
                }));
            }
            for task in tasks {
                let (number, result) = task.await.expect("done");
                assert_eq!(result.is_ok(), number != 7, "{number}: {result:?}");
            }
            let policy = firewall.policy().await;
            assert_eq!(policy.groups.len(), 2 + 39);
            assert!(policy.prefix_lists.is_empty());
            assert_eq!(firewall.reconcile().await.expect("read"), None);
        });
    });
}

#[test]
fn what_somebody_changes_is_repaired_at_once_and_told() {
    in_namespace(|| {
        in_runtime(async {
            let firewall = Firewall::default();
            firewall.load(policy(2)).await.expect("loaded");
            let listening = tokio::spawn(watch::listen(firewall.clone()));
            // It listens from here on.
            firewall.disturbed().await;
            for what in [
                "flush chain inet hearth entering",
                "delete table inet hearth",
                "add chain arp hearth mine",
            ] {
                nft(what);
                firewall.disturbed().await;
                let repair = firewall.reconcile().await.expect("read").expect(what);
                assert!(repair.differences > 0);
            }
            // Our own changes are not somebody's.
            let mut group = closed(0);
            open(&mut group, 80, everybody());
            let change = Change::PutGroup(sg(0), group);
            firewall
                .apply(vec![change], Connections::Cut)
                .await
                .expect("applied");
            assert_eq!(firewall.reconcile().await.expect("read"), None);
            listening.abort();
        });
    });
}

#[test]
fn what_a_change_repairs_on_its_way_is_told_by_the_next_look() {
    in_namespace(|| {
        in_runtime(async {
            let firewall = Firewall::default();
            firewall.load(policy(2)).await.expect("loaded");
            for (number, what) in [
                "delete table inet hearth",
                "flush chain inet hearth entering",
                "flush ruleset",
            ]
            .into_iter()
            .enumerate()
            {
                nft(what);
                let mut group = closed(0);
                open(&mut group, 80, everybody());
                let put = Change::PutGroup(sg(number + 10), group);
                let applied = firewall.apply(vec![put], Connections::Cut).await;
                applied.expect(what);
                let repair = firewall.reconcile().await.expect("read").expect(what);
                // Only what somebody did, not what the change was about.
                assert!(repair.differences > 0, "{what}");
                let new = sg(number + 10);
                assert!(
                    !repair.named.iter().any(|it| it.contains(&new)),
                    "{repair:?}"
                );
                assert_eq!(firewall.reconcile().await.expect("read"), None);
            }
        });
    });
}

#[test]
fn what_a_change_keeps_is_not_cut_for_an_earlier_one() {
    in_namespace(|| {
        let mut policy = policy(4);
        let group = policy.groups.get_mut(&sg(0)).expect("there");
        open(group, 80, everybody());
        open(group, 81, everybody());
        let mut group = group.clone();
        let mut world = World::new(policy);
        let (client, server) = (interface(2).ipv4.into(), interface(0).ipv4.into());
        let syn = Packet::tcp((client, 40000), (server, 80), 2);
        let (_, seen) = world.pass(End::Guest(2), &syn).expect("open");
        world.pass(End::Guest(0), &seen.answer()).expect("answer");
        // Its search for connections that were just beginning is yet to come.
        group.rules.remove("sgr-81");
        assert_eq!(world.apply(Change::PutGroup(sg(0), group.clone())), 0);
        assert!(world.engine.late().is_some());
        group.rules.remove("sgr-80");
        let keep = Request {
            changes: vec![Change::PutGroup(sg(0), group)],
            cut: false,
        };
        world.engine.apply(&[keep]).expect("applied");
        world.engine.cut_late(u64::MAX);
        let data = Packet::tcp((client, 40000), (server, 80), ACK);
        assert!(world.pass(End::Guest(2), &data).is_some(), "it was kept");
        let syn = Packet::tcp((client, 40001), (server, 80), 2);
        assert_eq!(world.pass(End::Guest(2), &syn), None, "nothing new");
    });
}
