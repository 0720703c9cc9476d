//! An interface: who it is, and the groups that it is in.

use crate::firewall::{
    explain::public_address,
    policy::{Interface, Network, Policy},
    table::{Data, Element, ElementKey, Field, Rule, Table, Tables, key, rule},
};

use super::{
    base::{GATEWAY_LINK_LOCAL, flows},
    group,
};

pub fn compile(policy: &Policy, id: &str, tables: &mut Tables) {
    let Some(interface) = policy.interfaces.get(id) else {
        return;
    };
    // An interface of no network is in nothing: it gets nothing through.
    let Some(network) = policy.networks.get(&interface.network) else {
        return;
    };
    let tap = &interface.tap;
    let mac = &interface.mac;
    let table = &mut tables.inet;
    let mut say = |set: &str, key: Vec<u8>| {
        table.element(set, ElementKey::exact(key), Element::commented(id));
    };
    let named = || key().interface(tap);
    for set in [
        "taps",
        "spoofed",
        "refused-out",
        "refused-in",
        "refused-host",
    ] {
        say(set, named().build());
    }
    say("macs", named().bytes(mac).build());
    say("sources4", named().bytes(mac).ipv4(interface.ipv4).build());
    say("own4", named().ipv4(interface.ipv4).build());
    say("services4", named().ipv4(network.gateway_ipv4).build());
    if let Some(ipv6) = interface.ipv6 {
        say("sources6", named().bytes(mac).ipv6(ipv6).build());
        say("own6", named().ipv6(ipv6).build());
    }
    if let Some(gateway) = network.gateway_ipv6 {
        say("services6", named().ipv6(gateway).build());
        say("services6", named().ipv6(GATEWAY_LINK_LOCAL).build());
    }
    for claim in [interface.ipv4, std::net::Ipv4Addr::UNSPECIFIED] {
        let key = named().bytes(mac).bytes(mac).ipv4(claim).build();
        let element = Element::commented(id);
        tables
            .arp
            .element("claims", ElementKey::exact(key), element);
    }
    if let Some(public) = public_address(policy, id) {
        let element = Element {
            data: Some(Data::Value(key().ipv4(public).build())),
            comment: id.to_owned(),
        };
        let private = ElementKey::exact(key().ipv4(interface.ipv4).build());
        tables.inet.element("private4", private, element);
    }
    flows::interface(policy, id, tap, &mut tables.inet);
    groups(policy, id, interface, network, &mut tables.inet);
}

fn groups(policy: &Policy, id: &str, interface: &Interface, network: &Network, table: &mut Table) {
    for way in group::Way::ALL {
        let jumps: Vec<Rule> = interface
            .groups
            .iter()
            .filter(|group| group::has_rules(policy, group, way))
            .map(|group| rule().jump(&group::chain(group, way)))
            .collect();
        if jumps.is_empty() {
            continue;
        }
        let mut rules = match way.name() {
            "out4" => vec![
                rule()
                    .ipv4()
                    .key_destination(Field::Ipv4)
                    .in_set("networks4")
                    .destination4_in(false, network.ipv4.trunc())
                    .dnat(false)
                    .comment("isolation")
                    .goto("refused-out"),
            ],
            "out6" => {
                let isolation = rule()
                    .ipv6()
                    .key_destination(Field::Ipv6)
                    .in_set("networks6")
                    .comment("isolation");
                vec![match network.ipv6 {
                    Some(own) => isolation
                        .destination6_in(false, own.trunc())
                        .dnat(false)
                        .goto("refused-out"),
                    None => isolation.dnat(false).goto("refused-out"),
                }]
            }
            _ => Vec::new(),
        };
        rules.extend(jumps);
        let chain = format!("{id}-{}", way.name());
        table.chain(&chain, rules);
        let element = Element {
            data: Some(Data::Jump(chain)),
            comment: id.to_owned(),
        };
        let tap = key().interface(&interface.tap).build();
        table.element(way.name(), ElementKey::exact(tap), element);
    }
}
