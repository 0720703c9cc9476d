//! Rows of `key_pairs`.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbResult, Tx, from_json, to_json};
use crate::{keys::KeyPair, time::Millis};

const SELECT: &str = "SELECT seq, id, owner, name, key_type, fingerprint, public_key, create_time,
    tags FROM key_pairs";

/// Stores a new key pair.
pub fn insert(tx: &Tx<'_>, key: &mut KeyPair) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO key_pairs (id, owner, name, key_type, fingerprint, public_key, create_time,
            tags)
         VALUES (:id, :owner, :name, :key_type, :fingerprint, :public_key, :create_time, :tags)",
    )?
    .execute(named_params! {
        ":id": key.id,
        ":owner": key.owner,
        ":name": key.name,
        ":key_type": key.key_type,
        ":fingerprint": key.fingerprint,
        ":public_key": key.public_key,
        ":create_time": key.create_time.0,
        ":tags": to_json(&key.tags)?,
    })?;
    key.seq = tx.last_insert_rowid();
    Ok(())
}

/// Forgets one.
pub fn remove(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.execute("DELETE FROM key_pairs WHERE id = ?1", [id])?;
    super::permissions::forget(tx, id)
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<KeyPair>> {
    one(connection, "WHERE id = ?1", [id])
}

/// The owner's key pair of this name.
pub fn by_name(connection: &Connection, owner: &str, name: &str) -> DbResult<Option<KeyPair>> {
    one(connection, "WHERE owner = ?1 AND name = ?2", [owner, name])
}

/// At most `limit` made after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<KeyPair>> {
    let mut select =
        connection.prepare_cached(&format!("{SELECT} WHERE seq > ?1 ORDER BY seq LIMIT ?2"))?;
    let rows = select.query_map(params![seq, limit], raw)?;
    rows.map(|row| finish(row?)).collect()
}

fn one(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Option<KeyPair>> {
    let row = connection
        .prepare_cached(&format!("{SELECT} {condition}"))?
        .query_row(parameters, raw)
        .optional()?;
    row.map(finish).transpose()
}

/// A row, and its tags as they are kept.
fn raw(row: &Row<'_>) -> rusqlite::Result<(KeyPair, String)> {
    let key = KeyPair {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        name: row.get(3)?,
        key_type: row.get(4)?,
        fingerprint: row.get(5)?,
        public_key: row.get(6)?,
        create_time: Millis(row.get(7)?),
        tags: Vec::new(),
    };
    Ok((key, row.get(8)?))
}

fn finish((key, tags): (KeyPair, String)) -> DbResult<KeyPair> {
    Ok(KeyPair {
        tags: from_json(&tags)?,
        ..key
    })
}
