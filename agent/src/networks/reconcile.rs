//! Brings the host's links and rules back in line with the rows: once at the agent's start, before
//! instances are taken up, and then on a timer and when somebody else touched rules. Nothing else
//! in the agent looks after them, so that whoever finds something wrong also tells of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{addresses, enforce, plug};
use crate::{
    accounts,
    blocking::blocking,
    context::Context,
    db,
    error::ApiResult,
    events::NewEvent,
    firewall::{self, Repair},
    instances::state::InstanceState,
    links::{host, seen::Seen, tap},
    security_groups::force,
    shutdown::Shutdown,
};

/// How often links and rules are looked at when nobody seems to touch them.
const PERIOD: Duration = Duration::from_secs(30);

/// Who changes rules by hand often changes several: a pause before ours come back.
const SETTLE: Duration = Duration::from_millis(50);

/// At the agent's start. An agent without networks touches nothing.
pub async fn at_start(context: &Arc<Context>) -> ApiResult<()> {
    if let Err(error) = round(context, true).await {
        tracing::error!(%error, "networks are not in order");
    }
    Ok(())
}

/// Until the agent ends.
pub async fn run(context: Arc<Context>, mut shutdown: Shutdown) {
    let listening = tokio::spawn(firewall::listen(context.firewall.clone()));
    let mut timer = tokio::time::interval(PERIOD);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => break,
            _ = timer.tick() => {}
            () = context.firewall.disturbed() => tokio::time::sleep(SETTLE).await,
        }
        if let Err(error) = round(&context, false).await {
            tracing::error!(%error, "networks are not in order");
        }
    }
    listening.abort();
}

async fn round(context: &Arc<Context>, load: bool) -> ApiResult<()> {
    if let Err(error) = rules(context, load).await {
        tracing::error!(%error, "the rules are not in force; interfaces are down until they are");
        return set_all_down(context).await;
    }
    // Not the rows: one may be there for a moment that is refused, since another agent has networks.
    let policy = context.firewall.policy().await;
    if policy.networks.is_empty() {
        // Taps and public addresses that are there are another agent's.
        return Ok(());
    }
    let ipv6 = policy.networks.values().any(|it| it.ipv6.is_some());
    let enabled = blocking("turning forwarding on", move || {
        host::enable_forwarding(ipv6)
    });
    if let Err(error) = enabled.await? {
        tracing::error!(%error, "networks do not work");
    }
    links(context).await?;
    addresses::settle(context).await
}

/// Sees to it that the rules are in force.
async fn rules(context: &Context, load: bool) -> ApiResult<()> {
    if load || !context.networks.enforced.is_loaded() {
        enforce::load(context).await?;
        return force::finish_cuts(context).await;
    }
    let repair = context.firewall.reconcile().await;
    if let Some(repair) = repair.map_err(enforce::Failure::from)? {
        tell(context, &repair).await;
    }
    Ok(())
}

async fn tell(context: &Context, repair: &Repair) {
    let message = repair.named.join("; ");
    tracing::warn!("rules that somebody changed are repaired: {message}");
    let event = NewEvent {
        kind: "firewall.repaired",
        // The host's administrator.
        owner: accounts::DEFAULT.to_owned(),
        resource_id: String::new(),
        previous_state: String::new(),
        state: String::new(),
        reason_code: String::new(),
        message,
    };
    let recorded = context.db.write(move |tx| {
        tx.event(event);
        Ok::<_, db::DbError>(())
    });
    if let Err(error) = recorded.await {
        tracing::warn!("an event is lost: {error}");
    }
}

/// Repairs the taps of those who run, and removes those of ours that nobody has.
async fn links(context: &Arc<Context>) -> ApiResult<()> {
    let mut running = context.networks.links.lock().await;
    let seen = Seen::now().await;
    let seen = seen.map_err(|error| super::link_failed(&error))?;
    // Read after the links were looked at: a row is there before its tap, and goes after it.
    let read = |connection: &rusqlite::Connection| {
        let mut wanted = Vec::new();
        for (interface, network) in plug::read_active(connection)? {
            let instance = db::instances::get(connection, &interface.instance_id)?;
            let state = instance.map(|it| it.state);
            wanted.push((interface, network, state == Some(InstanceState::Running)));
        }
        Ok::<_, db::DbError>(wanted)
    };
    let wanted = context.db.read(read).await?;
    let by_tap: HashMap<&str, _> = wanted.iter().map(|it| (it.0.tap.as_str(), it)).collect();
    for link in seen.links.values().filter(|link| link.ours) {
        let id = link.alias.strip_prefix(tap::ALIAS_PREFIX);
        let Some((interface, network, _)) = by_tap.get(link.name.as_str()) else {
            tracing::info!(
                tap = link.name,
                interface = id,
                "belongs to nobody; removed"
            );
            if let Some(services) = id.and_then(|id| running.remove(id)) {
                services.stop().await;
            }
            let removed = tap::remove(std::slice::from_ref(&link.name)).await;
            if let Err(error) = removed {
                tracing::warn!(%error, "removing a tap");
            }
            continue;
        };
        let ensured = plug::ensure(context, &mut running, interface, network, Some(&seen)).await;
        if let Err(error) = ensured {
            let instance = &interface.instance_id;
            tracing::error!(tap = link.name, instance, %error, "a tap is not in order");
        }
    }
    for (interface, _, _) in wanted.iter().filter(|(_, _, runs)| *runs) {
        if !seen.links.contains_key(&interface.tap) {
            tracing::error!(
                tap = interface.tap,
                instance = interface.instance_id,
                "the tap of a running instance is gone; it is there again after a stop and start"
            );
        }
    }
    Ok(())
}

/// Nothing passes the taps.
async fn set_all_down(context: &Context) -> ApiResult<()> {
    let interfaces = context.db.read(db::interfaces::all).await?;
    let taps: Vec<String> = interfaces.into_iter().map(|it| it.tap).collect();
    let _links = context.networks.links.lock().await;
    let down = tap::set_down(&taps).await;
    down.map_err(|error| super::link_failed(&error))
}
