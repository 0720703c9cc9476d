//! The sets that interfaces, networks and addresses fill.

use crate::firewall::table::{Field, Lookup, Set, SetData, Table};

pub fn sets(table: &mut Table) {
    use Field::{Ether, Group, Interface, Ipv4, Ipv6, Port, Protocol};
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
    // Who is who.
    let exact: [(&str, &[Field]); 11] = [
        ("taps", &[Interface]),
        ("macs", &[Interface, Ether]),
        ("sources4", &[Interface, Ether, Ipv4]),
        ("sources6", &[Interface, Ether, Ipv6]),
        ("own4", &[Interface, Ipv4]),
        ("own6", &[Interface, Ipv6]),
        ("services4", &[Interface, Ipv4]),
        ("services6", &[Interface, Ipv6]),
        ("gateways4", &[Ipv4]),
        // Who is in the groups that rules name.
        ("members4", &[Group, Ipv4]),
        ("members6", &[Group, Ipv6]),
    ];
    for (name, key) in exact {
        set(name, key, Lookup::Exact, SetData::Nothing, false);
    }
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
