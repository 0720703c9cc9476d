//! Rows of `address_pools` and `addresses`.

use std::{
    collections::{BTreeSet, HashSet},
    net::Ipv4Addr,
};

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, parsed, to_json};
use crate::{
    events::NewEvent,
    networks::model::{Address, AddressPool},
    time::Millis,
};

const SELECT_POOLS: &str =
    "SELECT seq, id, ipv4_range, description, create_time FROM address_pools";

const SELECT: &str = "SELECT a.seq, a.id, a.owner, a.public_ipv4, a.pool_id, a.interface_id,
    a.tags, a.client_token, i.instance_id, i.ipv4 AS private_ipv4
    FROM addresses AS a LEFT JOIN network_interfaces AS i ON i.id = a.interface_id";

const STATE_EVENT: &str = "address.state";

/// Stores a new pool.
pub fn insert_pool(tx: &Tx<'_>, pool: &mut AddressPool) -> DbResult<()> {
    tx.execute(
        "INSERT INTO address_pools (id, ipv4_range, description, create_time)
         VALUES (?1, ?2, ?3, ?4)",
        params![
            pool.id,
            pool.ipv4.to_string(),
            pool.description,
            pool.create_time.0
        ],
    )?;
    pool.seq = tx.last_insert_rowid();
    Ok(())
}

/// Forgets a pool that no address is of.
pub fn remove_pool(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.execute("DELETE FROM address_pools WHERE id = ?1", [id])?;
    Ok(())
}

/// Looks a pool up.
pub fn get_pool(connection: &Connection, id: &str) -> DbResult<Option<AddressPool>> {
    Ok(collect_pools(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` pools created after `seq`, oldest first.
pub fn pools_after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<AddressPool>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect_pools(connection, condition, params![seq, limit])
}

/// All pools.
pub fn pools(connection: &Connection) -> DbResult<Vec<AddressPool>> {
    collect_pools(connection, "ORDER BY seq", [])
}

fn collect_pools(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<AddressPool>> {
    let mut select = connection.prepare_cached(&format!("{SELECT_POOLS} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        Ok((|| {
            Ok(AddressPool {
                seq: row.get("seq")?,
                id: row.get("id")?,
                ipv4: parsed(&row.get::<_, String>("ipv4_range")?)?,
                description: row.get("description")?,
                create_time: Millis(row.get("create_time")?),
            })
        })())
    })?;
    rows.map(|row| row?).collect()
}

/// Stores a new address.
pub fn insert(tx: &mut Tx<'_>, address: &mut Address) -> DbResult<()> {
    tx.execute(
        "INSERT INTO addresses (id, owner, public_ipv4, pool_id, interface_id, tags, client_token)
         VALUES (:id, :owner, :public_ipv4, :pool_id, :interface_id, :tags, :client_token)",
        named_params! {
            ":id": address.id,
            ":owner": address.owner,
            ":public_ipv4": address.public_ipv4.to_string(),
            ":pool_id": address.pool_id,
            ":interface_id": address.interface_id,
            ":tags": to_json(&address.tags)?,
            ":client_token": address.client_token,
        },
    )?;
    address.seq = tx.last_insert_rowid();
    tx.event(event(address, "", "allocated"));
    Ok(())
}

/// Stores whose address it is from now on.
pub fn associate(tx: &mut Tx<'_>, address: &Address, interface: Option<&str>) -> DbResult<()> {
    tx.execute(
        "UPDATE addresses SET interface_id = ?2 WHERE id = ?1",
        params![address.id, interface],
    )?;
    let event = event(
        address,
        word(&address.interface_id),
        match interface {
            Some(_) => "associated",
            None => "allocated",
        },
    );
    tx.event(event.because("", interface.unwrap_or_default()));
    Ok(())
}

/// Tells that the address of an interface that goes is associated no more; the row itself
/// changes with the interface's.
pub fn lost(tx: &mut Tx<'_>, interface_id: &str) -> DbResult<()> {
    for address in collect(tx, "WHERE a.interface_id = ?1", [interface_id])? {
        let event = event(&address, "associated", "allocated");
        tx.event(event.because("", &format!("{interface_id} is gone")));
    }
    Ok(())
}

/// Forgets an address.
pub fn remove(tx: &mut Tx<'_>, address: &Address) -> DbResult<()> {
    tx.execute("DELETE FROM addresses WHERE id = ?1", [&address.id])?;
    tx.event(event(address, word(&address.interface_id), "released"));
    Ok(())
}

fn word(interface: &Option<String>) -> &'static str {
    match interface {
        Some(_) => "associated",
        None => "allocated",
    }
}

fn event(address: &Address, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(STATE_EVENT, &address.owner, &address.id, previous, state)
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Address>> {
    Ok(collect(connection, "WHERE a.id = ?1", [id])?.pop())
}

/// The address of an interface.
pub fn of_interface(connection: &Connection, interface_id: &str) -> DbResult<Option<Address>> {
    Ok(collect(connection, "WHERE a.interface_id = ?1", [interface_id])?.pop())
}

/// At most `limit` addresses created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Address>> {
    let condition = "WHERE a.seq > ?1 ORDER BY a.seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// The public addresses of a pool that somebody holds.
pub fn taken(connection: &Connection, pool_id: &str) -> DbResult<HashSet<Ipv4Addr>> {
    let mut select =
        connection.prepare_cached("SELECT public_ipv4 FROM addresses WHERE pool_id = ?1")?;
    let rows = select.query_map([pool_id], |row| row.get::<_, String>(0))?;
    rows.map(|row| parsed(&row?)).collect()
}

/// The public addresses that are associated.
pub fn associated(connection: &Connection) -> DbResult<BTreeSet<Ipv4Addr>> {
    let mut select = connection
        .prepare_cached("SELECT public_ipv4 FROM addresses WHERE interface_id IS NOT NULL")?;
    let rows = select.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|row| parsed(&row?)).collect()
}

/// Whether there is any pool.
pub fn any_pool(connection: &Connection) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM address_pools LIMIT 1")?
        .query_row([], |_| Ok(()))
        .optional()?
        .is_some())
}

/// How many an account holds.
pub fn count(connection: &Connection, owner: &str) -> DbResult<u32> {
    Ok(connection
        .prepare_cached("SELECT count(*) FROM addresses WHERE owner = ?1")?
        .query_row([owner], |row| row.get(0))?)
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Address>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| Ok(address(row)))?;
    rows.map(|row| row?).collect()
}

fn address(row: &Row<'_>) -> DbResult<Address> {
    let private: Option<String> = row.get("private_ipv4")?;
    Ok(Address {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        public_ipv4: parsed(&row.get::<_, String>("public_ipv4")?)?,
        pool_id: row.get("pool_id")?,
        interface_id: row.get("interface_id")?,
        tags: from_json(&row.get::<_, String>("tags")?)?,
        client_token: row.get("client_token")?,
        instance_id: row.get("instance_id")?,
        private_ipv4: private.map(|it| parsed(&it)).transpose()?,
    })
}
