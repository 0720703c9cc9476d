//! How much one instance may ask.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Questions a second on one tap, as EC2 allows them on one interface.
pub const PER_SECOND: u32 = 1024;

/// A bucket of [`PER_SECOND`] tokens that fills up within a second.
#[derive(Debug)]
pub struct Rate(Mutex<(f64, Instant)>);

impl Default for Rate {
    fn default() -> Self {
        Self(Mutex::new((f64::from(PER_SECOND), Instant::now())))
    }
}

impl Rate {
    /// Whether one more is allowed now.
    pub fn allows(&self) -> bool {
        self.allows_at(Instant::now())
    }

    fn allows_at(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, since) = *state;
        let most = f64::from(PER_SECOND);
        let gained = now.saturating_duration_since(since).as_secs_f64() * most;
        let tokens = (tokens + gained).min(most);
        let allowed = tokens >= 1.0;
        *state = (if allowed { tokens - 1.0 } else { tokens }, now);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_is_empty_after_its_tokens_and_fills_up_again() {
        let rate = Rate::default();
        let now = Instant::now() + Duration::from_secs(10);
        let allowed = (0..2000).filter(|_| rate.allows_at(now)).count();
        assert_eq!(allowed, 1024);
        let later = now + Duration::from_millis(500);
        let allowed = (0..2000).filter(|_| rate.allows_at(later)).count();
        assert_eq!(allowed, 512);
    }
}
