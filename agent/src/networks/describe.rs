//! DescribeNetworks and DescribeNetworkInterfaces.

use rusqlite::Connection;

use super::{
    model::{Interface, Network},
    plan,
};
use crate::{
    context::Context,
    db,
    error::ApiResult,
    ids::Kind,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::Tag,
};

/// A network, and how much room is in it.
#[derive(Clone, Debug)]
pub struct NetworkView {
    pub network: Network,
    pub available_addresses: u64,
}

/// An interface, and what it takes its names from.
#[derive(Clone, Debug)]
pub struct InterfaceView {
    pub interface: Interface,
    pub network: Network,
    pub instance_tags: Vec<Tag>,
}

/// DescribeNetworks.
pub async fn networks(context: &Context, query: Query) -> ApiResult<Page<NetworkView>> {
    context
        .db
        .read(move |connection| {
            let after = db::networks::after;
            let page = query.page(connection, "network_ids", super::get, after)?;
            let views = page.objects.into_iter();
            let views = views.map(|network| network_view(connection, network));
            Ok(Page {
                objects: views.collect::<ApiResult<_>>()?,
                next_token: page.next_token,
            })
        })
        .await
}

/// One network, as it is now.
pub async fn network(context: &Context, network: Network) -> ApiResult<NetworkView> {
    let read = move |connection: &Connection| network_view(connection, network);
    context.db.read(read).await
}

fn network_view(connection: &Connection, network: Network) -> ApiResult<NetworkView> {
    Ok(NetworkView {
        available_addresses: plan::available(connection, &network)?,
        network,
    })
}

/// DescribeNetworkInterfaces.
pub async fn interfaces(context: &Context, query: Query) -> ApiResult<Page<InterfaceView>> {
    context
        .db
        .read(move |connection| {
            let (ids, after) = ("network_interface_ids", db::interfaces::after);
            let page = query.page(connection, ids, get_interface, after)?;
            let views = page.objects.into_iter();
            let views = views.map(|interface| interface_view(connection, interface));
            Ok(Page {
                objects: views.collect::<ApiResult<_>>()?,
                next_token: page.next_token,
            })
        })
        .await
}

/// One interface, as it is now.
pub async fn interface(context: &Context, id: &str) -> ApiResult<InterfaceView> {
    let id = id.to_owned();
    let read = move |connection: &Connection| {
        let interface = get_interface(connection, &id, "network_interface_id")?;
        interface_view(connection, interface)
    };
    context.db.read(read).await
}

/// Looks an interface up that a caller named in `field`.
pub fn get_interface(connection: &Connection, id: &str, field: &str) -> ApiResult<Interface> {
    let found = db::interfaces::get(connection, id)?;
    found.ok_or_else(|| Kind::NetworkInterface.missing(id, field))
}

fn interface_view(connection: &Connection, interface: Interface) -> ApiResult<InterfaceView> {
    let instance = db::instances::get(connection, &interface.instance_id)?;
    Ok(InterfaceView {
        network: super::get(connection, &interface.network_id, "network_id")?,
        instance_tags: instance.map(|it| it.tags).unwrap_or_default(),
        interface,
    })
}

impl Described for Network {
    const KIND: Kind = Kind::Network;
    const FILTERS: &'static [&'static str] = &[
        "network-id",
        "name",
        "ipv4-range",
        "ipv6-range",
        "is-default",
        "owner-id",
    ];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "network-id" => self.id.clone(),
            "name" => self.name.clone(),
            "ipv4-range" => self.ipv4.to_string(),
            "ipv6-range" => self.ipv6.map(|it| it.to_string()).unwrap_or_default(),
            "is-default" => self.is_default.to_string(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags) + self.name.len() + self.dns_domain.len()
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

impl Described for Interface {
    const KIND: Kind = Kind::NetworkInterface;
    const FILTERS: &'static [&'static str] = &[
        "network-interface-id",
        "network-id",
        "instance-id",
        "private-ipv4",
        "private-ipv6",
        "public-ipv4",
        "mac-address",
        "group-id",
        "owner-id",
    ];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        match filter {
            "network-interface-id" => vec![self.id.clone()],
            "network-id" => vec![self.network_id.clone()],
            "instance-id" => vec![self.instance_id.clone()],
            "private-ipv4" => vec![self.ipv4.to_string()],
            "private-ipv6" => self.ipv6.iter().map(ToString::to_string).collect(),
            "public-ipv4" => self.public_ipv4.iter().map(ToString::to_string).collect(),
            "mac-address" => vec![self.mac.to_string()],
            "group-id" => self.groups.clone(),
            "owner-id" => vec![self.owner.clone()],
            _ => Vec::new(),
        }
    }

    fn weight(&self) -> usize {
        512 + self.description.len()
    }

    fn tags(&self) -> &[Tag] {
        &[]
    }
}
