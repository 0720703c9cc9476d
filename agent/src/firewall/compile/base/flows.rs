//! Flows: packets of logged interfaces are counted by who talks to whom, as the guest sees it.
//!
//! What passed is counted behind the chain that let it pass, so that these chains are not there
//! at all without flow logs; what is refused, at the head of the chain that drops it.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::firewall::{
    TAP_PREFIX,
    flows::{FlowSet, Protocols, Side},
    policy::{Policy, Windows},
    table::{
        CtState, Direction, Element, ElementKey, Field, Lookup, Rule, RuleBuilder, Set, SetData,
        Table, key, rule,
    },
};

use super::{
    AFTER_SNAT, FILTER, FORWARD, INPUT, LINK_LOCAL, METADATA_IPV6, ON_LINK, POSTROUTING, TCP, UDP,
    hook,
};

/// Taps whose accepted or refused packets are counted.
fn logged(accepted: bool) -> &'static str {
    if accepted {
        "logged-accepted"
    } else {
        "logged-refused"
    }
}

/// What an interface has of it.
pub fn interface(policy: &Policy, id: &str, tap: &str, table: &mut Table) {
    let (Some(traffic), Some(_)) = (policy.logged.get(id), policy.windows.current) else {
        return;
    };
    for (wanted, accepted) in [(traffic.accepted, true), (traffic.refused, false)] {
        if wanted {
            let key = ElementKey::exact(key().interface(tap).build());
            table.element(logged(accepted), key, Element::commented(id));
        }
    }
}

/// Adds what counts, to a table that has all else.
pub fn flows(windows: &Windows, table: &mut Table) {
    for window in windows.current.iter().chain(&windows.retired) {
        for set in FlowSet::all(*window) {
            table.set(
                &set.name(),
                Set {
                    key: set.key(),
                    lookup: Lookup::Filled,
                    data: SetData::Nothing,
                    counters: true,
                },
            );
        }
    }
    let Some(window) = windows.current else {
        return;
    };
    for accepted in [true, false] {
        table.set(
            logged(accepted),
            Set {
                key: vec![Field::Interface],
                lookup: Lookup::Exact,
                data: SetData::Nothing,
                counters: false,
            },
        );
        for ipv6 in [false, true] {
            for side in [Side::Out, Side::In] {
                let rules = counting(window, side, ipv6, accepted);
                table.chain(&chain(side, ipv6, accepted), rules);
            }
        }
    }
    passed(table);
    for (refusing, side) in [
        ("refused-out", Side::Out),
        ("refused-host", Side::Out),
        ("refused-in", Side::In),
    ] {
        if let Some(refusing) = table.chains.get_mut(refusing) {
            let count = [false, true]
                .map(|ipv6| of_logged(side, ipv6, false, rule()).jump(&chain(side, ipv6, false)));
            refusing.rules.splice(0..0, count);
        }
    }
}

/// The chain that counts.
fn chain(side: Side, ipv6: bool, accepted: bool) -> String {
    FlowSet::group(side, ipv6, accepted)
}

fn family(builder: RuleBuilder, ipv6: bool) -> RuleBuilder {
    if ipv6 { builder.ipv6() } else { builder.ipv4() }
}

/// Goes on for packets of a logged interface.
fn of_logged(side: Side, ipv6: bool, accepted: bool, builder: RuleBuilder) -> RuleBuilder {
    let builder = family(builder, ipv6);
    match side {
        Side::Out => builder.key_iif(),
        Side::In => builder.key_oif(),
    }
    .in_set(logged(accepted))
}

/// Behind the chains of the same hooks.
fn passed(table: &mut Table) {
    let counted = |side, builder: &dyn Fn() -> RuleBuilder| {
        [false, true]
            .map(|ipv6| of_logged(side, ipv6, true, builder()).goto(&chain(side, ipv6, true)))
    };
    let from = || rule().iif_prefix(true, TAP_PREFIX);
    hook(
        table,
        "flows-forwarded",
        "filter",
        FORWARD,
        FILTER + 1,
        counted(Side::Out, &from).into(),
    );
    // Answers to what the host asked; what the host serves is not logged.
    let answers = || from().ct_direction(Direction::Reply);
    hook(
        table,
        "flows-host",
        "filter",
        INPUT,
        FILTER + 1,
        counted(Side::Out, &answers).into(),
    );
    let to = || rule().oif_prefix(true, TAP_PREFIX);
    hook(
        table,
        "flows-entering",
        "filter",
        POSTROUTING,
        AFTER_SNAT + 1,
        counted(Side::In, &to).into(),
    );
}

