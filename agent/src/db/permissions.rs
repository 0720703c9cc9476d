//! Who owns an object, whatever it is, and with whom it is shared.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::{DbResult, Tx};
use crate::ids::Kind;

/// Stands for every account.
pub const EVERYONE: &str = "*";

/// The owner of an object; `None` when there is none of this id.
pub fn owner(connection: &Connection, kind: Kind, id: &str) -> DbResult<Option<String>> {
    let query = match kind {
        Kind::Instance => "SELECT owner FROM instances WHERE id = ?1",
        Kind::Volume => "SELECT owner FROM volumes WHERE id = ?1",
        Kind::Image => "SELECT owner FROM images WHERE id = ?1",
        Kind::Snapshot => "SELECT owner FROM snapshots WHERE id = ?1",
        Kind::Network => "SELECT owner FROM networks WHERE id = ?1",
        Kind::NetworkInterface => "SELECT owner FROM network_interfaces WHERE id = ?1",
        // Pools are the operator's, and may be used by all.
        Kind::AddressPool => "SELECT '*' FROM address_pools WHERE id = ?1",
        Kind::Address => "SELECT owner FROM addresses WHERE id = ?1",
        Kind::PortForward => "SELECT owner FROM port_forwards WHERE id = ?1",
        Kind::SecurityGroup => "SELECT owner FROM security_groups WHERE id = ?1",
        Kind::SecurityGroupRule => {
            "SELECT owner FROM security_groups WHERE id =
                (SELECT group_id FROM security_group_rules WHERE id = ?1)"
        }
        Kind::PrefixList => "SELECT owner FROM prefix_lists WHERE id = ?1",
        Kind::KeyPair => "SELECT owner FROM key_pairs WHERE id = ?1",
        Kind::FlowLog => "SELECT owner FROM flow_logs WHERE id = ?1",
    };
    Ok(connection
        .prepare_cached(query)?
        .query_row([id], |row| row.get(0))
        .optional()?)
}

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

/// Whether an account that does not own the object may use it.
pub fn is_shared(connection: &Connection, id: &str, account: &str) -> DbResult<bool> {
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM permissions WHERE resource_id = ?1 AND account IN (?2, ?3) LIMIT 1",
        )?
        .query_row([id, account, EVERYONE], |_| Ok(()))
        .optional()?
        .is_some())
}

/// The ids of everything that an account may use without owning it.
pub fn shared_with(connection: &Connection, account: &str) -> DbResult<HashSet<String>> {
    let mut select = connection
        .prepare_cached("SELECT resource_id FROM permissions WHERE account IN (?1, ?2)")?;
    let ids = select.query_map([account, EVERYONE], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// The accounts that may use an object, sorted; [`EVERYONE`] among them when it is public.
pub fn of(connection: &Connection, id: &str) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT account FROM permissions WHERE resource_id = ?1 ORDER BY account",
    )?;
    let accounts = select.query_map([id], |row| row.get(0))?;
    Ok(accounts.collect::<Result<_, _>>()?)
}

/// Lets an account (or [`EVERYONE`]) use an object; it may already.
pub fn grant(tx: &Tx<'_>, id: &str, account: &str) -> DbResult<()> {
    tx.prepare_cached("INSERT OR IGNORE INTO permissions (resource_id, account) VALUES (?1, ?2)")?
        .execute(params![id, account])?;
    Ok(())
}

/// Takes that back.
pub fn revoke(tx: &Tx<'_>, id: &str, account: &str) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM permissions WHERE resource_id = ?1 AND account = ?2")?
        .execute(params![id, account])?;
    Ok(())
}

/// Forgets the permissions of an object that is gone.
pub fn forget(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM permissions WHERE resource_id = ?1")?
        .execute([id])?;
    Ok(())
}
