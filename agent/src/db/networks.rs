//! Rows of `networks`.

use rusqlite::{Connection, Row, named_params, params};

use super::{DbResult, Tx, from_json, parsed, to_json};
use crate::{events::NewEvent, networks::model::Network, time::Millis};

const SELECT: &str = "SELECT seq, id, owner, name, ipv4_range, ipv6_range, mtu, nat, is_default,
    dns_domain, create_time, tags, client_token FROM networks";

const STATE_EVENT: &str = "network.state";

/// Stores a new network and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, network: &mut Network) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO networks (id, owner, name, ipv4_range, ipv6_range, mtu, nat, is_default,
            dns_domain, create_time, tags, client_token)
         VALUES (:id, :owner, :name, :ipv4_range, :ipv6_range, :mtu, :nat, :is_default,
            :dns_domain, :create_time, :tags, :client_token)",
    )?
    .execute(named_params! {
        ":id": network.id,
        ":owner": network.owner,
        ":name": network.name,
        ":ipv4_range": network.ipv4.to_string(),
        ":ipv6_range": network.ipv6.map(|range| range.to_string()),
        ":mtu": network.mtu,
        ":nat": network.nat,
        ":is_default": network.is_default,
        ":dns_domain": network.dns_domain,
        ":create_time": network.create_time.0,
        ":tags": to_json(&network.tags)?,
        ":client_token": network.client_token,
    })?;
    network.seq = tx.last_insert_rowid();
    tx.event(event(network, "", "available"));
    Ok(())
}

/// Stores what a network's owner may change.
pub fn update(tx: &mut Tx<'_>, network: &Network) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE networks SET name = ?2, nat = ?3, is_default = ?4, dns_domain = ?5 WHERE id = ?1",
    )?
    .execute(params![
        network.id,
        network.name,
        network.nat,
        network.is_default,
        network.dns_domain
    ])?;
    tx.event(event(network, "available", "available").because("", "modified"));
    Ok(())
}

/// Makes none of an account's networks the default one.
pub fn clear_default(tx: &Tx<'_>, owner: &str) -> DbResult<()> {
    tx.prepare_cached("UPDATE networks SET is_default = 0 WHERE owner = ?1 AND is_default = 1")?
        .execute([owner])?;
    Ok(())
}

/// Forgets a network that nothing is in, with its security groups.
pub fn remove(tx: &mut Tx<'_>, network: &Network) -> DbResult<()> {
    tx.execute("DELETE FROM networks WHERE id = ?1", [&network.id])?;
    tx.event(event(network, "available", "deleted"));
    Ok(())
}

fn event(network: &Network, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(STATE_EVENT, &network.owner, &network.id, previous, state)
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Network>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` networks created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Network>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// All of all accounts.
pub fn all(connection: &Connection) -> DbResult<Vec<Network>> {
    collect(connection, "ORDER BY seq", [])
}

/// An account's default network.
pub fn default_of(connection: &Connection, owner: &str) -> DbResult<Option<Network>> {
    let condition = "WHERE owner = ?1 AND is_default = 1";
    Ok(collect(connection, condition, [owner])?.pop())
}

/// An account's network of this name.
pub fn named(connection: &Connection, owner: &str, name: &str) -> DbResult<Option<Network>> {
    let condition = "WHERE owner = ?1 AND name = ?2";
    Ok(collect(connection, condition, [owner, name])?.pop())
}

/// How many an account has.
pub fn count(connection: &Connection, owner: &str) -> DbResult<u32> {
    Ok(connection
        .prepare_cached("SELECT count(*) FROM networks WHERE owner = ?1")?
        .query_row([owner], |row| row.get(0))?)
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Network>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| Ok(network(row)))?;
    rows.map(|row| row?).collect()
}

fn network(row: &Row<'_>) -> DbResult<Network> {
    let ipv6: Option<String> = row.get("ipv6_range")?;
    Ok(Network {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        name: row.get("name")?,
        ipv4: parsed(&row.get::<_, String>("ipv4_range")?)?,
        ipv6: ipv6.map(|range| parsed(&range)).transpose()?,
        mtu: row.get("mtu")?,
        nat: row.get("nat")?,
        is_default: row.get("is_default")?,
        dns_domain: row.get("dns_domain")?,
        create_time: Millis(row.get("create_time")?),
        tags: from_json(&row.get::<_, String>("tags")?)?,
        client_token: row.get("client_token")?,
    })
}
