//! Places where a test can have the process end as `kill -9` would end it.

use rustix::process::{Signal, getpid, kill_process};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The environment variable that names a step: `layer.published`, or `layer.published:3` for the
/// third time that the process comes there. Not set outside of tests.
pub const CRASH_AT: &str = "HEARTH_CRASH_AT";

/// The step at which this process is to end.
#[derive(Debug)]
struct Wanted {
    step: String,
    /// How many times it is still passed.
    passes: AtomicU32,
}

/// Ends the process at once, without any clean-up, if [`CRASH_AT`] names this step.
///
/// Stands between two steps of an operation that must survive a crash there. Names are
/// `thing.what-has-happened`; `docs/testing.md` says how they are tested. Costs a load and a
/// comparison when the variable is not set.
pub fn crash_point(step: &str) {
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| std::env::var(CRASH_AT).ok().and_then(|v| parse(&v)));
    if wanted.as_ref().is_some_and(|wanted| wanted.is_now(step)) {
        // A log that can't be written must not panic: that would clean up.
        let _ = writeln!(std::io::stderr(), "{CRASH_AT}: {step}");
        // Even if the signal could not be sent, nothing goes on from here.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort();
    }
}

fn parse(value: &str) -> Option<Wanted> {
    let (step, time) = match value.split_once(':') {
        Some((step, time)) => (step, time.parse().ok()?),
        None => (value, 1),
    };
    Some(Wanted {
        step: step.to_owned(),
        passes: AtomicU32::new(u32::checked_sub(time, 1)?),
    })
}

impl Wanted {
    fn is_now(&self, step: &str) -> bool {
        let pass = |left: u32| left.checked_sub(1);
        self.step == step
            && self
                .passes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pass)
                .is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_met_the_first_time_or_the_one_that_is_asked_for() {
        let first = parse("layer.published").expect("a step");
        assert!(!first.is_now("layer.written"));
        assert!(first.is_now("layer.published"));
        let third = parse("layer.published:3").expect("a step");
        let met: Vec<bool> = (0..3).map(|_| third.is_now("layer.published")).collect();
        assert_eq!(met, [false, false, true]);
    }

    #[test]
    fn what_is_no_step_ends_nothing() {
        for value in ["a:0", "a:x", "a:"] {
            assert!(parse(value).is_none(), "{value}");
        }
    }
}
