//! AuthorizeSecurityGroup.

use std::sync::Arc;

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{
    MAX_RULES, check_text, dry_run, force, get,
    model::{Direction, Peer, Permission, Rule, SecurityGroup},
    permission::{self, PermissionRequest, check_family},
    policy, rules_event, weight,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
};

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct AuthorizeRequest {
    pub group_id: String,
    pub direction: Direction,
    pub permissions: Vec<PermissionRequest>,
    pub dry_run: bool,
}

/// AuthorizeSecurityGroup: all of the rules or none; in force when it returns.
pub async fn authorize(context: Arc<Context>, request: AuthorizeRequest) -> ApiResult<Vec<Rule>> {
    Kind::SecurityGroup.check(&request.group_id, "security_group_id")?;
    let wanted = read_all(&request.permissions)?;
    for (index, permission) in request.permissions.iter().enumerate() {
        let field = format!("permissions[{index}].description");
        check_text(&permission.description, &field)?;
    }
    carried_through(async move {
        let _turn = context.turns.take([&request.group_id]).await;
        let (group, rules, change) = context
            .db
            .write(move |tx| insert(tx, &request, wanted))
            .await?;
        crash_point("security-group.rules-added");
        let added = rules.clone();
        // More is allowed than before: no connection to cut.
        force::bring(&context, vec![change], Connections::Keep, move |tx| {
            for rule in &added {
                db::security_groups::remove_rule(tx, &rule.id)?;
            }
            tx.event(rules_event(&group.owner, &group.id, "revoked", &added));
            Ok(())
        })
        .await?;
        Ok(rules)
    })
    .await
}

/// The normal forms of what a request lists; the same thing twice is refused.
pub fn read_all(requests: &[PermissionRequest]) -> ApiResult<Vec<Permission>> {
    if requests.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            "permissions",
            "name at least one permission",
        ));
    }
    if requests.len() as u64 > MAX_RULES {
        return Err(too_many(requests.len() as u64));
    }
    let mut permissions = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let field = format!("permissions[{index}]");
        let permission = permission::parse(request, &field)?;
        if permissions.contains(&permission) {
            return Err(duplicate(&field, format!("{permission} is there twice")));
        }
        permissions.push(permission);
    }
    Ok(permissions)
}

/// Stores the rules, if each of them may be.
pub(super) fn insert(
    tx: &mut db::Tx<'_>,
    request: &AuthorizeRequest,
    wanted: Vec<Permission>,
) -> ApiResult<(SecurityGroup, Vec<Rule>, Change)> {
    let mut group = get(tx, &request.group_id, "security_group_id")?;
    let direction = request.direction;
    let mut added = Vec::with_capacity(wanted.len());
    for (index, permission) in wanted.into_iter().enumerate() {
        let field = format!("permissions[{index}]");
        check_peer(tx, &group, &permission, &field)?;
        let same = |rule: &&Rule| rule.direction == direction && rule.permission == permission;
        if let Some(rule) = group.rules.iter().find(same) {
            let message = format!("{permission} is allowed already, by {}", rule.id);
            return Err(duplicate(&field, message).with("rule_id", &rule.id));
        }
        let mut rule = Rule {
            seq: 0,
            id: Kind::SecurityGroupRule.new_id()?,
            group_id: group.id.clone(),
            owner: group.owner.clone(),
            direction,
            permission,
            description: request.permissions[index].description.clone(),
        };
        db::security_groups::insert_rule(tx, &mut rule)?;
        added.push(rule);
    }
    group.rules.extend(added.iter().cloned());
    let rules = weight(tx, &group.rules, direction)?;
    if rules > MAX_RULES {
        return Err(too_many(rules).with("resource_id", &group.id));
    }
    if request.dry_run {
        return Err(dry_run());
    }
    tx.event(rules_event(&group.owner, &group.id, "authorized", &added));
    let change = policy::put_group(tx, &group.id)?;
    Ok((group, added, change))
}

/// Whom a rule names must be there: a group of the same network, a prefix list of the same owner.
fn check_peer(
    connection: &Connection,
    group: &SecurityGroup,
    permission: &Permission,
    field: &str,
) -> ApiResult<()> {
    match &permission.peer {
        Peer::Block(_) => Ok(()),
        Peer::Group(id) => {
            let field = format!("{field}.security_group_id");
            let other = get(connection, id, &field)?;
            if other.owner != group.owner {
                return Err(Kind::SecurityGroup.missing(id, &field));
            }
            if other.network_id != group.network_id {
                return Err(ApiError::invalid(
                    field,
                    format!(
                        "{id} is in the network {}, and {} in {}: rules name groups of their own network",
                        other.network_id, group.id, group.network_id
                    ),
                ));
            }
            Ok(())
        }
        Peer::PrefixList(id) => {
            let list_field = format!("{field}.prefix_list_id");
            let list = db::prefix_lists::get(connection, id)?
                .filter(|list| list.owner == group.owner)
                .ok_or_else(|| Kind::PrefixList.missing(id, &list_field))?;
            check_family(permission.traffic, list.family.is_ipv6(), field)
        }
    }
}

fn duplicate(field: &str, message: String) -> ApiError {
    ApiError::field(Reason::PermissionDuplicate, field, message)
}

fn too_many(rules: u64) -> ApiError {
    ApiError::field(
        Reason::RulesPerSecurityGroupLimitExceeded,
        "permissions",
        format!(
            "{rules} rules are too many; a group has at most {MAX_RULES} in each direction, and a \
             prefix list counts as all that it may hold"
        ),
    )
}
