//! Pacing on a clock of the tests' own.

use proptest::prelude::*;

use super::super::limits::Burst;
use super::*;
use crate::devices::virtio::pacing::measure::LAG;

const SECOND: Nanos = 1_000_000_000;

fn steady(per_second: u64) -> Option<Limit> {
    Some(Limit::steady(per_second))
}

fn limits(operations: Option<Limit>, bytes: Option<Limit>) -> DiskLimits {
    DiskLimits {
        operations,
        bytes,
        ..DiskLimits::default()
    }
}

fn pacer(limits: &DiskLimits) -> Pacer {
    Pacer::for_disk(limits, &Pacer::default(), 0)
}

fn cost(operations: u64, bytes: u64) -> Cost {
    Cost { operations, bytes }
}

/// Starts of requests by `queues` that always have the next one ready, in their order, up to
/// `end`. Each request is executed in `takes`.
fn saturate(
    pacer: &mut Pacer,
    queues: usize,
    takes: Nanos,
    end: Nanos,
    each: Cost,
) -> Vec<Vec<Nanos>> {
    let mut free = vec![0; queues];
    let mut starts = vec![Vec::new(); queues];
    loop {
        let queue = (0..queues)
            .min_by_key(|&queue| free[queue])
            .expect("a queue");
        let start = pacer.reserve(free[queue], each);
        if start >= end {
            return starts;
        }
        starts[queue].push(start);
        free[queue] = start + takes;
    }
}

#[test]
fn at_the_limit_starts_are_spread_evenly_and_exact_over_ten_seconds() {
    for (rate, queues) in [(100, 1), (3_000, 1), (3_000, 4), (16_000, 2), (64_000, 4)] {
        let period = SECOND / rate as Nanos;
        let mut pacer = pacer(&limits(steady(rate), None));
        let starts = saturate(&mut pacer, queues, period / 2, 10 * SECOND, cost(1, 4096));
        let count: usize = starts.iter().map(Vec::len).sum();
        assert_eq!(count as u64, 10 * rate);
        let mut all: Vec<Nanos> = starts.concat();
        all.sort_unstable();
        for pair in all.windows(2) {
            let gap = pair[1] - pair[0];
            assert!((gap - period).abs() <= 1, "{rate}: a gap of {gap} ns");
        }
        // Fair: each queue gets its part.
        for queue in &starts {
            let part = 10 * rate as usize / queues;
            assert!(queue.len().abs_diff(part) <= 1, "{} of {part}", queue.len());
        }
    }
}

#[test]
fn the_tighter_of_two_limits_holds() {
    let both = limits(steady(3_000), steady(1 << 20));
    let mut large = pacer(&both);
    let starts = saturate(&mut large, 2, 1000, 10 * SECOND, cost(1, 64 << 10));
    assert_eq!(starts.concat().len(), 160, "1 MiB/s in pieces of 64 KiB");
    let mut small = pacer(&both);
    let starts = saturate(&mut small, 2, 1000, SECOND, cost(1, 16));
    assert_eq!(starts.concat().len(), 3_000);
}

#[test]
fn an_idle_disk_gets_no_more_than_the_lag_afterwards() {
    let mut pacer = pacer(&limits(steady(10_000), None));
    let now = 3600 * SECOND;
    let at_once = (0..1000)
        .take_while(|_| pacer.reserve(now, cost(1, 0)) == now)
        .count();
    assert_eq!(at_once, 21, "2 ms' worth and the one that is due");
}

#[test]
fn what_the_host_was_late_with_is_made_up_for_when_the_guest_was_waiting() {
    let late = |waited| {
        let mut pacer = pacer(&limits(steady(1_000), None));
        pacer.reserve(0, cost(1, 0));
        // 30 ms later than it could be.
        let now = 31 * SECOND / 1000;
        let due = (0..100).take_while(|_| pacer.reserve_for(now, cost(1, 0), waited) == now);
        due.count()
    };
    assert_eq!((late(false), late(true)), (3, 31));
}

#[test]
fn what_was_merged_waits_for_no_operation() {
    let mut pacer = pacer(&limits(steady(1), steady(1 << 30)));
    assert_eq!(pacer.reserve(0, cost(1, 4096)), 0);
    for _ in 0..10 {
        assert!(pacer.reserve(0, cost(0, 4096)) < SECOND / 1000);
    }
    assert!(pacer.reserve(0, cost(1, 4096)) >= SECOND);
}

fn gp2() -> DiskLimits {
    limits(
        Some(Limit {
            per_second: 100,
            burst: Some(Burst {
                per_second: 3_000,
                most_credits: 58_000,
                credits: None,
            }),
        }),
        None,
    )
}

