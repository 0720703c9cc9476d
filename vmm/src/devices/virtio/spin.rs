//! Looking again for a moment before going to sleep.
//!
//! A driver that does one request after the other has the next one ready within microseconds. To
//! sleep in between costs it a notification (an exit of its vCPU) and this thread a wake-up,
//! each of which may take longer than the request. So a worker looks at the ring for a moment
//! first, but only as long as that has been of use lately: the moment shrinks with each look in
//! vain, down to nothing, and comes back when a sleep turns out to have been so short that a look
//! would have spared it. A queue without traffic costs no time.
//!
//! Where the guest and this thread share a CPU, a look only keeps the guest from making the next
//! request, and each sleep is short. So a look that was to spare a sleep and did not makes the next
//! one take more short sleeps to come back, twice as many each time; one that finds something halves
//! their number.

use std::hint;
use std::time::{Duration, Instant};

/// The longest look.
const LONGEST: Duration = Duration::from_micros(32);

/// Looks shorter than this are left out.
const SHORTEST: Duration = Duration::from_micros(4);

/// Most short sleeps that it takes for looks to come back.
const MOST_DOUBT: u32 = 127;

/// How long to look, learnt from how it went before.
pub struct Spin {
    limit: Duration,
    /// How long the last look took, if it was in vain.
    in_vain: Duration,
    /// Short sleeps since looks came back.
    short_sleeps: u32,
    /// How many of them must be more than this before looks come back.
    doubt: u32,
    /// Looks have just come back.
    on_trial: bool,
}

impl Spin {
    /// Starts with the longest look.
    pub fn new() -> Self {
        Self {
            limit: LONGEST,
            in_vain: Duration::ZERO,
            short_sleeps: 0,
            doubt: 0,
            on_trial: true,
        }
    }

    /// Looks until `found` says true, or for as long as is worth it now; true if it did.
    pub fn look<E>(&mut self, mut found: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
        self.in_vain = Duration::ZERO;
        if self.limit < SHORTEST {
            return Ok(false);
        }
        // What is there already has been spared nothing.
        if found()? {
            return Ok(true);
        }
        let start = Instant::now();
        loop {
            if found()? {
                self.found();
                return Ok(true);
            }
            let elapsed = start.elapsed();
            if elapsed >= self.limit {
                self.found_nothing(elapsed);
                return Ok(false);
            }
            hint::spin_loop();
        }
    }

    /// Work came after a sleep of so long, which followed the last look.
    pub fn slept(&mut self, asleep: Duration) {
        if self.in_vain + asleep > LONGEST {
            return;
        }
        self.short_sleeps += 1;
        if self.short_sleeps > self.doubt {
            self.short_sleeps = 0;
            self.limit = LONGEST;
            self.on_trial = true;
        }
    }

    fn found(&mut self) {
        self.limit = LONGEST;
        self.doubt /= 2;
        self.on_trial = false;
    }

    fn found_nothing(&mut self, elapsed: Duration) {
        self.limit /= 2;
        self.in_vain = elapsed;
        if std::mem::take(&mut self.on_trial) {
            self.doubt = (2 * self.doubt + 1).min(MOST_DOUBT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Whether something was found, and how often it was looked for; it comes with the second time.
    fn looks(spin: &mut Spin, found: bool) -> (bool, u32) {
        let mut looks = 0;
        let result = spin.look(|| {
            looks += 1;
            Ok::<_, Infallible>(found && looks > 1)
        });
        (result == Ok(true), looks)
    }

    /// Until looks are left out.
    fn tire(spin: &mut Spin) -> usize {
        (0..10).filter(|_| looks(spin, false).1 > 0).count()
    }

    #[test]
    fn looks_in_vain_come_to_an_end() {
        let mut spin = Spin::new();
        assert_eq!(tire(&mut spin), 4, "of 32, 16, 8 and 4 microseconds");
        assert_eq!(looks(&mut spin, true), (false, 0), "not even one look");
    }

    #[test]
    fn short_sleeps_or_a_find_make_the_look_long_again() {
        let mut spin = Spin::new();
        tire(&mut spin);
        spin.slept(LONGEST * 2);
        assert_eq!(looks(&mut spin, true), (false, 0));
        for _ in 0..2 {
            spin.slept(LONGEST);
        }
        assert_eq!(looks(&mut spin, true), (true, 2));
        looks(&mut spin, false);
        assert!(spin.limit < LONGEST);
        looks(&mut spin, true);
        assert_eq!(spin.limit, LONGEST);
        // Nothing is left of the doubt.
        tire(&mut spin);
        spin.slept(LONGEST);
        assert_eq!(looks(&mut spin, true), (true, 2));
    }

    #[test]
    fn a_sleep_that_the_longest_look_would_not_have_spared_is_not_short() {
        let mut spin = Spin::new();
        looks(&mut spin, false);
        spin.slept(Duration::from_micros(1));
        assert_eq!(spin.limit, LONGEST / 2);
    }

    #[test]
    fn what_is_there_already_says_nothing_of_looks() {
        let mut spin = Spin::new();
        looks(&mut spin, false);
        assert_eq!(spin.look(|| Ok::<_, Infallible>(true)), Ok(true));
        assert_eq!(spin.limit, LONGEST / 2);
    }

    #[test]
    fn looks_that_spare_no_sleep_become_rare() {
        let mut spin = Spin::new();
        let mut in_vain = 0;
        for _ in 0..2000 {
            in_vain += u32::from(looks(&mut spin, false).1 > 0);
            spin.slept(Duration::from_nanos(1));
        }
        assert!(in_vain < 150, "{in_vain} looks before 2000 short sleeps");
        assert!(in_vain > 40, "{in_vain}: they are tried again and again");
    }

    #[test]
    fn a_find_now_and_then_is_not_worth_many_looks_in_vain() {
        let mut spin = Spin::new();
        let mut in_vain = 0;
        for number in 0..2000 {
            // One request in seven comes at once.
            let (found, looked) = looks(&mut spin, number % 7 == 0);
            in_vain += u32::from(!found && looked > 0);
            spin.slept(Duration::from_nanos(1));
        }
        assert!(in_vain < 400, "{in_vain} looks in vain of 2000");
    }
}
