//! Rows of `pending_cuts`: committed changes whose connections are yet to be cut.

use rusqlite::Connection;

use super::{DbResult, Tx};

/// Notes, in the transaction of a change, that connections of an object (`sg-…`, `pl-…`, `eni-…`)
/// are to be cut. Gives what [`done`] takes.
pub fn note(tx: &Tx<'_>, object_id: &str) -> DbResult<i64> {
    tx.prepare_cached("INSERT INTO pending_cuts (object_id) VALUES (?1)")?
        .execute([object_id])?;
    Ok(tx.last_insert_rowid())
}

/// They are cut, or the change was taken back.
pub fn done(tx: &Tx<'_>, notes: &[i64]) -> DbResult<()> {
    let mut delete = tx.prepare_cached("DELETE FROM pending_cuts WHERE seq = ?1")?;
    for seq in notes {
        delete.execute([seq])?;
    }
    Ok(())
}

/// All notes, with the objects that they are of.
pub fn all(connection: &Connection) -> DbResult<Vec<(i64, String)>> {
    let mut select =
        connection.prepare_cached("SELECT seq, object_id FROM pending_cuts ORDER BY seq")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
