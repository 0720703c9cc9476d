//! To the host itself.

use std::net::Ipv4Addr;

use crate::firewall::{
    METADATA_PORT, TAP_PREFIX,
    table::{CtState, Field, Table, rule},
};

use super::{FILTER, ICMP, ICMPV6, INPUT, LINK_LOCAL, ON_LINK, TCP, UDP, count_and_drop, hook};

/// What guests send to the host itself.
pub fn host(table: &mut Table) {
    hook(
        table,
        "host",
        "filter",
        INPUT,
        FILTER,
        vec![rule().iif_prefix(true, TAP_PREFIX).goto("serving")],
    );
    let mut rules = vec![
        rule().ct_state(true, CtState::Established).accept(),
        rule().ct_state(true, CtState::Related).goto("related"),
    ];
    // Router solicitation, neighbour solicitation and advertisement, multicast listeners.
    for kind in [133, 135, 136, 131, 132, 143] {
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
        rule().ct_state(false, CtState::New).goto("refused-host"),
        rule().tcp_not_first().goto("refused-host"),
        rule()
            .ipv4()
            .destination4_is(Ipv4Addr::BROADCAST)
            .protocol(UDP)
            .source_port(68)
            .destination_port(67)
            .accept(),
    ]);
    for destination in [LINK_LOCAL, ON_LINK] {
        rules.push(
            rule()
                .ipv6()
                .destination6_in(true, destination)
                .protocol(UDP)
                .source_port(546)
                .destination_port(547)
                .accept(),
        );
    }
    rules.extend([
        rule()
            .ipv4()
            .key_iif()
            .key_destination(Field::Ipv4)
            .in_set("services4")
            .jump("services"),
        rule()
            .ipv6()
            .key_iif()
            .key_destination(Field::Ipv6)
            .in_set("services6")
            .jump("services"),
        rule().goto("refused-host"),
    ]);
    table.chain("serving", rules);
    table.chain(
        "services",
        vec![
            rule().protocol(UDP).destination_port(53).accept(),
            rule().protocol(TCP).destination_port(53).accept(),
            rule().ipv4().protocol(UDP).destination_port(67).accept(),
            rule().ipv4().protocol(ICMP).icmp_type(8).accept(),
            rule().ipv6().protocol(ICMPV6).icmp_type(128).accept(),
            // Only what was asked of the metadata address.
            rule()
                .dnat(true)
                .protocol(TCP)
                .destination_port(METADATA_PORT)
                .accept(),
        ],
    );
    count_and_drop(table, "refused-host", true);
}
