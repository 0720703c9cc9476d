//! The machine's network interfaces: what the control socket reaches while the guest runs.

use std::sync::Arc;

use crate::control::{InterfaceStatus, NetStatus, Passed};
use crate::devices::virtio::net::NetControl;
use crate::devices::virtio::net::limits::NetLimits;
use crate::devices::virtio::net::throttle::NetThrottle;

/// All interfaces of a machine, which are there from the start.
#[derive(Clone)]
pub struct Nets {
    list: Vec<(String, NetControl)>,
    throttle: Arc<NetThrottle>,
}

impl Nets {
    /// None yet; all that come are together held to `limits`.
    pub fn new(limits: &NetLimits) -> Self {
        Self {
            list: Vec::new(),
            throttle: NetThrottle::new(limits),
        }
    }

    /// What holds all of them to their limits.
    pub fn throttle(&self) -> Arc<NetThrottle> {
        Arc::clone(&self.throttle)
    }

    /// Enters an interface.
    pub fn insert(&mut self, tap: &str, device: NetControl) {
        self.list.push((tap.to_owned(), device));
    }

    /// How all of them are now.
    pub fn status(&self) -> NetStatus {
        let (received_credits, sent_credits) = self.throttle.credits();
        NetStatus {
            limits: self.throttle.limits(),
            received_credits,
            sent_credits,
            interfaces: self.list.iter().map(status).collect(),
        }
    }
}

fn status((tap, device): &(String, NetControl)) -> InterfaceStatus {
    let counters = device.counters();
    InterfaceStatus {
        tap: tap.clone(),
        link_up: device.link_is_up(),
        queue_pairs: device.queue_pairs(),
        queue_pairs_in_use: device.queue_pairs_in_use(),
        received: Passed {
            frames: counters.received_frames.get(),
            bytes: counters.received_bytes.get(),
            dropped: counters.receive_dropped.get(),
        },
        sent: Passed {
            frames: counters.sent_frames.get(),
            bytes: counters.sent_bytes.get(),
            dropped: counters.send_malformed.get() + counters.send_refused.get(),
        },
    }
}
