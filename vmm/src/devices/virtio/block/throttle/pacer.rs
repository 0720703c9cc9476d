//! All clocks of one disk, or of a machine's disks together.

use super::clock::{Nanos, PacingClock, duration};
use super::count::Cost;
use super::limits::{DiskLimits, Limit, MachineLimits};

/// What a timer that fires late may lose and the following requests make up for: 2 ms, and at
/// least one period.
const LAG: Nanos = 2_000_000;

/// The same for a request that was there already when the one before it was done: the guest would
/// have had it served in time, so that it is the host that is late.
const BUSY_LAG: Nanos = 50_000_000;

/// The clocks of one measure: operations, or bytes.
#[derive(Clone, Debug, Default)]
struct Measure {
    /// The rate that is never exceeded.
    pace: Option<PacingClock>,
    /// Holds the credits, and lets one baseline's worth through when there are none.
    credits: Option<PacingClock>,
}

impl Measure {
    fn new(limit: Option<Limit>, before: &Measure, now: Nanos) -> Self {
        let Some(limit) = limit else {
            return Self::default();
        };
        let pace = |rate| PacingClock::new(rate, duration(1, rate).max(LAG), now);
        match limit.burst {
            Some(burst) if burst.per_second > limit.per_second => {
                let kept = before.credits.as_ref().map(|clock| clock.credits(now));
                let credits = burst.credits.or(kept).unwrap_or(burst.most_credits);
                let (rate, most) = (limit.per_second, burst.most_credits);
                Self {
                    pace: Some(pace(burst.per_second)),
                    credits: Some(PacingClock::with_credits(rate, most, credits, now)),
                }
            }
            _ => Self {
                pace: Some(pace(limit.per_second)),
                credits: None,
            },
        }
    }

    fn clocks(&self) -> impl Iterator<Item = &PacingClock> {
        self.pace.iter().chain(&self.credits)
    }

    fn advance(&mut self, start: Nanos, cost: u64, lag: Nanos) {
        for clock in self.pace.iter_mut().chain(&mut self.credits) {
            clock.advance_with_lag(start, cost, lag);
        }
    }
}

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
        let measure = |rate: Option<u64>| {
            let limit = rate.map(|per_second| Limit {
                per_second,
                burst: None,
            });
            Measure::new(limit, &Measure::default(), now)
        };
        Self {
            operations: measure(limits.operations_per_second),
            bytes: measure(limits.bytes_per_second),
        }
    }

    /// Whether there is a limit at all.
    pub fn limits_anything(&self) -> bool {
        self.operations.pace.is_some() || self.bytes.pace.is_some()
    }

    /// When a request of `cost` may start: `now`, or later. The next one starts after it. `waited`
    /// says that it was there already when its queue's last one was done.
    pub fn reserve_for(&mut self, now: Nanos, cost: Cost, waited: bool) -> Nanos {
        let lag = if waited { BUSY_LAG } else { 0 };
        // An operation that was paid for with an earlier one waits for no operation.
        let operations = self.operations.clocks().filter(|_| cost.operations > 0);
        let bytes = self.bytes.clocks().filter(|_| cost.bytes > 0);
        let start = operations
            .chain(bytes)
            .map(PacingClock::next)
            .fold(now, Nanos::max);
        if cost.operations > 0 {
            self.operations.advance(start, cost.operations, lag);
        }
        if cost.bytes > 0 {
            self.bytes.advance(start, cost.bytes, lag);
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
        let of = |measure: &Measure| measure.credits.as_ref().map(|clock| clock.credits(now));
        (of(&self.operations), of(&self.bytes))
    }
}

#[cfg(test)]
mod tests;
