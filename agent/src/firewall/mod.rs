//! Holds what security groups, isolation, address translation and anti-spoofing want, as rules of
//! nftables in tables of our own (`inet hearth`, `arp hearth`). docs/firewall.md draws them.
//!
//! [`policy`] says what is wanted. [`compile`] makes [`table`]s of it, [`netlink`] brings them into
//! the kernel and reads them back, [`conntrack`] ends connections that are no longer admitted, and
//! [`explain`] says of one packet what becomes of it, independently of all these.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use thiserror::Error;
use tokio::sync::oneshot;

mod claim;
pub mod compile;
mod conntrack;
mod engine;
pub mod explain;
pub mod flows;
mod netlink;
pub mod policy;
pub mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use claim::Owner;
pub use engine::wait_for_packets;
use engine::{Engine, Request};
use netlink::NetlinkError;
pub use netlink::read::Counter;
use policy::{Change, Policy};
pub use watch::listen;

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

/// Rules that were not what they should be, and are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repair {
    /// How many objects of the tables differed.
    pub differences: usize,
    /// Some of them, in words.
    pub named: Vec<String>,
}

/// Packets of an interface that were refused, since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// From addresses that are not its own, or posing as a server or router.
    pub spoofed: Counter,
    /// Sent, and no rule allows it.
    pub egress: Counter,
    /// For it, and no rule allows it.
    pub ingress: Counter,
    /// To the host, for something that it does not serve.
    pub host: Counter,
}

/// Why rules are not in force.
#[derive(Clone, Debug, Error)]
pub enum FirewallError {
    /// The kernel did not take them, or another agent's are there. Those from before are in force.
    #[error("nftables: {0}")]
    Nftables(String),
    /// Connections could not be looked at or cut. The new rules are in force.
    #[error("connection tracking: {0}")]
    Conntrack(String),
}

impl From<NetlinkError> for FirewallError {
    fn from(error: NetlinkError) -> Self {
        FirewallError::Nftables(error.to_string())
    }
}

/// The firewall of the agent's network namespace.
#[derive(Clone, Debug, Default)]
pub struct Firewall {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    engine: Mutex<Engine>,
    /// Changes that wait for the one that is under way.
    waiting: Mutex<Vec<Waiting>>,
    /// Told of changes of rules by others.
    disturbed: tokio::sync::Notify,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    done: oneshot::Sender<Result<u64, FirewallError>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The engine keeps what it holds true before it calls anything that may panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Firewall {
    /// Without networks, until a policy is loaded. The tables say that they are this owner's.
    pub fn new(owner: Owner) -> Self {
        let firewall = Self::default();
        *lock(&firewall.inner.engine) = Engine::new(owner);
        firewall
    }

    /// Takes the whole policy, at the agent's start, and makes the kernel's rules equal to it. An
    /// empty policy leaves the kernel alone, unless a table is there that this agent made.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`]: the rules are as they were.
    pub async fn load(&self, policy: Policy) -> Result<(), FirewallError> {
        let repair = self.with_engine(move |engine| engine.load(policy)).await?;
        if let Some(repair) = repair {
            tracing::info!("rules brought up to date: {} changes", repair.differences);
        }
        Ok(())
    }

    /// Makes changes, all or none, in one transaction; they are in force when it returns.
    /// Changes that come at the same time may share a transaction. They are made even when nobody
    /// waits for it any more.
    ///
    /// # Errors
    /// [`FirewallError`], which says what is in force.
    pub async fn apply(
        &self,
        changes: Vec<Change>,
        connections: Connections,
    ) -> Result<Applied, FirewallError> {
        let (done, answer) = oneshot::channel();
        let cut = connections == Connections::Cut;
        let request = Request { changes, cut };
        lock(&self.inner.waiting).push(Waiting { request, done });
        let inner = self.inner.clone();
        // Whoever comes first does it for all that wait by then.
        tokio::task::spawn_blocking(move || inner.apply_waiting());
        match answer.await {
            Ok(result) => result.map(|cut| Applied { cut }),
            Err(_) => Err(FirewallError::Nftables("the agent ends".to_owned())),
        }
    }

    /// Compares the kernel's rules with those that are wanted and repairs them; `None` when there
    /// was nothing to repair. Costs next to nothing when nobody touched any rule since.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`].
    pub async fn reconcile(&self) -> Result<Option<Repair>, FirewallError> {
        self.with_engine(Engine::reconcile).await
    }

    /// Waits until somebody else changed rules, whosever they are: a reason for
    /// [`Firewall::reconcile`]. Somebody has to [`listen`] meanwhile.
    pub async fn disturbed(&self) {
        self.inner.disturbed.notified().await;
    }

    /// The policy in force.
    pub async fn policy(&self) -> Arc<Policy> {
        let policy = self.with_engine(|engine| Ok(engine.policy())).await;
        policy.unwrap_or_default()
    }

    /// Packets and bytes that each rule let pass, by rule id: first packets of connections. Of
    /// `groups`, or of all if there are none named. Rules that never counted may be missing.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`].
    pub async fn counters(
        &self,
        groups: BTreeSet<String>,
    ) -> Result<BTreeMap<String, Counter>, FirewallError> {
        self.with_engine(move |engine| engine.counters(&groups))
            .await
    }

    /// Packets that were refused, by interface id.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`].
    pub async fn dropped(&self) -> Result<BTreeMap<String, Dropped>, FirewallError> {
        self.with_engine(Engine::dropped).await
    }

    async fn with_engine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, FirewallError> + Send + 'static,
    ) -> Result<T, FirewallError> {
        let inner = self.inner.clone();
        let work = tokio::task::spawn_blocking(move || work(&mut lock(&inner.engine)));
        let failed = |error: tokio::task::JoinError| FirewallError::Nftables(error.to_string());
        work.await.map_err(failed)?
    }
}

impl Inner {
    fn apply_waiting(&self) {
        let mut engine = lock(&self.engine);
        let waiting = std::mem::take(&mut *lock(&self.waiting));
        if waiting.is_empty() {
            return;
        }
        let (requests, done): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(|it| (it.request, it.done)).unzip();
        // Those that keep connections are made apart from those that cut them.
        let cuts = requests.iter().any(|it| it.cut);
        let alike = !cuts || !requests.iter().any(|it| engine.keeps(it));
        let results = if alike {
            match engine.apply(&requests) {
                Ok(results) => results,
                // One of them is at fault: each for itself.
                Err(_) if requests.len() > 1 => one_by_one(&mut engine, &requests),
                Err(error) => vec![Err(error)],
            }
        } else {
            one_by_one(&mut engine, &requests)
        };
        let late = engine.late();
        drop(engine);
        for (done, result) in done.into_iter().zip(results) {
            // Whoever asked may be gone.
            let _ = done.send(result);
        }
        if let Some(change) = late {
            wait_for_packets();
            lock(&self.engine).cut_late(change);
        }
    }
}

fn one_by_one(engine: &mut Engine, requests: &[Request]) -> Vec<Result<u64, FirewallError>> {
    let each = requests.chunks(1);
    each.map(|request| engine.apply(request)?.pop().unwrap_or(Ok(0)))
        .collect()
}
