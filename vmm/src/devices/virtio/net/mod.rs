//! virtio-net (virtio 1.2 section 5.1) on a tap of the host.
//!
//! - [`config`]: features and configuration space; [`mac`]: addresses.
//! - [`header`]: what a driver says of a frame, and whether it may; pure.
//! - [`tap`]: the host's end. Who made it, and what may pass it, is the agent's business.
//! - `transmit`, `receive`: one queue each; `used`: completing several chains at once.
//! - `pair`: the thread that serves both.
//! - [`counters`]: what passed and what was dropped.
//!
//! Frames go between guest memory and the tap without a copy of ours. Checksums and segmentation
//! pass through unfinished in both directions where the driver agreed to it, so that between a
//! guest and its host they cost nothing.
//!
//! What the network does wrong is dropped and counted, as any network may. What the driver does
//! wrong in a queue costs it the device until the next reset.

use std::sync::Arc;

use tracing::debug;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use self::config::{Config, QUEUE_SIZE};
use self::counters::Counters;
use self::header::Permitted;
use self::mac::MacAddress;
use self::pair::{Link, Pair, Shared};
use self::receive::Rules;
use self::tap::Tap;
use super::errors::{ErrorReporter, OnError};
use super::{ActivateError, Activation, VirtioDevice, copy_config};

pub mod config;
pub mod counters;
pub mod header;
pub mod mac;
mod pair;
mod receive;
pub mod tap;
#[cfg(test)]
mod tests;
mod transmit;
mod used;

/// One receive queue, one transmit queue (section 5.1.2).
const QUEUE_SIZES: [u16; 2] = [QUEUE_SIZE; 2];

/// The network device.
pub struct Net {
    name: String,
    tap: Arc<Tap>,
    config: Config,
    link: Arc<Link>,
    counters: Arc<Counters>,
    errors: Arc<ErrorReporter>,
    pairs: Vec<Pair>,
}

impl Net {
    /// A device that isn't active yet, over `tap`. `name` is what errors are reported with;
    /// `on_error` is called, on the device's thread, for broken queues and a lost tap, not too
    /// often.
    pub fn new(tap: Tap, name: &str, mac: MacAddress, mtu: Option<u16>, on_error: OnError) -> Self {
        Net {
            name: name.to_owned(),
            tap: Arc::new(tap),
            config: Config { mac, mtu },
            link: Arc::new(Link::up()),
            counters: Arc::default(),
            errors: Arc::new(ErrorReporter::new(name.to_owned(), on_error)),
            pairs: Vec::new(),
        }
    }

    /// What passes through the device, also after it was given away.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config.to_bytes(self.link.is_up()), offset, data);
    }

    /// The driver may write nothing in a device of virtio 1 (section 5.1.4).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        match self.tap.set_offloads(activation.features) {
            // The interface is gone; the thread will find out, too, and take the link down.
            Err(error) if error.raw_os_error() == Some(libc::EBADFD) => {}
            result => result?,
        }
        let mut queues = activation.queues.into_iter();
        let (Some(receive), Some(transmit)) = (queues.next(), queues.next()) else {
            debug!(
                tap = self.name,
                "a driver without both queues gets none of them served"
            );
            return Ok(());
        };
        self.pairs.push(Pair::spawn(
            "virtio-net-q0".to_owned(),
            receive,
            transmit,
            Shared {
                memory: activation.memory,
                interrupt: activation.interrupt,
                tap: Arc::clone(&self.tap),
                link: Arc::clone(&self.link),
                counters: Arc::clone(&self.counters),
                errors: Arc::clone(&self.errors),
                permitted: Permitted::new(activation.features),
                rules: Rules::new(activation.features, &self.config),
            },
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.pairs.iter().for_each(Pair::signal_end);
        self.pairs.clear();
    }

    fn stop(&mut self) {
        self.reset();
        debug!(tap = self.name, counters = ?self.counters, "virtio-net stopped");
    }
}
