//! The clocks of one limit.

use super::clock::{Nanos, PacingClock, duration};
use super::limits::Limit;

/// What a timer that fires late may lose and the following work makes up for: 2 ms, and at
/// least one period.
pub const LAG: Nanos = 2_000_000;

/// The same for work that was there already when the piece before it was done: the guest would
/// have had it served in time, so that it is the host that is late.
pub const BUSY_LAG: Nanos = 50_000_000;

/// The clocks of one measure: operations, or bytes.
#[derive(Clone, Debug, Default)]
pub struct Measure {
    /// The rate that is never exceeded.
    pace: Option<PacingClock>,
    /// Holds the credits, and lets one baseline's worth through when there are none.
    credits: Option<PacingClock>,
}

impl Measure {
    /// Holds to `limit` from `now` on, if there is one. What was done before is forgotten, but for
    /// the credits of `before`.
    pub fn new(limit: Option<Limit>, before: &Measure, now: Nanos) -> Self {
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

    /// Whether there is a limit at all.
    pub fn limits_anything(&self) -> bool {
        self.pace.is_some()
    }

    /// When the next piece of work may start; `None` if it always may.
    pub fn next(&self) -> Option<Nanos> {
        self.clocks().map(PacingClock::next).max()
    }

    /// Work of `cost` starts at `start`. With `busy` it was there already when the piece before
    /// it was done.
    pub fn advance(&mut self, start: Nanos, cost: u64, busy: bool) {
        let lag = if busy { BUSY_LAG } else { 0 };
        for clock in self.pace.iter_mut().chain(&mut self.credits) {
            clock.advance_with_lag(start, cost, lag);
        }
    }

    /// The burst credits; `None` where there is no burst.
    pub fn credits(&self, now: Nanos) -> Option<u64> {
        self.credits.as_ref().map(|clock| clock.credits(now))
    }

    fn clocks(&self) -> impl Iterator<Item = &PacingClock> {
        self.pace.iter().chain(&self.credits)
    }
}
