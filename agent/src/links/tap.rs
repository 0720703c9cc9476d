//! Makes a tap what its specification says, in steps that may be repeated, or takes it away.
//!
//! A tap has the gateway's address, the guest's address is a host route to it, and the guest's
//! hardware address a permanent neighbour: the host never asks the guest for anything, so that
//! the guest can't answer for another. The host answers ARP for everything else (`proxy_arp`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hearth_images::crash_point;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
        route::{RouteProtocol, RouteScope},
    },
};

use super::{
    LinkError, LinkResult, PROTOCOL,
    seen::{self, Link, Seen},
    sysctl, tun,
};

/// The host's end of every tap, so that what a guest remembers of its router stays right.
pub const HOST_MAC: [u8; 6] = [0x02, 0x68, 0x74, 0x68, 0x00, 0x01];

/// The router of every guest that has IPv6.
pub const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What an `ifalias` of ours begins with; the interface's id follows.
pub const ALIAS_PREFIX: &str = "hearth ";

/// What a tap shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapSpec {
    pub name: String,
    /// `eni-…`
    pub interface_id: String,
    pub mtu: u32,
    pub guest_mac: [u8; 6],
    pub guest_ipv4: Ipv4Addr,
    pub gateway_ipv4: Ipv4Addr,
    /// The guest's and the gateway's; without it the tap carries no IPv6.
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
}

impl TapSpec {
    fn alias(&self) -> String {
        format!("{ALIAS_PREFIX}{}", self.interface_id)
    }

    /// Guest addresses.
    fn guests(&self) -> impl Iterator<Item = IpAddr> {
        let ipv6 = self.ipv6.map(|(guest, _)| guest.into());
        [self.guest_ipv4.into()].into_iter().chain(ipv6)
    }

    /// The host's addresses on it.
    fn addresses(&self) -> Vec<IpNet> {
        let mut addresses = vec![IpNet::from(IpAddr::from(self.gateway_ipv4))];
        if let Some((_, gateway)) = self.ipv6 {
            let link_local = IpNet::new(HOST_LINK_LOCAL.into(), 64);
            addresses.push(link_local.expect("64 bits are not too many"));
            addresses.push(IpNet::from(IpAddr::from(gateway)));
        }
        addresses
    }

    /// Names below `/proc/sys/net`, and values.
    fn sysctls(&self) -> Vec<(String, &'static str)> {
        let name = &self.name;
        let ipv4 = |key: &str| format!("ipv4/conf/{name}/{key}");
        let ipv6 = |key: &str| format!("ipv6/conf/{name}/{key}");
        let mut sysctls = vec![
            (ipv4("forwarding"), "1"),
            (ipv4("proxy_arp"), "1"),
            (ipv4("rp_filter"), "1"),
            (ipv4("accept_source_route"), "0"),
            (ipv4("accept_redirects"), "0"),
            (ipv4("send_redirects"), "0"),
            // By default an answer for another waits for up to 0.8 s.
            (format!("ipv4/neigh/{name}/proxy_delay"), "0"),
        ];
        if !sysctl::has_ipv6() {
            return sysctls;
        }
        if self.ipv6.is_none() {
            sysctls.push((ipv6("disable_ipv6"), "1"));
            return sysctls;
        }
        sysctls.extend([
            (ipv6("disable_ipv6"), "0"),
            // No address of the kernel's own making.
            (ipv6("addr_gen_mode"), "1"),
            (ipv6("accept_ra"), "0"),
            (ipv6("accept_redirects"), "0"),
            (ipv6("accept_source_route"), "-1"),
            (ipv6("forwarding"), "1"),
        ]);
        sysctls
    }
}

/// What [`ensure`] had to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ensured {
    /// There was no tap.
    pub made: bool,
    /// What was not as it should be on a tap that was there.
    pub repaired: Vec<String>,
}

/// Makes the tap what it shall be, and up. `seen` is what the kernel has, for a tap that may be
/// there; without it, everything is put anew.
pub async fn ensure(spec: &TapSpec, seen: Option<&Seen>) -> LinkResult<Ensured> {
    let handle = super::connect()?;
    let found = match seen {
        Some(seen) => seen.links.get(&spec.name).cloned(),
        None => seen::link(&handle, &spec.name).await?,
    };
    match found {
        None => {
            make(&handle, spec).await?;
            Ok(Ensured {
                made: true,
                repaired: Vec::new(),
            })
        }
        Some(link) if link.alias != spec.alias() => Err(LinkError::Taken(spec.name.clone())),
        Some(link) => {
            let read;
            let seen = match seen {
                Some(seen) => seen,
                None => {
                    read = Seen::now().await?;
                    &read
                }
            };
            Ok(Ensured {
                made: false,
                repaired: repair(&handle, spec, &link, seen).await?,
            })
        }
    }
}

async fn make(handle: &Handle, spec: &TapSpec) -> LinkResult<()> {
    let tap = tun::make(&spec.name)?;
    let link = seen::link(handle, &spec.name).await?;
    let index = link.map_or(0, |link| link.index);
    set_link(handle, spec, index).await?;
    // From here on it stays, and has our mark.
    tap.keep()?;
    crash_point("launch.tap-made");
    for (name, value) in spec.sysctls() {
        sysctl::set(&name, value)?;
    }
    for address in spec.addresses() {
        add_address(handle, spec, index, address).await?;
    }
    set_up(handle, spec, index).await?;
    for guest in spec.guests() {
        put_neighbour(handle, spec, index, guest).await?;
        put_route(handle, spec, index, guest).await?;
    }
    crash_point("launch.tap-up");
    Ok(())
}

