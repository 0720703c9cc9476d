//! Security groups, as a test makes and changes them.

use anyhow::{Context, Result};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreateSecurityGroupRequest, DescribeSecurityGroupRulesRequest,
    DescribeSecurityGroupsRequest, Direction, Filter, Network,
    ReplaceInstanceSecurityGroupsRequest, RevokeSecurityGroupRequest, SecurityGroup,
    SecurityGroupPermission, SecurityGroupRule, security_group_permission::Peer,
};
use tonic::Status;

use crate::Hearth;

/// Everybody, IPv4.
pub const EVERYBODY: &str = "0.0.0.0/0";

/// A block as the other end.
pub fn block(cidr: &str) -> Peer {
    match cidr.contains(':') {
        true => Peer::CidrIpv6(cidr.to_owned()),
        false => Peer::CidrIpv4(cidr.to_owned()),
    }
}

/// The members of a group.
pub fn members(group: &SecurityGroup) -> Peer {
    Peer::SecurityGroupId(group.security_group_id.clone())
}

/// Traffic of a protocol, of all its ports.
pub fn all_of(protocol: &str, peer: Peer) -> SecurityGroupPermission {
    SecurityGroupPermission {
        protocol: protocol.to_owned(),
        peer: Some(peer),
        ..Default::default()
    }
}

/// Traffic of one port, or of one ICMP type and code.
pub fn of(protocol: &str, from: i32, to: i32, peer: Peer) -> SecurityGroupPermission {
    SecurityGroupPermission {
        from_port: Some(from),
        to_port: Some(to),
        ..all_of(protocol, peer)
    }
}

/// A TCP port.
pub fn tcp(port: u16, peer: Peer) -> SecurityGroupPermission {
    of("tcp", port.into(), port.into(), peer)
}

/// A UDP port.
pub fn udp(port: u16, peer: Peer) -> SecurityGroupPermission {
    of("udp", port.into(), port.into(), peer)
}

impl Hearth {
    /// Makes a group in a network.
    pub async fn group(&self, network: &Network, name: &str) -> Result<SecurityGroup> {
        let request = CreateSecurityGroupRequest {
            name: name.to_owned(),
            network_id: network.network_id.clone(),
            ..Default::default()
        };
        let answer = self.security_groups().create_security_group(request).await;
        let group = answer?.into_inner().security_group;
        group.context("the answer has no group")
    }

    /// The group of this name in a network.
    pub async fn group_called(&self, network: &Network, name: &str) -> Result<SecurityGroup> {
        let filter = |name: &str, value: &str| Filter {
            name: name.to_owned(),
            values: vec![value.to_owned()],
        };
        let request = DescribeSecurityGroupsRequest {
            filters: vec![
                filter("network-id", &network.network_id),
                filter("group-name", name),
            ],
            ..Default::default()
        };
        let mut client = self.security_groups();
        let answer = client.describe_security_groups(request);
        let group = answer.await?.into_inner().security_groups.pop();
        group.with_context(|| format!("no group {name}"))
    }

    /// Allows traffic to the members of a group.
    pub async fn allow(
        &self,
        group: &SecurityGroup,
        permissions: &[SecurityGroupPermission],
    ) -> Result<Vec<SecurityGroupRule>, Status> {
        let request = AuthorizeSecurityGroupRequest {
            security_group_id: group.security_group_id.clone(),
            direction: Direction::Ingress.into(),
            permissions: permissions.to_vec(),
            ..Default::default()
        };
        let mut client = self.security_groups();
        let answer = client.authorize_security_group(request);
        Ok(answer.await?.into_inner().rules)
    }

    /// Takes that back; gives how many connections were cut.
    pub async fn disallow(
        &self,
        group: &SecurityGroup,
        permissions: &[SecurityGroupPermission],
        keep_connections: bool,
    ) -> Result<u64, Status> {
        let request = RevokeSecurityGroupRequest {
            security_group_id: group.security_group_id.clone(),
            direction: Direction::Ingress.into(),
            permissions: permissions.to_vec(),
            keep_connections,
            ..Default::default()
        };
        let mut client = self.security_groups();
        let answer = client.revoke_security_group(request);
        Ok(answer.await?.into_inner().connections_cut)
    }

    /// Puts an instance into exactly these groups; gives how many connections were cut.
    pub async fn put_into(
        &self,
        instance_id: &str,
        groups: &[&SecurityGroup],
    ) -> Result<u64, Status> {
        let ids = groups.iter().map(|group| group.security_group_id.clone());
        let request = ReplaceInstanceSecurityGroupsRequest {
            instance_id: instance_id.to_owned(),
            security_group_ids: ids.collect(),
            ..Default::default()
        };
        let mut client = self.security_groups();
        let answer = client.replace_instance_security_groups(request).await?;
        Ok(answer.into_inner().connections_cut)
    }

    /// The rules of a group, with their counters.
    pub async fn rules(&self, group: &SecurityGroup) -> Result<Vec<SecurityGroupRule>> {
        let of_group = Filter {
            name: "group-id".to_owned(),
            values: vec![group.security_group_id.clone()],
        };
        let request = DescribeSecurityGroupRulesRequest {
            filters: vec![of_group],
            ..Default::default()
        };
        let mut client = self.security_groups();
        let answer = client.describe_security_group_rules(request).await?;
        Ok(answer.into_inner().rules)
    }
}
