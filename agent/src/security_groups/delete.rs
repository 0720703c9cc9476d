//! DeleteSecurityGroup.

use std::sync::Arc;

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{DEFAULT, force, get, model::SecurityGroup, state_event};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
};

/// Most users of a group that an error names.
const NAMED: usize = 5;

/// DeleteSecurityGroup: of a group that nobody uses.
pub async fn delete(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::SecurityGroup.check(&id, "security_group_id")?;
    carried_through(async move {
        let _turn = context.turns.take([&id]).await;
        let group = context
            .db
            .write(move |tx| {
                let group = get(tx, &id, "security_group_id")?;
                check_unused(tx, &group)?;
                db::security_groups::remove(tx, &id)?;
                tx.event(state_event(&group, "available", "deleted"));
                Ok::<_, ApiError>(group)
            })
            .await?;
        crash_point("security-group.row-deleted");
        let change = Change::RemoveGroup(group.id.clone());
        force::bring(&context, vec![change], Connections::Keep, move |tx| {
            let mut group = group;
            db::security_groups::insert(tx, &mut group)?;
            tx.event(state_event(&group, "deleted", "available"));
            Ok(())
        })
        .await?;
        Ok(())
    })
    .await
}

fn check_unused(connection: &Connection, group: &SecurityGroup) -> ApiResult<()> {
    let id = &group.id;
    if group.name == DEFAULT {
        return Err(ApiError::field(
            Reason::CannotDelete,
            "security_group_id",
            format!("{id} is the group `{DEFAULT}` of its network, and goes with that"),
        )
        .with("resource_id", id));
    }
    let members = db::security_groups::members(connection, id)?;
    if !members.is_empty() {
        let interfaces = members
            .iter()
            .map(|(interface, instance)| format!("{interface} of {instance}"));
        return Err(in_use(id, "group", "interfaces are in it", interfaces)
            .with("instance_id", &members[0].1));
    }
    let mut naming: Vec<String> = db::security_groups::rules_naming(connection, id)?
        .into_iter()
        .map(|rule| rule.group_id)
        .filter(|other| other != id)
        .collect();
    naming.dedup();
    if !naming.is_empty() {
        let first = naming[0].clone();
        let groups = naming.into_iter();
        return Err(
            in_use(id, "group", "rules of other groups name it", groups).with("group_id", first)
        );
    }
    Ok(())
}

/// The error for what others need; it names some of them.
pub fn in_use(
    id: &str,
    noun: &str,
    how: &str,
    users: impl ExactSizeIterator<Item = String>,
) -> ApiError {
    let count = users.len();
    let mut said = users.take(NAMED).collect::<Vec<_>>().join(", ");
    if count > NAMED {
        said.push_str(&format!(", and {} more", count - NAMED));
    }
    ApiError::new(
        Reason::DependencyViolation,
        format!("the {noun} {id} can't be deleted: {how}: {said}"),
    )
    .with("resource_id", id)
}
