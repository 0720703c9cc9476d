//! What the services on taps read: an interface's instance and network, and who has which name
//! or address in a network. Every query is one or a few look-ups in indexes.

use std::net::{Ipv4Addr, Ipv6Addr};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{DbError, DbResult};
use crate::{instances::model::Instance, volumes::model::Volume};

/// What a network is to those in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    pub id: String,
    pub ipv4_range: String,
    pub ipv6_range: Option<String>,
    pub dns_domain: String,
}

/// One interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    pub id: String,
    pub owner: String,
    pub device_index: u32,
    pub mac: String,
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
    pub network: NetworkFacts,
    /// Its elastic address.
    pub public_ipv4: Option<String>,
    /// Ids and names of its security groups.
    pub groups: Vec<(String, String)>,
}

/// All that the metadata service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub instance: Instance,
    /// In the order of their device indexes; never empty.
    pub interfaces: Vec<InterfaceFacts>,
    pub volumes: Vec<Volume>,
}

/// An instance's name and addresses in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
}

/// Everything about the instance that has an interface; `None` when that is gone.
pub fn facts(connection: &Connection, interface_id: &str) -> DbResult<Option<Facts>> {
    let instance_id: Option<String> = connection
        .prepare_cached("SELECT instance_id FROM network_interfaces WHERE id = ?1")?
        .query_row([interface_id], |row| row.get(0))
        .optional()?;
    let Some(instance_id) = instance_id else {
        return Ok(None);
    };
    let Some(instance) = super::instances::get(connection, &instance_id)? else {
        return Ok(None);
    };
    let volumes = super::volumes::of_instance(connection, &instance_id)?;
    Ok(Some(Facts {
        interfaces: interfaces(connection, &instance_id)?,
        instance,
        volumes,
    }))
}

fn interfaces(connection: &Connection, instance_id: &str) -> DbResult<Vec<InterfaceFacts>> {
    let mut select = connection.prepare_cached(
        "SELECT interfaces.id, interfaces.owner, device_index, mac, ipv4, ipv6, networks.id,
            ipv4_range, ipv6_range, dns_domain, public_ipv4
         FROM network_interfaces AS interfaces
         JOIN networks ON networks.id = interfaces.network_id
         LEFT JOIN addresses ON addresses.interface_id = interfaces.id
         WHERE instance_id = ?1 ORDER BY device_index",
    )?;
    let rows = select.query_map([instance_id], |row| {
        Ok(InterfaceFacts {
            id: row.get(0)?,
            owner: row.get(1)?,
            device_index: row.get(2)?,
            mac: row.get(3)?,
            ipv4: address(row, 4)?,
            ipv6: optional_address(row, 5)?,
            network: NetworkFacts {
                id: row.get(6)?,
                ipv4_range: row.get(7)?,
                ipv6_range: row.get(8)?,
                dns_domain: row.get(9)?,
            },
            public_ipv4: row.get(10)?,
            groups: Vec::new(),
        })
    })?;
    let mut interfaces = rows.collect::<Result<Vec<_>, _>>()?;
    let mut select = connection.prepare_cached(
        "SELECT groups.id, name FROM interface_groups
         JOIN security_groups AS groups ON groups.id = group_id
         WHERE interface_id = ?1 ORDER BY groups.seq",
    )?;
    for interface in &mut interfaces {
        let rows = select.query_map([&interface.id], |row| Ok((row.get(0)?, row.get(1)?)))?;
        interface.groups = rows.collect::<Result<_, _>>()?;
    }
    Ok(interfaces)
}

/// The network that an interface is in; `None` when the interface is gone.
pub fn network(connection: &Connection, interface_id: &str) -> DbResult<Option<NetworkFacts>> {
    Ok(connection
        .prepare_cached(
            "SELECT networks.id, ipv4_range, ipv6_range, dns_domain FROM networks
             JOIN network_interfaces AS interfaces ON interfaces.network_id = networks.id
             WHERE interfaces.id = ?1",
        )?
        .query_row([interface_id], |row| {
            Ok(NetworkFacts {
                id: row.get(0)?,
                ipv4_range: row.get(1)?,
                ipv6_range: row.get(2)?,
                dns_domain: row.get(3)?,
            })
        })
        .optional()?)
}

/// What an instance is looked for by, within a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// `i-…`
    Id(String),
    /// The label that its tag `Name` makes.
    Label(String),
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
}

/// The interfaces in a network that belong to what is looked for. Several instances may have the
/// same label.
pub fn hosts(connection: &Connection, network_id: &str, key: &Key) -> DbResult<Vec<Host>> {
    let (condition, value) = match key {
        Key::Id(id) => ("instances.id = ?2", id.clone()),
        Key::Label(label) => ("dns_label = ?2", label.clone()),
        Key::Ipv4(address) => ("ipv4 = ?2", address.to_string()),
        Key::Ipv6(address) => ("ipv6 = ?2", address.to_string()),
    };
    let mut select = connection.prepare_cached(&format!(
        "SELECT ipv4, ipv6 FROM network_interfaces
         JOIN instances ON instances.id = instance_id
         WHERE network_id = ?1 AND {condition} AND state <> 'terminated'
         ORDER BY network_interfaces.seq LIMIT 64"
    ))?;
    let rows = select.query_map(params![network_id, value], |row| {
        Ok(Host {
            ipv4: address(row, 0)?,
            ipv6: optional_address(row, 1)?,
        })
    })?;
    rows.map(|row| row.map_err(DbError::from)).collect()
}

fn address(row: &Row<'_>, column: usize) -> rusqlite::Result<Ipv4Addr> {
    parsed(&row.get::<_, String>(column)?, column)
}

fn optional_address(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Ipv6Addr>> {
    row.get::<_, Option<String>>(column)?
        .map(|text| parsed(&text, column))
        .transpose()
}

fn parsed<T>(text: &str, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            column,
            rusqlite::types::Type::Text,
            Box::new(error),
        )
    })
}
