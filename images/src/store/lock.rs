//! File locks that end when they are let go of.
//!
//! An flock belongs to the open file, and a child process that was forked a moment ago has that
//! file open too until it runs its own program. Only closing it would leave the lock held for
//! that moment; so every lock is released explicitly.

use crate::error::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Deref;

/// A file that is locked; unlocked when dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Locked(File);

/// Who else may hold a lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

impl Locked {
    /// Locks without waiting; [`ErrorKind::InUse`] with `what` if somebody else has the lock.
    pub fn try_new(file: File, mode: Mode, what: impl FnOnce() -> String) -> Result<Locked> {
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Locked(file)),
            Err(Errno::WOULDBLOCK) => Err(Error::new(
                ErrorKind::InUse,
                format!("{} is open elsewhere", what()),
            )),
            Err(errno) => Err(Error::io(format!("locking {}", what()), errno.into())),
        }
    }

    /// Waits for an exclusive lock.
    pub fn wait(file: File, what: impl FnOnce() -> String) -> Result<Locked> {
        match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive)) {
            Ok(()) => Ok(Locked(file)),
            Err(errno) => Err(Error::io(format!("locking {}", what()), errno.into())),
        }
    }

    /// Lets go of the lock before the value is dropped.
    pub fn unlock(&self) -> rustix::io::Result<()> {
        flock(&self.0, FlockOperation::Unlock)
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(errno) = self.unlock() {
            tracing::warn!("cannot unlock a file: {errno}");
        }
    }
}
