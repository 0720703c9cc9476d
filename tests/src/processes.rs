//! The processes of one agent: found by what they hold open, ended by their id.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Ends a process at once.
pub fn kill_9(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Is there a process with this id that has not ended (nor waits to be reaped)?
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit(") ")
                .next()
                .map(|rest| !rest.starts_with(['Z', 'X']))
        })
        .unwrap_or(false)
}

/// Waits until the process has ended; false when it has not in a minute.
pub fn wait_gone(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while is_alive(pid) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The VMMs that have a file of this folder open: those that an agent with its state in there
/// has started, whether or not it still knows them.
pub fn vmms_of(folder: &Path) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_vmm(*pid) && has_open(*pid, folder))
        .collect()
}

fn is_vmm(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| {
        exe.file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"hearth-vmm"))
    })
}

fn has_open(pid: u32, folder: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.starts_with(folder))
}
