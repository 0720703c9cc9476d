//! RevokeSecurityGroup.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    authorize::read_all,
    dry_run, force, get,
    model::{Direction, Permission, Rule, SecurityGroup},
    permission::PermissionRequest,
    policy, rules_event,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::{Applied, Connections, policy::Change},
    ids::Kind,
};

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct RevokeRequest {
    pub group_id: String,
    /// Of the permissions; rules that are named by id may look either way when it is not given.
    pub direction: Option<Direction>,
    pub rule_ids: Vec<String>,
    pub permissions: Vec<PermissionRequest>,
    pub connections: Connections,
    pub dry_run: bool,
}

/// RevokeSecurityGroup: all of the rules or none; in force when it returns.
pub async fn revoke(context: Arc<Context>, request: RevokeRequest) -> ApiResult<Applied> {
    Kind::SecurityGroup.check(&request.group_id, "security_group_id")?;
    let what = What::of(&request)?;
    carried_through(async move {
        let _turn = context.turns.take([&request.group_id]).await;
        let connections = request.connections;
        let (group, rules, change) = context
            .db
            .write(move |tx| remove(tx, &request, &what))
            .await?;
        crash_point("security-group.rules-removed");
        force::bring(&context, vec![change], connections, move |tx| {
            let mut rules = rules;
            for rule in &mut rules {
                db::security_groups::insert_rule(tx, rule)?;
            }
            tx.event(rules_event(&group.owner, &group.id, "authorized", &rules));
            Ok(())
        })
        .await
    })
    .await
}

/// Which rules are to go.
#[derive(Debug)]
enum What {
    Ids(Vec<String>),
    Permissions(Direction, Vec<Permission>),
}

impl What {
    fn of(request: &RevokeRequest) -> ApiResult<Self> {
        match (request.rule_ids.is_empty(), request.permissions.is_empty()) {
            (true, true) => Err(ApiError::field(
                Reason::MissingParameter,
                "rule_ids",
                "name the rules, by their ids or by what they allow",
            )),
            (false, false) => Err(ApiError::field(
                Reason::InvalidParameterCombination,
                "permissions",
                "name the rules either by their ids or by what they allow",
            )),
            (false, true) => {
                let ids = Kind::SecurityGroupRule.check_list(&request.rule_ids, "rule_ids")?;
                Ok(Self::Ids(ids))
            }
            (true, false) => {
                let direction = request.direction.ok_or_else(|| {
                    ApiError::field(
                        Reason::MissingParameter,
                        "direction",
                        "say whether these are ingress or egress rules",
                    )
                })?;
                Ok(Self::Permissions(
                    direction,
                    read_all(&request.permissions)?,
                ))
            }
        }
    }

    fn find(&self, group: &SecurityGroup, direction: Option<Direction>) -> ApiResult<Vec<Rule>> {
        let missing = |field: String, what: String| {
            let message = format!("{} has no rule {what}", group.id);
            ApiError::field(Reason::PermissionNotFound, field, message)
        };
        match self {
            Self::Ids(ids) => ids
                .iter()
                .enumerate()
                .map(|(index, id)| {
                    group
                        .rules
                        .iter()
                        .find(|rule| rule.id == *id)
                        .filter(|rule| direction.is_none_or(|it| it == rule.direction))
                        .cloned()
                        .ok_or_else(|| missing(format!("rule_ids[{index}]"), id.clone()))
                })
                .collect(),
            Self::Permissions(direction, permissions) => permissions
                .iter()
                .enumerate()
                .map(|(index, permission)| {
                    group
                        .rules
                        .iter()
                        .find(|it| it.direction == *direction && it.permission == *permission)
                        .cloned()
                        .ok_or_else(|| {
                            let what = format!("for {} of {permission}", direction.word());
                            missing(format!("permissions[{index}]"), what)
                        })
                })
                .collect(),
        }
    }
}

fn remove(
    tx: &mut db::Tx<'_>,
    request: &RevokeRequest,
    what: &What,
) -> ApiResult<(SecurityGroup, Vec<Rule>, Change)> {
    let group = get(tx, &request.group_id, "security_group_id")?;
    let rules = what.find(&group, request.direction)?;
    for rule in &rules {
        db::security_groups::remove_rule(tx, &rule.id)?;
    }
    if request.dry_run {
        return Err(dry_run());
    }
    tx.event(rules_event(&group.owner, &group.id, "revoked", &rules));
    let change = policy::put_group(tx, &group.id)?;
    Ok((group, rules, change))
}
