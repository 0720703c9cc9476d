//! The taps of an instance and the services on them, from its start to its end.

use std::{collections::HashMap, sync::Arc};

use hearth_images::crash_point;
use hearth_vmm::config::NetConfig;
use rusqlite::Connection;

use super::{
    enforce,
    model::{Interface, Network},
};
use crate::{
    context::Context,
    db::{self, DbError, DbResult},
    error::{ApiResult, full_cause},
    links::{LinkResult, seen::Seen, tap},
    tap_services::{TapConfig, TapIpv6, TapServices},
};

/// An interface and its network.
pub type Plugged = (Interface, Network);

/// The services that run, by the ids of interfaces. Whoever changes links of ours holds it.
pub type Running = HashMap<String, TapServices>;

/// The interfaces of an instance, in the order of their devices.
pub fn read(connection: &Connection, instance_id: &str) -> DbResult<Vec<Plugged>> {
    with_networks(
        connection,
        db::interfaces::of_instance(connection, instance_id)?,
    )
}

/// The interfaces whose instances have a guest, or are about to.
pub fn read_active(connection: &Connection) -> DbResult<Vec<Plugged>> {
    with_networks(connection, db::interfaces::active(connection)?)
}

fn with_networks(connection: &Connection, interfaces: Vec<Interface>) -> DbResult<Vec<Plugged>> {
    let mut networks: HashMap<String, Network> = HashMap::new();
    let mut plugged = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let id = &interface.network_id;
        let network = match networks.get(id) {
            Some(network) => network.clone(),
            None => {
                let network = db::networks::get(connection, id)?;
                network.ok_or_else(|| DbError::Malformed(format!("no network {id}")))?
            }
        };
        networks.insert(id.clone(), network.clone());
        plugged.push((interface, network));
    }
    Ok(plugged)
}

async fn of_instance(context: &Context, instance_id: &str) -> DbResult<Vec<Plugged>> {
    let id = instance_id.to_owned();
    context.db.read(move |c| read(c, &id)).await
}

/// Makes the taps of an instance, after the firewall knows of them, and starts their services.
/// What is there already stays, and is repaired. Gives what the VMM is told; the error is words
/// for people.
pub async fn up(context: &Arc<Context>, instance_id: &str) -> Result<Vec<NetConfig>, String> {
    let plugged = of_instance(context, instance_id).await;
    let plugged = plugged.map_err(|error| full_cause(&error))?;
    if plugged.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = plugged.iter().map(|(it, _)| it.id.clone()).collect();
    let enforced = enforce::interfaces(context, &ids).await;
    enforced.map_err(|error| error.message().to_owned())?;
    crash_point("launch.interfaces-in-force");
    let mut running = context.networks.links.lock().await;
    for (interface, network) in &plugged {
        let ensured = ensure(context, &mut running, interface, network, None).await;
        ensured.map_err(|error| error.to_string())?;
    }
    crash_point("launch.services-started");
    Ok(plugged.iter().map(net_config).collect())
}

/// Makes one tap what it shall be, with its services. See [`tap::ensure`] for `seen`.
pub async fn ensure(
    context: &Context,
    running: &mut Running,
    interface: &Interface,
    network: &Network,
    seen: Option<&Seen>,
) -> LinkResult<()> {
    let spec = interface.tap_spec(network);
    let ensured = tap::ensure(&spec, seen).await?;
    if !ensured.repaired.is_empty() {
        let what = ensured.repaired.join(", ");
        let instance = &interface.instance_id;
        tracing::warn!(tap = spec.name, instance, what, "a tap was repaired");
    }
    // Sockets are bound to a tap, not to its name.
    if ensured.made
        && let Some(services) = running.remove(&interface.id)
    {
        services.stop().await;
    }
    if !running.contains_key(&interface.id) {
        let services = TapServices::start(config(interface, network), &context.tap_services);
        running.insert(interface.id.clone(), services);
    }
    Ok(())
}

fn config(interface: &Interface, network: &Network) -> TapConfig {
    let ipv6 = interface.ipv6.zip(network.ipv6);
    let ipv6 = ipv6.zip(network.gateway_ipv6());
    TapConfig {
        interface_id: interface.id.clone(),
        tap: interface.tap.clone(),
        mac: interface.mac.0,
        // At most 9001.
        mtu: network.mtu as u16,
        ipv4: interface.ipv4,
        ipv4_range: network.ipv4,
        ipv4_gateway: network.gateway_ipv4(),
        ipv6: ipv6.map(|((address, range), gateway)| TapIpv6 {
            address,
            range,
            gateway,
        }),
    }
}

fn net_config((interface, network): &Plugged) -> NetConfig {
    NetConfig {
        tap: interface.tap.clone(),
        mac: interface.mac.to_string(),
        queue_pairs: 0,
        mtu: Some(network.mtu as u16),
    }
}

/// Removes the taps of an instance that has no VMM. What fails here is tried again by
/// reconciliation.
pub async fn down(context: &Context, instance_id: &str) {
    let plugged = match of_instance(context, instance_id).await {
        Ok(plugged) => plugged,
        Err(error) => {
            tracing::warn!(instance = instance_id, %error, "its taps stay for now");
            return;
        }
    };
    if plugged.is_empty() {
        return;
    }
    let mut running = context.networks.links.lock().await;
    for (interface, _) in plugged {
        if let Some(services) = running.remove(&interface.id) {
            services.stop().await;
        }
        if let Err(error) = tap::remove(&[interface.tap]).await {
            tracing::warn!(instance = instance_id, %error, "removing its tap");
        }
    }
    crash_point("instance.taps-removed");
}

/// Forgets the interfaces of an instance that ends: their addresses are free again.
pub async fn forget(context: &Context, instance_id: &str) -> DbResult<()> {
    // An instance keeps its interfaces for as long as it lives.
    let plugged = of_instance(context, instance_id).await?;
    if plugged.is_empty() {
        return Ok(());
    }
    let ids: Vec<String> = plugged.into_iter().map(|(it, _)| it.id).collect();
    let _turn = context.turns.take(&ids).await;
    let id = instance_id.to_owned();
    context
        .db
        .write(move |tx| {
            for interface in db::interfaces::of_instance(tx, &id)? {
                db::interfaces::remove(tx, &interface)?;
            }
            Ok::<_, DbError>(())
        })
        .await?;
    crash_point("terminate.interfaces-forgotten");
    if let Err(error) = withdraw(context, &ids).await {
        tracing::warn!(instance = instance_id, %error, "what it was reached by stays for now");
    }
    Ok(())
}

/// No rule and no public address leads to what is gone.
async fn withdraw(context: &Context, ids: &[String]) -> ApiResult<()> {
    enforce::remove_interfaces(context, ids).await?;
    super::addresses::settle(context).await
}
