//! What others do to our tables is undone; what is theirs is left alone.

use super::{
    packet::{ACK, Packet},
    world::{self, End, OUTSIDE4, World, eni, in_namespace, interface, nft, policy, sg},
};
use crate::firewall::{
    Owner,
    engine::{Engine, Request},
    policy::{Change, Direction, Match, Peer, Policy, Rule},
};

/// Guest 2 may ask guest 0 for web pages.
fn open_world() -> (World, Packet) {
    let mut policy = policy(3);
    let web = Rule {
        direction: Direction::Ingress,
        matches: Match::Ports {
            protocol: 6,
            first: 80,
            last: 443,
        },
        peer: Peer::Block("10.0.0.0/24".parse().expect("block")),
    };
    let group = policy.groups.get_mut(&sg(0)).expect("there");
    group.rules.insert("sgr-web".to_owned(), web);
    let syn = |port| {
        Packet::tcp(
            (interface(2).ipv4.into(), 40000),
            (interface(0).ipv4.into(), port),
            2,
        )
    };
    (World::new(policy), syn(80))
}

#[test]
fn rules_changed_by_hand_are_repaired_and_counters_stay() {
    in_namespace(|| {
        let (mut world, syn) = open_world();
        assert!(world.pass(End::Guest(2), &syn).is_some());
        assert_eq!(world.engine.reconcile().expect("read"), None);
        let blocked = Packet::tcp((syn.source, 1), (syn.destination, 22), 2);
        let elements = format!("{}-rules4", sg(0));
        let chain = format!("{}-in4", sg(0));
        for (what, open) in [
            // Each of these opens or closes something.
            (format!("flush chain inet hearth {chain}"), false),
            ("flush chain inet hearth leaving".to_owned(), false),
            (format!("insert rule inet hearth {chain} accept"), true),
            (format!("add rule inet hearth {chain} tcp dport {{ 22, 23 }} accept"), true),
            (
                format!("add element inet hearth {elements} {{ 0 . 10.0.0.0/16 . tcp . 22 }}"),
                true,
            ),
            (format!("flush set inet hearth {elements}"), false),
            ("insert rule inet hearth entering accept".to_owned(), true),
            ("delete table inet hearth".to_owned(), true),
            ("flush ruleset".to_owned(), true),
            ("add table inet hearth { flags dormant; }".to_owned(), true),
            (
                "add chain inet hearth mine { type filter hook forward priority 5; policy accept; }"
                    .to_owned(),
                false,
            ),
            ("add counter inet hearth mine".to_owned(), false),
            (
                "add set inet hearth mine { type ipv4_addr; elements = { 1.2.3.4 } }".to_owned(),
                false,
            ),
            ("flush chain arp hearth from-guest".to_owned(), false),
        ] {
            nft(&what);
            if open {
                let seen = world.pass(End::Guest(2), &blocked);
                let (_, seen) = seen.unwrap_or_else(|| panic!("{what} does something"));
                world.pass(End::Guest(0), &seen.answer()).expect(&what);
            }
            let repair = world.engine.reconcile().expect("repaired").expect(&what);
            assert!(repair.differences > 0 && !repair.named.is_empty());
            assert_eq!(world.engine.reconcile().expect("read"), None, "after {what}");
            assert_eq!(world.pass(End::Guest(2), &blocked), None, "after {what}");
            let data = Packet::tcp((syn.source, 1), (syn.destination, 22), ACK);
            assert_eq!(world.pass(End::Guest(2), &data), None, "after {what}");
            assert!(world.pass(End::Guest(2), &syn).is_some(), "after {what}");
        }
    });
}

#[test]
fn counters_outlive_a_restart_and_a_change_of_others() {
    in_namespace(|| {
        let (mut world, syn) = open_world();
        world.pass(End::Guest(2), &syn).expect("open");
        let count = |engine: &mut Engine| {
            engine.counters(&[sg(0)].into()).expect("read")["sgr-web"].packets
        };
        assert_eq!(count(&mut world.engine), 1);
        // One that overlaps, with an id before and one behind.
        let mut group = world.engine.policy().groups[&sg(0)].clone();
        for id in ["sgr-a", "sgr-z"] {
            let overlaps = Rule {
                direction: Direction::Ingress,
                matches: Match::Ports {
                    protocol: 6,
                    first: 1,
                    last: 100,
                },
                peer: Peer::Block("10.0.0.0/8".parse().expect("block")),
            };
            group.rules.insert(id.to_owned(), overlaps);
        }
        world.apply(Change::PutGroup(sg(0), group));
        assert_eq!(count(&mut world.engine), 1);
        let policy = (*world.engine.policy()).clone();
        world.engine = Engine::default();
        let repair = world.engine.load(policy).expect("loaded");
        assert_eq!(repair, None, "all is right");
        assert_eq!(count(&mut world.engine), 1);
    });
}

