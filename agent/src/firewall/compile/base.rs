//! What does not depend on which interfaces and groups there are: hooks, the way of a packet
//! through them, and the sets that the others fill.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::firewall::{
    FORWARD_MARK, METADATA_PORT, TAP_PREFIX,
    table::{
        Base, Chain, CtState, Direction, Field, Lookup, Rule, Set, SetData, Table, Tables, rule,
    },
};

/// The host's own link-local address on every tap.
pub const GATEWAY_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Before defragmentation (-400): a fragment with a stranger's address must not become a part of
/// that one's packet.
const BEFORE_FRAGMENTS: i32 = -450;
const DNAT: i32 = -100;
const FILTER: i32 = 0;
const SNAT: i32 = 100;
const AFTER_SNAT: i32 = 110;

const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
const ARP_IN: u32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
const ON_LINK: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0), 16);

pub fn tables() -> Tables {
    let mut inet = Table::default();
    sets(&mut inet);
    spoofing(&mut inet);
    translation(&mut inet);
    egress(&mut inet);
    ingress(&mut inet);
    host(&mut inet);
    let mut arp = Table::default();
    arp_spoofing(&mut arp);
    Tables { inet, arp }
}

fn hook(
    table: &mut Table,
    name: &str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    rules: Vec<Rule>,
) {
    let base = Some(Base {
        kind,
        hook,
        priority,
    });
    table.chains.insert(name.to_owned(), Chain { base, rules });
}

fn sets(table: &mut Table) {
    use Field::{Ether, Interface, Ipv4, Ipv6, Port, Protocol};
    let mut set = |name: &str, key: &[Field], lookup, data, counters| {
        let key = key.to_vec();
        table.set(
            name,
            Set {
                key,
                lookup,
                data,
                counters,
            },
        );
    };
    let exact =
        |set: &mut dyn FnMut(&str, &[Field], Lookup, SetData, bool), name: &str, key: &[Field]| {
            set(name, key, Lookup::Exact, SetData::Nothing, false);
        };
    // Who is who.
    exact(&mut set, "taps", &[Interface]);
    exact(&mut set, "macs", &[Interface, Ether]);
    exact(&mut set, "sources4", &[Interface, Ether, Ipv4]);
    exact(&mut set, "sources6", &[Interface, Ether, Ipv6]);
    exact(&mut set, "own4", &[Interface, Ipv4]);
    exact(&mut set, "own6", &[Interface, Ipv6]);
    exact(&mut set, "services4", &[Interface, Ipv4]);
    exact(&mut set, "services6", &[Interface, Ipv6]);
    exact(&mut set, "gateways4", &[Ipv4]);
    // Our networks, and those that the outside sees under the host's address.
    for (name, field) in [
        ("networks4", Ipv4),
        ("networks6", Ipv6),
        ("nat4", Ipv4),
        ("nat6", Ipv6),
    ] {
        set(name, &[field], Lookup::Ranges, SetData::Nothing, false);
    }
    // An interface's groups.
    for name in ["out4", "out6", "in4", "in6"] {
        set(name, &[Interface], Lookup::Exact, SetData::Verdict, false);
    }
    // Packets that were refused, by interface.
    for name in ["spoofed", "refused-out", "refused-in", "refused-host"] {
        set(name, &[Interface], Lookup::Exact, SetData::Nothing, true);
    }
    // Addresses and ports that are others'.
    let value = |fields: &[Field]| SetData::Value(fields.to_vec());
    set("public4", &[Ipv4], Lookup::Exact, value(&[Ipv4]), false);
    set("private4", &[Ipv4], Lookup::Exact, value(&[Ipv4]), false);
    set(
        "forwards",
        &[Protocol, Port],
        Lookup::Exact,
        value(&[Ipv4, Port]),
        false,
    );
}

