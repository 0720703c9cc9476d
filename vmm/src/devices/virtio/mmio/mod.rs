//! The virtio-mmio transport, version 2 (virtio 1.2 section 4.2; no legacy interface).
//!
//! ```text
//!            0            ACKNOWLEDGE, DRIVER       FEATURES_OK            DRIVER_OK
//!  Reset ─────── Started ──────────────── Negotiating ─────── Configuring ─────────── Active
//!    ▲                                    features may be     queues may be     the device has
//!    │                                    written             written           the queues
//!    └───────────── status 0, from anywhere; FAILED: nothing but this ────────────────┘
//! ```
//!
//! A driver may take several of these steps in one write of the status register. What it writes
//! at the wrong time is ignored. What can't be ignored (a ring outside memory, a device that
//! doesn't start) sets `DEVICE_NEEDS_RESET`.

use std::io;
use std::sync::Arc;

use tracing::{debug, warn};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::registers::QueueRegisters;
use super::{Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice};

mod registers;
#[cfg(test)]
mod tests;

/// Bytes of guest physical address space of one device.
pub const MMIO_SIZE: u64 = 0x1000;

/// Offset of the register QueueNotify: where the machine puts the ioeventfds of
/// [`MmioTransport::queue_eventfds`], 4 bytes wide.
pub const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"HRTH");

/// What every device gets: the transport's own features and those of the ring.
const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A read of a window in which no device is: a device of type 0, of which only the first registers
/// are there (section 4.2.3.1.1).
pub fn read_empty(offset: u64, data: &mut [u8]) {
    data.fill(0);
    if let (Ok(register), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
        *data = match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            _ => 0,
        }
        .to_le_bytes();
    }
}

/// One device on the memory bus. The machine calls it with a lock held.
pub struct MmioTransport {
    memory: Arc<GuestMemory>,
    device: Box<dyn VirtioDevice>,
    interrupt: Arc<Interrupt>,
    notify: Vec<EventFd>,
    queues: Vec<QueueRegisters>,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    /// Status as the driver built it up, so without `NEEDS_RESET`, which is the interrupt's.
    status: u32,
}

impl MmioTransport {
    /// Puts `device` behind registers in their reset state.
    pub fn new(memory: Arc<GuestMemory>, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        let queues = sizes.iter().copied().map(QueueRegisters::new).collect();
        let notify = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        Ok(MmioTransport {
            memory,
            device,
            interrupt: Arc::new(Interrupt::new()?),
            notify,
            queues,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            status: 0,
        })
    }

    /// What the machine registers as irqfd (edge-triggered) of the device's interrupt line.
    pub fn irq_eventfd(&self) -> &EventFd {
        self.interrupt.eventfd()
    }

    /// What the machine registers as ioeventfds at [`QUEUE_NOTIFY`]: the value to match, which is
    /// the queue's index, and what to signal.
    pub fn queue_eventfds(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(&self.notify)
    }

