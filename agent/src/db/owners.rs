//! Whose everything in the store is.

use std::collections::HashMap;

use rusqlite::Connection;

use super::DbResult;

/// The account of every volume, snapshot and image, by id.
pub fn owners(connection: &Connection) -> DbResult<HashMap<String, String>> {
    connection
        .prepare_cached(
            "SELECT id, owner FROM volumes UNION ALL SELECT id, owner FROM snapshots
                UNION ALL SELECT id, owner FROM images",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .map(|row| Ok(row?))
        .collect()
}
