//! Finds the VMM of an instance that an earlier agent started.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearth_vmm::control::Request;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::sleep;

use super::{
    LOCK_FILE, Process, Vmm,
    control::{ANSWER, Control, ControlError},
    spawn,
};
use crate::instances::state::End;

/// How often, and how long, a VMM that is there but does not answer yet is asked again.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Alive(Vmm),
    /// There is none; how the last one ended.
    Gone(End),
}

/// Looks for the VMM of an instance.
///
/// # Errors
/// When the run directory can't be read; nothing is known then.
pub async fn adopt(run_dir: &Path, instance_id: &str) -> io::Result<Found> {
    for attempt in 0..TRIES {
        if !alive(run_dir)? {
            let end = match super::monitor::exit_report(run_dir) {
                Some(report) => End::Reported {
                    reason: report.reason,
                    message: report.message,
                },
                None => End::Unexplained,
            };
            return Ok(Found::Gone(end));
        }
        match connect(run_dir, instance_id).await {
            Ok(vmm) => return Ok(Found::Alive(vmm)),
            // It says clearly that it will not talk to us.
            Err(error @ (ControlError::Stranger(_) | ControlError::Refused(_))) => {
                tracing::warn!(instance = instance_id, %error, "a VMM that cannot be talked to");
                break;
            }
            Err(error) => {
                tracing::debug!(instance = instance_id, attempt, %error, "a VMM does not answer");
            }
        }
        sleep(PAUSE).await;
    }
    // A process has the lock and does not talk: it can still be watched, and ended.
    match holder(run_dir)? {
        Some((pid, pidfd)) => Ok(Found::Alive(Vmm {
            process: process(run_dir, instance_id, pid, pidfd),
            events: None,
        })),
        None if alive(run_dir)? => Err(io::Error::other(
            "a process that cannot be found holds the instance's lock",
        )),
        None => Ok(Found::Gone(End::Unexplained)),
    }
}

async fn connect(run_dir: &Path, instance_id: &str) -> Result<Vmm, ControlError> {
    let mut control = Control::connect(run_dir, instance_id, ANSWER).await?;
    let raw = i32::try_from(control.pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or_else(|| ControlError::Stranger(format!("pid {}", control.pid)))?;
    let pidfd = pidfd_open(raw, PidfdFlags::NONBLOCK).map_err(io::Error::from)?;
    // It answers after the descriptor was opened, so the descriptor is the answering process.
    control.tell(&Request::Subscribe).await?;
    Ok(Vmm {
        process: process(run_dir, instance_id, control.pid, pidfd),
        events: Some(control),
    })
}

fn process(run_dir: &Path, id: &str, pid: u32, pidfd: rustix::fd::OwnedFd) -> Process {
    Process {
        pid,
        pidfd: Arc::new(pidfd),
        instance_id: id.to_owned(),
        run_dir: run_dir.to_owned(),
    }
}

/// Whether some process holds the lock.
fn alive(run_dir: &Path) -> io::Result<bool> {
    match spawn::lock(run_dir) {
        Ok(free) => Ok(free.is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that has the lock file open.
fn holder(run_dir: &Path) -> io::Result<Option<(u32, rustix::fd::OwnedFd)>> {
    let lock = run_dir.join(LOCK_FILE);
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == std::process::id().cast_signed() || !has_open(pid, &lock) {
            continue;
        }
        let Some(raw) = Pid::from_raw(pid) else {
            continue;
        };
        let Ok(pidfd) = pidfd_open(raw, PidfdFlags::NONBLOCK) else {
            continue;
        };
        // Asked again after the descriptor was opened: the number was not taken over meanwhile.
        if has_open(pid, &lock) {
            return Ok(Some((pid.cast_unsigned(), pidfd)));
        }
    }
    Ok(None)
}

fn has_open(pid: i32, path: &Path) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|target: PathBuf| target == path))
}
