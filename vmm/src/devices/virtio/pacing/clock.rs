//! A clock that says when the next request may start (the generic cell rate algorithm).
//!
//! A bucket of tokens lets a burst through and then stalls whoever comes after it. A pacing clock
//! has no bucket: each request moves the clock on by what it costs, `cost / rate`, and the next
//! one starts when real time has caught up. So requests are spread evenly, and nobody waits for
//! longer than what was done before him costs.
//!
//! The clock may be a little behind real time (its *lag*): what a timer that fires late loses,
//! the following requests make up for, and the average rate is exact.
//!
//! A clock whose lag is hours holds that much unused time: those are burst credits.

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Instants are in nanoseconds since some instant of the machine's; negative before it.
pub type Nanos = i64;

/// One limit's clock.
#[derive(Clone, Debug)]
pub struct PacingClock {
    /// In a second.
    rate: u64,
    /// Most that the clock is behind.
    lag: Nanos,
    /// When the next request may start; may lie behind now by `lag`.
    next: Nanos,
    /// What `next` has been rounded down by, in 1/`rate` nanoseconds.
    fraction: u64,
}

impl PacingClock {
    /// A clock that lets a request through at once. `rate` is at least 1.
    pub fn new(rate: u64, lag: Nanos, now: Nanos) -> Self {
        Self {
            rate: rate.max(1),
            lag,
            next: now,
            fraction: 0,
        }
    }

    /// A clock that has `credits` of at most `most`: so many may be taken at once.
    pub fn with_credits(rate: u64, most: u64, credits: u64, now: Nanos) -> Self {
        let rate = rate.max(1);
        Self {
            rate,
            lag: duration(most, rate),
            next: now.saturating_sub(duration(credits.min(most), rate)),
            fraction: 0,
        }
    }

    /// When a request may start, as far as this clock goes.
    pub fn next(&self) -> Nanos {
        self.next
    }

    /// Lets the clock be behind by as much as `lag` at the next request only, if that is more than
    /// it may be anyway.
    pub fn advance_with_lag(&mut self, start: Nanos, cost: u64, lag: Nanos) {
        let usual = self.lag;
        self.lag = usual.max(lag);
        self.advance(start, cost);
        self.lag = usual;
    }

    /// A request of `cost` starts at `start`, which is not before [`next`](Self::next).
    pub fn advance(&mut self, start: Nanos, cost: u64) {
        let floor = start.saturating_sub(self.lag);
        if self.next < floor {
            self.next = floor;
            self.fraction = 0;
        }
        // No overflow: 2⁶⁴ · 10⁹ is less than 2⁹⁴.
        let total = u128::from(cost) * u128::from(SECOND) + u128::from(self.fraction);
        let whole = i64::try_from(total / u128::from(self.rate)).unwrap_or(i64::MAX);
        self.next = self.next.saturating_add(whole);
        // Less than the rate, which is a u64.
        self.fraction = (total % u128::from(self.rate)) as u64;
    }

    /// What may be taken at once.
    pub fn credits(&self, now: Nanos) -> u64 {
        let unused = now.saturating_sub(self.next).clamp(0, self.lag.max(0));
        let credits =
            u128::from(unused.unsigned_abs()) * u128::from(self.rate) / u128::from(SECOND);
        u64::try_from(credits).unwrap_or(u64::MAX)
    }
}

/// How long `cost` takes at `rate`, rounded up.
pub fn duration(cost: u64, rate: u64) -> Nanos {
    let nanos = (u128::from(cost) * u128::from(SECOND)).div_ceil(u128::from(rate.max(1)));
    // A quarter of the range: sums of a few durations and an instant don't overflow.
    i64::try_from(nanos).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_period_is_exact_over_a_second_even_where_it_is_not_whole() {
        for rate in [1, 3, 7, 100, 3000, 16_000, 64_000, 256_000, 999_983] {
            let mut clock = PacingClock::new(rate, 0, 0);
            for _ in 0..rate {
                clock.advance(clock.next(), 1);
            }
            assert_eq!(clock.next(), 1_000_000_000, "{rate}");
        }
    }

    #[test]
    fn credits_are_what_may_be_taken_at_once_and_come_back_at_the_rate() {
        let mut clock = PacingClock::with_credits(100, 5_400_000, 5_400_000, 0);
        assert_eq!(clock.credits(0), 5_400_000);
        // Full is full.
        assert_eq!(clock.credits(1_000_000_000), 5_400_000);
        clock.advance(0, 400_000);
        assert_eq!(clock.credits(0), 5_000_000);
        assert_eq!(clock.credits(10_000_000_000), 5_001_000);
        clock.advance(0, 5_000_000);
        assert_eq!(clock.credits(0), 0);
        assert_eq!(clock.next(), 0);
        clock.advance(0, 1);
        assert_eq!(clock.next(), 10_000_000, "at the baseline from here on");
    }

    #[test]
    fn the_largest_figures_do_not_overflow() {
        let mut clock = PacingClock::with_credits(1, 1 << 50, 0, i64::MAX / 4);
        for _ in 0..5 {
            clock.advance(clock.next(), u64::MAX);
        }
        assert_eq!(clock.credits(i64::MAX), 0);
        assert_eq!(clock.credits(i64::MIN), 0);
    }

    proptest! {
        /// Whoever comes when, at most `rate * (time + lag)` and one request goes through; and
        /// whoever always has something to do gets exactly the rate.
        #[test]
        fn the_average_is_the_rate(
            rate in 1u64..100_000,
            lag_us in 0i64..5_000,
            late_us in prop::collection::vec(0i64..2_000, 50..300),
        ) {
            let lag = lag_us * 1000;
            let mut clock = PacingClock::new(rate, lag, 0);
            let mut now = 0;
            let mut behind = true;
            for (count, late) in (0u64..).zip(&late_us) {
                // A timer that fires late; never later than the lag makes up for.
                now = now.max(clock.next()) + late * 1000;
                behind &= now - clock.next() <= lag;
                clock.advance(now, 1);
                let earned = u128::from((now + lag).unsigned_abs()) * u128::from(rate);
                prop_assert!(u128::from(count) * 1_000_000_000 <= earned);
            }
            if behind {
                let exact = (late_us.len() as u128) * 1_000_000_000 / u128::from(rate);
                prop_assert_eq!(u128::from(clock.next().unsigned_abs()), exact);
            }
        }
    }
}
