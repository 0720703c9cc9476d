//! What the kernel has: read at once, compared with what is wanted.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage, AddressProtocol},
        link::{LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    },
};

use super::{LinkError, LinkResult, PROTOCOL};

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub mac: Vec<u8>,
    pub mtu: u32,
    pub up: bool,
    /// It has our mark.
    pub ours: bool,
}

/// A route's destination, and the link that it leads to (0 when there is not exactly one).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub to: IpNet,
    pub link: u32,
    /// Made by us.
    pub ours: bool,
    pub local: bool,
}

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    pub network: IpNet,
    /// It has our mark.
    pub ours: bool,
    /// For taking it away.
    pub message: AddressMessage,
}

/// Links, addresses, routes and neighbours of a moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub links: HashMap<String, Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// Link, address, hardware address; permanent ones.
    pub neighbours: HashSet<(u32, IpAddr, Vec<u8>)>,
}

impl Seen {
    /// Reads everything.
    pub async fn now() -> LinkResult<Self> {
        let handle = super::connect()?;
        Ok(Self {
            links: links(&handle).await?,
            addresses: addresses(&handle).await?,
            routes: routes(&handle).await?,
            neighbours: neighbours(&handle).await?,
        })
    }
}

/// One link by its name.
pub(super) async fn link(handle: &Handle, name: &str) -> LinkResult<Option<Link>> {
    let mut found = handle.link().get().match_name(name).execute();
    match found.try_next().await {
        Ok(message) => Ok(message.map(read_link)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(LinkError::netlink(format!("looking for {name}"), error)),
    }
}

async fn links(handle: &Handle) -> LinkResult<HashMap<String, Link>> {
    let messages: Vec<LinkMessage> = handle
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| LinkError::netlink("listing links", error))?;
    let links = messages.into_iter().map(read_link);
    Ok(links.map(|link| (link.name.clone(), link)).collect())
}

fn read_link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    link.ours = link.name.starts_with(crate::firewall::TAP_PREFIX)
        && link.alias.starts_with(super::tap::ALIAS_PREFIX);
    link
}

/// Addresses of all links.
pub(super) async fn addresses(handle: &Handle) -> LinkResult<Vec<Address>> {
    let messages: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(|error| LinkError::netlink("listing addresses", error))?;
    Ok(messages.into_iter().filter_map(read_address).collect())
}

fn read_address(message: AddressMessage) -> Option<Address> {
    let (mut local, mut address, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(it) => local = Some(*it),
            AddressAttribute::Address(it) => address = Some(*it),
            AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)) => ours = true,
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        network: IpNet::new(local.or(address)?, message.header.prefix_len).ok()?,
        ours,
        message,
    })
}

async fn routes(handle: &Handle) -> LinkResult<Vec<Route>> {
    let mut routes = Vec::new();
    let requests = [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ];
    for request in requests {
        let messages: Vec<RouteMessage> = handle
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::netlink("listing routes", error))?;
        routes.extend(messages.into_iter().filter_map(read_route));
    }
    Ok(routes)
}

fn read_route(message: RouteMessage) -> Option<Route> {
    let unspecified = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let (mut destination, mut link) = (unspecified, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(it)) => destination = (*it).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(it)) => destination = (*it).into(),
            RouteAttribute::Oif(index) => link = *index,
            _ => {}
        }
    }
    Some(Route {
        to: IpNet::new(destination, message.header.destination_prefix_length).ok()?,
        link,
        ours: message.header.protocol == RouteProtocol::Other(PROTOCOL),
        local: message.header.kind != RouteType::Unicast,
    })
}

async fn neighbours(handle: &Handle) -> LinkResult<HashSet<(u32, IpAddr, Vec<u8>)>> {
    let mut found = HashSet::new();
    let mut messages = handle.neighbours().get().execute();
    let failed = |error| LinkError::netlink("listing neighbours", error);
    while let Some(message) = messages.try_next().await.map_err(failed)? {
        if message.header.state != NeighbourState::Permanent {
            continue;
        }
        let (mut address, mut mac) = (None, Vec::new());
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => {
                    address = Some(IpAddr::from(it));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(it)) => {
                    address = Some(IpAddr::from(it));
                }
                NeighbourAttribute::LinkLayerAddress(it) => mac = it,
                _ => {}
            }
        }
        found.extend(address.map(|address| (message.header.ifindex, address, mac)));
    }
    Ok(found)
}