/// A guest speaks as itself only; nobody else speaks as a guest.
fn spoofing(table: &mut Table) {
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
                .is_in("networks4")
                .drop(),
            rule()
                .iif_is_not("lo")
                .ipv6()
                .key_source(Field::Ipv6)
                .is_in("networks6")
                .drop(),
        ],
    );
    let mut rules = vec![
        rule()
            .key_iif()
            .key_ether_source()
            .is_not_in("macs")
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
            .is_in("sources4")
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
    rules.extend([
        rule()
            .ipv6()
            .key_iif()
            .key_ether_source()
            .key_source(Field::Ipv6)
            .is_in("sources6")
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

/// A chain that counts by interface, and drops.
fn count_and_drop(table: &mut Table, name: &str, by_input: bool) {
    let start = if by_input {
        rule().key_iif()
    } else {
        rule().key_oif()
    };
    table.chain(name, vec![start.is_in(name).drop(), rule().drop()]);
}

fn translation(table: &mut Table) {
    let to_public = || {
        rule()
            .ipv4()
            .key_destination(Field::Ipv4)
            .dnat_by("public4")
    };
    let to_forward = || {
        rule()
            .ipv4()
            .destination4_in(false, Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8))
            .destination_is_local()
            .key_destination(Field::Ipv4)
            .is_not_in("gateways4")
            .key_protocol()
            .key_destination_port()
            .dnat_port_by("forwards")
    };
    hook(
        table,
        "dnat",
        "nat",
        PREROUTING,
        DNAT,
        vec![
            rule()
                .iif_prefix(true, TAP_PREFIX)
                .ipv4()
                .destination4_is(METADATA_IPV4)
                .protocol(TCP)
                .destination_port(80)
                .redirect(METADATA_PORT),
            rule()
                .iif_prefix(true, TAP_PREFIX)
                .ipv6()
                .destination6_is(METADATA_IPV6)
                .protocol(TCP)
                .destination_port(80)
                .redirect(METADATA_PORT),
            to_public(),
            to_forward(),
        ],
    );
    hook(
        table,
        "dnat-host",
        "nat",
        OUTPUT,
        DNAT,
        vec![to_public(), to_forward()],
    );
    let leaves = || rule().oif_prefix(false, TAP_PREFIX);
    hook(
        table,
        "snat",
        "nat",
        POSTROUTING,
        SNAT,
        vec![
            // From one public address to another of this host.
            rule()
                .ipv4()
                .dnat(true)
                .oif_prefix(true, TAP_PREFIX)
                .key_source(Field::Ipv4)
                .snat_by("private4"),
            leaves()
                .ipv4()
                .key_destination(Field::Ipv4)
                .is_not_in("networks4")
                .key_source(Field::Ipv4)
                .snat_by("private4"),
            leaves()
                .ipv4()
                .key_destination(Field::Ipv4)
                .is_not_in("networks4")
                .key_source(Field::Ipv4)
                .is_in("nat4")
                .masquerade(),
            leaves()
                .ipv6()
                .key_destination(Field::Ipv6)
                .is_not_in("networks6")
                .key_source(Field::Ipv6)
                .is_in("nat6")
                .masquerade(),
        ],
    );
}

/// What guests send, and what comes for them from outside, on its way through the host.
fn egress(table: &mut Table) {
    hook(
        table,
        "egress",
        "filter",
        FORWARD,
        FILTER,
        vec![
            rule().iif_prefix(true, TAP_PREFIX).goto("leaving"),
            rule().oif_prefix(true, TAP_PREFIX).goto("arriving"),
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
            // An address of our networks that nobody has would follow the default route.
            rule()
                .oif_prefix(false, TAP_PREFIX)
                .ipv4()
                .key_destination(Field::Ipv4)
                .is_in("networks4")
                .goto("refused-out"),
            rule()
                .oif_prefix(false, TAP_PREFIX)
                .ipv6()
                .key_destination(Field::Ipv6)
                .is_in("networks6")
                .goto("refused-out"),
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
            rule().ct_state(false, CtState::New).drop(),
            rule().tcp_not_first().drop(),
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
                .is_in("own4")
                .accept(),
        );
        rules.push(
            rule()
                .ipv6()
                .protocol(ICMPV6)
                .key_iif()
                .key_ct_source(Field::Ipv6, direction)
                .is_in("own6")
                .accept(),
        );
    }
    rules.push(rule().goto("refused-out"));
    table.chain("related", rules);
}

/// What goes to guests, from wherever: after source addresses were translated, so that groups see
/// what the guest sees.
fn ingress(table: &mut Table) {
    hook(
        table,
        "ingress",
        "filter",
        POSTROUTING,
        AFTER_SNAT,
        vec![rule().oif_prefix(true, TAP_PREFIX).goto("entering")],
    );
    let mut rules = vec![
        rule().key_oif().is_not_in("taps").drop(),
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
            .is_in("gateways4")
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

/// What guests send to the host itself.
fn host(table: &mut Table) {
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
            .is_in("services4")
            .jump("services"),
        rule()
            .ipv6()
            .key_iif()
            .key_destination(Field::Ipv6)
            .is_in("services6")
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

/// A guest says only of itself where it is.
fn arp_spoofing(table: &mut Table) {
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
                .is_in("claims")
                .accept(),
            rule().drop(),
        ],
    );
}
