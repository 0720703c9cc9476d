//! ModifyNetworkInterface, and which interface a caller means.

use std::sync::Arc;

use rusqlite::Connection;

use super::{describe::get_interface, model::Interface, names};
use crate::{
    blocking::carried_through,
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::Connections,
    ids::Kind,
    security_groups::membership,
};

/// What is to change.
#[derive(Clone, Debug)]
pub struct ModifyRequest {
    pub interface_id: String,
    pub description: Option<String>,
    /// Empty keeps what they are.
    pub groups: Vec<String>,
    pub connections: Connections,
}

/// ModifyNetworkInterface. In force when it returns.
pub async fn modify(context: Arc<Context>, request: ModifyRequest) -> ApiResult<()> {
    Kind::NetworkInterface.check(&request.interface_id, "network_interface_id")?;
    if let Some(description) = &request.description {
        names::check_text(description, "description")?;
    }
    let ModifyRequest {
        interface_id,
        description,
        groups,
        connections,
    } = request;
    if !groups.is_empty() {
        let interfaces = vec![interface_id.clone()];
        membership::replace(context.clone(), interfaces, groups, connections).await?;
    }
    carried_through(async move {
        let describe = move |tx: &mut Tx<'_>| {
            let before = get_interface(tx, &interface_id, "network_interface_id")?;
            match description {
                Some(description) => {
                    let after = Interface {
                        description,
                        ..before
                    };
                    Ok::<_, ApiError>(db::interfaces::describe(tx, &after)?)
                }
                None => Ok(()),
            }
        };
        context.db.write(describe).await
    })
    .await
}

/// The interface that a caller names by its id, or as the first one of an instance.
pub fn named(
    connection: &Connection,
    interface_id: &str,
    instance_id: &str,
) -> ApiResult<Interface> {
    match (interface_id, instance_id) {
        ("", "") => Err(ApiError::field(
            Reason::MissingParameter,
            "network_interface_id",
            "name an interface or an instance",
        )),
        (id, "") => get_interface(connection, id, "network_interface_id"),
        ("", id) => {
            let missing = || Kind::Instance.missing(id, "instance_id");
            db::instances::get(connection, id)?.ok_or_else(missing)?;
            let interfaces = db::interfaces::of_instance(connection, id)?;
            interfaces.into_iter().next().ok_or_else(|| {
                ApiError::invalid("instance_id", format!("{id} has no network interface"))
            })
        }
        _ => Err(ApiError::field(
            Reason::InvalidParameterCombination,
            "instance_id",
            "name either an interface or an instance",
        )),
    }
}

/// Checks the form of what [`named`] is given.
pub fn check_named(interface_id: &str, instance_id: &str) -> ApiResult<()> {
    if !interface_id.is_empty() {
        Kind::NetworkInterface.check(interface_id, "network_interface_id")?;
    }
    if !instance_id.is_empty() {
        Kind::Instance.check(instance_id, "instance_id")?;
    }
    Ok(())
}
