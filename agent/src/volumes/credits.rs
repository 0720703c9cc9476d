//! Burst credits: kept in the volume's row, so that they outlive stops, crashes and detaching.
//!
//! While a guest runs its VMM counts. The agent asks it now and then ([`sample`]), and reads
//! what it reports at its end ([`keep_reported`]). What comes in meanwhile is reckoned from the
//! time that has passed, whether the volume is in use or not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hearth_vmm::{
    control::{DiskCredits, Reply, Request},
    devices::virtio::block::throttle::limits::Limit,
};

use super::{
    classes::Classes,
    model::{Credits, Volume, VolumeState},
};
use crate::{
    context::Context,
    db,
    error::ApiResult,
    instances::vmm::{control::Control, monitor},
    time::Millis,
};

/// How long a VMM may take to tell; a describe waits for it.
const ANSWER: Duration = Duration::from_secs(1);

/// How long all VMMs together may take for one page of a describe. After that the rows have to
/// do, which are at most half a minute old.
const PAGE: Duration = Duration::from_secs(2);

/// Credits now: what the row says, and what has come in since then.
pub fn now(classes: &Classes, volume: &Volume) -> Option<u64> {
    let limit = classes.burst(&volume.class, volume.size_bytes)?;
    Some(at(limit, volume.credits, Millis::now()))
}

fn at(limit: Limit, credits: Option<Credits>, now: Millis) -> u64 {
    let most = limit.burst.map_or(0, |burst| burst.most_credits);
    let Some(credits) = credits else {
        return most;
    };
    let passed = u128::try_from(now.0.saturating_sub(credits.at.0)).unwrap_or(0);
    let earned = passed * u128::from(limit.per_second) / 1000;
    let sum = u128::from(credits.count) + earned;
    u64::try_from(sum).unwrap_or(u64::MAX).min(most)
}

/// [`balance_percent`] of each.
pub async fn balances(context: &Context, volumes: &[Volume]) -> Vec<Option<f64>> {
    let start = Instant::now();
    let mut balances = Vec::with_capacity(volumes.len());
    for volume in volumes {
        balances.push(balance_percent(context, volume, start.elapsed() < PAGE).await);
    }
    balances
}

/// Credits now in percent of the most, for a volume that has a burst; by its VMM, if there is one
/// and it is to be asked.
async fn balance_percent(context: &Context, volume: &Volume, live: bool) -> Option<f64> {
    let limit = context.classes.burst(&volume.class, volume.size_bytes)?;
    let live = match live {
        true => ask(context, volume).await,
        false => None,
    };
    let credits = at(limit, live.or(volume.credits), Millis::now());
    let most = limit.burst.map_or(1, |burst| burst.most_credits);
    Some(credits as f64 * 100.0 / most as f64)
}

/// What the volume's VMM says, if there is one.
async fn ask(context: &Context, volume: &Volume) -> Option<Credits> {
    if volume.state != VolumeState::InUse {
        return None;
    }
    let instance_id = &volume.attachment.as_ref()?.instance_id;
    let run_dir = context.settings.run_dir(instance_id);
    let mut control = Control::connect(&run_dir, instance_id, ANSWER).await.ok()?;
    let serial = volume.serial();
    let answer = control.ask(&Request::DiskStatus { serial }, ANSWER).await;
    match answer {
        Ok(Reply::DiskStatus(credits)) => from_vmm(&credits),
        _ => None,
    }
}

fn from_vmm(credits: &DiskCredits) -> Option<Credits> {
    Some(Credits {
        count: credits.operations.or(credits.bytes)?,
        at: Millis(credits.unix_ms),
    })
}

/// Asks the VMMs of all volumes in use, so that little is lost when one of them crashes.
pub async fn sample(context: &Context) -> ApiResult<()> {
    let in_use = |c: &rusqlite::Connection| db::volumes::in_state(c, VolumeState::InUse);
    for volume in context.db.read(in_use).await? {
        keep(context, volume).await?;
    }
    Ok(())
}

/// Keeps what the volume's VMM says, if there is one and the volume has a burst.
pub async fn keep(context: &Context, volume: Volume) -> ApiResult<()> {
    let bursts = context.classes.burst(&volume.class, volume.size_bytes);
    if bursts.is_some()
        && let Some(credits) = ask(context, &volume).await
    {
        let Volume { id, class, .. } = volume;
        context
            .db
            .write(move |tx| db::volumes::set_credits(tx, &id, &class, credits))
            .await?;
    }
    Ok(())
}

/// Keeps what the VMM that ran in `run_dir` said at its end.
pub async fn keep_reported(context: &Context, instance_id: &str, run_dir: &Path) {
    let Some(report) = monitor::exit_report(run_dir) else {
        return;
    };
    if report.credits.is_empty() {
        return;
    }
    let id = instance_id.to_owned();
    let written = context.db.write(move |tx| {
        for volume in db::volumes::of_instance(tx, &id)? {
            let serial = volume.serial();
            let told = report.credits.iter().find(|disk| disk.serial == serial);
            if let Some(credits) = told.and_then(from_vmm) {
                db::volumes::set_credits(tx, &volume.id, &volume.class, credits)?;
            }
        }
        Ok::<_, db::DbError>(())
    });
    if let Err(error) = written.await {
        tracing::warn!(instance = instance_id, %error, "burst credits are those of a while ago");
    }
}

#[cfg(test)]
mod tests {
    use hearth_vmm::devices::virtio::block::throttle::limits::Burst;

    use super::*;

    #[test]
    fn credits_come_in_while_nobody_looks_and_are_never_more_than_the_most() {
        let limit = Limit {
            per_second: 100,
            burst: Some(Burst {
                per_second: 3000,
                most_credits: 5_400_000,
                credits: None,
            }),
        };
        let kept = |count| {
            Some(Credits {
                count,
                at: Millis(1_000_000),
            })
        };
        assert_eq!(at(limit, None, Millis(0)), 5_400_000);
        assert_eq!(at(limit, kept(7), Millis(1_000_000)), 7);
        assert_eq!(at(limit, kept(7), Millis(1_010_500)), 1057);
        assert_eq!(at(limit, kept(7), Millis(999)), 7, "a clock set back");
        assert_eq!(at(limit, kept(7), Millis(i64::MAX)), 5_400_000);
        assert_eq!(at(limit, kept(u64::MAX), Millis(1_000_000)), 5_400_000);
    }
}
