//! Latencies by the million without a list of them: counts in buckets that are at most 1/32 of
//! their value wide.

use alloc::boxed::Box;
use alloc::vec;

/// Buckets of an octave, as a power of two.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) * SUB as usize;

/// Counts of values.
pub struct Histogram {
    counts: Box<[u32]>,
    count: u64,
    max: u64,
    sum: u64,
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    (u64::from(shift + 1) * SUB + ((value >> shift) - SUB)) as usize
}

/// Largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    ((u128::from(SUB + bucket % SUB + 1) << shift) - 1).min(u64::MAX.into()) as u64
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            max: 0,
            sum: 0,
        }
    }
}

impl Histogram {
    /// Counts one value. Does not allocate.
    pub fn add(&mut self, value: u64) {
        let slot = &mut self.counts[bucket(value)];
        *slot = slot.saturating_add(1);
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 of none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The value that `per_100_000` of 100,000 values don't exceed; 0 of none.
    pub fn percentile(&self, per_100_000: u64) -> u64 {
        let wanted = (u128::from(self.count) * u128::from(per_100_000)).div_ceil(100_000) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted.max(1) {
                return upper(index).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_near_it() {
        for value in
            (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) + 1, (1 << bit) - 1 + (1 << bit)])
        {
            let top = upper(bucket(value));
            assert!(top >= value && top - value <= value / 32, "{value}: {top}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_list_within_a_thirtieth() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50_000), 0);
        for value in 1..=10_000 {
            histogram.add(value);
        }
        for (percent, exact) in [
            (50_000, 5_000),
            (90_000, 9_000),
            (99_000, 9_900),
            (99_900, 9_990),
        ] {
            let got = histogram.percentile(percent);
            assert!(
                got >= exact && got <= exact + exact / 30,
                "{percent}: {got}"
            );
        }
        assert_eq!(
            (histogram.max(), histogram.count(), histogram.mean()),
            (10_000, 10_000, 5_000)
        );
    }
}
