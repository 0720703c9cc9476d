//! Keeps the rules what they should be, while the agent runs.

use std::{sync::Arc, time::Duration};

use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{
    Firewall, Repair, lock,
    netlink::{NetlinkError, Socket},
};
use crate::{accounts, context::Context, db::DbError, events::NewEvent, shutdown::Shutdown};

/// How often the rules are looked at when nobody seems to touch them.
const INTERVAL: Duration = Duration::from_secs(30);

/// Who changes rules by hand often changes several: a pause before ours come back.
const SETTLE: Duration = Duration::from_millis(50);

/// `NFNLGRP_NFTABLES` as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Repairs the rules when somebody else changed them, and looks after them at a timer, until the
/// agent ends.
pub async fn run(context: Arc<Context>, shutdown: Shutdown) {
    let firewall = context.firewall.clone();
    let (repairs, mut repaired) = mpsc::unbounded_channel();
    let keeping = tokio::spawn(keep(firewall, shutdown, repairs));
    while let Some(repair) = repaired.recv().await {
        let event = NewEvent {
            kind: "firewall.repaired",
            // The host's administrator.
            owner: accounts::DEFAULT.to_owned(),
            resource_id: String::new(),
            previous_state: String::new(),
            state: String::new(),
            reason_code: String::new(),
            message: repair.named.join("; "),
        };
        let recorded = context.db.write(move |tx| {
            tx.event(event);
            Ok::<_, DbError>(())
        });
        if let Err(error) = recorded.await {
            tracing::warn!("an event is lost: {error}");
        }
    }
    let _ = keeping.await;
}

/// The same, without the agent around it.
pub async fn keep(
    firewall: Firewall,
    mut shutdown: Shutdown,
    repairs: mpsc::UnboundedSender<Repair>,
) {
    let listening = tokio::spawn(listen(firewall.clone()));
    let mut timer = tokio::time::interval(INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.wait() => break,
            _ = timer.tick() => {}
            () = firewall.inner.disturbed.notified() => tokio::time::sleep(SETTLE).await,
        }
        match firewall.reconcile().await {
            Ok(None) => {}
            Ok(Some(repair)) => {
                let what = repair.named.join("; ");
                tracing::warn!("rules that somebody changed are repaired: {what}");
                let _ = repairs.send(repair);
            }
            Err(error) => tracing::error!("rules can't be looked after: {error}"),
        }
    }
    listening.abort();
}

/// Listens to what the kernel says about changes of rules. Nothing is opened before there are rules
/// of ours.
async fn listen(firewall: Firewall) {
    loop {
        let ours = firewall.inner.clone();
        let port = tokio::task::spawn_blocking(move || lock(&ours.engine).port());
        if let Ok(Some(port)) = port.await
            && let Err(error) = listen_on(&firewall, port).await
        {
            tracing::debug!("listening to changes of rules: {error}");
            firewall.inner.disturbed.notify_one();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// `ours` is the port that our own changes carry.
async fn listen_on(firewall: &Firewall, ours: u32) -> Result<(), NetlinkError> {
    let failed = |error: std::io::Error| NetlinkError::Socket(error.to_string());
    let mut socket = Socket::open(NFTABLES_GROUP)?;
    let fd = socket.fd().try_clone_to_owned().map_err(failed)?;
    // SAFETY: the descriptor is a copy of our own, which the `AsyncFd` owns: it stays open and the
    // same for as long as it is registered.
    let fd = unsafe { AsyncFd::register(fd) }.map_err(|it| failed(it.into()))?;
    loop {
        let mut ready = fd.readable().await.map_err(failed)?;
        // An error means that messages were lost: whose they were is not known.
        let mut strange = false;
        loop {
            match socket.receive(false) {
                Ok(None) => break,
                Ok(Some(messages)) => {
                    strange |= messages.iter().any(|it| it.port != ours);
                }
                Err(_) => strange = true,
            }
        }
        ready.clear_ready();
        if strange {
            firewall.inner.disturbed.notify_one();
        }
    }
}
