//! Rows of `snapshots`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, strings, to_json, unsigned};
use crate::{
    events::NewEvent,
    snapshots::model::{Snapshot, SnapshotState},
    time::Millis,
};

const SELECT: &str = "SELECT seq, id, owner, state, state_message, volume_id, source_id,
    size_bytes, description, create_time, tags, client_token, starts_instance FROM snapshots";

const STATE_EVENT: &str = "snapshot.state";

/// Stores a new snapshot and the event of its birth.
pub fn insert(tx: &mut Tx<'_>, snapshot: &mut Snapshot) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO snapshots (id, owner, state, state_message, volume_id, source_id,
            size_bytes, description, create_time, tags, client_token, starts_instance)
         VALUES (:id, :owner, :state, :state_message, :volume_id, :source_id,
            :size_bytes, :description, :create_time, :tags, :client_token, :starts_instance)",
    )?
    .execute(named_params! {
        ":id": snapshot.id,
        ":owner": snapshot.owner,
        ":state": snapshot.state,
        ":state_message": snapshot.state_message,
        ":volume_id": snapshot.volume_id,
        ":source_id": snapshot.source_id,
        ":size_bytes": signed(snapshot.size_bytes),
        ":description": snapshot.description,
        ":create_time": snapshot.create_time.0,
        ":tags": to_json(&snapshot.tags)?,
        ":client_token": snapshot.client_token,
        ":starts_instance": snapshot.starts_instance,
    })?;
    snapshot.seq = tx.last_insert_rowid();
    tx.event(NewEvent::state(
        STATE_EVENT,
        &snapshot.owner,
        &snapshot.id,
        "",
        snapshot.state.word(),
    ));
    Ok(())
}

/// Stores what changes in a snapshot's life, and the event when its state differs.
pub fn update(tx: &mut Tx<'_>, before: &Snapshot, after: &Snapshot) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE snapshots SET state = :state, state_message = :state_message,
            size_bytes = :size_bytes, starts_instance = :starts_instance WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": after.id,
        ":state": after.state,
        ":state_message": after.state_message,
        ":size_bytes": signed(after.size_bytes),
        ":starts_instance": after.starts_instance,
    })?;
    if before.state != after.state {
        let (from, to) = (before.state.word(), after.state.word());
        tx.event(
            NewEvent::state(STATE_EVENT, &after.owner, &after.id, from, to)
                .because("", &after.state_message),
        );
    }
    Ok(())
}

/// Forgets a snapshot that is gone from the store, and tells so.
pub fn remove(tx: &mut Tx<'_>, snapshot: &Snapshot) -> DbResult<()> {
    tx.execute("DELETE FROM snapshots WHERE id = ?1", [&snapshot.id])?;
    super::permissions::forget(tx, &snapshot.id)?;
    tx.event(NewEvent::state(
        STATE_EVENT,
        &snapshot.owner,
        &snapshot.id,
        snapshot.state.word(),
        "deleted",
    ));
    Ok(())
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<Snapshot>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` snapshots created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Snapshot>> {
    collect(
        connection,
        "WHERE seq > ?1 ORDER BY seq LIMIT ?2",
        params![seq, limit],
    )
}

/// Those in a state.
pub fn in_state(connection: &Connection, state: SnapshotState) -> DbResult<Vec<Snapshot>> {
    collect(connection, "WHERE state = ?1 ORDER BY seq", [state])
}

/// Those for which an instance was stopped that was not started again yet.
pub fn starting_instances(connection: &Connection) -> DbResult<Vec<Snapshot>> {
    let condition = "WHERE starts_instance IS NOT NULL AND state <> 'pending' ORDER BY seq";
    collect(connection, condition, [])
}

/// A snapshot of this volume that is being taken.
pub fn being_taken_of(connection: &Connection, volume_id: &str) -> DbResult<Option<String>> {
    one_id(
        connection,
        "SELECT id FROM snapshots WHERE state = 'pending' AND volume_id = ?1",
        volume_id,
    )
}

/// A copy of this snapshot that is being made.
pub fn being_copied_from(connection: &Connection, id: &str) -> DbResult<Option<String>> {
    one_id(
        connection,
        "SELECT id FROM snapshots WHERE state = 'pending' AND source_id = ?1",
        id,
    )
}

fn one_id(connection: &Connection, query: &str, parameter: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached(query)?
        .query_row([parameter], |row| row.get(0))
        .optional()?)
}

/// Ids of all.
pub fn ids(connection: &Connection) -> DbResult<Vec<String>> {
    strings(connection, "SELECT id FROM snapshots")
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Snapshot>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        Ok((snapshot(row)?, row.get::<_, String>(10)?))
    })?;
    rows.map(|row| {
        let (snapshot, tags) = row?;
        Ok(Snapshot {
            tags: from_json(&tags)?,
            ..snapshot
        })
    })
    .collect()
}

fn snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        state: row.get(3)?,
        state_message: row.get(4)?,
        volume_id: row.get(5)?,
        source_id: row.get(6)?,
        size_bytes: unsigned(row.get(7)?),
        description: row.get(8)?,
        create_time: Millis(row.get(9)?),
        tags: Vec::new(),
        client_token: row.get(11)?,
        starts_instance: row.get(12)?,
    })
}
