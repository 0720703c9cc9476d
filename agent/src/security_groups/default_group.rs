//! The group `default`, which every network has: its members reach each other, and anybody.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    db::{DbError, DbResult, Tx},
    error::ApiResult,
    firewall::policy::{Direction, Group, Match, Peer, Rule},
    ids::Kind,
    networks::model::Network,
};

/// Its name.
pub const NAME: &str = "default";

const DESCRIPTION: &str = "default group of the network";

/// Makes the group of a new network; gives its id and what the firewall is to know of it.
pub fn create(tx: &mut Tx<'_>, network: &Network) -> ApiResult<(String, Group)> {
    let id = Kind::SecurityGroup.new_id()?;
    tx.prepare_cached(
        "INSERT INTO security_groups (id, owner, network_id, name, description, create_time, tags,
            client_token)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, '[]', '')",
    )?
    .execute(params![
        id,
        network.owner,
        network.id,
        NAME,
        DESCRIPTION,
        network.create_time.0
    ])?;
    let mut group = Group {
        network: network.id.clone(),
        ..Group::default()
    };
    let everywhere_ipv4 = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
    let everywhere_ipv6 = Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0);
    for (direction, peer) in [
        (Direction::Ingress, Peer::Group(id.clone())),
        (Direction::Egress, Peer::Block(everywhere_ipv4.into())),
        (Direction::Egress, Peer::Block(everywhere_ipv6.into())),
    ] {
        let rule = Kind::SecurityGroupRule.new_id()?;
        let (word, kind, text) = match (direction, &peer) {
            (Direction::Ingress, Peer::Group(id)) => ("ingress", "group", id.clone()),
            (_, Peer::Block(IpNet::V4(block))) => ("egress", "cidr", block.to_string()),
            (_, Peer::Block(IpNet::V6(block))) => ("egress", "cidr", block.to_string()),
            _ => unreachable!("the list above"),
        };
        tx.prepare_cached(
            "INSERT INTO security_group_rules (id, group_id, direction, protocol, from_port,
                to_port, peer_kind, peer, description)
             VALUES (?1, ?2, ?3, NULL, NULL, NULL, ?4, ?5, '')",
        )?
        .execute(params![rule, id, word, kind, text])?;
        group.rules.insert(
            rule,
            Rule {
                direction,
                matches: Match::All,
                peer,
            },
        );
    }
    Ok((id, group))
}

/// The id of a network's group `default`.
pub fn of_network(connection: &Connection, network_id: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached("SELECT id FROM security_groups WHERE network_id = ?1 AND name = ?2")?
        .query_row([network_id, NAME], |row| row.get(0))
        .optional()?)
}

/// The groups `default` of all networks, as they were made.
pub fn all(connection: &Connection) -> DbResult<BTreeMap<String, Group>> {
    let mut groups = BTreeMap::new();
    let mut select = connection.prepare_cached(
        "SELECT g.id, g.network_id, r.id, r.direction, r.peer_kind, r.peer
         FROM security_groups AS g JOIN security_group_rules AS r ON r.group_id = g.id
         WHERE g.name = ?1 AND r.protocol IS NULL",
    )?;
    let mut rows = select.query([NAME])?;
    while let Some(row) = rows.next()? {
        let (direction, kind, peer): (String, String, String) =
            (row.get(3)?, row.get(4)?, row.get(5)?);
        let group: &mut Group = groups.entry(row.get(0)?).or_default();
        group.network = row.get(1)?;
        let peer = match kind.as_str() {
            "cidr" => Peer::Block(peer.parse().map_err(|_| DbError::Malformed(peer))?),
            _ => Peer::Group(peer),
        };
        let direction = match direction.as_str() {
            "ingress" => Direction::Ingress,
            _ => Direction::Egress,
        };
        let rule = Rule {
            direction,
            matches: Match::All,
            peer,
        };
        group.rules.insert(row.get(2)?, rule);
    }
    Ok(groups)
}

/// The network of any group.
pub fn network_of(connection: &Connection, id: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached("SELECT network_id FROM security_groups WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?)
}

/// Ids of all groups of a network.
pub fn ids_in(connection: &Connection, network_id: &str) -> DbResult<Vec<String>> {
    let mut select =
        connection.prepare_cached("SELECT id FROM security_groups WHERE network_id = ?1")?;
    let rows = select.query_map([network_id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
