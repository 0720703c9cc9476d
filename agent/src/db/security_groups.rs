//! Rows of `security_groups` and `security_group_rules`, and who is in which group.

use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

use super::{DbError, DbResult, Tx, from_json, to_json};
use crate::{
    firewall::policy,
    security_groups::model::{Direction, Peer, Permission, Rule, SecurityGroup, Traffic},
    time::Millis,
};

const SELECT: &str = "SELECT seq, id, owner, network_id, name, description, create_time, tags,
    client_token FROM security_groups";

const SELECT_RULES: &str = "SELECT r.seq, r.id, r.group_id, g.owner, r.direction, r.protocol,
    r.from_port, r.to_port, r.peer_kind, r.peer, r.description
    FROM security_group_rules AS r JOIN security_groups AS g ON g.id = r.group_id";

/// Stores a group, with its rules; one that had a place in the order of creation gets it back.
pub fn insert(tx: &Tx<'_>, group: &mut SecurityGroup) -> DbResult<()> {
    tx.prepare_cached(
        "INSERT INTO security_groups (seq, id, owner, network_id, name, description, create_time,
            tags, client_token)
         VALUES (:seq, :id, :owner, :network_id, :name, :description, :create_time, :tags,
            :client_token)",
    )?
    .execute(named_params! {
        ":seq": (group.seq != 0).then_some(group.seq),
        ":id": group.id,
        ":owner": group.owner,
        ":network_id": group.network_id,
        ":name": group.name,
        ":description": group.description,
        ":create_time": group.create_time.0,
        ":tags": to_json(&group.tags)?,
        ":client_token": group.client_token,
    })?;
    group.seq = tx.last_insert_rowid();
    group
        .rules
        .iter_mut()
        .try_for_each(|rule| insert_rule(tx, rule))
}

/// Stores a rule; one that had a place in the order of creation gets it back.
pub fn insert_rule(tx: &Tx<'_>, rule: &mut Rule) -> DbResult<()> {
    let traffic = rule.permission.traffic;
    let (from, to) = traffic.range();
    tx.prepare_cached(
        "INSERT INTO security_group_rules (seq, id, group_id, direction, protocol, from_port,
            to_port, peer_kind, peer, description)
         VALUES (:seq, :id, :group_id, :direction, :protocol, :from_port, :to_port, :peer_kind,
            :peer, :description)",
    )?
    .execute(named_params! {
        ":seq": (rule.seq != 0).then_some(rule.seq),
        ":id": rule.id,
        ":group_id": rule.group_id,
        ":direction": rule.direction,
        ":protocol": traffic.protocol(),
        ":from_port": from,
        ":to_port": to,
        ":peer_kind": rule.permission.peer.kind(),
        ":peer": rule.permission.peer.to_string(),
        ":description": rule.description,
    })?;
    rule.seq = tx.last_insert_rowid();
    Ok(())
}

/// Removes a rule.
pub fn remove_rule(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM security_group_rules WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Removes a group and its rules.
pub fn remove(tx: &Tx<'_>, id: &str) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM security_groups WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Looks a group up.
pub fn get(connection: &Connection, id: &str) -> DbResult<Option<SecurityGroup>> {
    Ok(collect(connection, "WHERE id = ?1", [id])?.pop())
}

/// The group of this name in a network.
pub fn by_name(
    connection: &Connection,
    network_id: &str,
    name: &str,
) -> DbResult<Option<SecurityGroup>> {
    let condition = "WHERE network_id = ?1 AND name = ?2";
    Ok(collect(connection, condition, [network_id, name])?.pop())
}

/// At most `limit` groups created after `seq`, oldest first.
pub fn after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<SecurityGroup>> {
    let condition = "WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    collect(connection, condition, params![seq, limit])
}

/// All groups.
pub fn all(connection: &Connection) -> DbResult<Vec<SecurityGroup>> {
    collect(connection, "ORDER BY seq", [])
}

/// Looks a rule up.
pub fn get_rule(connection: &Connection, id: &str) -> DbResult<Option<Rule>> {
    Ok(collect_rules(connection, "WHERE r.id = ?1", [id])?.pop())
}

/// At most `limit` rules created after `seq`, oldest first.
pub fn rules_after(connection: &Connection, seq: i64, limit: u32) -> DbResult<Vec<Rule>> {
    let condition = "WHERE r.seq > ?1 ORDER BY r.seq LIMIT ?2";
    collect_rules(connection, condition, params![seq, limit])
}

/// Rules that name a group or a prefix list.
pub fn rules_naming(connection: &Connection, peer: &str) -> DbResult<Vec<Rule>> {
    collect_rules(connection, "WHERE r.peer = ?1 ORDER BY r.seq", [peer])
}

/// The account's default network.
pub fn default_network(connection: &Connection, owner: &str) -> DbResult<Option<String>> {
    Ok(connection
        .prepare_cached("SELECT id FROM networks WHERE owner = ?1 AND is_default = 1")?
        .query_row([owner], |row| row.get(0))
        .optional()?)
}

/// Whether a network has an IPv6 range.
pub fn has_ipv6(connection: &Connection, network_id: &str) -> DbResult<bool> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM networks WHERE id = ?1 AND ipv6_range IS NOT NULL")?
        .query_row([network_id], |_| Ok(()))
        .optional()?
        .is_some())
}

