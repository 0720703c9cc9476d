//! Brings counts from the kernel to disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{
    TURN, enforce,
    model::FlowLog,
    record::{Content, Record},
};
use crate::{
    blocking::blocking,
    context::Context,
    db::{self, DbError},
    error::{ApiError, ApiResult},
    firewall::{self, flows::Counted},
    shutdown::Shutdown,
    time::Millis,
};

/// How often it is looked whether all is right when there are no flow logs.
const IDLE: Duration = Duration::from_secs(60);

/// Writes records at the end of each interval, until the agent ends.
pub async fn run(context: Arc<Context>, mut shutdown: Shutdown) {
    // Of flow logs that were deleted when the agent was cut off.
    if let Err(error) = sweep(&context).await {
        tracing::warn!(%error, "records of flow logs that are gone");
    }
    loop {
        if let Err(error) = round(&context).await {
            tracing::warn!(%error, "flows are not recorded; they are counted on");
        }
        let interval = context
            .db
            .read(db::flow_logs::shortest_interval)
            .await
            .unwrap_or_default();
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(until_next(interval)) => {}
            // The interval may be a shorter one; what is counted by now has time.
            () = context.flow_logs.changed.notified() => continue,
        }
    }
}

/// Until the wall clock is at a multiple of the interval.
fn until_next(interval: Option<u32>) -> Duration {
    let Some(interval) = interval else {
        return IDLE;
    };
    let interval = i64::from(interval.max(1)) * 1000;
    let left = interval - Millis::now().0.rem_euclid(interval);
    Duration::from_millis(u64::try_from(left).unwrap_or_default())
}

async fn sweep(context: &Arc<Context>) -> ApiResult<()> {
    let _turn = context.turns.take([TURN]).await;
    let logs = context.db.read(db::flow_logs::all).await?;
    let ids: BTreeSet<String> = logs.into_iter().map(|it| it.id).collect();
    let files = context.clone();
    let swept = blocking("removing records", move || {
        files.flow_logs.files.sweep(|log| ids.contains(log))
    });
    swept
        .await?
        .map_err(|error| ApiError::internal("removing records", error))
}

/// Ends the window, and writes all that were ended.
async fn round(context: &Arc<Context>) -> ApiResult<()> {
    let _turn = context.turns.take([TURN]).await;
    let turned = enforce::turn(context).await;
    // Also what is left when no new window can begin.
    let written = write_retired(context).await;
    turned?;
    written
}

async fn write_retired(context: &Arc<Context>) -> ApiResult<()> {
    let windows = context.firewall.policy().await.windows.clone();
    if windows.retired.is_empty() {
        return Ok(());
    }
    crash_point("flows.turned");
    // Packets that were under way count in the old window. Where the kernel does not offer this
    // wait, transactions have waited as long.
    blocking("waiting for packets", firewall::wait_for_packets).await?;
    let mut done = Vec::new();
    for window in &windows.retired {
        let later = windows.retired.iter().chain(&windows.current);
        let end = later.copied().find(|it| it > window);
        let end = end.unwrap_or_else(|| u64::try_from(Millis::now().0).unwrap_or_default());
        let counted = context.firewall.flows(*window).await;
        let counted = counted.map_err(|error| ApiError::internal("reading flows", error))?;
        write(context, *window, end, counted).await?;
        done.push(*window);
    }
    crash_point("flows.written");
    enforce::forget(context, &done).await?;
    if let Some(current) = windows.current {
        let before = Millis(i64::try_from(current).unwrap_or(i64::MAX));
        let forget = move |tx: &mut db::Tx<'_>| db::flow_logs::forget_departed(tx, before);
        context.db.write::<_, DbError>(forget).await?;
    }
    context.flow_logs.written.send_replace(());
    Ok(())
}

/// Whose a tap is or was.
struct Owner {
    interface: String,
    network: String,
    account: String,
}

struct Known {
    logs: Vec<FlowLog>,
    taps: BTreeMap<String, Owner>,
    /// Taps of instances that have a guest.
    active: BTreeSet<String>,
}

fn known(connection: &Connection) -> Result<Known, DbError> {
    let departed = db::flow_logs::departed(connection)?.into_iter().map(|it| {
        let owner = Owner {
            interface: it.id,
            network: it.network_id,
            account: it.owner,
        };
        (it.tap, owner)
    });
    let mut taps: BTreeMap<String, Owner> = departed.collect();
    taps.extend(db::interfaces::all(connection)?.into_iter().map(|it| {
        let owner = Owner {
            interface: it.id,
            network: it.network_id,
            account: it.owner,
        };
        (it.tap, owner)
    }));
    let active = db::interfaces::active(connection)?.into_iter();
    Ok(Known {
        logs: db::flow_logs::all(connection)?,
        taps,
        active: active.map(|it| it.tap).collect(),
    })
}

/// Writes one window to all flow logs that it concerns.
async fn write(context: &Arc<Context>, window: u64, end: u64, counted: Counted) -> ApiResult<()> {
    let known = context.db.read(known).await?;
    let context = context.clone();
    let written = blocking("writing records", move || {
        for log in &known.logs {
            // It was not there yet: others wanted the counts.
            if u64::try_from(log.create_time.0).unwrap_or_default() > window {
                continue;
            }
            let records = records(log, &known, (window, end), &counted);
            if !records.is_empty() {
                context.flow_logs.files.append(&log.id, window, &records)?;
            }
        }
        Ok::<_, std::io::Error>(())
    });
    written
        .await?
        .map_err(|error| ApiError::internal("writing flow logs", error))
}

fn records(log: &FlowLog, known: &Known, span: (u64, u64), counted: &Counted) -> Vec<Record> {
    let seconds = |millis: u64| i64::try_from(millis / 1000).unwrap_or_default();
    let record = |owner: &Owner, content| Record {
        account: owner.account.clone(),
        interface: owner.interface.clone(),
        start: seconds(span.0),
        end: seconds(span.1),
        content,
    };
    let covered = |tap: &String| {
        let owner = known.taps.get(tap)?;
        log.covers(&owner.interface, &owner.network)
            .then_some(owner)
    };
    let mut records = Vec::new();
    let mut seen = BTreeSet::new();
    for flow in &counted.flows {
        if log.traffic.has(flow.accepted)
            && let Some(owner) = covered(&flow.tap)
        {
            seen.insert(&flow.tap);
            records.push(record(owner, Content::Data(flow.into())));
        }
    }
    for tap in counted.skipped.keys() {
        if let Some(owner) = covered(tap) {
            seen.insert(tap);
            records.push(record(owner, Content::Skipped));
        }
    }
    for tap in known.active.iter().filter(|tap| !seen.contains(tap)) {
        if let Some(owner) = covered(tap) {
            records.push(record(owner, Content::Nothing));
        }
    }
    records
}
