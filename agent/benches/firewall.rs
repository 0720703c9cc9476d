//! What the firewall costs before the kernel is asked for anything, with a full policy: 1,000
//! groups of 60 rules, and 500 interfaces in 5 groups each.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use criterion::{Criterion, criterion_group, criterion_main};
use hearth_agent::firewall::{
    compile::{Parts, affected},
    explain::{Packet, Transport, explain, ingress},
    policy::{Change, Direction, Group, Interface, Match, Network, Peer, Policy, Rule},
    table::{Family, diff},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const GROUPS: usize = 1000;
const RULES: usize = 60;
const INTERFACES: usize = 500;
const GROUPS_OF_INTERFACE: usize = 5;

const NETWORK: &str = "net-0";

/// Of the group that changes.
const CHANGED: usize = 0;

fn group_id(number: usize) -> String {
    format!("sg-{number:017x}")
}

fn rule(group: usize, number: usize) -> Rule {
    let first = 8000 + 10 * number as u16;
    let ports = |first, last| Match::Ports {
        protocol: 6,
        first,
        last,
    };
    let ipv4 = |a, b, c, bits| {
        let block = Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), bits);
        Peer::Block(IpNet::V4(block))
    };
    let (matches, peer) = match number {
        0 => (ports(443, 443), ipv4(0, 0, 0, 0)),
        1 => (
            Match::Icmp {
                kind: None,
                code: None,
            },
            ipv4(10, 0, 0, 8),
        ),
        2..6 => (
            ports(first, first),
            Peer::Group(group_id((group + 7 * number) % GROUPS)),
        ),
        6..12 => {
            let words = [
                0x2001,
                0xdb8,
                group as u16,
                (number as u16) << 8,
                0,
                0,
                0,
                0,
            ];
            let block = Ipv6Net::new_assert(Ipv6Addr::from(words), 56);
            (ports(first, first + 9), Peer::Block(IpNet::V6(block)))
        }
        // These overlap with what follows.
        12 | 30 | 48 => (ports(8000, 9000), ipv4(198, 18, 0, 15)),
        _ => {
            let third = u8::try_from((3 * group + number) % 256).unwrap_or_default();
            (ports(first, first + 5), ipv4(198, 18, third, 24))
        }
    };
    Rule {
        direction: Direction::Ingress,
        matches,
        peer,
    }
}

fn group(number: usize) -> Group {
    let rules = (0..RULES).map(|rule_number| {
        let id = format!("sgr-{number:05x}{rule_number:012x}");
        (id, rule(number, rule_number))
    });
    let mut rules: BTreeMap<String, Rule> = rules.collect();
    let everybody = Rule {
        direction: Direction::Egress,
        matches: Match::All,
        peer: Peer::Block(IpNet::V4(Ipv4Net::default())),
    };
    rules.insert(format!("sgr-{number:05x}e"), everybody);
    Group {
        network: NETWORK.to_owned(),
        rules,
    }
}

fn interface(number: usize) -> Interface {
    let [high, low] = (number as u16 + 4).to_be_bytes();
    let groups = (0..GROUPS_OF_INTERFACE).map(|it| (GROUPS_OF_INTERFACE * number + it) % GROUPS);
    Interface {
        network: NETWORK.to_owned(),
        tap: format!("hth{number:012x}"),
        mac: [2, 0, 0, 0, high, low],
        ipv4: Ipv4Addr::new(10, 20, high, low),
        ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, number as u16 + 4)),
        groups: groups.map(group_id).collect(),
    }
}

fn policy() -> Policy {
    let network = Network {
        ipv4: Ipv4Net::new_assert(Ipv4Addr::new(10, 20, 0, 0), 16),
        ipv6: Some(Ipv6Net::new_assert(
            Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0),
            64,
        )),
        gateway_ipv4: Ipv4Addr::new(10, 20, 0, 1),
        gateway_ipv6: Some(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1)),
        nat: true,
    };
    let interfaces = (0..INTERFACES).map(|it| (format!("eni-{it:017x}"), interface(it)));
    Policy {
        networks: [(NETWORK.to_owned(), network)].into(),
        interfaces: interfaces.collect(),
        groups: (0..GROUPS).map(|it| (group_id(it), group(it))).collect(),
        ..Default::default()
    }
}

/// The changed group has one rule more.
fn one_more() -> Change {
    let mut group = group(CHANGED);
    group
        .rules
        .insert("sgr-new".to_owned(), rule(CHANGED + 1, RULES));
    Change::PutGroup(group_id(CHANGED), group)
}

fn compiling(criterion: &mut Criterion) {
    let before = policy();
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function("the full policy", |bencher| {
        bencher.iter(|| Parts::of(black_box(&before), &BTreeMap::new()));
    });
    let parts = Parts::of(&before, &BTreeMap::new());
    group.bench_function("its tables, put together", |bencher| {
        bencher.iter(|| parts.tables())
    });
    group.sample_size(100);
    let change = one_more();
    let mut after = before.clone();
    after.apply(change.clone());
    group.bench_function("one rule more, to the commands for the kernel", |bencher| {
        bencher.iter(|| {
            let units: BTreeSet<_> = affected(&before, black_box(&change));
            let step = parts.step(&after, &units);
            Family::ALL.map(|it| diff(step.old.get(it), step.new.get(it)).len())
        });
    });
    group.finish();
}

fn evaluating(criterion: &mut Criterion) {
    let policy = policy();
    let number = INTERFACES / 2;
    let to = interface(number);
    let mut group = criterion.benchmark_group("evaluate");
    let transport = |destination| Transport::Ports {
        source: 40_000,
        destination,
    };
    let source = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
    for (name, port) in [
        ("a connection that is admitted", 443),
        ("one that is not", 7),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| ingress(black_box(&policy), &to, source, 6, transport(port)).is_some());
        });
    }
    let packet = Packet {
        source,
        destination: to.ipv4.into(),
        protocol: 6,
        transport: transport(443),
        to_host: false,
    };
    group.bench_function("an explanation", |bencher| {
        bencher.iter(|| explain(black_box(&policy), &packet).allowed());
    });
    group.finish();
}

criterion_group!(benches, compiling, evaluating);
criterion_main!(benches);