#[test]
fn tables_of_others_are_left_alone_and_without_networks_there_is_nothing() {
    in_namespace(|| {
        let mut engine = Engine::default();
        assert_eq!(engine.load(Policy::default()).expect("nothing"), None);
        assert_eq!(engine.reconcile().expect("nothing"), None);
        assert_eq!(nft("list ruleset"), "");
        let theirs = "table inet theirs {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { \
                      192.0.2.1 }\n\t}\n\n\tchain c {\n\t\ttype filter hook forward priority \
                      filter; policy accept;\n\t\tip saddr @s counter packets 0 bytes 0 \
                      drop\n\t}\n}\n";
        nft(theirs);
        let (mut world, syn) = open_world();
        assert!(world.pass(End::Guest(2), &syn).is_some());
        nft("flush chain inet hearth entering");
        world
            .engine
            .reconcile()
            .expect("repaired")
            .expect("something");
        assert_eq!(nft("list table inet theirs"), theirs);
        // The last network takes everything of ours with it.
        let all = world.engine.policy();
        for id in all.interfaces.keys() {
            world.apply(Change::RemoveInterface(id.clone()));
        }
        for id in all.groups.keys() {
            world.apply(Change::RemoveGroup(id.clone()));
        }
        for id in all.networks.keys() {
            world.apply(Change::RemoveNetwork(id.clone()));
        }
        assert_eq!(nft("list ruleset"), theirs);
        assert_eq!(world.engine.reconcile().expect("read"), None);
    });
}

#[test]
fn tables_of_another_policy_become_those_of_this_one() {
    in_namespace(|| {
        let (world, syn) = open_world();
        drop(world.engine.policy());
        let mut world = world;
        let mut closed = policy(3);
        closed.interfaces.remove(&eni(1));
        world.engine = Engine::default();
        let repair = world.engine.load(closed).expect("loaded");
        assert!(repair.is_some());
        assert_eq!(world.engine.reconcile().expect("read"), None);
        assert_eq!(world.pass(End::Guest(2), &syn), None, "closed now");
        let outside = Packet::tcp((interface(1).ipv4.into(), 40000), (OUTSIDE4, 80), 2);
        assert_eq!(
            world.pass(End::Guest(1), &outside),
            None,
            "not in the policy"
        );
        world.engine = Engine::default();
        let repair = world.engine.load(Policy::default()).expect("loaded");
        assert!(repair.is_some());
        assert_eq!(nft("list ruleset"), "");
    });
}

#[test]
fn the_tables_of_another_agent_are_neither_removed_nor_taken_over() {
    in_namespace(|| {
        let dir = tempfile::tempdir().expect("directory");
        let directories = ["one", "two"].map(|name| dir.path().join(name));
        let [one, two] = directories.each_ref().map(|path| {
            std::fs::create_dir(path).expect("made");
            Owner::of(path).expect("seen")
        });
        let mut first = Engine::new(one.clone());
        first.load(policy(2)).expect("loaded");
        let rules = nft("list ruleset");
        assert!(
            rules.contains(&format!("comment \"{}\"", one.mark())),
            "{rules}"
        );

        // Without networks, the other one has nothing to do with them, also when they change.
        let mut second = Engine::new(two.clone());
        assert_eq!(second.load(Policy::default()).expect("loaded"), None);
        nft("add table inet theirs");
        assert_eq!(second.reconcile().expect("nothing"), None);
        nft("delete table inet theirs");
        assert_eq!(nft("list ruleset"), rules);

        // With its first network, and at its start with some, it is refused.
        let network = policy(1).networks.pop_first().expect("one");
        let change = || Change::PutNetwork(network.0.clone(), network.1.clone());
        let request = || Request {
            changes: vec![change()],
            cut: true,
        };
        for holder in [Some(first), None] {
            let runs = holder.is_some();
            for error in [
                second.apply(&[request()]).expect_err("refused"),
                Engine::new(two.clone())
                    .load(policy(1))
                    .expect_err("refused"),
            ] {
                let text = error.to_string();
                assert!(text.contains(&one.mark()), "{text}");
                assert_eq!(text.contains("does not run"), !runs, "{text}");
            }
            assert!(second.policy().networks.is_empty());
            assert_eq!(nft("list ruleset"), rules);
            drop(holder);
        }

        // The first one takes up what it left. When its last network is gone, the other one may.
        let mut first = Engine::new(one.clone());
        assert_eq!(first.load(policy(2)).expect("loaded"), None);
        drop(first);
        let mut first = Engine::new(one);
        assert!(first.load(Policy::default()).expect("loaded").is_some());
        assert_eq!(nft("list ruleset"), "");
        second.apply(&[request()]).expect("free");
        assert!(first.apply(&[request()]).is_err());
        assert!(nft("list ruleset").contains(&two.mark()));
        let change = Change::RemoveNetwork(network.0.clone());
        let last = Request {
            changes: vec![change],
            cut: true,
        };
        second.apply(&[last]).expect("removed");
        assert_eq!(nft("list ruleset"), "");
        first.apply(&[request()]).expect("free");
    });
}

#[test]
fn what_nft_lists_says_what_is_what() {
    in_namespace(|| {
        let (_world, _) = open_world();
        let listed = nft("list table inet hearth");
        for part in [
            "iifname . @ll,48,48 . ip saddr @sources4 accept".to_owned(),
            "10.0.0.0/24 . tcp . 80-443".to_owned(),
            "comment \"sgr-web\"".to_owned(),
            format!(
                "ip saddr . meta l4proto . th dport @{}-rules4 accept",
                sg(0)
            ),
            format!(
                "\"{}\" comment \"{}\" : jump {}-out4",
                world::tap_name(0),
                eni(0),
                eni(0)
            ),
            "type filter hook prerouting priority -450; policy accept;".to_owned(),
        ] {
            assert!(listed.contains(&part), "{part} is not in\n{listed}");
        }
        nft("list table arp hearth");
    });
}