    /// The guest reads `data.len()` bytes at `offset` of the device's address range.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            self.device.read_config(offset, data);
        } else if let (Ok(register), Ok(data)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *data = self.read_register(register).to_le_bytes();
        } else {
            debug!(offset, "virtio-mmio read that isn't 32 bits wide");
        }
    }

    /// The guest writes `data` at `offset` of the device's address range.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            if self.status & (DRIVER | FAILED) == DRIVER {
                self.device.write_config(offset, data);
            }
        } else if let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data))
        {
            self.write_register(register, u32::from_le_bytes(data));
        } else {
            debug!(offset, "virtio-mmio write that isn't 32 bits wide");
        }
    }

    /// No driver uses the device: the status register is 0.
    pub fn is_reset(&self) -> bool {
        self.status == 0
    }

    /// The VM ends, or the device is unplugged: no driver uses it any more. Ends the device's threads and makes durable what it
    /// holds.
    pub fn stop(&mut self) {
        self.device.stop();
    }

    fn features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_select {
                0 => self.features() as u32,
                1 => (self.features() >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |q| q.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |q| q.is_ready().into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS if self.interrupt.needs_reset() => self.status | NEEDS_RESET,
            VIRTIO_MMIO_STATUS => self.status,
            // There is no shared memory region: its length reads as -1 (section 4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.config_generation(),
            _ => {
                debug!(register, "read of a virtio-mmio register that isn't there");
                0
            }
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify_queue(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => {
                if let Some(queue) = self.configurable_queue() {
                    queue.write(register, value);
                }
            }
            _ => debug!(register, "write of a virtio-mmio register that isn't there"),
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            debug!("driver features written at the wrong time");
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // There are no such features. To write zeroes is what a careful driver may do.
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue, if the driver may write its registers now.
    fn configurable_queue(&mut self) -> Option<&mut QueueRegisters> {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            debug!("queue register written at the wrong time");
            return None;
        }
        self.queues
            .get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn write_queue_ready(&mut self, value: u32) {
        let memory = Arc::clone(&self.memory);
        let select = self.queue_select;
        let Some(queue) = self.configurable_queue() else {
            return;
        };
        if let Err(error) = queue.write_ready(value, &memory) {
            warn!(queue = select, %error, "driver set up a queue that can't be used");
            self.interrupt.mark_needs_reset();
        }
    }

    /// A notification that no ioeventfd has taken.
    fn notify_queue(&self, index: u32) {
        let queue = usize::try_from(index).ok();
        if let Some(notify) = queue.and_then(|index| self.notify.get(index)) {
            // Fails only if the counter is full, and then the device is awake already.
            let _ = notify.write(1);
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // NEEDS_RESET is the device's; a driver that writes back what it has read means no harm.
        let value = value & !NEEDS_RESET;
        if self.status & !value != 0 || self.status & FAILED != 0 {
            debug!(from = self.status, to = value, "driver cleared status bits");
            return;
        }
        let added = value & !self.status;
        self.status |= added & (ACKNOWLEDGE | FAILED);
        if added & DRIVER != 0 && self.status & ACKNOWLEDGE != 0 {
            self.status |= DRIVER;
        }
        if added & FEATURES_OK != 0 && self.status & DRIVER != 0 && self.features_acceptable() {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && self.status & (FEATURES_OK | FAILED) == FEATURES_OK {
            self.status |= DRIVER_OK;
            self.activate();
        }
    }

    /// Section 2.2.2: a subset of what was offered; section 6.1: VERSION_1 at least.
    fn features_acceptable(&self) -> bool {
        let unknown = self.driver_features & !self.features();
        let modern = self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0;
        if unknown != 0 || !modern {
            warn!(
                device = self.device.device_type(),
                features = format_args!("{:#x}", self.driver_features),
                "driver accepted features that it may not"
            );
        }
        unknown == 0 && modern
    }

    fn activate(&mut self) {
        if self.interrupt.needs_reset() {
            self.interrupt.signal_needs_reset();
            return;
        }
        let started = self
            .active_queues()
            .map_err(super::ActivateError::from)
            .and_then(|queues| {
                self.device.activate(Activation {
                    memory: Arc::clone(&self.memory),
                    features: self.driver_features,
                    queues,
                    interrupt: Arc::clone(&self.interrupt),
                })
            });
        if let Err(error) = started {
            warn!(device = self.device.device_type(), %error, "virtio device did not start");
            self.device.reset();
            self.interrupt.signal_needs_reset();
        }
    }

    fn active_queues(&self) -> io::Result<Vec<ActiveQueue>> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::new();
        for ((index, registers), notify) in (0..).zip(&self.queues).zip(&self.notify) {
            if let Some(mut queue) = registers.ready_queue() {
                queue.set_event_idx(event_idx);
                queues.push(ActiveQueue {
                    index,
                    queue,
                    notify: notify.try_clone()?,
                });
            }
        }
        Ok(queues)
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.reset();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.queue_select = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.status = 0;
    }
}
