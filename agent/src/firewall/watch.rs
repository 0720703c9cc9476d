//! Notices when somebody else changes rules.

use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::{
    Firewall, lock,
    netlink::{NetlinkError, Socket},
};

/// `NFNLGRP_NFTABLES` as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

/// Listens to what the kernel says about changes of rules, for [`Firewall::disturbed`]. Nothing is
/// opened before there are rules of ours. Does not end.
pub async fn listen(firewall: Firewall) {
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
    // Whoever changed something before we listened was not heard.
    firewall.inner.disturbed.notify_one();
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
