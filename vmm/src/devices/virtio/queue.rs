//! One split virtqueue (virtio 1.2 section 2.7) as its device sees it.
//!
//! `virtio-queue` reads the rings; this adds what a device needs beyond it: a descriptor chain is
//! either whole and lies in guest memory, or it is an error. (`virtio-queue` ends a broken chain
//! early and without a word, which would make a short request of it.)

use std::sync::atomic::Ordering;

use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};
use vmm_sys_util::eventfd::EventFd;

use super::GuestMemory;
use super::buffers::Buffers;

/// Most descriptors of one chain: what one `preadv2` takes (`IOV_MAX`). Section 2.7.5.3.1 lets a
/// driver use as many as the queue has entries, which are fewer for every device of ours.
pub const MAX_CHAIN_DESCRIPTORS: usize = 1024;

/// The driver broke a rule of the queue. The device stops serving it.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The rings make no sense or can't be accessed.
    #[error("bad ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// An entry of the available ring can't be read.
    #[error("the available ring can't be read")]
    RingUnreadable,
    /// A chain that has no descriptor, has a bad index, loops, or is longer than 4 GiB.
    #[error("descriptor chain {head} is broken after {after} descriptors")]
    BrokenChain {
        /// Index of the chain's first descriptor.
        head: u16,
        /// How many descriptors could be read.
        after: usize,
    },
    /// More than [`MAX_CHAIN_DESCRIPTORS`].
    #[error("descriptor chain {head} has more than {MAX_CHAIN_DESCRIPTORS} descriptors")]
    LongChain {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// A device-readable descriptor after a device-writable one (section 2.7.4.2).
    #[error("descriptor chain {head} has a readable descriptor after a writable one")]
    ChainOrder {
        /// Index of the chain's first descriptor.
        head: u16,
    },
    /// A buffer that isn't in guest memory.
    #[error("descriptor chain {head} has a buffer outside memory: {len} bytes at {addr:#x}")]
    BadBuffer {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Guest physical address of the buffer.
        addr: u64,
        /// Length of the buffer in bytes.
        len: u32,
    },
    /// A chain that lacks a part which the device can't do without.
    #[error("descriptor chain {head}: {what}")]
    BadRequest {
        /// Index of the chain's first descriptor.
        head: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The device itself can't go on.
    #[error("device failure: {0}")]
    Device(#[from] std::io::Error),
}

/// A queue that the driver made ready.
pub struct ActiveQueue {
    /// Its number in the device.
    pub index: u16,
    /// The rings; `Queue::is_valid` holds.
    pub queue: Queue,
    /// Readable when the driver has notified the device. Non-blocking.
    pub notify: EventFd,
}

/// A descriptor chain: whole, in order, and all of it in guest memory.
pub struct Chain<'m> {
    /// What names it in the used ring.
    pub head: u16,
    /// What the device reads.
    pub readable: Buffers<'m>,
    /// What the device writes.
    pub writable: Buffers<'m>,
}

impl ActiveQueue {
    /// Takes the next chain from the available ring, if there is one.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        if !self.has_available(memory)? {
            return Ok(None);
        }
        let mut chain = self
            .queue
            .iter(memory)?
            .next()
            .ok_or(QueueError::RingUnreadable)?;
        let head = chain.head_index();
        let mut readable = Buffers::default();
        let mut writable = Buffers::default();
        let mut count = 0;
        let mut whole = false;
        for descriptor in chain.by_ref() {
            count += 1;
            if count > MAX_CHAIN_DESCRIPTORS {
                return Err(QueueError::LongChain { head });
            }
            whole = !descriptor.has_next();
            let (into, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else if writable.is_empty() {
                (&mut readable, Permissions::Read)
            } else {
                return Err(QueueError::ChainOrder { head });
            };
            let (addr, len) = (descriptor.addr(), descriptor.len());
            let bad_buffer = |_| QueueError::BadBuffer {
                head,
                addr: addr.0,
                len,
            };
            let slices = memory
                .get_slices(addr, len as usize, access)
                .map_err(bad_buffer)?;
            for slice in slices {
                into.push(slice.map_err(bad_buffer)?);
            }
        }
        if !whole {
            return Err(QueueError::BrokenChain { head, after: count });
        }
        Ok(Some(Chain {
            head,
            readable,
            writable,
        }))
    }

    /// Whether the available ring has a chain that was not taken yet.
    pub fn has_available(&self, memory: &GuestMemory) -> Result<bool, QueueError> {
        let available = self.queue.avail_idx(memory, Ordering::Acquire)?;
        Ok(available.0 != self.queue.next_avail())
    }

    /// Gives chain `head` back to the driver, with `written` bytes at the start of its writable
    /// part.
    pub fn complete(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        Ok(self.queue.add_used(memory, head, written)?)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        if !self.queue.needs_notification(memory)? {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return Ok(true);
        }
        // virtio-queue leaves this flag to us. needs_notification has put a fence before it.
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(virtio_queue::Error::GuestMemory)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Asks the driver not to notify while the device looks at the ring anyway.
    pub fn suppress_notifications(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(memory)?)
    }

    /// Asks the driver to notify again. True if chains came meanwhile, for which there may be no
    /// notification.
    pub fn request_notifications(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(memory)?)
    }
}

#[cfg(test)]
mod tests;
