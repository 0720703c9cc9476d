//! Virtio devices (OASIS virtio 1.2) and what they share.
//!
//! - [`mmio`]: the transport, the only part that speaks to vCPU threads. It runs the device
//!   status state machine and owns the queue registers until the driver is done with them.
//! - [`block`], [`net`], [`rng`]: one module per device. A device gets its queues by
//!   [`VirtioDevice::activate`] and serves them on threads of its own ([`worker`]).
//! - [`pacing`]: how limits of disks and networks are kept.
//! - [`queue`], [`buffers`]: a queue as a device sees it. Everything in it was written by the
//!   guest and may change at any time, so it is copied before it is judged, and judged before it
//!   is used.
//!
//! A driver that breaks the rules of a queue loses that queue: the device sets
//! `DEVICE_NEEDS_RESET` (section 2.1.1) and the VMM goes on.

use std::sync::Arc;

use thiserror::Error;

pub mod block;
pub mod buffers;
pub mod errors;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pacing;
pub mod queue;
pub mod rng;
mod spin;
pub mod worker;

#[cfg(test)]
mod testing;

pub use self::interrupt::Interrupt;
pub use self::queue::ActiveQueue;

pub use crate::memory::GuestMemory;

/// One virtio device behind a transport.
///
/// The transport calls all of this with its lock held, so never from two threads at once.
pub trait VirtioDevice: Send {
    /// Device type (section 5), such as 2 for a block device.
    fn device_type(&self) -> u32;

    /// Features of the device type. The transport adds those of the ring and the transport.
    fn features(&self) -> u64;

    /// Largest size of each queue; its length is the number of queues. Each is a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads the configuration space. What lies out of range reads as zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. What the driver may not write is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver has set `DRIVER_OK`: starts to serve the queues that it made ready.
    ///
    /// Called at most once between resets. After an error the transport resets the device.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver resets the device: ends what [`activate`](Self::activate) started, and returns
    /// when nothing touches guest memory any more. Does nothing on a device that isn't active.
    fn reset(&mut self);

    /// The VM ends: as [`reset`](Self::reset), and makes durable what the device holds. Nothing
    /// but dropping the device comes after. Errors go to whom the device tells its errors.
    fn stop(&mut self);
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Where the queues and their buffers are.
    pub memory: Arc<GuestMemory>,
    /// Features that driver and device agreed on.
    pub features: u64,
    /// The queues that the driver made ready, in the order of their index; may be fewer than the
    /// device has, and none at all.
    pub queues: Vec<ActiveQueue>,
    /// How the device calls the driver.
    pub interrupt: Arc<Interrupt>,
}

impl Activation {
    /// Whether driver and device agreed on feature bit `bit`.
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }
}

/// A device could not start.
#[derive(Debug, Error)]
#[error("could not start a virtio worker: {0}")]
pub struct ActivateError(#[from] pub std::io::Error);

/// Copies from a configuration space of `config`, with zeroes past its end.
pub(crate) fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|at| config.get(at..)) else {
        return;
    };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}

#[cfg(test)]
mod tests {
    use super::copy_config;

    #[test]
    fn config_reads_past_the_end_are_zeroes() {
        let config = [1, 2, 3, 4];
        let mut data = [9; 4];
        copy_config(&config, 2, &mut data);
        assert_eq!(data, [3, 4, 0, 0]);
        copy_config(&config, 4, &mut data);
        assert_eq!(data, [0; 4]);
        copy_config(&config, u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
