//! The host's handle of a network device: how it is.

use std::sync::Arc;

use super::counters::Counters;
use super::pair::Link;
use super::steering::Steering;

/// Tells how a device is, also after it was given away.
#[derive(Clone)]
pub struct NetControl {
    pub(super) link: Arc<Link>,
    pub(super) steering: Steering,
    pub(super) counters: Arc<Counters>,
}

impl NetControl {
    /// The link is up for the driver: the tap is there.
    pub fn link_is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Pairs of queues that the device has.
    pub fn queue_pairs(&self) -> u16 {
        self.steering.count()
    }

    /// How many of them the driver receives with: at least 1.
    pub fn queue_pairs_in_use(&self) -> u16 {
        self.steering.in_use()
    }

    /// What passed and what did not.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
