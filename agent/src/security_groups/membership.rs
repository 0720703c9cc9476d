//! Which interfaces are in which groups.

use std::{collections::BTreeSet, sync::Arc};

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{MAX_GROUPS_OF_INTERFACE, force, get};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    events::NewEvent,
    firewall::{
        Applied, Connections,
        policy::{Change, Interface},
    },
    ids::Kind,
};

const GROUPS_EVENT: &str = "network-interface.groups";

/// ReplaceInstanceSecurityGroups: all interfaces of the instance in the groups' network.
pub async fn replace_of_instance(
    context: Arc<Context>,
    instance_id: String,
    groups: Vec<String>,
    connections: Connections,
) -> ApiResult<Applied> {
    Kind::Instance.check(&instance_id, "instance_id")?;
    let groups = check_list(&groups, "security_group_ids")?;
    let (first, instance) = (groups[0].clone(), instance_id.clone());
    // An instance keeps its interfaces for as long as it lives.
    let interfaces = context
        .db
        .read(move |connection| {
            if db::instances::get(connection, &instance)?.is_none() {
                return Err(Kind::Instance.missing(&instance, "instance_id"));
            }
            let network_id = get(connection, &first, "security_group_ids[0]")?.network_id;
            let found = db::security_groups::interfaces_in(connection, &instance, &network_id)?;
            if found.is_empty() {
                return Err(ApiError::field(
                    Reason::InvalidParameterCombination,
                    "security_group_ids",
                    format!("{instance} has no interface in {network_id}, the network of {first}"),
                ));
            }
            Ok::<_, ApiError>(found)
        })
        .await?;
    replace(context, interfaces, groups, connections).await
}

/// Puts interfaces, all of one network, into exactly these groups. It is in force when it returns.
///
/// The caller has checked that the interfaces are the account's; what is wrong with the groups is
/// told of the field `security_group_ids`.
pub async fn replace(
    context: Arc<Context>,
    interfaces: Vec<String>,
    groups: Vec<String>,
    connections: Connections,
) -> ApiResult<Applied> {
    const FIELD: &str = "security_group_ids";
    let groups = check_list(&groups, FIELD)?;
    carried_through(async move {
        let _turn = context.turns.take(&interfaces).await;
        let replaced = context
            .db
            .write(move |tx| {
                let mut replaced = Vec::with_capacity(interfaces.len());
                for id in &interfaces {
                    let (owner, before) = interface(tx, id)?;
                    check(tx, &owner, &before.network, &groups, FIELD)?;
                    db::security_groups::set_groups_of(tx, id, &groups)?;
                    tx.event(groups_event(&owner, id, &before.groups, &groups));
                    let after = Interface {
                        groups: groups.iter().cloned().collect(),
                        ..before.clone()
                    };
                    replaced.push(Replaced {
                        id: id.clone(),
                        owner,
                        before: before.groups,
                        after,
                    });
                }
                Ok::<_, ApiError>(replaced)
            })
            .await?;
        crash_point("interface.groups-replaced");
        let changes = replaced
            .iter()
            .map(|it| Change::PutInterface(it.id.clone(), it.after.clone()))
            .collect();
        force::bring(&context, changes, connections, move |tx| {
            for it in &replaced {
                let before: Vec<String> = it.before.iter().cloned().collect();
                db::security_groups::set_groups_of(tx, &it.id, &before)?;
                tx.event(groups_event(&it.owner, &it.id, &it.after.groups, &before));
            }
            Ok(())
        })
        .await
    })
    .await
}

struct Replaced {
    id: String,
    owner: String,
    before: BTreeSet<String>,
    after: Interface,
}

/// Checks a list of groups for an interface: 1 to [`MAX_GROUPS_OF_INTERFACE`]; none twice.
pub fn check_list(groups: &[String], field: &str) -> ApiResult<Vec<String>> {
    let groups = Kind::SecurityGroup.check_list(groups, field)?;
    if groups.len() > MAX_GROUPS_OF_INTERFACE {
        return Err(ApiError::field(
            Reason::SecurityGroupsPerInterfaceLimitExceeded,
            field,
            format!(
                "{} groups are too many; an interface is in at most {MAX_GROUPS_OF_INTERFACE}",
                groups.len()
            ),
        ));
    }
    Ok(groups)
}

/// Checks that an interface of this owner in this network may be in these groups.
pub fn check(
    connection: &Connection,
    owner: &str,
    network_id: &str,
    groups: &[String],
    field: &str,
) -> ApiResult<()> {
    for (index, id) in groups.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let group = get(connection, id, &field)?;
        if group.owner != owner {
            return Err(Kind::SecurityGroup.missing(id, &field));
        }
        if group.network_id != network_id {
            return Err(ApiError::field(
                Reason::InvalidParameterCombination,
                field,
                format!(
                    "{id} is a group of {}, and the interface is in {network_id}",
                    group.network_id
                ),
            ));
        }
    }
    Ok(())
}

fn groups_event<'a>(
    owner: &str,
    interface_id: &str,
    before: impl IntoIterator<Item = &'a String>,
    after: impl IntoIterator<Item = &'a String>,
) -> NewEvent {
    fn listed<'a>(groups: impl IntoIterator<Item = &'a String>) -> String {
        let groups: Vec<&str> = groups.into_iter().map(String::as_str).collect();
        groups.join(",")
    }
    NewEvent::state(
        GROUPS_EVENT,
        owner,
        interface_id,
        &listed(before),
        &listed(after),
    )
}

/// The owner of an interface, and the interface as the firewall knows it.
fn interface(connection: &Connection, id: &str) -> ApiResult<(String, Interface)> {
    db::security_groups::interface(connection, id)?
        .ok_or_else(|| Kind::NetworkInterface.missing(id, "network_interface_id"))
}
