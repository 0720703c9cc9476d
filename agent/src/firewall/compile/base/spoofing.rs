//! Everybody is who it says it is.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::firewall::{
    TAP_PREFIX,
    table::{Field, Lookup, Set, SetData, Table, rule},
};

use super::{
    ARP_IN, BEFORE_FRAGMENTS, FILTER, GATEWAY_LINK_LOCAL, ICMPV6, LINK_LOCAL, ON_LINK, PREROUTING,
    UDP, count_and_drop, hook,
};

/// The unspecified and the loopback address, both with all that was once meant to carry IPv4
/// (`::/96`), and mapped IPv4 (`::ffff:0:0/96`), which a stack might take for the IPv4 address
/// itself (RFC 4291, section 2.5).
const NEVER_ON_A_WIRE: [(Ipv6Addr, u8); 2] = [
    (Ipv6Addr::UNSPECIFIED, 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
];

/// A guest speaks as itself only; nobody else speaks as a guest.
pub fn spoofing(table: &mut Table) {
    hook(
        table,
        "spoofing",
        "filter",
        PREROUTING,
        BEFORE_FRAGMENTS,
        vec![
            rule().iif_prefix(true, TAP_PREFIX).goto("from-guest"),
            // Also a tap that somebody renamed.
            rule()
                .iif_is_not("lo")
                .ipv4()
                .key_source(Field::Ipv4)
                .in_set("networks4")
                .drop(),
            rule()
                .iif_is_not("lo")
                .ipv6()
                .key_source(Field::Ipv6)
                .in_set("networks6")
                .drop(),
        ],
    );
    let mut rules = vec![
        rule()
            .key_iif()
            .key_ether_source()
            .not_in_set("macs")
            .goto("spoofed"),
    ];
    // Record route, loose and strict source routes.
    for option in [7, 131, 137] {
        rules.push(rule().ipv4().ip_option(option).goto("spoofed"));
    }
    rules.extend([
        rule()
            .ipv4()
            .protocol(UDP)
            .source_port(67)
            .destination_port(68)
            .goto("spoofed"),
        rule()
            .ipv4()
            .key_iif()
            .key_ether_source()
            .key_source(Field::Ipv4)
            .in_set("sources4")
            .accept(),
        rule()
            .ipv4()
            .source4_is(Ipv4Addr::UNSPECIFIED)
            .destination4_is(Ipv4Addr::BROADCAST)
            .protocol(UDP)
            .source_port(68)
            .destination_port(67)
            .accept(),
        rule().ipv6().routing_header_0().goto("spoofed"),
        rule()
            .ipv6()
            .protocol(UDP)
            .source_port(547)
            .destination_port(546)
            .goto("spoofed"),
    ]);
    // Router advertisement, redirect.
    for kind in [134, 137] {
        rules.push(
            rule()
                .ipv6()
                .protocol(ICMPV6)
                .icmp_type(kind)
                .goto("spoofed"),
        );
    }
    // Addresses that mean something within a host only.
    for prefix in NEVER_ON_A_WIRE {
        let inside = Ipv6Net::new_assert(prefix.0, prefix.1);
        rules.push(rule().ipv6().destination6_in(true, inside).goto("spoofed"));
    }
    rules.extend([
        rule()
            .ipv6()
            .key_iif()
            .key_ether_source()
            .key_source(Field::Ipv6)
            .in_set("sources6")
            .accept(),
        rule()
            .ipv6()
            .source6_in(true, Ipv6Net::new_assert(GATEWAY_LINK_LOCAL, 128))
            .goto("spoofed"),
    ]);
    // These never leave the link: what of them the host answers is said in "serving".
    for destination in [LINK_LOCAL, ON_LINK] {
        rules.push(
            rule()
                .ipv6()
                .source6_in(true, LINK_LOCAL)
                .destination6_in(true, destination)
                .accept(),
        );
    }
    rules.extend([
        rule()
            .ipv6()
            .source6_in(true, Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128))
            .destination6_in(true, ON_LINK)
            .accept(),
        rule().goto("spoofed"),
    ]);
    table.chain("from-guest", rules);
    count_and_drop(table, "spoofed", true);
}

/// A guest says only of itself where it is.
pub fn arp_spoofing(table: &mut Table) {
    let set = |key: &[Field]| Set {
        key: key.to_vec(),
        lookup: Lookup::Exact,
        data: SetData::Nothing,
        counters: false,
    };
    table.set(
        "claims",
        set(&[Field::Interface, Field::Ether, Field::Ether, Field::Ipv4]),
    );
    hook(
        table,
        "spoofing",
        "filter",
        ARP_IN,
        FILTER,
        vec![rule().iif_prefix(true, TAP_PREFIX).goto("from-guest")],
    );
    table.chain(
        "from-guest",
        vec![
            // The frame's sender, the sender that the message names, and its address (RFC 826);
            // 0.0.0.0 is there for those who ask before they take an address (RFC 5227).
            rule()
                .key_iif()
                .key_ether_source()
                .key_payload(Field::Ether, 1, 8)
                .key_payload(Field::Ipv4, 1, 14)
                .in_set("claims")
                .accept(),
            rule().drop(),
        ],
    );
}
