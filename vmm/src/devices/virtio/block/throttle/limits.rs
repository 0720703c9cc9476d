//! What a disk, or a machine's disks together, may do in a second: as the agent says it.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::pacing::limits::check;

pub use crate::devices::virtio::pacing::limits::{Burst, Limit, LimitsError};

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

impl DiskLimits {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let mut limits = self.operations.iter().chain(&self.bytes);
        limits.try_for_each(Limit::validate)
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
