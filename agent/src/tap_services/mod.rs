//! What an instance finds on its network interface: DHCP, router advertisements, names, metadata.
//!
//! One set of tasks and sockets for each tap that is up. Every socket is bound to its tap, so that
//! who asks is known by where the question came in, and not by what it claims. What may change
//! while an instance runs (names, tags, options of the metadata service, elastic addresses) is
//! read from the database for each request.
//!
//! - `dhcp4`: DHCP (RFC 2131)
//! - `router`, `dhcp6`: router advertisements (RFC 4861), DHCPv6 (RFC 8415)
//! - `metadata`: the metadata service
//! - `dns`: a DNS server
//! - [`names`]: what instances are called within their network

mod dhcp4;
mod dhcp6;
mod dns;
mod metadata;
pub mod names;
mod rate;
mod router;
mod shared;
mod sockets;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::{task::JoinSet, time::sleep};

use crate::db::{self, DbResult};

pub use shared::{Shared, SharedError};

/// Time between attempts to open a socket: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What stays as it is while an interface's tap is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// `eni-…`: whose row says all that is not here.
    pub interface_id: String,
    /// The tap's name. It is there.
    pub tap: String,
    /// The guest's.
    pub mac: [u8; 6],
    /// Bytes of an IP packet.
    pub mtu: u16,
    /// The guest's.
    pub ipv4: Ipv4Addr,
    /// The network's.
    pub ipv4_range: Ipv4Net,
    /// The tap's.
    pub ipv4_gateway: Ipv4Addr,
    /// Without it, the network has no IPv6.
    pub ipv6: Option<TapIpv6>,
}

/// IPv6 on a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapIpv6 {
    /// The guest's.
    pub address: Ipv6Addr,
    /// The network's.
    pub range: Ipv6Net,
    /// The tap's, beside `fe80::1`.
    pub gateway: Ipv6Addr,
}

/// The services of one tap. They end when it is dropped.
#[derive(Debug)]
pub struct TapServices {
    tasks: JoinSet<()>,
}

impl TapServices {
    /// Starts them, in the agent's network namespace. Sockets are open when it returns, so that a
    /// guest's first packet is answered; what can't be opened (a program of the host may have the
    /// port) is logged and tried again until it works.
    pub fn start(config: TapConfig, shared: &Arc<Shared>) -> Self {
        let tap = Arc::new(Tap {
            config,
            shared: shared.clone(),
        });
        let mut tasks = JoinSet::new();
        run::<dhcp4::Dhcp4>(&mut tasks, &tap);
        run::<metadata::MetadataV4>(&mut tasks, &tap);
        run::<dns::DnsV4>(&mut tasks, &tap);
        if tap.config.ipv6.is_some() {
            run::<router::Router>(&mut tasks, &tap);
            run::<dhcp6::Dhcp6>(&mut tasks, &tap);
            run::<metadata::MetadataV6>(&mut tasks, &tap);
            run::<dns::DnsV6>(&mut tasks, &tap);
        }
        Self { tasks }
    }

    /// Ends them; their sockets are closed when it returns.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// What the services of one tap have in common.
struct Tap {
    config: TapConfig,
    shared: Arc<Shared>,
}

/// The domain of the network that the tap is in; `None` when the interface is gone.
async fn domain(tap: &Tap) -> DbResult<Option<String>> {
    let id = tap.config.interface_id.clone();
    let network = tap
        .shared
        .db
        .read(move |connection| db::tap_services::network(connection, &id))
        .await?;
    Ok(network.map(|network| network.dns_domain))
}

/// One service.
trait Service: 'static {
    /// For the log.
    const NAME: &'static str;
    type Socket: Send;

    fn open(tap: &Tap) -> io::Result<Self::Socket>;

    /// Serves until the socket is of no more use.
    fn serve(tap: Arc<Tap>, socket: Self::Socket) -> impl Future<Output = io::Error> + Send;
}

/// Keeps a service going for as long as its task lives.
fn run<S: Service>(tasks: &mut JoinSet<()>, tap: &Arc<Tap>) {
    let mut opened = S::open(tap);
    let tap = tap.clone();
    tasks.spawn(async move {
        let mut wait = RETRY.0;
        loop {
            let error = match opened {
                Ok(socket) => {
                    wait = RETRY.0;
                    S::serve(tap.clone(), socket).await
                }
                Err(error) => error,
            };
            tracing::warn!(
                tap = tap.config.tap,
                interface = tap.config.interface_id,
                "{}: {error}; trying again in {} s",
                S::NAME,
                wait.as_secs()
            );
            sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
            opened = S::open(&tap);
        }
    });
}
