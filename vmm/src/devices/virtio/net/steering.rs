//! Which pairs of queues the host's frames may come to.
//!
//! The kernel spreads what it sends among the attached queues of a tap: a flow goes to the pair
//! on which the guest has sent to it, which is the automatic receive steering of virtio 1.2
//! section 5.1.6.5.5.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::debug;

use super::tap::Tap;

/// A pair of queues, and whether it receives.
pub(super) struct Lane {
    pub(super) tap: Tap,
    receives: Mutex<bool>,
}

impl Lane {
    /// Whether frames may be put into the receive queue, for as long as the answer is held.
    pub(super) fn receives(&self) -> MutexGuard<'_, bool> {
        self.receives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All pairs of a device.
#[derive(Clone)]
pub(super) struct Steering {
    lanes: Arc<[Arc<Lane>]>,
}

impl Steering {
    /// `taps` are the pairs of one tap, of which the first is attached.
    pub(super) fn new(taps: Vec<Tap>) -> Self {
        let lane = |tap: Tap| {
            let receives = Mutex::new(tap.is_attached());
            Arc::new(Lane { tap, receives })
        };
        Steering {
            lanes: taps.into_iter().map(lane).collect(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u16 {
        // Far fewer than can be attached to a tap, which are 256.
        self.lanes.len() as u16
    }

    pub(super) fn lane(&self, index: usize) -> Option<&Arc<Lane>> {
        self.lanes.get(index)
    }

    /// How many receive.
    pub(super) fn in_use(&self) -> u16 {
        let attached = self.lanes.iter().filter(|lane| lane.tap.is_attached());
        attached.count() as u16
    }

    /// Lets the first `count` receive and no other: when this returns, nothing more comes to the
    /// receive queues of the others. The first always does.
    pub(super) fn use_pairs(&self, count: u16) -> io::Result<()> {
        for (index, lane) in (0..).zip(self.lanes.iter()).skip(1) {
            if index < count {
                *lane.receives() = true;
                lane.tap.set_attached(true)?;
            } else {
                lane.tap.set_attached(false)?;
                // Waits for a round of its thread that has begun.
                *lane.receives() = false;
            }
        }
        Ok(())
    }

    /// The driver is gone: only the first receives.
    pub(super) fn reset(&self) {
        if let Err(error) = self.use_pairs(1) {
            debug!(%error, "queues of a tap could not be detached");
        }
    }
}
