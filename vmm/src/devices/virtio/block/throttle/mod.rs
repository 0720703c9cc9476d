//! Holds disks to their operations and bytes per second.
//!
//! - [`limits`]: what the agent asks for.
//! - [`count`]: what a request costs.
//! - `pacer`: when it may start, by [`pacing`](crate::devices::virtio::pacing); pure, on a clock
//!   of the caller's.
//! - [`admission`]: how a queue's thread waits for that.
//!
//! Requests are admitted in two steps, each first come, first served: the disk's own limits,
//! then those that all disks of the machine share. A disk that is far behind its own limit
//! therefore takes nothing of the shared ones before its turn has come. Within a disk the turns
//! go around its queues, for each queue waits with one request at a time.
//!
//! A disk without limits costs one load of a flag for each request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

pub mod admission;
pub mod count;
pub mod limits;
mod pacer;

use self::count::{Cost, Counted, Counter};
use self::limits::{DiskLimits, MachineLimits};
use self::pacer::Pacer;
use crate::devices::virtio::pacing::clock::Nanos;

/// What all disks of a machine share.
pub struct MachineThrottle {
    epoch: Instant,
    limiting: bool,
    pacer: Mutex<Pacer>,
}

/// Holds one disk to its limits.
pub struct DiskThrottle {
    machine: Arc<MachineThrottle>,
    limiting: AtomicBool,
    state: Mutex<State>,
    /// Written to when the limits change: one for each queue's thread.
    waiting: Mutex<Vec<Arc<EventFd>>>,
}

#[derive(Default)]
struct State {
    pacer: Pacer,
    counter: Counter,
    /// Counts changes of the limits.
    generation: u64,
}

/// A place in the order of a disk's requests.
#[derive(Clone, Copy, Debug)]
struct Turn {
    start: Nanos,
    generation: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MachineThrottle {
    /// Disks that are added to it are together held to `limits`.
    pub fn new(limits: &MachineLimits) -> Arc<Self> {
        let pacer = Pacer::for_machine(limits, 0);
        Arc::new(Self {
            epoch: Instant::now(),
            limiting: pacer.limits_anything(),
            pacer: Mutex::new(pacer),
        })
    }

    /// A disk that has `limits` of its own, and shares the machine's.
    pub fn add_disk(self: &Arc<Self>, limits: &DiskLimits) -> Arc<DiskThrottle> {
        let disk = Arc::new(DiskThrottle {
            machine: Arc::clone(self),
            limiting: AtomicBool::new(self.limiting),
            state: Mutex::default(),
            waiting: Mutex::default(),
        });
        disk.set_limits(limits);
        disk
    }

    fn now(&self) -> Nanos {
        i64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

impl DiskThrottle {
    /// A disk on its own, without limits.
    pub fn unlimited() -> Arc<Self> {
        MachineThrottle::new(&MachineLimits::default()).add_disk(&DiskLimits::default())
    }

    /// Holds the disk to `limits` from now on. Requests that wait do so under the new ones; what
    /// was owed under the old ones is forgotten.
    pub fn set_limits(&self, limits: &DiskLimits) {
        let mut state = lock(&self.state);
        state.pacer = Pacer::for_disk(limits, &state.pacer, self.machine.now());
        state.counter = Counter::new(limits.unit_bytes, limits.merge);
        state.generation += 1;
        let limiting = self.machine.limiting || state.pacer.limits_anything();
        self.limiting.store(limiting, Ordering::Relaxed);
        drop(state);
        for waiting in lock(&self.waiting).iter() {
            // Fails only if the counter is full, and then the thread is about to wake up anyway.
            let _ = waiting.write(1);
        }
    }

    /// The burst credits now, in operations and in bytes; `None` where there is no burst.
    pub fn credits(&self) -> (Option<u64>, Option<u64>) {
        lock(&self.state).pacer.credits(self.machine.now())
    }

    fn cost(&self, counted: Counted) -> Cost {
        lock(&self.state).counter.cost(counted)
    }

    fn take_turn(&self, cost: Cost, waited: bool) -> Turn {
        let now = self.machine.now();
        let mut state = lock(&self.state);
        Turn {
            start: state.pacer.reserve_for(now, cost, waited),
            generation: state.generation,
        }
    }

    fn is_current(&self, turn: Turn) -> bool {
        lock(&self.state).generation == turn.generation
    }
}
