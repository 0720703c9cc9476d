//! Holds a machine's interfaces together to their bytes per second.
//!
//! A frame may pass when the direction's clock has come; what it costs moves the clock on, so that
//! the next one waits for it. So the cost need not be known before: of a frame for the guest
//! nobody knows it. Threads that pass at the same time each move the clock on by their own, and
//! the average stays exact.
//!
//! A thread that may not send leaves the frames in the guest's queue, which fills, as before any
//! slow link. One that may not receive leaves them in the tap, which drops what is more than its
//! queue holds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::limits::NetLimits;
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::pacing::limits::Limit;
use crate::devices::virtio::pacing::measure::Measure;

/// What all interfaces of a machine share.
pub struct NetThrottle {
    epoch: Instant,
    limits: NetLimits,
    /// Frames that the guest receives.
    pub(super) received: Meter,
    /// Frames that it sends.
    pub(super) sent: Meter,
}

impl NetThrottle {
    /// Interfaces that share it are together held to `limits`.
    pub fn new(limits: &NetLimits) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            limits: *limits,
            received: Meter::new(limits.received),
            sent: Meter::new(limits.sent),
        })
    }

    /// What they are held to.
    pub fn limits(&self) -> NetLimits {
        self.limits
    }

    /// The burst credits now, in bytes received and sent; `None` where there is no burst.
    pub fn credits(&self) -> (Option<u64>, Option<u64>) {
        let now = self.now();
        (self.received.credits(now), self.sent.credits(now))
    }

    /// The time of the clocks.
    pub(super) fn now(&self) -> Nanos {
        i64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

/// One direction.
pub(super) struct Meter {
    measure: Option<Mutex<Measure>>,
}

impl Meter {
    fn new(limit: Option<Limit>) -> Self {
        let measure = |limit| Mutex::new(Measure::new(Some(limit), &Measure::default(), 0));
        Self {
            measure: limit.map(measure),
        }
    }

    /// Whether there is a limit.
    pub(super) fn limits_anything(&self) -> bool {
        self.measure.is_some()
    }

    /// When the next frame may pass, if that is after `now`.
    pub(super) fn closed_until(&self, now: Nanos) -> Option<Nanos> {
        self.lock()?.next().filter(|&next| next > now)
    }

    /// A frame of `bytes` passes at `now`. With `busy` it was there already when the one before
    /// it had passed.
    pub(super) fn passed(&self, now: Nanos, bytes: usize, busy: bool) {
        if let Some(mut measure) = self.lock() {
            measure.advance(now, bytes as u64, busy);
        }
    }

    fn credits(&self, now: Nanos) -> Option<u64> {
        self.lock()?.credits(now)
    }

    fn lock(&self) -> Option<MutexGuard<'_, Measure>> {
        let measure = self.measure.as_ref()?;
        Some(measure.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::virtio::pacing::limits::Burst;
    use crate::devices::virtio::pacing::measure::LAG;

    const SECOND: Nanos = 1_000_000_000;

    fn steady(per_second: u64) -> Meter {
        Meter::new(Some(Limit::steady(per_second)))
    }

    /// Lets as many frames of `bytes` pass as may, by threads that wake up `late` nanoseconds
    /// after it is time, up to `end`. Gives when each passed.
    fn saturate(
        meter: &Meter,
        threads: usize,
        bytes: usize,
        late: Nanos,
        end: Nanos,
    ) -> Vec<Nanos> {
        let mut wakes = vec![0; threads];
        let mut passed = Vec::new();
        loop {
            let (thread, now) = (0..)
                .zip(&wakes)
                .map(|(thread, &wake): (usize, _)| (thread, wake))
                .min_by_key(|&(_, wake)| wake)
                .expect("a thread");
            if now >= end {
                return passed;
            }
            match meter.closed_until(now) {
                Some(next) => wakes[thread] = next + late,
                None => {
                    meter.passed(now, bytes, true);
                    passed.push(now);
                }
            }
        }
    }

    #[test]
    fn the_rate_is_kept_exactly_whoever_wakes_late_and_in_how_many_threads() {
        for (rate, bytes, threads, late) in [
            (4_000_000, 1514, 1, 0),
            (4_000_000, 1514, 8, 60_000),
            (625_000_000, 65_549, 2, 200_000),
            (1_250_000_000, 64, 4, 1_000_000),
        ] {
            let meter = steady(rate);
            let end = 2 * SECOND;
            let passed = saturate(&meter, threads, bytes, late, end);
            let sum = passed.len() as u64 * bytes as u64;
            // What may be late at the end, and the first frame, which nobody waits for.
            let slack = 1 + bytes as u64 + rate * late as u64 / SECOND as u64;
            assert!(
                sum.abs_diff(2 * rate) <= slack,
                "{rate}: {sum} of {}",
                2 * rate
            );
        }
    }

    #[test]
    fn frames_are_spread_evenly() {
        // 1514 bytes take 1.514 ms.
        let passed = saturate(&steady(1_000_000), 3, 1514, 0, 10 * SECOND);
        assert!(passed.windows(2).all(|pair| pair[1] - pair[0] == 1_514_000));
    }

    #[test]
    fn an_idle_link_lets_no_more_than_the_lag_through_at_once() {
        let meter = steady(1_000_000);
        let now = 3600 * SECOND;
        let mut count = 0;
        while meter.closed_until(now).is_none() {
            meter.passed(now, 100, false);
            count += 1;
        }
        assert_eq!(count, 21, "2 ms' worth, and the one that is due");
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let meter = Meter::new(None);
        meter.passed(0, usize::MAX, false);
        assert_eq!(meter.closed_until(0), None);
        assert!(!meter.limits_anything());
    }

    #[test]
    fn a_burst_lasts_as_long_as_its_credits() {
        let burst = Burst {
            per_second: 5_000_000,
            most_credits: 40_000_000,
            credits: None,
        };
        let meter = Meter::new(Some(Limit {
            per_second: 1_000_000,
            burst: Some(burst),
        }));
        assert_eq!(meter.credits(0), Some(40_000_000));
        let passed = saturate(&meter, 2, 1000, 0, 20 * SECOND);
        let bytes_in = |from: Nanos, to: Nanos| {
            let during = passed
                .iter()
                .filter(|&&at| (from * SECOND..to * SECOND).contains(&at));
            1000 * during.count()
        };
        // 40 MB of credits, and 1 MB comes in each second: 10 seconds at 5 MB/s.
        assert!(
            bytes_in(0, 10).abs_diff(50_000_000) <= 2000,
            "{}",
            bytes_in(0, 10)
        );
        assert!(
            bytes_in(11, 20).abs_diff(9_000_000) <= 2000,
            "{}",
            bytes_in(11, 20)
        );
        assert!(meter.credits(20 * SECOND) < Some(2000));
    }

    proptest! {
        /// Against the definition: in no interval is there more than the rate allows in it, the
        /// lag and one frame aside.
        #[test]
        fn no_interval_exceeds_the_limit(
            rate in 1_000u64..1 << 30,
            frames in prop::collection::vec((0i64..20_000_000, 1usize..70_000), 1..120),
        ) {
            let meter = steady(rate);
            let mut now = 0;
            let mut passed: Vec<(Nanos, usize)> = Vec::new();
            for (pause, bytes) in frames {
                now += pause;
                now = now.max(meter.closed_until(now).unwrap_or(now));
                prop_assert_eq!(meter.closed_until(now), None);
                meter.passed(now, bytes, false);
                passed.push((now, bytes));
            }
            for from in 0..passed.len() {
                let mut sum = 0u128;
                for to in from + 1..passed.len() {
                    sum += passed[to - 1].1 as u128;
                    let time = (passed[to].0 - passed[from].0 + LAG) as u128;
                    let most = time * u128::from(rate) / SECOND as u128 + 1;
                    prop_assert!(sum <= most, "{sum} bytes, {most} allowed");
                }
            }
        }
    }
}
