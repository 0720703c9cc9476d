//! Plugs disks into a running VMM and out of it, and finds out what came of it.
//!
//! Whatever happens to a request (no answer in time, the agent killed and started again), what
//! counts is the list of disks that the VMM gives. So each of these may be called again.

use std::time::Duration;

use hearth_vmm::{
    config::DiskConfig,
    control::{DiskPhase, DiskStatus, Reply, Request},
};
use tokio::time::sleep;

use super::{
    Process,
    control::{ANSWER, Control, ControlError},
    monitor::has_ended,
};
use crate::time::Millis;

/// How long opening a volume, or making durable what is in it, may take.
const STORE: Duration = Duration::from_secs(60);

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What came of plugging a disk in or out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugged {
    /// The guest has it.
    In,
    /// The guest does not have it, and why not if it was to; the volume is closed.
    Out(String),
    /// The VMM has ended.
    Ended,
}

/// Plugs a disk in.
pub async fn attach(process: &Process, disk: DiskConfig) -> Plugged {
    let serial = disk.serial.clone();
    let request = Request::AttachDisk { disk };
    loop {
        let error = match ask(process, &request, STORE).await {
            Ok(_) => return Plugged::In,
            Err(error) => error,
        };
        match (list(process).await, &error) {
            (Ok(disks), _) if disks.iter().any(|disk| disk.serial == serial) => return Plugged::In,
            // Also a VMM of before there were such requests: it knows no list either.
            (Ok(_) | Err(ControlError::Refused(_)), ControlError::Refused(why)) => {
                return Plugged::Out(why.clone());
            }
            _ => {}
        }
        if has_ended(process) {
            return Plugged::Ended;
        }
        tracing::debug!(instance = process.instance_id, serial, %error, "plugging in, again");
        sleep(PAUSE).await;
    }
}

/// Has a disk plugged out, by force (`deadline` is `None`), or when the guest lets go of it before
/// the deadline.
pub async fn detach(process: &Process, serial: &str, deadline: Option<Millis>) -> Plugged {
    loop {
        let patience = deadline.map_or(Duration::ZERO, Millis::remaining);
        let request = Request::DetachDisk {
            serial: serial.to_owned(),
            force: deadline.is_none(),
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        };
        let error = match ask(process, &request, patience.saturating_add(STORE)).await {
            Ok(_) => return Plugged::Out(String::new()),
            Err(error) => error,
        };
        if let Ok(disks) = list(process).await {
            match disks.iter().find(|disk| disk.serial == serial) {
                None => return Plugged::Out(String::new()),
                Some(disk)
                    if disk.phase == DiskPhase::Attached
                        && deadline.is_some_and(|when| when.remaining().is_zero()) =>
                {
                    return Plugged::In;
                }
                // Its volume can't be closed yet, or there is time left.
                Some(_) => {}
            }
        }
        if has_ended(process) {
            return Plugged::Ended;
        }
        tracing::debug!(instance = process.instance_id, serial, %error, "plugging out, again");
        sleep(PAUSE).await;
    }
}

/// The disks that a VMM has.
pub async fn list(process: &Process) -> Result<Vec<DiskStatus>, ControlError> {
    match ask(process, &Request::ListDisks, Duration::ZERO).await? {
        Reply::Disks { disks } => Ok(disks),
        other => Err(ControlError::Malformed(format!("{other:?}"))),
    }
}

/// On a connection of its own: the VMM answers one request after the other.
async fn ask(
    process: &Process,
    request: &Request,
    patience: Duration,
) -> Result<Reply, ControlError> {
    let mut control = Control::connect(&process.run_dir, &process.instance_id, ANSWER).await?;
    if control.pid != process.pid {
        return Err(ControlError::Stranger(format!("pid {}", control.pid)));
    }
    control.ask(request, patience.saturating_add(ANSWER)).await
}
