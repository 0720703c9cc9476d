//! Router advertisements (RFC 4861): the way out, the MTU, the DNS server, and that addresses come
//! by DHCPv6.

mod message;
mod socket;

use std::{io, net::Ipv6Addr, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

use self::socket::RouterSocket;
use super::{Service, Tap, TapIpv6};

/// All nodes of a link.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Advertisements that nobody asked for: a few soon after the start (RFC 4861 section 6.2.4 allows
/// at most three, at most 16 seconds apart), for guests that missed the first.
const QUICK: u32 = 3;
const QUICK_INTERVAL: Duration = Duration::from_secs(5);
/// Later ones. A router's lifetime, 30 minutes, is six of them.
const INTERVAL: Duration = Duration::from_secs(300);

/// The service.
pub struct Router;

impl Service for Router {
    const NAME: &'static str = "router advertisements";
    type Socket = RouterSocket;

    fn open(tap: &Tap) -> io::Result<RouterSocket> {
        RouterSocket::open(&tap.config.tap)
    }

    async fn serve(tap: Arc<Tap>, socket: RouterSocket) -> io::Error {
        let Some(ipv6) = &tap.config.ipv6 else {
            // Not started without IPv6.
            return io::Error::other("no IPv6");
        };
        let mut buffer = [0; 512];
        let mut sent = 0u32;
        let mut next = Instant::now();
        loop {
            let to = tokio::select! {
                received = socket.receive(&mut buffer) => match received {
                    Ok(it) if message::is_solicitation(&buffer[..it.length], it.from, it.hop_limit) => {
                        // One without an address can be reached as all nodes only.
                        if it.from.is_unspecified() { ALL_NODES } else { it.from }
                    }
                    Ok(_) => continue,
                    Err(error) => return error,
                },
                () = sleep_until(next) => {
                    sent = sent.saturating_add(1);
                    next += if sent < QUICK { QUICK_INTERVAL } else { INTERVAL };
                    ALL_NODES
                }
            };
            let domain = match super::domain(&tap).await {
                Ok(Some(domain)) => domain,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!("router advertisements on {}: {error}", tap.config.tap);
                    continue;
                }
            };
            let advertisement = advertisement(&tap, ipv6, &domain);
            // Nobody may be at the other end yet.
            if let Err(error) = socket.send(&advertisement, to).await {
                tracing::debug!("router advertisements on {}: {error}", tap.config.tap);
            }
        }
    }
}

fn advertisement(tap: &Tap, ipv6: &TapIpv6, domain: &str) -> Vec<u8> {
    message::advertisement(tap.config.mtu, ipv6, domain)
}
