//! The group `default`, which every network has: its members reach each other, and anybody.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rusqlite::{Connection, OptionalExtension};

use super::{
    DEFAULT,
    model::{Direction, Peer, Permission, Rule, SecurityGroup, Traffic},
};
use crate::{
    db::{self, DbResult, Tx},
    error::ApiResult,
    ids::Kind,
    networks::model::Network,
};

const DESCRIPTION: &str = "default group of the network";

/// Makes the group of a new network.
pub fn create(tx: &mut Tx<'_>, network: &Network) -> ApiResult<SecurityGroup> {
    let id = Kind::SecurityGroup.new_id()?;
    let everywhere: [IpNet; 2] = [Ipv4Net::default().into(), Ipv6Net::default().into()];
    let [ipv4, ipv6] = everywhere.map(|block| (Direction::Egress, Peer::Block(block)));
    let rule = |(direction, peer)| {
        Ok(Rule {
            seq: 0,
            id: Kind::SecurityGroupRule.new_id()?,
            group_id: id.clone(),
            owner: network.owner.clone(),
            direction,
            permission: Permission {
                traffic: Traffic::All,
                peer,
            },
            description: String::new(),
        })
    };
    let members = (Direction::Ingress, Peer::Group(id.clone()));
    let rules = [members, ipv4, ipv6].into_iter().map(rule);
    let mut group = SecurityGroup {
        seq: 0,
        owner: network.owner.clone(),
        network_id: network.id.clone(),
        name: DEFAULT.to_owned(),
        description: DESCRIPTION.to_owned(),
        create_time: network.create_time,
        tags: Vec::new(),
        client_token: String::new(),
        rules: rules.collect::<ApiResult<_>>()?,
        id: id.clone(),
    };
    db::security_groups::insert(tx, &mut group)?;
    Ok(group)
}

/// The id of a network's group `default`.
pub fn of_network(connection: &Connection, network_id: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached("SELECT id FROM security_groups WHERE network_id = ?1 AND name = ?2")?
        .query_row([network_id, DEFAULT], |row| row.get(0))
        .optional()?)
}

/// Ids of all groups of a network.
pub fn ids_in(connection: &Connection, network_id: &str) -> DbResult<Vec<String>> {
    let mut select =
        connection.prepare_cached("SELECT id FROM security_groups WHERE network_id = ?1")?;
    let rows = select.query_map([network_id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
