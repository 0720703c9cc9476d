//! A limit as the agent says it: a rate, and perhaps a burst.

use serde::{Deserialize, Serialize};

/// Largest rate and largest number of credits: far beyond any device, and far from an overflow.
const MAX_FIGURE: u64 = 1 << 50;

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// In a second, for as long as one likes; at least 1.
    pub per_second: u64,
    /// What may be done beyond it for a while.
    #[serde(default)]
    pub burst: Option<Burst>,
}

/// A higher rate that is paid with credits. One credit is one operation or one byte; they come
/// in at [`Limit::per_second`], whether the device is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// In a second, while there are credits.
    pub per_second: u64,
    /// Most credits that are kept.
    pub most_credits: u64,
    /// Credits now. Without them a device that has some keeps them, and a new one gets the most.
    #[serde(default)]
    pub credits: Option<u64>,
}

/// A figure that can't be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: {value} is not in 1 to {MAX_FIGURE}")]
pub struct LimitsError {
    what: &'static str,
    value: u64,
}

/// Checks a figure that goes by the name `what`.
pub fn check(what: &'static str, value: u64) -> Result<(), LimitsError> {
    match (1..=MAX_FIGURE).contains(&value) {
        true => Ok(()),
        false => Err(LimitsError { what, value }),
    }
}

impl Limit {
    /// A rate without a burst.
    pub fn steady(per_second: u64) -> Self {
        Self {
            per_second,
            burst: None,
        }
    }

    /// Checks every figure.
    pub fn validate(&self) -> Result<(), LimitsError> {
        check("per_second", self.per_second)?;
        if let Some(burst) = self.burst {
            check("burst.per_second", burst.per_second)?;
            check("burst.most_credits", burst.most_credits)?;
        }
        Ok(())
    }
}
