//! virtio-net (virtio 1.2 section 5.1) on a tap of the host.
//!
//! - [`config`]: features and configuration space; [`mac`]: addresses.
//! - [`header`]: what a driver says of a frame, and whether it may; pure.
//! - [`tap`]: the host's end. Who made it, and what may pass it, is the agent's business.
//! - `attached`: whether somebody else is at it.
//! - `transmit`, `receive`: one queue each; `used`: completing several chains at once.
//! - `pair`: the thread that serves both; `watch`: what it sleeps on.
//! - `steering`: which pairs receive; `commands`: the control queue, by which the driver says it.
//! - [`limits`], [`throttle`]: what all interfaces of a machine may carry in a second.
//! - [`counters`]: what passed and what was dropped; `control`: the host's handle.
//!
//! Frames go between guest memory and the tap without a copy of ours. Checksums and segmentation
//! pass through unfinished in both directions where the driver agreed to it, so that between a
//! guest and its host they cost nothing.
//!
//! What the network does wrong is dropped and counted, as any network may. What the driver does
//! wrong in a queue costs it the device until the next reset.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::debug;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use self::commands::Commands;
use self::config::Config;
use self::counters::Counters;
use self::header::Permitted;
use self::limits::NetLimits;
use self::mac::MacAddress;
use self::pair::{Link, Pair, Shared};
use self::receive::Rules;
use self::steering::Steering;
use self::tap::Tap;
use self::throttle::NetThrottle;
use super::errors::{ErrorReporter, OnError};
use super::queue::ActiveQueue;
use super::worker::{Worker, end_all};
use super::{ActivateError, Activation, GuestMemory, Interrupt, VirtioDevice, copy_config};

mod attached;
mod commands;
pub mod config;
mod control;
pub mod counters;
pub mod header;
pub mod limits;
pub mod mac;
mod pair;
mod receive;
mod steering;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod throttle;
mod transmit;
mod used;
mod watch;

pub use self::control::NetControl;

/// The network device.
pub struct Net {
    name: String,
    config: Config,
    queue_sizes: Vec<u16>,
    steering: Steering,
    throttle: Arc<NetThrottle>,
    link: Arc<Link>,
    counters: Arc<Counters>,
    errors: Arc<ErrorReporter>,
    pairs: Vec<Pair>,
    commands: Vec<Worker>,
}

impl Net {
    /// A device that isn't active yet, over the pairs of queues of one tap, at least one. `name`
    /// is what errors are reported with; `on_error` is called, on the device's threads, for broken
    /// queues and a lost tap, not too often.
    pub fn new(
        taps: Vec<Tap>,
        name: &str,
        mac: MacAddress,
        mtu: Option<u16>,
        on_error: OnError,
    ) -> Self {
        let steering = Steering::new(taps);
        let config = Config {
            mac,
            mtu,
            pairs: steering.count(),
        };
        Net {
            name: name.to_owned(),
            queue_sizes: config.queue_sizes(),
            config,
            steering,
            throttle: NetThrottle::new(&NetLimits::default()),
            link: Arc::new(Link::up()),
            counters: Arc::default(),
            errors: Arc::new(ErrorReporter::new(name.to_owned(), on_error)),
            pairs: Vec::new(),
            commands: Vec::new(),
        }
    }

    /// The same device, held to the limits of `throttle`.
    pub fn with_throttle(mut self, throttle: Arc<NetThrottle>) -> Self {
        self.throttle = throttle;
        self
    }

    /// The host's handle of this device.
    pub fn control(&self) -> NetControl {
        NetControl {
            link: Arc::clone(&self.link),
            steering: self.steering.clone(),
            counters: Arc::clone(&self.counters),
        }
    }

    fn spawn_pair(
        &self,
        index: u16,
        [receive, transmit]: [ActiveQueue; 2],
        activation: &ForPairs,
    ) -> Result<Option<Pair>, ActivateError> {
        let Some(lane) = self.steering.lane(index.into()) else {
            return Ok(None);
        };
        let shared = Shared {
            memory: Arc::clone(&activation.memory),
            interrupt: Arc::clone(&activation.interrupt),
            lane: Arc::clone(lane),
            throttle: Arc::clone(&self.throttle),
            link: Arc::clone(&self.link),
            counters: Arc::clone(&self.counters),
            errors: Arc::clone(&self.errors),
            permitted: Permitted::new(activation.features),
            rules: Rules::new(activation.features, &self.config),
        };
        let name = format!("virtio-net-q{index}");
        Ok(Some(Pair::spawn(name, receive, transmit, shared)?))
    }
}

/// What of an activation is the same for all pairs.
struct ForPairs {
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    features: u64,
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config.to_bytes(self.link.is_up()), offset, data);
    }

    /// The driver may write nothing in a device of virtio 1 (section 5.1.4).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if let Some(lane) = self.steering.lane(0) {
            match lane.tap.set_offloads(activation.features) {
                // The interface is gone; the threads will find out, too, and take the link down.
                Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {}
                result => result?,
            }
        }
        // Section 5.1.2: without MQ there is one pair, and the control queue comes behind that.
        let has_commands = activation.has_feature(VIRTIO_NET_F_CTRL_VQ);
        let several = has_commands && activation.has_feature(VIRTIO_NET_F_MQ);
        let pairs = if several { self.config.pairs } else { 1 };
        let mut queues: HashMap<u16, ActiveQueue> = activation
            .queues
            .into_iter()
            .map(|queue| (queue.index, queue))
            .collect();
        let for_pairs = ForPairs {
            memory: activation.memory,
            interrupt: activation.interrupt,
            features: activation.features,
        };
        let mut served = 0;
        for index in 0..pairs {
            let (Some(receive), Some(transmit)) =
                (queues.remove(&(2 * index)), queues.remove(&(2 * index + 1)))
            else {
                debug!(
                    tap = self.name,
                    index, "a driver without both queues of a pair gets none of them served"
                );
                break;
            };
            let pair = self.spawn_pair(index, [receive, transmit], &for_pairs)?;
            self.pairs.extend(pair);
            served = index + 1;
        }
        if has_commands && let Some(queue) = queues.remove(&(2 * pairs)) {
            self.commands.push(Worker::spawn(
                "virtio-net-ctrl".to_owned(),
                queue,
                for_pairs.memory,
                for_pairs.interrupt,
                Commands {
                    steering: self.steering.clone(),
                    most: served,
                    errors: Arc::clone(&self.errors),
                },
            )?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        end_all(&mut self.commands);
        self.pairs.iter().for_each(Pair::signal_end);
        self.pairs.clear();
        self.steering.reset();
    }

    fn stop(&mut self) {
        self.reset();
        debug!(tap = self.name, counters = ?self.counters, "virtio-net stopped");
    }
}
