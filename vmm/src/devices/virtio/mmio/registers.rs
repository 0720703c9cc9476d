//! The registers of one queue, until the device gets the queue.

use thiserror::Error;
use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use crate::devices::virtio::GuestMemory;

/// A driver made a queue ready that can't be one.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum QueueSetupError {
    /// Not a power of two from 1 to the maximum.
    #[error("size {0} is not a power of two up to the maximum")]
    Size(u32),
    /// See the table in section 2.7.
    #[error("a ring is not aligned")]
    Alignment,
    /// Not wholly in guest memory.
    #[error("a ring is not in guest memory")]
    OutsideMemory,
}

/// Holds what the driver wrote, unjudged, until it sets QueueReady.
pub(super) struct QueueRegisters {
    max_size: u16,
    size: u32,
    descriptors: u64,
    available: u64,
    used: u64,
    ready: bool,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        QueueRegisters {
            max_size,
            size: max_size.into(),
            descriptors: 0,
            available: 0,
            used: 0,
            ready: false,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = QueueRegisters::new(self.max_size);
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// A write to QueueNum or one half of an address. Not while the queue is ready.
    pub(super) fn write(&mut self, register: u32, value: u32) {
        if self.is_ready() {
            return;
        }
        match register {
            VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.used, value),
            _ => {}
        }
    }

    /// A write to QueueReady.
    pub(super) fn write_ready(
        &mut self,
        value: u32,
        memory: &GuestMemory,
    ) -> Result<(), QueueSetupError> {
        self.ready = false;
        if value & 1 == 1 {
            let queue = self.build()?;
            if !queue.is_valid(memory) {
                return Err(QueueSetupError::OutsideMemory);
            }
            self.ready = true;
        }
        Ok(())
    }

    /// The queue as the driver set it up, if it made it ready.
    pub(super) fn ready_queue(&self) -> Option<Queue> {
        self.ready.then(|| self.build().ok()).flatten()
    }

    fn build(&self) -> Result<Queue, QueueSetupError> {
        let bad_size = |_| QueueSetupError::Size(self.size);
        let mut queue = Queue::new(self.max_size).map_err(bad_size)?;
        let size = u16::try_from(self.size).map_err(|_| QueueSetupError::Size(self.size))?;
        queue.try_set_size(size).map_err(bad_size)?;
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors))
            .and_then(|()| queue.try_set_avail_ring_address(GuestAddress(self.available)))
            .and_then(|()| queue.try_set_used_ring_address(GuestAddress(self.used)))
            .map_err(|_| QueueSetupError::Alignment)?;
        queue.set_ready(true);
        Ok(queue)
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}
