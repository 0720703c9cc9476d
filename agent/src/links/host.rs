//! What concerns the host as a whole: forwarding, public addresses on the loopback interface, and
//! the ranges that others use.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressProtocol};

use super::{
    LinkError, LinkResult, PROTOCOL,
    seen::{self, Seen},
    sysctl,
};

const LOOPBACK: &str = "lo";

/// Lets the host forward packets. A link that has its default route from router advertisements
/// goes on to take them, which a router does not do by itself.
pub fn enable_forwarding(ipv6: bool) -> LinkResult<()> {
    if sysctl::set("ipv4/ip_forward", "1")? {
        tracing::info!("net.ipv4.ip_forward is on now");
    }
    if !ipv6 || sysctl::read("ipv6/conf/all/forwarding").is_ok_and(|value| value == "1") {
        return Ok(());
    }
    for name in links_with_ipv6() {
        let key = format!("ipv6/conf/{name}/accept_ra");
        if sysctl::read(&key).is_ok_and(|value| value == "1") {
            sysctl::set(&key, "2")?;
        }
    }
    sysctl::set("ipv6/conf/all/forwarding", "1")?;
    tracing::info!("net.ipv6.conf.all.forwarding is on now");
    Ok(())
}

fn links_with_ipv6() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/sys/net/ipv6/conf") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !matches!(name.as_str(), "all" | "default" | LOOPBACK))
        .collect()
}

/// An address or a route of somebody else's that overlaps with a range; in words.
pub fn overlap(seen: &Seen, range: IpNet) -> Option<String> {
    let name = |index: u32| {
        let link = seen.links.values().find(|link| link.index == index);
        link.map_or("?", |link| link.name.as_str())
    };
    let ours = |index: u32| {
        seen.links
            .values()
            .any(|link| link.index == index && link.ours)
    };
    let meets = |other: &IpNet| other.contains(&range) || range.contains(other);
    for address in &seen.addresses {
        if meets(&address.network.trunc()) && !address.ours && !ours(address.link) {
            let link = name(address.link);
            return Some(format!("the host's address {} on {link}", address.network));
        }
    }
    for route in &seen.routes {
        if route.to.prefix_len() > 0
            && meets(&route.to)
            && !route.ours
            && !route.local
            && !ours(route.link)
        {
            return Some(format!(
                "the host's route {} by {}",
                route.to,
                name(route.link)
            ));
        }
    }
    None
}

/// Makes the public addresses on the loopback interface that carry our mark equal to these.
/// Gives those that were missing or too many.
pub async fn set_public_addresses(
    wanted: &BTreeSet<Ipv4Addr>,
) -> LinkResult<(Vec<Ipv4Addr>, Vec<Ipv4Addr>)> {
    let handle = super::connect()?;
    let link = seen::link(&handle, LOOPBACK).await?;
    let index = link.map_or(1, |link| link.index);
    let mut there = BTreeSet::new();
    let mut removed = Vec::new();
    for address in seen::addresses(&handle).await? {
        let IpNet::V4(network) = address.network else {
            continue;
        };
        if address.link != index || !address.ours {
            continue;
        }
        if wanted.contains(&network.addr()) {
            there.insert(network.addr());
            continue;
        }
        let gone = handle.address().del(address.message).execute().await;
        gone.map_err(|error| LinkError::netlink(format!("removing {network} from lo"), error))?;
        removed.push(network.addr());
    }
    let mut added = Vec::new();
    for &address in wanted.difference(&there) {
        let mut request = handle.address().add(index, address.into(), 32);
        let mark = AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL));
        request.message_mut().attributes.push(mark);
        let put = request.execute().await;
        put.map_err(|error| LinkError::netlink(format!("adding {address}/32 to lo"), error))?;
        added.push(address);
    }
    Ok((added, removed))
}

/// Whether the host itself has an address in a range, apart from what we put there; in words.
pub fn own_address_in(seen: &Seen, range: Ipv4Net) -> Option<String> {
    let own = seen
        .addresses
        .iter()
        .find(|address| match address.network {
            IpNet::V4(network) => range.contains(&network.addr()) && !address.ours,
            IpNet::V6(_) => false,
        })?;
    Some(own.network.addr().to_string())
}
