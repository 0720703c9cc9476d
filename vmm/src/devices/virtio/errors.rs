//! Errors on their way to the agent. A guest can cause any number of them, so their rate is
//! bounded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Gets the name of the device (a disk's serial, an interface's tap) and what went wrong.
pub type OnError = Arc<dyn Fn(&str, String) + Send + Sync>;

/// Messages that go through in each [`PERIOD`].
const BURST: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);

/// Reports the errors of one device.
pub struct ErrorReporter {
    serial: String,
    on_error: OnError,
    limit: Mutex<RateLimit>,
}

impl ErrorReporter {
    /// A reporter that has reported nothing yet.
    pub fn new(serial: String, on_error: OnError) -> Self {
        ErrorReporter {
            serial,
            on_error,
            limit: Mutex::default(),
        }
    }

    /// Reports, unless too much has been reported lately. The next report that goes through says
    /// how many did not.
    pub fn report(&self, message: String) {
        let admitted = self
            .limit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
        match admitted {
            None => {}
            Some(0) => (self.on_error)(&self.serial, message),
            Some(skipped) => (self.on_error)(
                &self.serial,
                format!("{message} (and {skipped} more errors before it)"),
            ),
        }
    }
}

#[derive(Default)]
struct RateLimit {
    period_start: Option<Instant>,
    admitted: u32,
    skipped: u64,
}

impl RateLimit {
    /// Whether something may pass at `now`; if so, how many things could not since the last one.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let over = |start| now.saturating_duration_since(start) >= PERIOD;
        if self.period_start.is_none_or(over) {
            self.period_start = Some(now);
            self.admitted = 0;
        }
        if self.admitted == BURST {
            self.skipped = self.skipped.saturating_add(1);
            return None;
        }
        self.admitted += 1;
        Some(std::mem::take(&mut self.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut limit = RateLimit::default();
        for _ in 0..BURST {
            assert_eq!(limit.admit(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.admit(start), None);
        }
        assert_eq!(limit.admit(start + PERIOD), Some(7));
        assert_eq!(limit.admit(start + PERIOD), Some(0));
    }
}