/// The interfaces in a group, and their instances.
pub fn members(connection: &Connection, group_id: &str) -> DbResult<Vec<(String, String)>> {
    let mut select = connection.prepare_cached(
        "SELECT i.id, i.instance_id FROM interface_groups AS m
            JOIN network_interfaces AS i ON i.id = m.interface_id
         WHERE m.group_id = ?1 ORDER BY i.seq",
    )?;
    let rows = select.query_map([group_id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The groups of an interface, sorted.
pub fn of_interface(connection: &Connection, interface_id: &str) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT group_id FROM interface_groups WHERE interface_id = ?1 ORDER BY group_id",
    )?;
    let rows = select.query_map([interface_id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The interfaces that an instance has in a network.
pub fn interfaces_in(
    connection: &Connection,
    instance_id: &str,
    network_id: &str,
) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT id FROM network_interfaces WHERE instance_id = ?1 AND network_id = ?2
         ORDER BY device_index",
    )?;
    let rows = select.query_map([instance_id, network_id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The interfaces of an instance, the first one first.
pub fn interfaces_of(connection: &Connection, instance_id: &str) -> DbResult<Vec<String>> {
    let mut select = connection.prepare_cached(
        "SELECT id FROM network_interfaces WHERE instance_id = ?1 ORDER BY device_index",
    )?;
    let rows = select.query_map([instance_id], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The owner of an interface, and the interface as the firewall knows it.
pub fn interface(
    connection: &Connection,
    id: &str,
) -> DbResult<Option<(String, policy::Interface)>> {
    type Columns = (String, String, String, String, String, Option<String>);
    let row: Option<Columns> = connection
        .prepare_cached(
            "SELECT owner, network_id, tap, mac, ipv4, ipv6 FROM network_interfaces
             WHERE id = ?1",
        )?
        .query_row([id], |row| {
            let first = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((
                first.0,
                first.1,
                first.2,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
            ))
        })
        .optional()?;
    let Some((owner, network, tap, mac, ipv4, ipv6)) = row else {
        return Ok(None);
    };
    let malformed = || DbError::Malformed(format!("the interface {id}"));
    let interface = policy::Interface {
        network,
        tap,
        mac: mac_address(&mac).ok_or_else(malformed)?,
        ipv4: ipv4.parse().map_err(|_| malformed())?,
        ipv6: ipv6
            .map(|ipv6| ipv6.parse())
            .transpose()
            .map_err(|_| malformed())?,
        groups: of_interface(connection, id)?.into_iter().collect(),
    };
    Ok(Some((owner, interface)))
}

fn mac_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

/// Puts an interface into exactly these groups.
pub fn set_groups_of(tx: &Tx<'_>, interface_id: &str, groups: &[String]) -> DbResult<()> {
    tx.prepare_cached("DELETE FROM interface_groups WHERE interface_id = ?1")?
        .execute([interface_id])?;
    let mut insert =
        tx.prepare_cached("INSERT INTO interface_groups (interface_id, group_id) VALUES (?1, ?2)")?;
    for group in groups {
        insert.execute([interface_id, group])?;
    }
    Ok(())
}

fn collect(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<SecurityGroup>> {
    let mut select = connection.prepare_cached(&format!("{SELECT} {condition}"))?;
    let rows = select.query_map(parameters, |row| {
        Ok((group(row)?, row.get::<_, String>(7)?))
    })?;
    rows.map(|row| {
        let (group, tags) = row?;
        let rules = "WHERE r.group_id = ?1 ORDER BY r.seq";
        Ok(SecurityGroup {
            tags: from_json(&tags)?,
            rules: collect_rules(connection, rules, [&group.id])?,
            ..group
        })
    })
    .collect()
}

fn group(row: &Row<'_>) -> rusqlite::Result<SecurityGroup> {
    Ok(SecurityGroup {
        seq: row.get(0)?,
        id: row.get(1)?,
        owner: row.get(2)?,
        network_id: row.get(3)?,
        name: row.get(4)?,
        description: row.get(5)?,
        create_time: Millis(row.get(6)?),
        tags: Vec::new(),
        client_token: row.get(8)?,
        rules: Vec::new(),
    })
}

fn collect_rules(
    connection: &Connection,
    condition: &str,
    parameters: impl rusqlite::Params,
) -> DbResult<Vec<Rule>> {
    let mut select = connection.prepare_cached(&format!("{SELECT_RULES} {condition}"))?;
    let mut rows = select.query(parameters)?;
    let mut rules = Vec::new();
    while let Some(row) = rows.next()? {
        rules.push(rule(row)?);
    }
    Ok(rules)
}

fn rule(row: &Row<'_>) -> DbResult<Rule> {
    let id: String = row.get(1)?;
    let kind: String = row.get(8)?;
    let direction: Direction = row.get(4)?;
    let traffic = Traffic::from_parts(row.get(5)?, row.get(6)?, row.get(7)?);
    let peer = Peer::from_parts(&kind, row.get(9)?);
    let (Some(traffic), Some(peer)) = (traffic, peer) else {
        return Err(DbError::Malformed(format!("the rule {id}")));
    };
    Ok(Rule {
        seq: row.get(0)?,
        id,
        group_id: row.get(2)?,
        owner: row.get(3)?,
        direction,
        permission: Permission { traffic, peer },
        description: row.get(10)?,
    })
}
