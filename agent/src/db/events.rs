//! Rows of `events`: the last [`KEPT_EVENTS`], in the order of commits.

use rusqlite::{Connection, params};

use super::DbResult;
use crate::{
    events::{Event, NewEvent},
    time::Millis,
};

/// How many events are kept.
pub const KEPT_EVENTS: i64 = 100_000;

/// Old events go in batches, when the sequence passes a multiple of this.
const PRUNE_EVERY: i64 = 1_000;

/// Adds events at the end; gives them back with sequence and time.
pub fn append(connection: &Connection, events: Vec<NewEvent>) -> DbResult<Vec<Event>> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let time = Millis::now();
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (time, type, resource_id, previous_state, state, reason_code, message,
            owner)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut appended = Vec::with_capacity(events.len());
    for event in events {
        insert.execute(params![
            time.0,
            event.kind,
            event.resource_id,
            event.previous_state,
            event.state,
            event.reason_code,
            event.message,
            event.owner
        ])?;
        let sequence = connection.last_insert_rowid();
        if sequence % PRUNE_EVERY == 0 {
            connection.execute(
                "DELETE FROM events WHERE sequence <= ?1",
                [sequence - KEPT_EVENTS],
            )?;
        }
        appended.push(event.at(sequence, time));
    }
    Ok(appended)
}

/// At most `limit` events after `sequence`, oldest first.
pub fn after(connection: &Connection, sequence: i64, limit: u32) -> DbResult<Vec<Event>> {
    let mut select = connection.prepare_cached(
        "SELECT sequence, time, type, resource_id, previous_state, state, reason_code, message,
            owner
         FROM events WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
    )?;
    let rows = select.query_map(params![sequence, limit], |row| {
        Ok(Event {
            sequence: row.get(0)?,
            time: Millis(row.get(1)?),
            kind: row.get(2)?,
            resource_id: row.get(3)?,
            previous_state: row.get(4)?,
            state: row.get(5)?,
            reason_code: row.get(6)?,
            message: row.get(7)?,
            owner: row.get(8)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The sequences of the oldest and the newest event kept. With none kept: one past the newest
/// there ever was, and the newest there ever was (0 when none).
pub fn bounds(connection: &Connection) -> DbResult<(i64, i64)> {
    let newest: i64 = connection
        .prepare_cached("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")?
        .query_row([], |row| row.get(0))?;
    let oldest: Option<i64> = connection
        .prepare_cached("SELECT min(sequence) FROM events")?
        .query_row([], |row| row.get(0))?;
    Ok((oldest.unwrap_or(newest + 1), newest))
}
