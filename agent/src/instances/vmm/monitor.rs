//! Sees a VMM process end, and ends one.

use std::{fs, os::fd::AsFd, path::Path, time::Duration};

use hearth_vmm::{
    config::run_files,
    control::{Event, ExitReport, Request},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::{
    Process, Vmm,
    control::{Control, ControlError},
};
use crate::instances::state::End;

/// How long a VMM may take to flush its disks and go, once told to.
const FLUSH: Duration = Duration::from_secs(60);

/// How long after SIGTERM SIGKILL follows.
const TERM: Duration = Duration::from_secs(10);

/// Waits for the VMM's end and tells of its events until then.
pub async fn watch(vmm: Vmm, mut on_disk_error: impl FnMut(String, String)) -> End {
    let Vmm { process, events } = vmm;
    let mut report = None;
    let listen = async {
        let Some(mut events) = events else {
            return std::future::pending().await;
        };
        loop {
            match events.event().await {
                Ok(Event::DiskError { serial, message }) => on_disk_error(serial, message),
                Ok(Event::NetError { tap, message }) => {
                    tracing::warn!(instance = process.instance_id, tap, message, "network");
                }
                Ok(Event::Exited(exit)) => report = Some(exit),
                Err(error) => {
                    tracing::debug!(instance = process.instance_id, %error, "no more VMM events");
                    return std::future::pending::<()>().await;
                }
            }
        }
    };
    tokio::select! {
        () = ended(&process) => {}
        () = listen => {}
    }
    match exit_report(&process.run_dir).or(report) {
        Some(ExitReport {
            reason, message, ..
        }) => End::Reported { reason, message },
        None => End::Unexplained,
    }
}

/// What the last VMM of this directory reported.
pub fn exit_report(run_dir: &Path) -> Option<ExitReport> {
    let text = fs::read(run_dir.join(run_files::EXIT_REPORT)).ok()?;
    serde_json::from_slice(&text)
        .map_err(|error| tracing::warn!(dir = %run_dir.display(), %error, "exit report"))
        .ok()
}

/// Returns when the process has ended.
pub async fn ended(process: &Process) {
    loop {
        if has_ended(process) {
            return;
        }
        // Several may wait for one process: each on a descriptor of its own.
        let copy = rustix::io::fcntl_dupfd_cloexec(&*process.pidfd, 0)
            .map_err(std::io::Error::from)
            .and_then(|fd| {
                // SAFETY: an `OwnedFd` is open and stays the same descriptor until dropped.
                unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
                    .map_err(std::io::Error::from)
            });
        match copy {
            Ok(fd) => drop(fd.readable().await),
            Err(error) => {
                tracing::warn!(%error, "waiting for a process");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Whether the process has ended. Takes its exit status, if it is our child, so that no zombie
/// stays.
pub fn has_ended(process: &Process) -> bool {
    let mut fds = [PollFd::new(&*process.pidfd, PollFlags::IN)];
    let ended = matches!(
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0
            })
        ),
        Ok(1..)
    );
    if ended {
        // Not our child after a restart of the agent: the error says so and is fine.
        let _ = waitid(
            WaitId::PidFd(process.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
    }
    ended
}

/// Presses the guest's power button.
pub async fn press_power_button(process: &Process) -> Result<(), ControlError> {
    command(process, &Request::PowerButton).await
}

/// Ends the guest now: disks are flushed first; by signal when the VMM does not listen, and the
/// hard way when nothing else helps. Returns when the process has ended.
pub async fn kill(process: &Process) {
    let id = &process.instance_id;
    match command(process, &Request::Kill).await {
        Ok(()) => {
            if timeout(FLUSH, ended(process)).await.is_ok() {
                return;
            }
            tracing::warn!(instance = id, "the VMM did not end in time");
        }
        Err(_) if has_ended(process) => return,
        Err(error) => tracing::warn!(instance = id, %error, "the VMM was not to be talked to"),
    }
    for (signal, patience) in [(Signal::TERM, TERM), (Signal::KILL, FLUSH)] {
        // An error means that it has ended.
        let _ = pidfd_send_signal(&*process.pidfd, signal);
        if timeout(patience, ended(process)).await.is_ok() {
            return;
        }
    }
    tracing::error!(instance = id, pid = process.pid, "the VMM survives SIGKILL");
    ended(process).await;
}

async fn command(process: &Process, request: &Request) -> Result<(), ControlError> {
    let patience = super::control::ANSWER;
    let mut control = Control::connect(&process.run_dir, &process.instance_id, patience).await?;
    if control.pid != process.pid {
        return Err(ControlError::Stranger(format!("pid {}", control.pid)));
    }
    control.tell(request).await
}