async fn repair(
    handle: &Handle,
    spec: &TapSpec,
    link: &Link,
    seen: &Seen,
) -> LinkResult<Vec<String>> {
    let mut repaired = Vec::new();
    if link.mtu != spec.mtu || link.mac != HOST_MAC {
        set_link(handle, spec, link.index).await?;
        repaired.push("MTU or hardware address".to_owned());
    }
    for (name, value) in spec.sysctls() {
        if sysctl::set(&name, value)? {
            repaired.push(name);
        }
    }
    let wanted = spec.addresses();
    let there = || {
        seen.addresses
            .iter()
            .filter(|address| address.link == link.index)
    };
    for address in &wanted {
        if !there().any(|it| it.network == *address) {
            add_address(handle, spec, link.index, *address).await?;
            repaired.push(format!("address {address}"));
        }
    }
    for stray in there().filter(|it| !wanted.contains(&it.network)) {
        let removed = handle.address().del(stray.message.clone()).execute().await;
        removed.map_err(|error| LinkError::netlink("removing a stray address", error))?;
        repaired.push(format!("stray address {}", stray.network));
    }
    if !link.up {
        set_up(handle, spec, link.index).await?;
        repaired.push("was down".to_owned());
    }
    for guest in spec.guests() {
        let neighbour = (link.index, guest, spec.guest_mac.to_vec());
        if !link.up || !seen.neighbours.contains(&neighbour) {
            put_neighbour(handle, spec, link.index, guest).await?;
            repaired.push(format!("neighbour {guest}"));
        }
        let to = IpNet::from(guest);
        let leads_here = |route: &&seen::Route| route.to == to && route.link == link.index;
        if !link.up || !seen.routes.iter().any(|it| leads_here(&it) && it.ours) {
            put_route(handle, spec, link.index, guest).await?;
            repaired.push(format!("route to {guest}"));
        }
    }
    Ok(repaired)
}

async fn set_link(handle: &Handle, spec: &TapSpec, index: u32) -> LinkResult<()> {
    let message = LinkUnspec::new_with_index(index)
        .alias(spec.alias())
        .mtu(spec.mtu)
        .address(HOST_MAC.to_vec())
        .build();
    let set = handle.link().change(message).execute().await;
    set.map_err(|error| LinkError::netlink(format!("configuring {}", spec.name), error))
}

async fn set_up(handle: &Handle, spec: &TapSpec, index: u32) -> LinkResult<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    let set = handle.link().change(message).execute().await;
    set.map_err(|error| LinkError::netlink(format!("setting {} up", spec.name), error))
}

async fn add_address(
    handle: &Handle,
    spec: &TapSpec,
    index: u32,
    address: IpNet,
) -> LinkResult<()> {
    let (ip, bits) = (address.addr(), address.prefix_len());
    let mut request = handle.address().add(index, ip, bits).replace();
    let message = request.message_mut();
    if ip.is_ipv6() {
        // It is ours alone: nobody needs to be asked whether he has it.
        message.header.flags |= AddressHeaderFlags::Nodad;
        let mut flags = AddressFlags::Nodad;
        // The link-local range needs its route: router advertisements and DHCPv6 answer guests at
        // the addresses that they made there.
        if bits == 128 {
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    let added = request.execute().await;
    added.map_err(|error| LinkError::netlink(format!("adding {address} to {}", spec.name), error))
}

async fn put_neighbour(
    handle: &Handle,
    spec: &TapSpec,
    index: u32,
    guest: IpAddr,
) -> LinkResult<()> {
    let put = handle
        .neighbours()
        .add(index, guest)
        .link_layer_address(&spec.guest_mac)
        .replace()
        .execute()
        .await;
    put.map_err(|error| LinkError::netlink(format!("the neighbour {guest}"), error))
}

async fn put_route(handle: &Handle, spec: &TapSpec, index: u32, guest: IpAddr) -> LinkResult<()> {
    let protocol = RouteProtocol::Other(PROTOCOL);
    let message = match guest {
        IpAddr::V4(guest) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(guest, 32)
            .scope(RouteScope::Link)
            .output_interface(index)
            .protocol(protocol)
            .build(),
        IpAddr::V6(guest) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(guest, 128)
            .output_interface(index)
            .protocol(protocol)
            .build(),
    };
    let put = handle.route().add(message).replace().execute().await;
    put.map_err(|error| LinkError::netlink(format!("the route to {guest} by {}", spec.name), error))
}

/// Sets taps of ours down, with the routes to their guests: nothing goes through.
pub async fn set_down(names: &[String]) -> LinkResult<()> {
    if names.is_empty() {
        return Ok(());
    }
    let handle = super::connect()?;
    for name in names {
        if let Some(link) = seen::link(&handle, name).await?
            && link.ours
            && link.up
        {
            let message = LinkUnspec::new_with_index(link.index).down().build();
            let set = handle.link().change(message).execute().await;
            set.map_err(|error| LinkError::netlink(format!("setting {name} down"), error))?;
        }
    }
    Ok(())
}

/// Removes taps of ours; those that are not there are no error.
pub async fn remove(names: &[String]) -> LinkResult<()> {
    if names.is_empty() {
        return Ok(());
    }
    let handle = super::connect()?;
    for name in names {
        let Some(link) = seen::link(&handle, name).await? else {
            continue;
        };
        if !link.ours {
            return Err(LinkError::Taken(name.clone()));
        }
        let removed = handle.link().del(link.index).execute().await;
        removed.map_err(|error| LinkError::netlink(format!("removing {name}"), error))?;
    }
    Ok(())
}
