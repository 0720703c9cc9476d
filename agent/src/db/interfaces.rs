//! Rows of `network_interfaces` and of `interface_groups`.

use std::{collections::HashSet, net::Ipv4Addr};

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbError, DbResult, Tx, from_json, parsed};
use crate::{
    events::NewEvent,
    networks::model::{Interface, MacAddress},
    time::Millis,
};

const SELECT: &str = "SELECT seq, id, owner, network_id, instance_id, device_index, mac, ipv4,
    ipv6, tap, description, create_time,
    (SELECT json_group_array(group_id) FROM
        (SELECT group_id FROM interface_groups WHERE interface_id = network_interfaces.id
         ORDER BY group_id)) AS groups,
    (SELECT public_ipv4 FROM addresses WHERE interface_id = network_interfaces.id) AS public_ipv4
    FROM network_interfaces";

const STATE_EVENT: &str = "network-interface.state";

/// Stores a new interface with its groups, and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, interface: &mut Interface) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO network_interfaces (id, owner, network_id, instance_id, device_index, mac,
            ipv4, ipv6, tap, description, create_time)
         VALUES (:id, :owner, :network_id, :instance_id, :device_index, :mac, :ipv4, :ipv6, :tap,
            :description, :create_time)",
    )?
    .execute(named_params! {
        ":id": interface.id,
        ":owner": interface.owner,
        ":network_id": interface.network_id,
        ":instance_id": interface.instance_id,
        ":device_index": interface.device_index,
        ":mac": interface.mac.to_string(),
        ":ipv4": interface.ipv4.to_string(),
        ":ipv6": interface.ipv6.map(|address| address.to_string()),
        ":tap": interface.tap,
        ":description": interface.description,
        ":create_time": interface.create_time.0,
    })?;
    interface.seq = tx.last_insert_rowid();
    let mut insert = tx.prepare_cached("INSERT INTO interface_groups VALUES (?1, ?2)")?;
    for group in &interface.groups {
        insert.execute([&interface.id, group])?;
    }
    drop(insert);
    let told = format!("{} of {}", interface.ipv4, interface.instance_id);
    tx.event(event(interface, "", "in-use").because("", &told));
    Ok(())
}

/// Stores another description.
pub fn describe(tx: &mut Tx<'_>, interface: &Interface) -> DbResult<()> {
    tx.prepare_cached("UPDATE network_interfaces SET description = ?2 WHERE id = ?1")?
        .execute(params![interface.id, interface.description])?;
    tx.event(event(interface, "in-use", "in-use").because("", "modified"));
    Ok(())
}

/// Forgets an interface; its elastic address is associated no more, its port forwards are gone.
pub fn remove(tx: &mut Tx<'_>, interface: &Interface) -> DbResult<()> {
    super::addresses::lost(tx, &interface.id)?;
    super::port_forwards::lost(tx, &interface.id)?;
    super::flow_logs::depart(tx, interface)?;
    tx.execute(
        "DELETE FROM network_interfaces WHERE id = ?1",
        [&interface.id],
    )?;
    tx.event(event(interface, "in-use", "deleted"));
    Ok(())
}

fn event(interface: &Interface, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(
        STATE_EVENT,
        &interface.owner,
        &interface.id,
        previous,
        state,
    )
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Interface>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` interfaces created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Interface>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// Those of an instance, in the order of their devices.
pub fn of_instance(connection: &Connection, instance_id: &str) -> DbResult<Vec<Interface>> {
    let condition = "WHERE instance_id = ?1 ORDER BY device_index";
    collect(connection, condition, [instance_id])
}

/// Those in a network.
pub fn of_network(connection: &Connection, network_id: &str) -> DbResult<Vec<Interface>> {
    let condition = "WHERE network_id = ?1 ORDER BY seq";
    collect(connection, condition, [network_id])
}

/// All of all accounts.
pub fn all(connection: &Connection) -> DbResult<Vec<Interface>> {
    collect(connection, "ORDER BY seq", [])
}

/// Those whose instance has a guest, or is about to have one, or had one a moment ago.
pub fn active(connection: &Connection) -> DbResult<Vec<Interface>> {
    let condition = "WHERE instance_id IN (SELECT id FROM instances
         WHERE state IN ('pending', 'running', 'stopping', 'shutting-down')) ORDER BY seq";
    collect(connection, condition, [])
}

/// How many are in a network.
pub fn count(connection: &Connection, network_id: &str) -> DbResult<u64> {
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM network_interfaces WHERE network_id = ?1")?
        .query_row([network_id], |row| row.get(0))?;
    Ok(super::unsigned(count))
}

/// The IPv4 addresses of a network that somebody has.
pub fn taken(connection: &Connection, network_id: &str) -> DbResult<HashSet<Ipv4Addr>> {
    let mut select =
        connection.prepare_cached("SELECT ipv4 FROM network_interfaces WHERE network_id = ?1")?;
    let rows = select.query_map([network_id], |row| row.get::<_, String>(0))?;
    rows.map(|row| parsed(&row?)).collect()
}

/// Who has an address of a network, IPv4 or IPv6.
pub fn holder(
    connection: &Connection,
    network_id: &str,
    address: &str,
) -> DbResult<Option<(String, String)>> {
    Ok(connection
        .prepare_cached(
            "SELECT id, instance_id FROM network_interfaces
             WHERE network_id = ?1 AND (ipv4 = ?2 OR ipv6 = ?2)",
        )?
        .query_row([network_id, address], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

/// Whether somebody has this hardware address.
pub fn has_mac(connection: &Connection, mac: MacAddress) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM network_interfaces WHERE mac = ?1")?
        .query_row([mac.to_string()], |_| Ok(()))
        .optional()?
        .is_some())
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Interface>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| Ok(interface(row)))?;
    rows.map(|row| row?).collect()
}

fn interface(row: &Row<'_>) -> DbResult<Interface> {
    let mac: String = row.get("mac")?;
    let ipv6: Option<String> = row.get("ipv6")?;
    let public_ipv4: Option<String> = row.get("public_ipv4")?;
    Ok(Interface {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        network_id: row.get("network_id")?,
        instance_id: row.get("instance_id")?,
        device_index: row.get("device_index")?,
        mac: MacAddress::parse(&mac).ok_or(DbError::Malformed(mac))?,
        ipv4: parsed(&row.get::<_, String>("ipv4")?)?,
        ipv6: ipv6.map(|address| parsed(&address)).transpose()?,
        tap: row.get("tap")?,
        description: row.get("description")?,
        create_time: Millis(row.get("create_time")?),
        groups: from_json(&row.get::<_, String>("groups")?)?,
        public_ipv4: public_ipv4.map(|address| parsed(&address)).transpose()?,
    })
}
