//! Rows of `flow_logs`, and of interfaces that are gone while their packets are still counted.

use rusqlite::{Connection, Row, named_params, params};

use super::{DbError, DbResult, Tx, from_json, to_json};
use crate::{
    flow_logs::model::{Departed, FlowLog, TrafficType},
    networks::model::Interface,
    time::Millis,
};

const SELECT: &str =
    "SELECT seq, id, owner, resource_id, traffic_type, interval, create_time, tags,
    client_token FROM flow_logs";

/// Stores a new one.
pub fn insert(tx: &Tx<'_>, log: &mut FlowLog) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO flow_logs (id, owner, resource_id, traffic_type, interval, create_time, tags,
            client_token)
         VALUES (:id, :owner, :resource_id, :traffic_type, :interval, :create_time, :tags,
            :client_token)",
    )?
    .execute(named_params! {
        ":id": log.id,
        ":owner": log.owner,
        ":resource_id": log.resource_id,
        ":traffic_type": log.traffic.name(),
        ":interval": log.interval,
        ":create_time": log.create_time.0,
        ":tags": to_json(&log.tags)?,
        ":client_token": log.client_token,
    })?;
    log.seq = tx.last_insert_rowid();
    Ok(())
}

/// Forgets one.
pub fn remove(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.execute("DELETE FROM flow_logs WHERE id = ?1", [id])?;
    super::permissions::forget(tx, id)
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<FlowLog>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` made after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<FlowLog>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// All of all accounts.
pub fn all(connection: &Connection) -> DbResult<Vec<FlowLog>> {
    collect(connection, "ORDER BY seq", [])
}

/// Those of any of two resources.
pub fn of(connection: &Connection, one: &str, other: &str) -> DbResult<Vec<FlowLog>> {
    let condition = "WHERE resource_id IN (?1, ?2) ORDER BY seq";
    collect(connection, condition, [one, other])
}

/// How many an account has.
pub fn count(connection: &Connection, owner: &str) -> DbResult<usize> {
    let count: i64 = connection
        .prepare_cached("SELECT count(*) FROM flow_logs WHERE owner = ?1")?
        .query_row([owner], |row| row.get(0))?;
    Ok(usize::try_from(count).unwrap_or_default())
}

/// The shortest interval of all, in seconds.
pub fn shortest_interval(connection: &Connection) -> DbResult<Option<u32>> {
    Ok(connection
        .prepare_cached("SELECT min(interval) FROM flow_logs")?
        .query_row([], |row| row.get(0))?)
}

/// Keeps whose tap it was, if a flow log is about it.
pub fn depart(tx: &Tx<'_>, interface: &Interface) -> DbResult<()> {
    if of(tx, &interface.id, &interface.network_id)?.is_empty() {
        return Ok(());
    }
    tx.execute(
        "INSERT OR REPLACE INTO departed_interfaces VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            interface.tap,
            interface.id,
            interface.owner,
            interface.network_id,
            Millis::now().0,
        ],
    )?;
    Ok(())
}

/// All that are kept.
pub fn departed(connection: &Connection) -> DbResult<Vec<Departed>> {
    let mut select =
        connection.prepare_cached("SELECT tap, id, owner, network_id FROM departed_interfaces")?;
    let rows = select.query_map([], |row| {
        Ok(Departed {
            tap: row.get(0)?,
            id: row.get(1)?,
            owner: row.get(2)?,
            network_id: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Forgets those that were gone by then.
pub fn forget_departed(tx: &Tx<'_>, before: Millis) -> DbResult<()> {
    let forget = "DELETE FROM departed_interfaces WHERE depart_time < ?1";
    tx.execute(forget, [before.0])?;
    Ok(())
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<FlowLog>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| Ok(log(row)))?;
    rows.map(|row| row?).collect()
}

fn log(row: &Row<'_>) -> DbResult<FlowLog> {
    let traffic: String = row.get("traffic_type")?;
    Ok(FlowLog {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        resource_id: row.get("resource_id")?,
        traffic: TrafficType::parse(&traffic).ok_or(DbError::Malformed(traffic))?,
        interval: row.get("interval")?,
        create_time: Millis(row.get("create_time")?),
        tags: from_json(&row.get::<_, String>("tags")?)?,
        client_token: row.get("client_token")?,
    })
}
