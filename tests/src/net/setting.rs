//! Small settings that more than one test file wants: a guest by its lent card, groups and rules.

use anyhow::{Context, Result};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreateSecurityGroupRequest, Direction, Network,
    NetworkInterfaceSpecification, RevokeSecurityGroupRequest, RunInstancesRequest,
    SecurityGroupPermission, SecurityGroupRule, security_group_permission::Peer,
};

use super::{GuestEnd, relayed};
use crate::Hearth;

/// A probe in this network that lends its card; in these groups, or in the default one when there
/// is none. Its number is for its control tap.
pub async fn guest(
    hearth: &Hearth,
    network: &Network,
    groups: &[String],
    number: usize,
) -> Result<GuestEnd> {
    let netns = hearth.netns()?;
    let control = format!("ctl{number}");
    let relay = relayed(netns, &control)?;
    let interface = NetworkInterfaceSpecification {
        network_id: network.network_id.clone(),
        security_group_ids: groups.to_vec(),
        ..Default::default()
    };
    let run = |request: &mut RunInstancesRequest| {
        request.network_interfaces.push(interface);
        relay(request);
    };
    let probe = hearth.probe(run).await?;
    GuestEnd::new(netns, probe, &control).await
}

/// A new group; gives its id.
pub async fn group(hearth: &Hearth, network: &Network, name: &str) -> Result<String> {
    let request = CreateSecurityGroupRequest {
        name: name.to_owned(),
        description: name.to_owned(),
        network_id: network.network_id.clone(),
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    let answer = client.create_security_group(request).await?.into_inner();
    Ok(answer.security_group.context("no group")?.security_group_id)
}

/// Everything of a protocol (or of all, with `-1`) from or to a block, on one port if one is given.
pub fn permission(protocol: &str, port: Option<u16>, block: &str) -> SecurityGroupPermission {
    let peer = if block.contains(':') {
        Peer::CidrIpv6(block.to_owned())
    } else {
        Peer::CidrIpv4(block.to_owned())
    };
    SecurityGroupPermission {
        protocol: protocol.to_owned(),
        from_port: port.map(i32::from),
        to_port: port.map(i32::from),
        peer: Some(peer),
        description: String::new(),
    }
}

/// The request that lets packets in.
pub fn inbound(
    group: &str,
    permissions: Vec<SecurityGroupPermission>,
) -> AuthorizeSecurityGroupRequest {
    AuthorizeSecurityGroupRequest {
        security_group_id: group.to_owned(),
        direction: Direction::Ingress.into(),
        permissions,
        dry_run: false,
    }
}

/// The request that lets packets in no more.
pub fn no_longer_inbound(
    group: &str,
    permissions: Vec<SecurityGroupPermission>,
) -> RevokeSecurityGroupRequest {
    RevokeSecurityGroupRequest {
        security_group_id: group.to_owned(),
        direction: Direction::Ingress.into(),
        permissions,
        ..Default::default()
    }
}

/// Lets packets in.
pub async fn allow(
    hearth: &Hearth,
    group: &str,
    permissions: Vec<SecurityGroupPermission>,
) -> Result<Vec<SecurityGroupRule>> {
    let mut client = hearth.security_groups();
    let request = inbound(group, permissions);
    Ok(client
        .authorize_security_group(request)
        .await?
        .into_inner()
        .rules)
}
