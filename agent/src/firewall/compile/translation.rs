//! Public addresses and port forwards.

use std::net::Ipv4Addr;

use crate::firewall::{
    policy::Policy,
    table::{Data, Element, ElementKey, Table, key},
};

pub fn address(policy: &Policy, public: Ipv4Addr, table: &mut Table) {
    let Some(id) = policy.addresses.get(&public) else {
        return;
    };
    let Some(interface) = policy.interfaces.get(id) else {
        return;
    };
    let element = Element {
        data: Some(Data::Value(key().ipv4(interface.ipv4).build())),
        comment: id.clone(),
    };
    let key = ElementKey::exact(key().ipv4(public).build());
    table.element("public4", key, element);
}

pub fn forward(policy: &Policy, id: &str, table: &mut Table) {
    let Some(forward) = policy.forwards.get(id) else {
        return;
    };
    let Some(interface) = policy.interfaces.get(&forward.interface) else {
        return;
    };
    let value = key().ipv4(interface.ipv4).port(forward.port).build();
    let element = Element {
        data: Some(Data::Value(value)),
        comment: id.to_owned(),
    };
    let port = key().byte(forward.protocol).port(forward.host_port).build();
    table.element("forwards", ElementKey::exact(port), element);
}
