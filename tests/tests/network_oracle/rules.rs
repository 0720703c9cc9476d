//! Random rules: of every kind, and so that a good part of the random packets meets one.

use hearth_proto::v1::{SecurityGroupPermission, security_group_permission::Peer as Named};
use hearth_tests::net::{HOST4, Random, packet::protocol};

use crate::{model::Model, packets::PORTS};

fn named(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        protocol::ICMP => "icmp".to_owned(),
        protocol::ICMPV6 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// A permission for a group of this network.
pub fn permission(random: &mut Random, model: &Model, network: usize) -> SecurityGroupPermission {
    let number = match random.below(100) {
        0..35 => Some(protocol::TCP),
        35..60 => Some(protocol::UDP),
        60..70 => Some(protocol::ICMP),
        70..78 => Some(protocol::ICMPV6),
        78..84 => Some(protocol::GRE),
        84..90 => Some(protocol::PRIVATE),
        _ => None,
    };
    let (mut from_port, mut to_port) = (None, None);
    match number {
        Some(protocol::TCP | protocol::UDP) if random.percent(85) => {
            let [one, other] = [*random.pick(&PORTS), *random.pick(&PORTS)];
            from_port = Some(i32::from(one.min(other)));
            to_port = Some(i32::from(one.max(other)));
        }
        Some(protocol::ICMP | protocol::ICMPV6) if random.percent(60) => {
            let kinds = if number == Some(protocol::ICMP) {
                [8, 8, 13, 3]
            } else {
                [128, 128, 139, 1]
            };
            from_port = Some(*random.pick(&kinds));
            to_port = random
                .percent(50)
                .then_some(if random.percent(70) { 0 } else { 3 });
        }
        _ => {}
    }
    SecurityGroupPermission {
        protocol: number.map_or("-1".to_owned(), named),
        from_port,
        to_port,
        peer: Some(peer(random, model, network, number)),
        description: String::new(),
    }
}

fn peer(random: &mut Random, model: &Model, network: usize, number: Option<u8>) -> Named {
    let ipv6 = match number {
        Some(protocol::ICMP) => false,
        Some(protocol::ICMPV6) => true,
        _ => random.percent(35),
    };
    match random.below(100) {
        0..20 => {
            let of = |it: &&String| model.groups[*it].network == network;
            let groups = model.in_order(model.groups.keys().filter(of));
            Named::SecurityGroupId(random.pick(&groups).clone())
        }
        20..35 => {
            let of = |it: &&String| {
                let family = model.lists[*it].iter().next().map(ipnet_is_ipv6);
                family == Some(ipv6)
            };
            let lists = model.in_order(model.lists.keys().filter(of));
            match lists.is_empty() {
                true => block(random, model, ipv6),
                false => Named::PrefixListId(random.pick(&lists).clone()),
            }
        }
        _ => block(random, model, ipv6),
    }
}

fn ipnet_is_ipv6(block: &ipnet::IpNet) -> bool {
    matches!(block, ipnet::IpNet::V6(_))
}

fn block(random: &mut Random, model: &Model, ipv6: bool) -> Named {
    let text = cidr(random, model, ipv6);
    if ipv6 {
        Named::CidrIpv6(text)
    } else {
        Named::CidrIpv4(text)
    }
}

/// A block that has something to do with who is there.
pub fn cidr(random: &mut Random, model: &Model, ipv6: bool) -> String {
    if random.percent(30) {
        let guests = model.guests.iter().flat_map(|it| &it.addresses);
        let addresses: Vec<_> = guests.filter(|it| it.is_ipv6() == ipv6).collect();
        let address = **random.pick(&addresses);
        let most = if ipv6 { 128 } else { 32 };
        let prefix = most - u8::try_from(random.below(3)).unwrap_or(0);
        let block = ipnet::IpNet::new(address, prefix);
        return block.map(|it| it.trunc().to_string()).unwrap_or_default();
    }
    let host = format!("{HOST4}/32");
    let blocks: &[&str] = if ipv6 {
        &[
            "::/0",
            "::/0",
            "2001:db8::/32",
            "2001:db8:1::/64",
            "2001:db8:ff::/64",
            "fd00::/8",
            "8000::/1",
        ]
    } else {
        &[
            "0.0.0.0/0",
            "0.0.0.0/0",
            "198.51.100.0/24",
            "203.0.113.0/25",
            "192.0.0.0/8",
            "10.0.0.0/8",
            "10.20.0.0/24",
            "10.20.0.4/31",
            "192.0.2.192/29",
            "192.0.2.194/31",
            "128.0.0.0/1",
            &host,
        ]
    };
    (*random.pick(blocks)).to_owned()
}