#[test]
fn a_burst_lasts_as_long_as_its_credits_and_then_the_baseline_is_kept_evenly() {
    let mut pacer = pacer(&gp2());
    assert_eq!(pacer.credits(0), (Some(58_000), None));
    // 58,000 credits, and 100 come in each second: 20 seconds at 3,000.
    let starts = saturate(&mut pacer, 1, 1000, 30 * SECOND, cost(1, 4096)).concat();
    let in_second = |second: Nanos| {
        let range = second * SECOND..(second + 1) * SECOND;
        starts.iter().filter(|start| range.contains(start)).count()
    };
    for second in 0..19 {
        assert!(in_second(second).abs_diff(3_000) <= 1, "{second}");
    }
    for second in 21..30 {
        assert!(in_second(second).abs_diff(100) <= 1, "{second}");
    }
    let last: Vec<Nanos> = starts
        .iter()
        .copied()
        .filter(|&s| s > 22 * SECOND)
        .collect();
    assert!(
        last.windows(2)
            .all(|pair| pair[1] - pair[0] == SECOND / 100)
    );
}

#[test]
fn credits_outlive_new_limits_or_are_set_by_them() {
    let mut pacer = pacer(&gp2());
    for _ in 0..8_000 {
        pacer.reserve(0, cost(1, 0));
    }
    assert_eq!(pacer.credits(0).0, Some(50_000));
    let mut larger = gp2();
    let limit = larger.operations.as_mut().expect("operations");
    limit.per_second = 300;
    let after = Pacer::for_disk(&larger, &pacer, 0);
    assert_eq!(after.credits(0).0, Some(50_000));
    assert_eq!(after.credits(SECOND).0, Some(50_300));
    larger
        .operations
        .as_mut()
        .expect("operations")
        .burst
        .as_mut()
        .expect("burst")
        .credits = Some(7);
    assert_eq!(Pacer::for_disk(&larger, &pacer, 0).credits(0).0, Some(7));
    assert_eq!(
        Pacer::for_disk(&limits(steady(9), None), &pacer, 0).credits(0),
        (None, None)
    );
}

#[test]
fn new_limits_forget_what_was_owed() {
    let slow = limits(None, steady(1 << 20));
    let mut pacer = pacer(&slow);
    pacer.reserve(0, cost(1, 1 << 30));
    assert!(pacer.reserve(0, cost(1, 1)) > 1000 * SECOND);
    let mut fast = Pacer::for_disk(&limits(None, steady(1 << 30)), &pacer, SECOND);
    assert_eq!(fast.reserve(SECOND, cost(1, 1)), SECOND);
}

proptest! {
    /// Against the definition: in no interval are there more operations or bytes than the rate
    /// allows in it, the lag and one request at either end aside.
    #[test]
    fn no_interval_exceeds_the_limits(
        operations in 1u64..20_000,
        bytes in 1u64..1 << 30,
        requests in prop::collection::vec((0i64..20_000_000, 0u64..5, 0u64..1 << 20), 1..120),
    ) {
        let mut pacer = pacer(&limits(steady(operations), steady(bytes)));
        let mut now = 0;
        let mut started: Vec<(Nanos, u64, u64)> = Vec::new();
        for (pause, ops, len) in requests {
            now += pause;
            let start = pacer.reserve(now, cost(ops, len));
            prop_assert!(start >= now);
            started.push((start, ops, len));
            now = start;
        }
        for from in 0..started.len() {
            let (mut ops, mut len) = (0u128, 0u128);
            // What the last one costs is paid by who comes after it.
            for to in from + 1..started.len() {
                ops += u128::from(started[to - 1].1);
                len += u128::from(started[to - 1].2);
                let time = (started[to].0 - started[from].0 + LAG) as u128;
                let period = u128::from(SECOND as u64).div_ceil(u128::from(operations));
                if started[to].1 > 0 {
                    let most = (time + period) * u128::from(operations) / SECOND as u128 + 1;
                    prop_assert!(ops <= most, "{ops} operations, {most} allowed");
                }
                if started[to].2 > 0 {
                    let most = time * u128::from(bytes) / SECOND as u128 + 1;
                    prop_assert!(len <= most, "{len} bytes, {most} allowed");
                }
            }
        }
    }

    /// A run of random requests, arrivals and credits against a bucket that is filled and
    /// emptied by the book.
    #[test]
    fn credits_are_those_of_a_bucket(
        rate in 1u64..1000,
        most in 1u64..100_000,
        steps in prop::collection::vec((0i64..3_000, 0u64..50), 1..100),
    ) {
        let burst = Burst { per_second: 1 << 40, most_credits: most, credits: None };
        let limit = Limit { per_second: rate, burst: Some(burst) };
        let mut pacer = pacer(&limits(Some(limit), None));
        let (mut now, mut bucket) = (0, most as f64);
        for (pause_ms, ops) in steps {
            let pause = pause_ms * 1_000_000;
            now += pause;
            bucket = (bucket + pause as f64 / 1e9 * rate as f64).min(most as f64);
            if ops > 0 {
                let start = pacer.reserve(now, cost(ops, 0));
                let waited = (start - now) as f64 / 1e9;
                bucket = (bucket + waited * rate as f64).min(most as f64) - ops as f64;
                now = start;
            }
            let credits = pacer.credits(now).0.expect("burst") as f64;
            prop_assert!((credits - bucket.max(0.0)).abs() <= 1.5, "{credits}, {bucket}");
        }
    }
}
