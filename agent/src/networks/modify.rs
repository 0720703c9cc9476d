//! ModifyNetwork and DeleteNetwork.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    enforce::{self, Failure},
    model::{Interface, Network},
    names,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
    security_groups::default_group,
};

/// How many of those who are in the way an error names.
const NAMED: usize = 5;

/// What is to change.
#[derive(Clone, Debug, Default)]
pub struct ModifyRequest {
    pub network_id: String,
    pub name: Option<String>,
    pub nat: Option<bool>,
    pub is_default: Option<bool>,
    pub dns_domain: Option<String>,
}

/// ModifyNetwork. What changes of NAT is in force when it returns.
pub async fn modify(context: Arc<Context>, request: ModifyRequest) -> ApiResult<Network> {
    Kind::Network.check(&request.network_id, "network_id")?;
    if let Some(name) = &request.name {
        names::check_name(name, "name")?;
    }
    let domain = request.dns_domain.as_deref();
    let domain = domain
        .map(|domain| names::domain(domain, "dns_domain"))
        .transpose()?;
    let request = ModifyRequest {
        dns_domain: domain,
        ..request
    };
    carried_through(async move {
        let _turn = context.turns.take([&request.network_id]).await;
        let (before, after) = context.db.write(move |tx| update(tx, &request)).await?;
        crash_point("network.row-modified");
        if before.nat == after.nat {
            return Ok(after);
        }
        let put = Change::PutNetwork(after.id.clone(), after.policy());
        match enforce::changes(&context, vec![put], Connections::Cut).await {
            Ok(()) => Ok(after),
            Err(Failure::InForce(error)) => Err(error),
            Err(Failure::NotInForce(error)) => {
                // Another network may be the default one by now.
                let back = move |tx: &mut Tx<'_>| {
                    let row = super::get(tx, &before.id, "network_id")?;
                    let row = Network {
                        nat: before.nat,
                        ..row
                    };
                    Ok::<_, ApiError>(db::networks::update(tx, &row)?)
                };
                context.db.write(back).await?;
                Err(error)
            }
        }
    })
    .await
}

fn update(tx: &mut Tx<'_>, request: &ModifyRequest) -> ApiResult<(Network, Network)> {
    let before = super::get(tx, &request.network_id, "network_id")?;
    let mut after = before.clone();
    if let Some(name) = &request.name {
        names::check_name_free(tx, &before.owner, name, &before.id)?;
        after.name.clone_from(name);
    }
    if let Some(domain) = &request.dns_domain {
        after.dns_domain.clone_from(domain);
    }
    after.nat = request.nat.unwrap_or(before.nat);
    after.is_default = request.is_default.unwrap_or(before.is_default);
    if after.is_default && !before.is_default {
        db::networks::clear_default(tx, &before.owner)?;
    }
    if after != before {
        db::networks::update(tx, &after)?;
    }
    Ok((before, after))
}

/// DeleteNetwork, with its security groups.
pub async fn delete(context: Arc<Context>, network_id: String) -> ApiResult<()> {
    Kind::Network.check(&network_id, "network_id")?;
    carried_through(async move {
        loop {
            let id = network_id.clone();
            let read = move |c: &rusqlite::Connection| default_group::ids_in(c, &id);
            let groups = context.db.read(read).await?;
            let changed = groups.iter().chain([&network_id]);
            let _turn = context.turns.take(changed).await;
            if remove(&context, &network_id, groups).await? {
                return Ok(());
            }
        }
    })
    .await
}

/// Removes a network that has exactly these groups; false when it has others by now.
async fn remove(context: &Context, network_id: &str, groups: Vec<String>) -> ApiResult<bool> {
    let (id, known) = (network_id.to_owned(), groups.clone());
    let removed = context
        .db
        .write(move |tx| {
            let network = super::get(tx, &id, "network_id")?;
            let interfaces = db::interfaces::of_network(tx, &id)?;
            if !interfaces.is_empty() {
                return Err(in_use(&network, &interfaces));
            }
            if default_group::ids_in(tx, &id)? != known {
                return Ok(false);
            }
            db::networks::remove(tx, &network)?;
            Ok(true)
        })
        .await?;
    if !removed {
        return Ok(false);
    }
    crash_point("network.row-removed");
    let removals = groups.into_iter().map(Change::RemoveGroup);
    let network = Change::RemoveNetwork(network_id.to_owned());
    let removals = removals.chain([network]).collect();
    // It is gone, whatever the firewall says; no interface is in it.
    if let Err(failure) = enforce::changes(context, removals, Connections::Cut).await {
        let error = ApiError::from(failure);
        tracing::warn!(%error, "rules of a network that is gone stay for now");
    }
    Ok(true)
}

fn in_use(network: &Network, interfaces: &[Interface]) -> ApiError {
    let named = interfaces.iter().take(NAMED);
    let mut named: Vec<String> = named
        .map(|it| format!("{} of {}", it.id, it.instance_id))
        .collect();
    if interfaces.len() > NAMED {
        named.push(format!("{} more", interfaces.len() - NAMED));
    }
    ApiError::field(
        Reason::DependencyViolation,
        "network_id",
        format!(
            "{} is in use by {}; terminate the instances first",
            network.id,
            named.join(", ")
        ),
    )
    .with("resource_id", &network.id)
}
