//! Rows of `port_forwards`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx};
use crate::{
    events::NewEvent,
    networks::model::{PortForward, Protocol},
};

const SELECT: &str = "SELECT f.seq, f.id, f.owner, f.protocol, f.host_port, f.interface_id,
    f.instance_port, f.description, f.client_token, i.instance_id
    FROM port_forwards AS f JOIN network_interfaces AS i ON i.id = f.interface_id";

const STATE_EVENT: &str = "port-forward.state";

/// Stores a new one.
pub fn insert(tx: &mut Tx<'_>, forward: &mut PortForward) -> DbResult<()> {
    tx.execute(
        "INSERT INTO port_forwards (id, owner, protocol, host_port, interface_id, instance_port,
            description, client_token)
         VALUES (:id, :owner, :protocol, :host_port, :interface_id, :instance_port, :description,
            :client_token)",
        named_params! {
            ":id": forward.id,
            ":owner": forward.owner,
            ":protocol": forward.protocol,
            ":host_port": forward.host_port,
            ":interface_id": forward.interface_id,
            ":instance_port": forward.instance_port,
            ":description": forward.description,
            ":client_token": forward.client_token,
        },
    )?;
    forward.seq = tx.last_insert_rowid();
    tx.event(event(forward, "", "active"));
    Ok(())
}

/// Forgets one.
pub fn remove(tx: &mut Tx<'_>, forward: &PortForward) -> DbResult<()> {
    tx.execute("DELETE FROM port_forwards WHERE id = ?1", [&forward.id])?;
    tx.event(event(forward, "active", "deleted"));
    Ok(())
}

/// Tells of the forwards of an interface that goes; the rows go with the interface's.
pub fn lost(tx: &mut Tx<'_>, interface_id: &str) -> DbResult<()> {
    for forward in collect(tx, "WHERE f.interface_id = ?1", [interface_id])? {
        let event = event(&forward, "active", "deleted");
        tx.event(event.because("", &format!("{interface_id} is gone")));
    }
    Ok(())
}

fn event(forward: &PortForward, previous: &str, state: &str) -> NewEvent {
    NewEvent::state(STATE_EVENT, &forward.owner, &forward.id, previous, state)
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<PortForward>> {
    Ok(collect(connection, "WHERE f.id = ?1", [id])?.pop())
}

/// At most `limit` forwards created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<PortForward>> {
    let condition = "WHERE f.seq > ?1 ORDER BY f.seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// All of all accounts.
pub fn all(connection: &Connection) -> DbResult<Vec<PortForward>> {
    collect(connection, "ORDER BY f.seq", [])
}

/// Whether a port of the host is forwarded.
pub fn is_taken(connection: &Connection, protocol: Protocol, port: u16) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM port_forwards WHERE protocol = ?1 AND host_port = ?2")?
        .query_row(params![protocol, port], |_| Ok(()))
        .optional()?
        .is_some())
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<PortForward>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, forward)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn forward(row: &Row<'_>) -> rusqlite::Result<PortForward> {
    Ok(PortForward {
        seq: row.get("seq")?,
        id: row.get("id")?,
        owner: row.get("owner")?,
        protocol: row.get("protocol")?,
        host_port: row.get("host_port")?,
        interface_id: row.get("interface_id")?,
        instance_port: row.get("instance_port")?,
        description: row.get("description")?,
        client_token: row.get("client_token")?,
        instance_id: row.get("instance_id")?,
    })
}
