//! CreateSecurityGroup.

use std::sync::Arc;

use hearth_images::crash_point;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rusqlite::Connection;

use super::{
    DEFAULT, check_text, dry_run, force, get,
    model::{Direction, Peer, Permission, Rule, SecurityGroup, Traffic},
    state_event,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
    tags::{self, Tag},
    time::Millis,
    tokens::{self, ClientToken},
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateSecurityGroup";

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own the group.
    pub owner: String,
    pub name: String,
    pub description: String,
    /// Empty for the account's default network.
    pub network_id: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
    pub dry_run: bool,
}

/// CreateSecurityGroup: a group that lets nothing in and everything out.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<SecurityGroup> {
    check_name(&request.name)?;
    check_text(&request.description, "description")?;
    if !request.network_id.is_empty() {
        Kind::Network.check(&request.network_id, "network_id")?;
    }
    tags::check(&request.tags, "tags")?;
    carried_through(async move {
        let id = Kind::SecurityGroup.new_id()?;
        let _turn = context.turns.take([&id]).await;
        let (group, new) = context.db.write(move |tx| insert(tx, id, &request)).await?;
        if !new {
            return Ok(group);
        }
        crash_point("security-group.row-created");
        let change = Change::PutGroup(group.id.clone(), (&group).into());
        let undone = group.clone();
        force::bring(&context, vec![change], Connections::Keep, move |tx| {
            tokens::forget(tx, &undone.owner, CREATE, &undone.client_token)?;
            db::security_groups::remove(tx, &undone.id)?;
            tx.event(state_event(&undone, "available", "deleted"));
            Ok(())
        })
        .await?;
        Ok(group)
    })
    .await
}

fn insert(
    tx: &mut db::Tx<'_>,
    id: String,
    request: &CreateRequest,
) -> ApiResult<(SecurityGroup, bool)> {
    if let Some(token) = &request.token
        && let Some(ids) = token.earlier(tx)?
    {
        let id = ids.first().map(String::as_str).unwrap_or_default();
        return Ok((get(tx, id, "client_token")?, false));
    }
    let network_id = network(tx, request)?;
    if let Some(other) = db::security_groups::by_name(tx, &network_id, &request.name)? {
        return Err(ApiError::field(
            Reason::SecurityGroupDuplicate,
            "name",
            format!("{} in {network_id} is called {:?}", other.id, request.name),
        )
        .with("resource_id", other.id));
    }
    let mut group = SecurityGroup {
        seq: 0,
        rules: egress_to_all(tx, &id, &request.owner, &network_id)?,
        id,
        owner: request.owner.clone(),
        network_id,
        name: request.name.clone(),
        description: request.description.clone(),
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
    };
    db::security_groups::insert(tx, &mut group)?;
    if let Some(token) = &request.token {
        token.keep(tx, std::slice::from_ref(&group.id))?;
    }
    if request.dry_run {
        return Err(dry_run());
    }
    tx.event(state_event(&group, "", "available"));
    Ok((group, true))
}

fn network(connection: &Connection, request: &CreateRequest) -> ApiResult<String> {
    if request.network_id.is_empty() {
        return db::security_groups::default_network(connection, &request.owner)?.ok_or_else(
            || {
                ApiError::field(
                    Reason::NetworkNotSpecified,
                    "network_id",
                    "the account has no default network; name one",
                )
            },
        );
    }
    let id = &request.network_id;
    match db::permissions::owner(connection, Kind::Network, id)? {
        Some(owner) if owner == request.owner => Ok(id.clone()),
        _ => Err(Kind::Network.missing(id, "network_id")),
    }
}

/// What a new group allows: all traffic to everywhere, by IPv4 and, where its network has IPv6, by
/// that.
pub fn egress_to_all(
    connection: &Connection,
    group_id: &str,
    owner: &str,
    network_id: &str,
) -> ApiResult<Vec<Rule>> {
    let mut everywhere: Vec<IpNet> = vec![Ipv4Net::default().into()];
    if db::security_groups::has_ipv6(connection, network_id)? {
        everywhere.push(Ipv6Net::default().into());
    }
    let rule = |block| {
        Ok(Rule {
            seq: 0,
            id: Kind::SecurityGroupRule.new_id()?,
            group_id: group_id.to_owned(),
            owner: owner.to_owned(),
            direction: Direction::Egress,
            permission: Permission {
                traffic: Traffic::All,
                peer: Peer::Block(block),
            },
            description: String::new(),
        })
    };
    everywhere.into_iter().map(rule).collect()
}

fn check_name(name: &str) -> ApiResult<()> {
    if name.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "name",
            "a group has a name",
        ));
    }
    check_text(name, "name")?;
    if name.trim() != name {
        return Err(ApiError::invalid("name", "no space at its begin or end"));
    }
    if name == DEFAULT || name.starts_with("sg-") {
        return Err(ApiError::invalid(
            "name",
            format!("{name:?} can't be chosen: not `{DEFAULT}`, and not beginning with `sg-`"),
        ));
    }
    Ok(())
}
