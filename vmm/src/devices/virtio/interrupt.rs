//! How a device calls its driver: InterruptStatus bits and an event file descriptor that KVM
//! turns into an edge on the device's interrupt line.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Shared between the transport (reads and acknowledges) and the device's threads (raise).
///
/// The order is status bit first, edge second: a driver that handles the edge finds the bit. If
/// it acknowledges between two raises, the second edge is still to come.
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    irq: EventFd,
}

impl Interrupt {
    /// An interrupt that nobody has raised.
    pub fn new() -> io::Result<Self> {
        Ok(Interrupt {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            irq: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Readable for each edge.
    pub fn eventfd(&self) -> &EventFd {
        &self.irq
    }

    /// Used buffers are there for the driver (section 2.3).
    pub fn signal_queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space has changed.
    pub fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device can't go on without a reset: sets `DEVICE_NEEDS_RESET` and tells the driver
    /// (section 2.1.2).
    pub fn signal_needs_reset(&self) {
        self.mark_needs_reset();
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// As [`signal_needs_reset`](Self::signal_needs_reset) while the driver may not yet be
    /// interrupted (before `DRIVER_OK`).
    pub(crate) fn mark_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    /// Whether the device status has `DEVICE_NEEDS_RESET`.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The register InterruptStatus.
    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// A write to the register InterruptACK.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The register ConfigGeneration.
    pub(crate) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// A device reset. The device's threads have ended, so nobody raises meanwhile.
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // Fails only if the counter is full, and then an edge is on its way already.
        let _ = self.irq.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledging_one_cause_leaves_the_other() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.signal_queue();
        interrupt.signal_config();
        assert_eq!(interrupt.status(), 3);
        assert_eq!(interrupt.eventfd().read().unwrap(), 2);
        interrupt.acknowledge(VIRTIO_MMIO_INT_VRING);
        assert_eq!(interrupt.status(), VIRTIO_MMIO_INT_CONFIG);
        assert_eq!(interrupt.config_generation(), 1);
    }
}
