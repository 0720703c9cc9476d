//! What the firewall is told: whose flows are counted, and in which window.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::model::FlowLog;
use crate::{
    context::Context,
    db::{self, DbResult},
    error::ApiResult,
    firewall::{
        Connections,
        policy::{Change, Traffic, Windows},
    },
    networks::{
        enforce::{self, Failure},
        model::Interface,
    },
    time::Millis,
};

/// Windows that wait to be written; with more, counting goes on in the present one.
const WAITING: usize = 4;

fn traffic<'a>(logs: impl Iterator<Item = &'a FlowLog>, interface: &Interface) -> Option<Traffic> {
    let covering = logs.filter(|log| log.covers(&interface.id, &interface.network_id));
    covering
        .map(|log| log.traffic.traffic())
        .reduce(|a, b| Traffic {
            accepted: a.accepted || b.accepted,
            refused: a.refused || b.refused,
        })
}

/// The interfaces whose flows are to be counted.
pub fn wanted(connection: &Connection) -> DbResult<BTreeMap<String, Traffic>> {
    let logs = db::flow_logs::all(connection)?;
    if logs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let interfaces = db::interfaces::all(connection)?.into_iter();
    let logged = interfaces.filter_map(|it| Some((it.id.clone(), traffic(logs.iter(), &it)?)));
    Ok(logged.collect())
}

/// The window for an agent that finds none in the kernel.
pub fn windows(connection: &Connection) -> DbResult<Windows> {
    let logs = db::flow_logs::shortest_interval(connection)?;
    Ok(Windows {
        current: logs.map(|_| now()),
        ..Windows::default()
    })
}

/// What a new interface needs beside itself.
pub fn of_interface(connection: &Connection, interface: &Interface) -> DbResult<Option<Change>> {
    let logs = db::flow_logs::of(connection, &interface.id, &interface.network_id)?;
    let traffic = traffic(logs.iter(), interface);
    Ok(traffic.map(|it| Change::PutLogged(interface.id.clone(), it)))
}

fn now() -> u64 {
    u64::try_from(Millis::now().0).unwrap_or_default()
}

/// Makes the firewall count what the rows want, and begins a new window. The caller has the turn.
pub async fn turn(context: &Context) -> ApiResult<()> {
    Ok(try_turn(context).await?)
}

/// The same, for those who take rows back if it fails.
pub async fn try_turn(context: &Context) -> Result<(), Failure> {
    let failed = |error: db::DbError| Failure::NotInForce(error.into());
    let read = |connection: &Connection| {
        let any = db::flow_logs::shortest_interval(connection)?.is_some();
        Ok::<_, db::DbError>((any, wanted(connection)?))
    };
    let (any, wanted) = context.db.read(read).await.map_err(failed)?;
    if !context.networks.enforced.is_loaded() {
        if !any {
            return Ok(());
        }
        enforce::load(context).await.map_err(Failure::NotInForce)?;
    }
    let policy = context.firewall.policy().await;
    let mut changes = Vec::new();
    for (id, traffic) in &wanted {
        if policy.logged.get(id) != Some(traffic) {
            changes.push(Change::PutLogged(id.clone(), *traffic));
        }
    }
    let gone = policy.logged.keys().filter(|id| !wanted.contains_key(*id));
    changes.extend(gone.cloned().map(Change::RemoveLogged));
    let windows = next(&policy.windows, any);
    if windows != policy.windows {
        changes.push(Change::PutWindows(windows));
    }
    if changes.is_empty() {
        return Ok(());
    }
    enforce::changes(context, changes, Connections::Keep).await
}

fn next(windows: &Windows, any: bool) -> Windows {
    if !any {
        return Windows::default();
    }
    let mut windows = windows.clone();
    match windows.current {
        Some(_) if windows.retired.len() >= WAITING => {}
        Some(current) => {
            windows.retired.insert(current);
            windows.current = Some(now().max(current + 1));
        }
        None => windows.current = Some(now()),
    }
    windows
}

/// Gives up the counts of windows that are written. The caller has the turn.
pub async fn forget(context: &Context, written: &[u64]) -> ApiResult<()> {
    let policy = context.firewall.policy().await;
    let mut windows = policy.windows.clone();
    windows.retired.retain(|window| !written.contains(window));
    let change = Change::PutWindows(windows);
    Ok(enforce::changes(context, vec![change], Connections::Keep).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_whatever_the_clock_does() {
        let first = next(&Windows::default(), true);
        let start = first.current.expect("begun");
        assert!(first.retired.is_empty());
        let future = Windows {
            current: Some(start + 1_000_000),
            ..first
        };
        let second = next(&future, true);
        assert_eq!(second.current, Some(start + 1_000_001));
        assert_eq!(second.retired, [start + 1_000_000].into());
        let mut windows = second;
        for _ in 0..10 {
            windows = next(&windows, true);
        }
        assert_eq!(windows.retired.len(), WAITING);
        assert_eq!(next(&windows, false), Windows::default());
    }
}
