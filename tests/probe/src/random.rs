//! Random numbers for loads: fast and repeatable.

use crate::pattern;

/// A sequence that its seed determines.
pub struct Random {
    seed: u64,
    index: u64,
}

impl Random {
    /// Starts the sequence.
    pub fn new(seed: u64) -> Self {
        Self { seed, index: 0 }
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.index = self.index.wrapping_add(1);
        pattern::word(self.seed, self.index)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}
