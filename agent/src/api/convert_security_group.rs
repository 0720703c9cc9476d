//! Security groups and prefix lists as the wire's, and the other way round.

use hearth_proto::v1::{self, security_group_permission::Peer as WirePeer};
use ipnet::IpNet;

use super::convert::tags_out;
use crate::{
    error::{ApiError, ApiResult, Reason},
    firewall::Connections,
    security_groups::{
        model::{Direction, Peer, Rule, SecurityGroup},
        permission::{PeerRequest, PermissionRequest},
        prefix_lists::{EntryRequest, model::PrefixList},
    },
};

/// The packets and bytes that a rule let pass.
pub type Counted = (u64, u64);

/// Unspecified is `None`.
pub fn direction(direction: i32, field: &str) -> ApiResult<Option<Direction>> {
    match v1::Direction::try_from(direction) {
        Ok(v1::Direction::Unspecified) => Ok(None),
        Ok(v1::Direction::Ingress) => Ok(Some(Direction::Ingress)),
        Ok(v1::Direction::Egress) => Ok(Some(Direction::Egress)),
        Err(_) => Err(ApiError::invalid(
            field,
            format!("{direction} is not a direction"),
        )),
    }
}

/// The same where it must be said.
pub fn direction_given(value: i32, field: &str) -> ApiResult<Direction> {
    direction(value, field)?.ok_or_else(|| {
        ApiError::field(
            Reason::MissingParameter,
            field,
            "say whether these are ingress or egress rules",
        )
    })
}

pub fn connections(keep: bool) -> Connections {
    if keep {
        Connections::Keep
    } else {
        Connections::Cut
    }
}

pub fn permissions(permissions: Vec<v1::SecurityGroupPermission>) -> Vec<PermissionRequest> {
    permissions
        .into_iter()
        .map(|permission| PermissionRequest {
            protocol: permission.protocol,
            from: permission.from_port,
            to: permission.to_port,
            peer: permission.peer.map(|peer| match peer {
                WirePeer::CidrIpv4(text) => PeerRequest::Ipv4(text),
                WirePeer::CidrIpv6(text) => PeerRequest::Ipv6(text),
                WirePeer::SecurityGroupId(id) => PeerRequest::Group(id),
                WirePeer::PrefixListId(id) => PeerRequest::PrefixList(id),
            }),
            description: permission.description,
        })
        .collect()
}

pub fn group(group: SecurityGroup) -> v1::SecurityGroup {
    let rules = group.rules.into_iter();
    v1::SecurityGroup {
        security_group_id: group.id,
        owner_id: group.owner,
        network_id: group.network_id,
        name: group.name,
        description: group.description,
        rules: rules.map(|it| rule(it, (0, 0))).collect(),
        create_time: Some(group.create_time.into()),
        tags: tags_out(group.tags),
        client_token: group.client_token,
    }
}

pub fn rule(rule: Rule, (packets, bytes): Counted) -> v1::SecurityGroupRule {
    let traffic = rule.permission.traffic;
    let (from, to) = traffic.range();
    v1::SecurityGroupRule {
        rule_id: rule.id,
        security_group_id: rule.group_id,
        owner_id: rule.owner,
        direction: match rule.direction {
            Direction::Ingress => v1::Direction::Ingress,
            Direction::Egress => v1::Direction::Egress,
        }
        .into(),
        permission: Some(v1::SecurityGroupPermission {
            protocol: traffic.word(),
            from_port: from.map(i32::from),
            to_port: to.map(i32::from),
            peer: Some(match rule.permission.peer {
                Peer::Block(IpNet::V4(block)) => WirePeer::CidrIpv4(block.to_string()),
                Peer::Block(IpNet::V6(block)) => WirePeer::CidrIpv6(block.to_string()),
                Peer::Group(id) => WirePeer::SecurityGroupId(id),
                Peer::PrefixList(id) => WirePeer::PrefixListId(id),
            }),
            description: rule.description,
        }),
        packets,
        bytes,
    }
}

pub fn entries(entries: Vec<v1::PrefixListEntry>) -> Vec<EntryRequest> {
    entries
        .into_iter()
        .map(|entry| EntryRequest {
            cidr: entry.cidr,
            description: entry.description,
        })
        .collect()
}

pub fn prefix_list(list: PrefixList) -> v1::PrefixList {
    let entries = list.entries.into_iter().map(|entry| v1::PrefixListEntry {
        cidr: entry.block.to_string(),
        description: entry.description,
    });
    v1::PrefixList {
        prefix_list_id: list.id,
        owner_id: list.owner,
        name: list.name,
        address_family: list.family.word().to_owned(),
        max_entries: list.max_entries,
        entries: entries.collect(),
        version: list.version,
        tags: tags_out(list.tags),
        client_token: list.client_token,
    }
}
