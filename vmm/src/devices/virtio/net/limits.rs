//! What all network interfaces of a machine together may carry in a second: as the agent says it.

use serde::{Deserialize, Serialize};

use crate::devices::virtio::pacing::limits::{Limit, LimitsError};

/// Limits in bytes of Ethernet frames, each direction by itself. Without any, nothing is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Of frames that the guest receives.
    #[serde(default)]
    pub received: Option<Limit>,
    /// Of frames that it sends.
    #[serde(default)]
    pub sent: Option<Limit>,
}

impl NetLimits {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let mut limits = self.received.iter().chain(&self.sent);
        limits.try_for_each(Limit::validate)
    }
}
