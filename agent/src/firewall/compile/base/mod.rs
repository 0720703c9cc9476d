//! What does not depend on which interfaces and groups there are: hooks, the way of a packet
//! through them, and the sets that the others fill.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::firewall::{
    policy::Policy,
    table::{Base, Chain, Rule, Table, Tables, rule},
};

pub mod flows;
mod forward;
mod host;
mod sets;
mod spoofing;
mod translation;

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

pub fn tables(policy: &Policy) -> Tables {
    let mut inet = Table::default();
    sets::sets(&mut inet);
    spoofing::spoofing(&mut inet);
    translation::translation(&mut inet);
    forward::egress(&mut inet);
    forward::ingress(&mut inet);
    host::host(&mut inet);
    flows::flows(&policy.windows, &mut inet);
    let mut arp = Table::default();
    spoofing::arp_spoofing(&mut arp);
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

/// A chain that counts by interface, and drops.
fn count_and_drop(table: &mut Table, name: &str, by_input: bool) {
    let start = if by_input {
        rule().key_iif()
    } else {
        rule().key_oif()
    };
    table.chain(name, vec![start.in_set(name).drop(), rule().drop()]);
}
