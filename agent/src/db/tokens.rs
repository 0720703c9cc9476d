//! Rows of `client_tokens`: which request a token was used with, and what came of it.

use rusqlite::{Connection, OptionalExtension, params};

use super::{DbResult, from_json, to_json};
use crate::time::Millis;

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Digest of the request.
    pub request_hash: String,
    /// Ids of the objects that the request made.
    pub result: Vec<String>,
}

/// Looks a token up.
pub fn get(
    connection: &Connection,
    owner: &str,
    operation: &str,
    token: &str,
) -> DbResult<Option<TokenRow>> {
    let row: Option<(String, String)> = connection
        .prepare_cached(
            "SELECT request_hash, result FROM client_tokens
             WHERE owner = ?1 AND operation = ?2 AND token = ?3",
        )?
        .query_row(params![owner, operation, token], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    row.map(|(request_hash, result)| {
        Ok(TokenRow {
            request_hash,
            result: from_json(&result)?,
        })
    })
    .transpose()
}

/// Keeps a token.
pub fn insert(
    connection: &Connection,
    owner: &str,
    operation: &str,
    token: &str,
    row: &TokenRow,
) -> DbResult<()> {
    connection
        .prepare_cached("INSERT INTO client_tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            owner,
            operation,
            token,
            row.request_hash,
            to_json(&row.result)?,
            Millis::now().0
        ])?;
    Ok(())
}

/// Forgets a token, because what it was used for failed.
pub fn remove(connection: &Connection, owner: &str, operation: &str, token: &str) -> DbResult<()> {
    connection
        .prepare_cached(
            "DELETE FROM client_tokens WHERE owner = ?1 AND operation = ?2 AND token = ?3",
        )?
        .execute(params![owner, operation, token])?;
    Ok(())
}

/// Forgets tokens older than `before`.
pub fn prune(connection: &Connection, before: Millis) -> DbResult<usize> {
    Ok(connection.execute("DELETE FROM client_tokens WHERE created < ?1", [before.0])?)
}
