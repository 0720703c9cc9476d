//! What passed through a device, and what did not.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals since the device was made. "Received" and "sent" are the guest's words: it receives
/// what the host sends.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames that the guest got.
    pub received_frames: Counter,
    /// Their bytes, without headers of ours.
    pub received_bytes: Counter,
    /// Frames for the guest that had no room in its buffers, or were larger than it was told.
    pub receive_dropped: Counter,
    /// Frames of the guest that the tap took.
    pub sent_frames: Counter,
    /// Their bytes, without headers of ours.
    pub sent_bytes: Counter,
    /// Frames of the guest with a header that asks for what can't be.
    pub send_malformed: Counter,
    /// Frames of the guest that the tap refused: its interface is down, or the host has no
    /// memory.
    pub send_refused: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The total.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
