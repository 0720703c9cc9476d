//! From and to guests, through the host.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::firewall::{
    FORWARD_MARK, TAP_PREFIX,
    table::{CtState, Direction, Field, Table, rule},
};

use super::{
    AFTER_SNAT, FILTER, FORWARD, ICMP, ICMPV6, LINK_LOCAL, POSTROUTING, UDP, count_and_drop, hook,
};

/// What guests send, and what comes for them from outside, on its way through the host.
pub fn egress(table: &mut Table) {
    hook(
        table,
        "egress",
        "filter",
        FORWARD,
        FILTER,
        vec![
            rule().iif_prefix(true, TAP_PREFIX).goto("leaving"),
            rule().oif_prefix(true, TAP_PREFIX).goto("arriving"),
            // What is for an address of ours that nobody has would go out again.
            rule()
                .ipv4()
                .key_destination(Field::Ipv4)
                .in_set("networks4")
                .drop(),
            rule()
                .ipv6()
                .key_destination(Field::Ipv6)
                .in_set("networks6")
                .drop(),
        ],
    );
    // The mark lets the agent's own packets in; nothing that is forwarded has it.
    let marked = || {
        rule()
            .oif_prefix(true, TAP_PREFIX)
            .mark(FORWARD_MARK)
            .drop()
    };
    table.chain(
        "leaving",
        vec![
            marked(),
            rule().ct_state(true, CtState::Established).accept(),
            rule().ct_state(true, CtState::Related).goto("related"),
            rule().ct_state(false, CtState::New).goto("refused-out"),
            rule().tcp_not_first().goto("refused-out"),
            // Neither the host's link nor the metadata service of a cloud that the host is in.
            rule()
                .ipv4()
                .destination4_in(true, Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16))
                .goto("refused-out"),
            rule()
                .ipv6()
                .destination6_in(
                    true,
                    Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), 32),
                )
                .goto("refused-out"),
            rule()
                .oif_prefix(false, TAP_PREFIX)
                .ipv4()
                .key_destination(Field::Ipv4)
                .in_set("networks4")
                .goto("refused-out"),
            rule()
                .oif_prefix(false, TAP_PREFIX)
                .ipv6()
                .key_destination(Field::Ipv6)
                .in_set("networks6")
                .goto("refused-out"),
            rule().ipv4().key_iif().verdict_map("out4"),
            rule().ipv6().key_iif().verdict_map("out6"),
            rule().goto("refused-out"),
        ],
    );
    count_and_drop(table, "refused-out", true);
    table.chain(
        "arriving",
        vec![
            marked(),
            rule().ct_state(true, CtState::Established).accept(),
            rule().ct_state(true, CtState::Related).accept(),
            rule().ct_state(false, CtState::New).goto("refused-in"),
            rule().tcp_not_first().goto("refused-in"),
            rule().accept(),
        ],
    );
    // ICMP errors about connections of the guest's own, not about any that it knows of.
    let mut rules = Vec::new();
    for direction in [Direction::Original, Direction::Reply] {
        rules.push(
            rule()
                .ipv4()
                .protocol(ICMP)
                .key_iif()
                .key_ct_source(Field::Ipv4, direction)
                .in_set("own4")
                .accept(),
        );
        rules.push(
            rule()
                .ipv6()
                .protocol(ICMPV6)
                .key_iif()
                .key_ct_source(Field::Ipv6, direction)
                .in_set("own6")
                .accept(),
        );
    }
    rules.push(rule().goto("refused-out"));
    table.chain("related", rules);
}

/// What goes to guests, from wherever: after source addresses were translated, so that groups see
/// what the guest sees.
pub fn ingress(table: &mut Table) {
    hook(
        table,
        "ingress",
        "filter",
        POSTROUTING,
        AFTER_SNAT,
        vec![rule().oif_prefix(true, TAP_PREFIX).goto("entering")],
    );
    let mut rules = vec![
        rule().key_oif().not_in_set("taps").drop(),
        rule().ct_state(true, CtState::Established).accept(),
        rule()
            .ct_state(true, CtState::Related)
            .protocol(ICMP)
            .accept(),
        rule()
            .ct_state(true, CtState::Related)
            .protocol(ICMPV6)
            .accept(),
    ];
    // Router advertisement, neighbour solicitation and advertisement of the host: not tracked, so
    // that none comes through "leaving" or "arriving".
    for kind in [134, 135, 136] {
        rules.push(
            rule()
                .ct_state(true, CtState::Untracked)
                .ipv6()
                .protocol(ICMPV6)
                .icmp_type(kind)
                .accept(),
        );
    }
    rules.extend([
        rule().ct_state(false, CtState::New).goto("refused-in"),
        rule().tcp_not_first().goto("refused-in"),
        rule()
            .mark(FORWARD_MARK)
            .mark_connection(FORWARD_MARK)
            .accept(),
        rule()
            .ipv4()
            .key_source(Field::Ipv4)
            .in_set("gateways4")
            .protocol(UDP)
            .source_port(67)
            .destination_port(68)
            .accept(),
        rule()
            .ipv6()
            .source6_in(true, LINK_LOCAL)
            .protocol(UDP)
            .source_port(547)
            .destination_port(546)
            .accept(),
        rule().ipv4().key_oif().verdict_map("in4"),
        rule().ipv6().key_oif().verdict_map("in6"),
        rule().goto("refused-in"),
    ]);
    table.chain("entering", rules);
    count_and_drop(table, "refused-in", false);
}
