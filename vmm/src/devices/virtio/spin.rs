//! Looking again for a moment before going to sleep.
//!
//! A driver that does one request after the other has the next one ready within microseconds. To
//! sleep in between costs it a notification (an exit of its vCPU) and this thread a wake-up,
//! each of which may take longer than the request. So a worker looks at the ring for a moment
//! first, but only as long as that has been of use lately: the moment shrinks with each look in
//! vain, down to nothing, and comes back when a sleep turns out to have been short. A queue
//! without traffic costs no time.

use std::hint;
use std::time::{Duration, Instant};

/// The longest look.
const LONGEST: Duration = Duration::from_micros(32);

/// Looks shorter than this are left out.
const SHORTEST: Duration = Duration::from_micros(4);

/// How long to look, learnt from how it went before.
pub struct Spin {
    limit: Duration,
}

impl Spin {
    /// Starts with the longest look.
    pub fn new() -> Self {
        Self { limit: LONGEST }
    }

    /// Looks until `found` says true, or for as long as is worth it now; true if it did.
    pub fn look<E>(&mut self, mut found: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        if self.limit < SHORTEST {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            if found()? {
                self.limit = LONGEST;
                return Ok(true);
            }
            if start.elapsed() >= self.limit {
                self.limit /= 2;
                return Ok(false);
            }
            hint::spin_loop();
        }
    }

    /// Work came after a sleep of so long: a short one could have been spared.
    pub fn slept(&mut self, asleep: Duration) {
        if asleep <= LONGEST {
            self.limit = LONGEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn looks(spin: &mut Spin, found: bool) -> (bool, u32) {
        let mut looks = 0;
        let result = spin.look(|| {
            looks += 1;
            Ok::<_, Infallible>(found)
        });
        (result == Ok(true), looks)
    }

    #[test]
    fn looks_in_vain_come_to_an_end() {
        let mut spin = Spin::new();
        let in_vain = (0..10).filter(|_| looks(&mut spin, false).1 > 0).count();
        assert_eq!(in_vain, 4, "of 32, 16, 8 and 4 microseconds");
        assert_eq!(looks(&mut spin, true), (false, 0), "not even one look");
    }

    #[test]
    fn a_short_sleep_or_a_find_makes_the_look_long_again() {
        let mut spin = Spin::new();
        while looks(&mut spin, false).1 > 0 {}
        spin.slept(LONGEST * 2);
        assert_eq!(looks(&mut spin, true), (false, 0));
        spin.slept(LONGEST);
        assert_eq!(looks(&mut spin, true), (true, 1));
        looks(&mut spin, false);
        assert!(spin.limit < LONGEST);
        looks(&mut spin, true);
        assert_eq!(spin.limit, LONGEST);
    }
}
