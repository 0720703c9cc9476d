//! What the firewall is to enforce, from the database.

use rusqlite::Connection;

use crate::{db, error::ApiResult, firewall::policy::Policy, flow_logs, security_groups};

/// All of it.
pub fn load(connection: &Connection) -> ApiResult<Policy> {
    let networks = db::networks::all(connection)?.into_iter();
    let interfaces = db::interfaces::all(connection)?;
    let public = |it: &crate::networks::model::Interface| Some((it.public_ipv4?, it.id.clone()));
    let forwards = db::port_forwards::all(connection)?.into_iter();
    let (groups, prefix_lists) = security_groups::policy::load(connection)?;
    Ok(Policy {
        networks: networks.map(|it| (it.id.clone(), it.policy())).collect(),
        addresses: interfaces.iter().filter_map(public).collect(),
        interfaces: interfaces
            .iter()
            .map(|it| (it.id.clone(), it.policy()))
            .collect(),
        forwards: forwards.map(|it| (it.id.clone(), it.policy())).collect(),
        groups,
        prefix_lists,
        logged: flow_logs::wanted(connection)?,
        windows: flow_logs::windows(connection)?,
    })
}
