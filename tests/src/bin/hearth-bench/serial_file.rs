//! Waits for the first byte in the file to which a VMM writes the serial port.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    fs::inotify,
};

/// A guest that has said nothing by then never will.
const DEADLINE: Duration = Duration::from_secs(60);

/// A file to be watched, which need not be there yet.
pub struct SerialFile {
    path: PathBuf,
    changes: OwnedFd,
}

impl SerialFile {
    /// Watches the folder for changes from now on.
    pub fn watch(folder: &Path, name: &str) -> Result<Self> {
        let changes = inotify::init(inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &changes,
            folder,
            inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY,
        )?;
        Ok(Self {
            path: folder.join(name),
            changes,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns when there is a byte in it, with the time at which that was seen.
    pub fn first_byte(&self) -> Result<Instant> {
        let deadline = Instant::now() + DEADLINE;
        let mut buffer = [0; 4096];
        loop {
            let now = Instant::now();
            if fs::metadata(&self.path).is_ok_and(|file| file.len() > 0) {
                return Ok(now);
            }
            if now > deadline {
                bail!("no byte on the serial port");
            }
            let mut fds = [PollFd::new(&self.changes, PollFlags::IN)];
            poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                }),
            )?;
            while matches!(rustix::io::read(&self.changes, &mut buffer), Ok(1..)) {}
        }
    }
}
