//! VMM processes: one for each guest that runs.
//!
//! - [`spawn`]: starts one, detached from the agent.
//! - [`control`]: talks to one over its control socket.
//! - [`adopt`]: finds one that an earlier agent started.
//! - [`disks`]: plugs disks in and out while the guest runs.
//! - [`monitor`]: sees it end; ends it.
//!
//! Each run directory has a file `vmm.lock`, locked through a descriptor that the VMM inherits:
//! while a process has it, the lock is held, whatever became of the agent, of pids, or of the
//! control socket. So there is never a second VMM for an instance.

pub mod adopt;
pub mod control;
pub mod disks;
pub mod monitor;
pub mod spawn;

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc};

use control::Control;

/// Name of the lock file in a run directory.
pub const LOCK_FILE: &str = "vmm.lock";

/// A VMM process that is alive, or was a moment ago.
#[derive(Debug)]
pub struct Vmm {
    /// The process.
    pub process: Process,
    /// A connection on which events come; `None` when the VMM would not talk.
    pub events: Option<Control>,
}

/// A VMM process.
#[derive(Clone, Debug)]
pub struct Process {
    /// For people.
    pub pid: u32,
    /// The process itself: never another one with the same number.
    pub pidfd: Arc<OwnedFd>,
    /// Whose it is.
    pub instance_id: String,
    /// Its directory.
    pub run_dir: PathBuf,
}
