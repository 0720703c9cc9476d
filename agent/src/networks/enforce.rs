//! Brings changes of the policy into force, and knows whether the policy is.
//!
//! A change is a committed row first; then the firewall gets it. What the firewall refuses, the
//! caller takes back. Both steps are made within one turn of the object ([`crate::turns`]).

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::Connection;
use tokio::sync::RwLock;

use super::policy;
use crate::{
    context::Context,
    db::{self, DbError, DbResult},
    error::{ApiError, ApiResult, Reason},
    firewall::{Applied, Connections, FirewallError, policy::Change},
    flow_logs,
};

/// What is in force, as far as this agent knows.
#[derive(Debug, Default)]
pub struct Enforced {
    /// Written while the whole policy is loaded, so that no change falls between reading the
    /// database and telling the firewall.
    gate: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The whole policy was loaded.
    loaded: bool,
    /// Interfaces that the firewall has.
    interfaces: HashSet<String>,
}

impl Enforced {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the whole policy was loaded.
    pub fn is_loaded(&self) -> bool {
        self.state().loaded
    }
}

/// Why a call about something committed fails.
#[derive(Debug)]
pub enum Failure {
    /// The firewall has what it had: take the rows back.
    NotInForce(ApiError),
    /// The change is in force, but not wholly.
    InForce(ApiError),
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotInForce(error) | Failure::InForce(error) => error,
        }
    }
}

impl From<FirewallError> for Failure {
    fn from(error: FirewallError) -> Self {
        match error {
            FirewallError::Nftables(cause) => Self::NotInForce(ApiError::new(
                Reason::Unavailable,
                format!("the firewall did not take the change, and nothing was changed: {cause}"),
            )),
            FirewallError::Conntrack(cause) => Self::InForce(ApiError::new(
                Reason::InternalError,
                format!("the change is in force, but earlier connections may live on: {cause}"),
            )),
        }
    }
}

/// Loads the whole policy from the database.
pub async fn load(context: &Context) -> ApiResult<()> {
    let enforced = &context.networks.enforced;
    let _gate = enforced.gate.write().await;
    let policy = context.db.read(policy::load).await?;
    let interfaces = policy.interfaces.keys().cloned().collect();
    match context.firewall.load(policy).await.map_err(Failure::from) {
        Ok(()) => {}
        Err(Failure::InForce(error)) => tracing::warn!(%error, "loading the rules"),
        Err(failure) => {
            enforced.state().loaded = false;
            return Err(failure.into());
        }
    }
    *enforced.state() = State {
        loaded: true,
        interfaces,
    };
    Ok(())
}

/// Makes changes, all or none, on top of the whole policy.
pub async fn apply(
    context: &Context,
    changes: Vec<Change>,
    connections: Connections,
) -> Result<Applied, FirewallError> {
    let enforced = &context.networks.enforced;
    if !enforced.is_loaded() {
        // What is committed is in it.
        let loaded = load(context).await;
        loaded.map_err(|error| FirewallError::Nftables(error.message().to_owned()))?;
    }
    let _gate = enforced.gate.read().await;
    context.firewall.apply(changes, connections).await
}

/// [`apply`] for a call of the API.
pub async fn changes(
    context: &Context,
    changes: Vec<Change>,
    connections: Connections,
) -> Result<(), Failure> {
    apply(context, changes, connections).await?;
    Ok(())
}

/// Sees to it that the firewall has these interfaces.
pub async fn interfaces(context: &Context, ids: &[String]) -> ApiResult<()> {
    let enforced = &context.networks.enforced;
    let missing: Vec<String> = {
        let state = enforced.state();
        let known = |id: &&String| state.loaded && state.interfaces.contains(*id);
        ids.iter().filter(|id| !known(id)).cloned().collect()
    };
    if missing.is_empty() {
        return Ok(());
    }
    let _turn = context.turns.take(&missing).await;
    let read = move |connection: &Connection| {
        let rows = missing.iter().map(|id| db::interfaces::get(connection, id));
        let rows: DbResult<Vec<_>> = rows.collect();
        let rows: Vec<_> = rows?.into_iter().flatten().collect();
        let mut steps = Vec::new();
        for row in &rows {
            steps.push(Change::PutInterface(row.id.clone(), row.policy()));
            steps.extend(flow_logs::of_interface(connection, row)?);
        }
        Ok::<_, DbError>((rows, steps))
    };
    let (rows, steps) = context.db.read(read).await?;
    match changes(context, steps, Connections::Cut).await {
        Ok(()) => {}
        Err(Failure::InForce(error)) => tracing::warn!(%error, "new interfaces"),
        Err(failure) => return Err(failure.into()),
    }
    let mut state = enforced.state();
    state.interfaces.extend(rows.into_iter().map(|it| it.id));
    Ok(())
}

/// Takes interfaces out of the firewall, with the addresses and forwards to them. Their rows are
/// gone, and the caller has their turn.
pub async fn remove_interfaces(context: &Context, ids: &[String]) -> ApiResult<()> {
    let removals = ids.iter().cloned().map(Change::RemoveInterface).collect();
    match changes(context, removals, Connections::Cut).await {
        Ok(()) => {}
        Err(Failure::InForce(error)) => tracing::warn!(%error, "interfaces that are gone"),
        Err(failure) => return Err(failure.into()),
    }
    let mut state = context.networks.enforced.state();
    state.interfaces.retain(|id| !ids.contains(id));
    Ok(())
}
