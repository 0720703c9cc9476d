//! What the firewall is to enforce, from the database.

use rusqlite::Connection;

use crate::{db, error::ApiResult, firewall::policy::Policy, security_groups::default_group};

/// All of it.
pub fn load(connection: &Connection) -> ApiResult<Policy> {
    let networks = db::networks::all(connection)?.into_iter();
    let interfaces = db::interfaces::all(connection)?;
    let addresses = interfaces
        .iter()
        .filter_map(|it| Some((it.public_ipv4?, it.id.clone())))
        .collect();
    Ok(Policy {
        networks: networks.map(|it| (it.id.clone(), it.policy())).collect(),
        interfaces: interfaces
            .iter()
            .map(|it| (it.id.clone(), it.policy()))
            .collect(),
        groups: default_group::all(connection)?,
        addresses,
        ..Policy::default()
    })
}
