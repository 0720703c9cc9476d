//! The taps of an instance, from its start to its end.

use hearth_images::crash_point;
use hearth_vmm::config::NetConfig;
use rusqlite::Connection;

use super::{
    enforce,
    model::{Interface, Network},
};
use crate::{
    context::Context,
    db::{self, DbError},
    error::{ApiError, ApiResult},
    links::tap,
};

/// An interface and its network.
pub type Plugged = (Interface, Network);

/// The interfaces of an instance, in the order of their devices.
pub async fn of_instance(context: &Context, instance_id: &str) -> ApiResult<Vec<Plugged>> {
    let id = instance_id.to_owned();
    context.db.read(move |c| read(c, &id)).await
}

/// The same from the database.
pub fn read(connection: &Connection, instance_id: &str) -> ApiResult<Vec<Plugged>> {
    let interfaces = db::interfaces::of_instance(connection, instance_id)?.into_iter();
    let with_network = |it: Interface| {
        let network = super::get(connection, &it.network_id, "network_id")?;
        Ok((it, network))
    };
    interfaces.map(with_network).collect()
}

/// Makes the taps of an instance, after the firewall knows of them. What is there already stays,
/// and is repaired. Gives what the VMM is told.
pub async fn up(context: &Context, instance_id: &str) -> ApiResult<Vec<NetConfig>> {
    let plugged = of_instance(context, instance_id).await?;
    if plugged.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces: Vec<Interface> = plugged.iter().map(|(it, _)| it.clone()).collect();
    enforce::interfaces(context, &interfaces).await?;
    crash_point("launch.interfaces-in-force");
    let _links = context.networks.links.lock().await;
    for (interface, network) in &plugged {
        let spec = interface.tap_spec(network);
        let ensured = tap::ensure(&spec, None).await;
        let ensured = ensured.map_err(|error| super::link_failed(&error))?;
        if !ensured.repaired.is_empty() {
            let what = ensured.repaired.join(", ");
            tracing::warn!(tap = spec.name, instance = instance_id, what, "repaired");
        }
    }
    Ok(plugged.iter().map(net_config).collect())
}

fn net_config((interface, network): &Plugged) -> NetConfig {
    NetConfig {
        tap: interface.tap.clone(),
        mac: interface.mac.to_string(),
        queue_pairs: 0,
        // At most 9001.
        mtu: Some(network.mtu as u16),
    }
}

/// Removes the taps of an instance that has no VMM. What fails here is tried again by
/// reconciliation.
pub async fn down(context: &Context, instance_id: &str) {
    if let Err(error) = try_down(context, instance_id).await {
        tracing::warn!(instance = instance_id, %error, "removing its taps");
    }
}

async fn try_down(context: &Context, instance_id: &str) -> ApiResult<()> {
    let plugged = of_instance(context, instance_id).await?;
    if plugged.is_empty() {
        return Ok(());
    }
    let taps: Vec<String> = plugged.into_iter().map(|(it, _)| it.tap).collect();
    let _links = context.networks.links.lock().await;
    let removed = tap::remove(&taps).await;
    removed.map_err(|error| super::link_failed(&error))?;
    crash_point("instance.taps-removed");
    Ok(())
}

/// Forgets the interfaces of an instance that ends: their addresses are free again.
pub async fn forget(context: &Context, instance_id: &str) -> Result<(), DbError> {
    let id = instance_id.to_owned();
    let interfaces = context
        .db
        .write(move |tx| {
            let interfaces = db::interfaces::of_instance(tx, &id)?;
            for interface in &interfaces {
                db::interfaces::remove(tx, interface)?;
            }
            Ok::<_, DbError>(interfaces)
        })
        .await?;
    if interfaces.is_empty() {
        return Ok(());
    }
    crash_point("terminate.interfaces-forgotten");
    let ids: Vec<String> = interfaces.into_iter().map(|it| it.id).collect();
    // Without a row nothing is reachable by it, whatever the firewall still has.
    if let Err(error) = enforce::remove_interfaces(context, &ids).await {
        tracing::warn!(instance = instance_id, %error, "its rules stay for now");
    }
    Ok(())
}

/// For messages of a start that failed.
pub fn words(error: &ApiError) -> String {
    error.message().to_owned()
}