/// The rules that count. Each that does goes back; what is left at the end found no room.
fn counting(window: u64, side: Side, ipv6: bool, accepted: bool) -> Vec<Rule> {
    let mut rules = match (side, accepted) {
        (Side::In, true) => services(ipv6),
        (Side::Out, true) => Vec::new(),
        (_, false) => on_the_link(ipv6),
    };
    // Packets that come in are what the guest sees. What it sends is translated already; the
    // connection knows what it was.
    let directions = match (side, accepted) {
        (Side::In, _) => &[None][..],
        (Side::Out, true) => &[Some(Direction::Original), Some(Direction::Reply)],
        (Side::Out, false) => &[Some(Direction::Original), Some(Direction::Reply), None],
    };
    for direction in directions {
        for protocols in Protocols::ALL {
            let set = FlowSet {
                window,
                side,
                ipv6,
                accepted,
                protocols,
            };
            let start = match (side, direction) {
                (Side::In, _) => rule(),
                (Side::Out, Some(direction)) => rule().ct_direction(*direction),
                (Side::Out, None) => rule().of_no_connection(),
            };
            rules.push(count(start, &set, *direction));
        }
    }
    let skipped = match side {
        Side::Out => rule().key_iif(),
        Side::In => rule().key_oif(),
    };
    rules.push(skipped.count(&FlowSet::skipped(window)));
    rules
}

fn count(start: RuleBuilder, set: &FlowSet, direction: Option<Direction>) -> Rule {
    let address = if set.ipv6 { Field::Ipv6 } else { Field::Ipv4 };
    let start = match set.protocols {
        Protocols::Tcp => start.protocol(TCP),
        Protocols::Udp => start.protocol(UDP),
        Protocols::Other => start.protocol_is_not(TCP).protocol_is_not(UDP),
    };
    let named = match set.side {
        Side::Out => start.key_iif(),
        Side::In => start.key_oif(),
    }
    .key_source(address);
    let named = match direction {
        Some(direction) => named.key_ct_destination_of(address, direction),
        None => named.key_destination(address),
    };
    match (set.protocols, direction) {
        (Protocols::Other, _) => named.key_protocol(),
        (_, Some(direction)) => named
            .key_source_port()
            .key_ct_destination_port_of(direction),
        (_, None) => named.key_source_port().key_destination_port(),
    }
    .count(&set.name())
}

/// What never leaves the link is nobody's flow: multicast of the link, as guests and hosts send it
/// unasked, and whatever has a link-local source.
fn on_the_link(ipv6: bool) -> Vec<Rule> {
    if ipv6 {
        vec![
            rule().destination6_in(true, ON_LINK).back(),
            rule().source6_in(true, LINK_LOCAL).back(),
        ]
    } else {
        let multicast = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 24);
        vec![rule().destination4_in(true, multicast).back()]
    }
}

/// What comes from the services on the guest's own tap is nobody's flow.
fn services(ipv6: bool) -> Vec<Rule> {
    let own = || {
        if ipv6 {
            rule().key_oif().key_source(Field::Ipv6).in_set("services6")
        } else {
            rule().key_oif().key_source(Field::Ipv4).in_set("services4")
        }
    };
    let mut rules = vec![
        // Neighbour discovery and router advertisements.
        rule().of_no_connection().back(),
        own().ct_direction(Direction::Reply).back(),
        own().ct_state(true, CtState::Related).back(),
    ];
    if ipv6 {
        let metadata = Ipv6Net::new_assert(METADATA_IPV6, 128);
        rules.push(rule().source6_in(true, LINK_LOCAL).back());
        rules.push(rule().source6_in(true, metadata).back());
    } else {
        let link_local = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
        rules.push(rule().source4_in(true, link_local).back());
        rules.push(
            own()
                .protocol(UDP)
                .source_port(67)
                .destination_port(68)
                .back(),
        );
    }
    rules
}
