//! Rows of `prefix_lists`.

use rusqlite::{Connection, Row, named_params, params};

use super::{DbResult, Tx, from_json, signed, to_json, unsigned};
use crate::security_groups::prefix_lists::model::PrefixList;

const SELECT: &str = "SELECT seq, id, owner, name, family, max_entries, version, entries, tags,
    client_token FROM prefix_lists";

/// Stores a list; one that had a place in the order of creation gets it back.
pub fn insert(tx: &Tx<'_>, list: &mut PrefixList) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO prefix_lists (seq, id, owner, name, family, max_entries, version, entries,
            tags, client_token)
         VALUES (:seq, :id, :owner, :name, :family, :max_entries, :version, :entries, :tags,
            :client_token)",
    )?
    .execute(named_params! {
        ":seq": (list.seq != 0).then_some(list.seq),
        ":id": list.id,
        ":owner": list.owner,
        ":name": list.name,
        ":family": list.family,
        ":max_entries": list.max_entries,
        ":version": signed(list.version),
        ":entries": to_json(&list.entries)?,
        ":tags": to_json(&list.tags)?,
        ":client_token": list.client_token,
    })?;
    list.seq = tx.last_insert_rowid();
    Ok(())
}

/// Stores a list's name, version and entries.
pub fn update(tx: &Tx<'_>, list: &PrefixList) -> DbResult<()> {
    tx.prepare_cached(
        "UPDATE prefix_lists SET name = :name, version = :version, entries = :entries
         WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": list.id,
        ":name": list.name,
        ":version": signed(list.version),
        ":entries": to_json(&list.entries)?,
    })?;
    Ok(())
}

/// Removes a list.
pub fn remove(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM prefix_lists WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Looks one up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<PrefixList>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// At most `limit` lists created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<PrefixList>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// All of them.
pub fn all(connection: &Connection) -> DbResult<Vec<PrefixList>> {
    collect(connection, "ORDER BY seq", [])
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<PrefixList>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        let json: (String, String) = (row.get(7)?, row.get(8)?);
        Ok((prefix_list(row)?, json))
    })?;
    rows.map(|row| {
        let (list, (entries, tags)) = row?;
        Ok(PrefixList {
            entries: from_json(&entries)?,
            tags: from_json(&tags)?,
            ..list
        })
    })
    .collect()
}

fn prefix_list(row: &Row<'_>) -> rusqlite::Result<PrefixList> {
    Ok(PrefixList {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        name: row.get(3)?,
        family: row.get(4)?,
        max_entries: row.get(5)?,
        version: unsigned(row.get(6)?),
        entries: Vec::new(),
        tags: Vec::new(),
        client_token: row.get(9)?,
    })
}
