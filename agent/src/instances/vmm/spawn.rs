//! Starts a VMM process: its own session, its output in a file, its configuration in memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::DirBuilderExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use hearth_images::crash_point;
use hearth_vmm::{
    config::{VmConfig, run_files},
    control::{ExitReason, ExitReport, Request},
};
use rustix::{
    fs::{FlockOperation, MemfdFlags, flock, memfd_create},
    io::FdFlags,
    process::{Pid, PidfdFlags, pidfd_open},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{
    LOCK_FILE, Process, Vmm,
    control::{ANSWER, Control, ControlError},
    monitor,
};

/// How long a VMM may take from its start to its first answer. Loading a kernel of hundreds of
/// MiB from a slow disk is in it.
const START: Duration = Duration::from_secs(60);

/// The VMM's own log starts anew above this size, in bytes.
const MAX_VMM_LOG: u64 = 1 << 20;

/// What came of starting a VMM.
#[derive(Debug)]
pub enum Started {
    /// The guest runs.
    Up(Vmm),
    /// The guest ran and has ended already.
    Ended(ExitReport),
}

/// Why a VMM did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Files of the run directory.
    #[error("{what}: {source}")]
    Files {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Another VMM process of this instance is alive.
    #[error("a VMM of this instance is still alive")]
    Alive,
    /// The program could not be executed.
    #[error("the VMM {path:?} could not be executed: {source}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before the guest ran; its own words.
    #[error("{0}")]
    Failed(String),
    /// It ended without a report.
    #[error("the VMM ended before the guest ran, without a report; the end of its log: {0}")]
    Mute(String),
    /// It did not answer.
    #[error("the VMM did not get ready: {0}")]
    NotReady(ControlError),
}

/// Starts a VMM and waits until its guest runs.
pub async fn start(program: PathBuf, config: VmConfig) -> Result<Started, StartError> {
    let run_dir = config.run_dir.clone();
    let instance_id = config.instance_id.clone();
    let process = tokio::task::spawn_blocking(move || spawn(&program, &config))
        .await
        .map_err(|error| StartError::Files {
            what: "starting the VMM".to_owned(),
            source: io::Error::other(error),
        })??;
    let deadline = Instant::now() + START;
    let mut pause = Duration::from_millis(1);
    loop {
        match connect(&run_dir, &instance_id, deadline).await {
            Ok(control) if control.pid == process.pid => {
                return Ok(Started::Up(Vmm {
                    process,
                    events: Some(control),
                }));
            }
            Ok(control) => {
                let stranger =
                    ControlError::Stranger(format!("pid {}, not {}", control.pid, process.pid));
                monitor::kill(&process).await;
                return Err(StartError::NotReady(stranger));
            }
            Err(error) => {
                if monitor::has_ended(&process) {
                    return ended(&run_dir);
                }
                if Instant::now() >= deadline {
                    monitor::kill(&process).await;
                    return Err(StartError::NotReady(error));
                }
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = monitor::ended(&process) => {}
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

async fn connect(
    run_dir: &Path,
    instance_id: &str,
    deadline: Instant,
) -> Result<Control, ControlError> {
    let patience = deadline
        .saturating_duration_since(Instant::now())
        .max(ANSWER);
    let mut control = Control::connect(run_dir, instance_id, patience).await?;
    control.tell(&Request::Subscribe).await?;
    Ok(control)
}

fn ended(run_dir: &Path) -> Result<Started, StartError> {
    match monitor::exit_report(run_dir) {
        Some(ExitReport {
            reason: ExitReason::StartFailed,
            message,
            ..
        }) => Err(StartError::Failed(message)),
        Some(report) => Ok(Started::Ended(report)),
        None => Err(StartError::Mute(last_lines(
            &run_dir.join(run_files::VMM_LOG),
        ))),
    }
}

/// The last few hundred characters of a log.
fn last_lines(path: &Path) -> String {
    const MOST: usize = 400;
    let text = fs::read(path).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(MOST)..];
    String::from_utf8_lossy(tail).trim().to_owned()
}

/// Starts the process. Blocks until it is executed.
fn spawn(program: &Path, config: &VmConfig) -> Result<Process, StartError> {
    let files = |what: &Path| {
        let what = what.display().to_string();
        move |source| StartError::Files { what, source }
    };
    let run_dir = &config.run_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(files(run_dir))?;

    let lock = lock(run_dir)
        .map_err(files(run_dir))?
        .ok_or(StartError::Alive)?;
    for name in [run_files::CONTROL_SOCKET, run_files::EXIT_REPORT] {
        let path = run_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files(&path)(error));
            }
            _ => {}
        }
    }
    let log_path = run_dir.join(run_files::VMM_LOG);
    let log = open_log(&log_path).map_err(files(&log_path))?;
    let log_too = log.try_clone().map_err(files(&log_path))?;
    let document = document(config).map_err(files(Path::new("the VMM's configuration")))?;

    let mut command = Command::new(program);
    command
        .arg("--config-fd")
        .arg(document.as_raw_fd().to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too);
    let inherited = [document, OwnedFd::from(lock)];
    // SAFETY: between fork and exec only async-signal-safe system calls are made (setsid,
    // fcntl), on descriptors that the closure owns; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            // Not the agent's session: no signal meant for the agent reaches the guest.
            rustix::process::setsid()?;
            // Inherited by this child and no other: the flag is cleared after the fork.
            for fd in &inherited {
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        });
    }
    let child = command.spawn().map_err(|source| StartError::Execute {
        path: program.to_owned(),
        source,
    })?;
    crash_point("launch.vmm-spawned");
    // A child of ours that nobody has waited for yet: the number is its own.
    let pid = child.id();
    let pidfd = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK))
        .map_err(|error| files(Path::new("pidfd"))(error.into()))?;
    Ok(Process {
        pid,
        pidfd: Arc::new(pidfd),
        instance_id: config.instance_id.clone(),
        run_dir: run_dir.clone(),
    })
}

/// Takes the lock of a run directory; `None` when a VMM has it.
pub fn lock(run_dir: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(run_dir.join(LOCK_FILE))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    let log = OpenOptions::new().create(true).append(true).open(path)?;
    if log.metadata()?.len() > MAX_VMM_LOG {
        log.set_len(0)?;
    }
    Ok(log)
}

/// The configuration as a file that has no name; closed on exec unless said otherwise.
fn document(config: &VmConfig) -> io::Result<OwnedFd> {
    let fd = memfd_create("vm-config", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    serde_json::to_writer(&mut file, config)?;
    file.flush()?;
    Ok(file.into())
}
