//! What a disk, or a machine's disks together, may do in a second: as the agent says it.

use serde::{Deserialize, Serialize};

/// Largest rate and largest number of credits: far beyond any disk, and far from an overflow.
const MAX_FIGURE: u64 = 1 << 50;

/// Limits of one disk. Without any, nothing is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Operations; reads and writes together.
    #[serde(default)]
    pub operations: Option<Limit>,
    /// Bytes; read and written together.
    #[serde(default)]
    pub bytes: Option<Limit>,
    /// A longer operation counts as several; 0 counts any as one. In bytes.
    #[serde(default)]
    pub unit_bytes: u64,
    /// Operations that go on where the last one ended count together, up to `unit_bytes`.
    #[serde(default)]
    pub merge: bool,
}

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
/// in at [`Limit::per_second`], whether the disk is used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Burst {
    /// In a second, while there are credits.
    pub per_second: u64,
    /// Most credits that are kept.
    pub most_credits: u64,
    /// Credits now. Without them a disk that has some keeps them, and a new one gets the most.
    #[serde(default)]
    pub credits: Option<u64>,
}

/// Limits of all disks of a machine together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineLimits {
    /// Operations in a second, as each disk counts them.
    #[serde(default)]
    pub operations_per_second: Option<u64>,
    /// Bytes in a second.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

/// A figure that can't be.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: {value} is not in 1 to {MAX_FIGURE}")]
pub struct LimitsError {
    what: &'static str,
    value: u64,
}

fn check(what: &'static str, value: u64) -> Result<(), LimitsError> {
    match (1..=MAX_FIGURE).contains(&value) {
        true => Ok(()),
        false => Err(LimitsError { what, value }),
    }
}

impl DiskLimits {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), LimitsError> {
        for limit in self.operations.iter().chain(&self.bytes) {
            check("per_second", limit.per_second)?;
            if let Some(burst) = limit.burst {
                check("burst.per_second", burst.per_second)?;
                check("burst.most_credits", burst.most_credits)?;
            }
        }
        Ok(())
    }
}

impl MachineLimits {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), LimitsError> {
        for (what, value) in [
            ("operations_per_second", self.operations_per_second),
            ("bytes_per_second", self.bytes_per_second),
        ] {
            value.map_or(Ok(()), |value| check(what, value))?;
        }
        Ok(())
    }
}
