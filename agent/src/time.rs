//! Points in time as the database keeps them: milliseconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub i64);

impl Millis {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Later by `duration`.
    pub fn after(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(millis))
    }

    /// How long from now until then; zero when it has passed.
    pub fn remaining(self) -> Duration {
        let left = self.0.saturating_sub(Self::now().0);
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

impl From<Millis> for prost_types::Timestamp {
    fn from(time: Millis) -> Self {
        Self {
            seconds: time.0.div_euclid(1000),
            // Below 10^9.
            nanos: i32::try_from(time.0.rem_euclid(1000)).unwrap_or(0) * 1_000_000,
        }
    }
}
