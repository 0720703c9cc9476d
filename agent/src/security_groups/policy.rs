//! What the firewall is told of groups and prefix lists.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use rusqlite::Connection;

use super::prefix_lists;
use crate::{
    db::{self, DbResult},
    firewall::policy::{Change, Group},
};

/// Groups, and the blocks of prefix lists, by id.
type Loaded = (BTreeMap<String, Group>, BTreeMap<String, BTreeSet<IpNet>>);

/// All groups and prefix lists, for the agent's start.
pub fn load(connection: &Connection) -> DbResult<Loaded> {
    let groups = db::security_groups::all(connection)?;
    let lists = db::prefix_lists::all(connection)?;
    Ok((
        groups
            .iter()
            .map(|group| (group.id.clone(), group.into()))
            .collect(),
        lists
            .iter()
            .map(|list| (list.id.clone(), prefix_lists::blocks(list)))
            .collect(),
    ))
}

/// The group as its rows say now.
pub fn put_group(connection: &Connection, id: &str) -> DbResult<Change> {
    let group = db::security_groups::get(connection, id)?;
    Ok(match group {
        Some(group) => Change::PutGroup(id.to_owned(), (&group).into()),
        None => Change::RemoveGroup(id.to_owned()),
    })
}
