//! All clocks of one disk, or of a machine's disks together.

use super::count::Cost;
use super::limits::{DiskLimits, Limit, MachineLimits};
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::pacing::measure::Measure;

/// Hands out instants at which requests may start, in the order in which it is asked.
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    operations: Measure,
    bytes: Measure,
}

impl Pacer {
    /// Holds a disk to `limits` from `now` on. What was done before is forgotten, but for the
    /// credits of `before`.
    pub fn for_disk(limits: &DiskLimits, before: &Pacer, now: Nanos) -> Self {
        Self {
            operations: Measure::new(limits.operations, &before.operations, now),
            bytes: Measure::new(limits.bytes, &before.bytes, now),
        }
    }

    /// Holds all disks of a machine together to `limits`.
    pub fn for_machine(limits: &MachineLimits, now: Nanos) -> Self {
        let measure =
            |rate: Option<u64>| Measure::new(rate.map(Limit::steady), &Measure::default(), now);
        Self {
            operations: measure(limits.operations_per_second),
            bytes: measure(limits.bytes_per_second),
        }
    }

    /// Whether there is a limit at all.
    pub fn limits_anything(&self) -> bool {
        self.operations.limits_anything() || self.bytes.limits_anything()
    }

    /// When a request of `cost` may start: `now`, or later. The next one starts after it. `waited`
    /// says that it was there already when its queue's last one was done.
    pub fn reserve_for(&mut self, now: Nanos, cost: Cost, waited: bool) -> Nanos {
        // An operation that was paid for with an earlier one waits for no operation.
        let operations = self.operations.next().filter(|_| cost.operations > 0);
        let bytes = self.bytes.next().filter(|_| cost.bytes > 0);
        let start = operations.into_iter().chain(bytes).fold(now, Nanos::max);
        if cost.operations > 0 {
            self.operations.advance(start, cost.operations, waited);
        }
        if cost.bytes > 0 {
            self.bytes.advance(start, cost.bytes, waited);
        }
        start
    }

    /// [`reserve_for`](Self::reserve_for) a request that has just come.
    #[cfg(test)]
    pub fn reserve(&mut self, now: Nanos, cost: Cost) -> Nanos {
        self.reserve_for(now, cost, false)
    }

    /// Credits in operations and in bytes; `None` where there is no burst.
    pub fn credits(&self, now: Nanos) -> (Option<u64>, Option<u64>) {
        (self.operations.credits(now), self.bytes.credits(now))
    }
}

#[cfg(test)]
mod tests;
