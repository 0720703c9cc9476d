//! Brings the host's links and rules back in line with the rows: once at the agent's start, and
//! then on a timer.

use std::sync::Arc;

use super::enforce;
use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::ApiResult,
    links::{host, tap},
};

/// At the agent's start, before instances are taken up. An agent without networks touches
/// nothing.
pub async fn at_start(context: &Arc<Context>) -> ApiResult<()> {
    if let Err(error) = enforce::load(context).await {
        tracing::error!(%error, "the rules are not in force; interfaces stay down until they are");
        return set_all_down(context).await;
    }
    forwarding(context).await
}

/// One round.
pub async fn sweep(context: &Arc<Context>) -> ApiResult<()> {
    if !context.networks.enforced.is_loaded() {
        at_start(context).await?;
    }
    Ok(())
}

async fn forwarding(context: &Context) -> ApiResult<()> {
    let networks = context.db.read(db::networks::all).await?;
    if networks.is_empty() {
        return Ok(());
    }
    let ipv6 = networks.iter().any(|network| network.ipv6.is_some());
    let enabled = blocking("turning forwarding on", move || {
        host::enable_forwarding(ipv6)
    });
    if let Err(error) = enabled.await? {
        tracing::error!(%error, "networks do not work");
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
