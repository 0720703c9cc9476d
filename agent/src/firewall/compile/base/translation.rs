//! Metadata, public addresses, port forwards, and going out under the host's address.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::firewall::{
    METADATA_PORT, TAP_PREFIX,
    table::{Field, Table, rule},
};

use super::{DNAT, METADATA_IPV4, METADATA_IPV6, OUTPUT, POSTROUTING, PREROUTING, SNAT, TCP, hook};

pub fn translation(table: &mut Table) {
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
            .not_in_set("gateways4")
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
                .not_in_set("networks4")
                .key_source(Field::Ipv4)
                .snat_by("private4"),
            leaves()
                .ipv4()
                .key_destination(Field::Ipv4)
                .not_in_set("networks4")
                .key_source(Field::Ipv4)
                .in_set("nat4")
                .masquerade(),
            leaves()
                .ipv6()
                .key_destination(Field::Ipv6)
                .not_in_set("networks6")
                .key_source(Field::Ipv6)
                .in_set("nat6")
                .masquerade(),
        ],
    );
}
