//! How a queue's thread waits for its requests' turns.

use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::count::Counted;
use super::{DiskThrottle, lock};
use crate::devices::virtio::block::request::Operation;
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::queue::QueueError;
use crate::devices::virtio::worker::{Pause, Woken};

/// A thread's entrance to a disk.
pub struct Admission {
    throttle: Arc<DiskThrottle>,
    changed: Arc<EventFd>,
    precise: bool,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The request may be executed.
    Now,
    /// The thread shall end; the request is not to be executed.
    Ended,
}

/// How a sleep ended.
enum Slept {
    UntilThen,
    LimitsChanged,
    Ended,
}

impl Admission {
    /// An entrance to the disk of `throttle`.
    pub fn new(throttle: Arc<DiskThrottle>) -> io::Result<Self> {
        let changed = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        lock(&throttle.waiting).push(Arc::clone(&changed));
        Ok(Self {
            throttle,
            changed,
            precise: false,
        })
    }

    /// Returns when `operation` may be executed.
    pub fn wait(
        &mut self,
        operation: &Operation<'_>,
        pause: &mut Pause<'_>,
    ) -> Result<Admitted, QueueError> {
        if !self.throttle.limiting.load(Ordering::Relaxed) {
            return Ok(Admitted::Now);
        }
        match Counted::of(operation) {
            Some(counted) => self.wait_for_turns(counted, pause),
            None => Ok(Admitted::Now),
        }
    }

    fn wait_for_turns(
        &mut self,
        counted: Counted,
        pause: &mut Pause<'_>,
    ) -> Result<Admitted, QueueError> {
        self.be_precise();
        let throttle = Arc::clone(&self.throttle);
        let cost = throttle.cost(counted);
        let waited = pause.is_busy();
        let mut turn = throttle.take_turn(cost, waited);
        loop {
            match self.sleep_until(turn.start, pause)? {
                Slept::UntilThen => break,
                Slept::Ended => return Ok(Admitted::Ended),
                Slept::LimitsChanged if throttle.is_current(turn) => {}
                Slept::LimitsChanged => turn = throttle.take_turn(cost, waited),
            }
        }
        let machine = &throttle.machine;
        if !machine.limiting {
            return Ok(Admitted::Now);
        }
        let start = lock(&machine.pacer).reserve_for(machine.now(), cost, waited);
        loop {
            match self.sleep_until(start, pause)? {
                Slept::UntilThen => return Ok(Admitted::Now),
                Slept::Ended => return Ok(Admitted::Ended),
                // The shared ones never do.
                Slept::LimitsChanged => {}
            }
        }
    }

    fn sleep_until(&self, start: Nanos, pause: &mut Pause<'_>) -> Result<Slept, QueueError> {
        loop {
            let left = start.saturating_sub(self.throttle.machine.now());
            let Ok(left @ 1..) = u64::try_from(left) else {
                return Ok(Slept::UntilThen);
            };
            match pause.sleep(Duration::from_nanos(left), &self.changed)? {
                Woken::ByTime => {}
                Woken::ToEnd => return Ok(Slept::Ended),
                Woken::ByOther => {
                    // Another write after this one wakes us again.
                    let _ = self.changed.read();
                    return Ok(Slept::LimitsChanged);
                }
            }
        }
    }

    /// Timers of this thread fire when they are due, and not up to 50 µs later.
    fn be_precise(&mut self) {
        if !self.precise {
            self.precise = true;
            if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
                tracing::debug!(%error, "timers of a disk's thread stay imprecise");
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        lock(&self.throttle.waiting).retain(|other| !Arc::ptr_eq(other, &self.changed));
    }
}

#[cfg(test)]
mod tests;
