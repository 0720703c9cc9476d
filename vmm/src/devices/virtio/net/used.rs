//! Giving several chains back to the driver at once.
//!
//! A frame in several buffers (section 5.1.6.4.1) has to appear in the used ring as a whole: the
//! driver finds the number of buffers in the first and takes that many. `virtio-queue` shows each
//! chain to the driver by itself, and counts by itself what an interrupt is due for, so that both
//! are done here for the receive queue.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error as RingError, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::{ActiveQueue, QueueError};

/// The used ring of a queue of which nothing but [`publish`](Self::publish) completes chains.
pub(super) struct UsedRing {
    /// `next_used` when the driver's wish for an interrupt was last looked at.
    judged: Wrapping<u16>,
}

impl UsedRing {
    pub(super) fn new(queue: &ActiveQueue) -> Self {
        UsedRing {
            judged: Wrapping(queue.queue.next_used()),
        }
    }

    /// Gives `chains`, each with its head and the bytes written to it, back in one step.
    pub(super) fn publish(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let Some((&(last_head, last_written), before)) = chains.split_last() else {
            return Ok(());
        };
        let size = u64::from(queue.queue.size());
        let mut next = Wrapping(queue.queue.next_used());
        for &(head, written) in before {
            let element = [u32::from(head).to_le(), written.to_le()];
            // No overflow: the ring lies in guest memory (`Queue::is_valid`).
            let at = queue.queue.used_ring() + 4 + 8 * (u64::from(next.0) % size);
            memory
                .write_obj(element, GuestAddress(at))
                .map_err(RingError::GuestMemory)?;
            next += 1;
        }
        // The last one moves the index past all of them.
        queue.queue.set_next_used(next.0);
        queue.complete(memory, last_head, last_written)
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    pub(super) fn wants_interrupt(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
    ) -> Result<bool, QueueError> {
        let new = Wrapping(queue.queue.next_used());
        let old = std::mem::replace(&mut self.judged, new);
        if new == old {
            return Ok(false);
        }
        if !queue.queue.event_idx_enabled() {
            return queue.wants_interrupt(memory);
        }
        // The index must be visible before used_event is read (section 2.7.10.1).
        fence(Ordering::SeqCst);
        let at = queue.queue.avail_ring() + 4 + 2 * u64::from(queue.queue.size());
        let used_event = memory
            .load(GuestAddress(at), Ordering::Relaxed)
            .map(|event| Wrapping(u16::from_le(event)))
            .map_err(RingError::GuestMemory)?;
        Ok(new - used_event - Wrapping(1) < new - old)
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::Queue;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::devices::virtio::testing::{Ring, guest_memory};

    fn queue(ring: &Ring, event_idx: bool) -> ActiveQueue {
        let mut queue = Queue::new(ring.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(ring.descriptors))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(ring.available))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(ring.used))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        ActiveQueue {
            index: 0,
            queue,
            notify: EventFd::new(0).unwrap(),
        }
    }

    #[test]
    fn all_chains_of_a_batch_are_in_the_ring_also_where_it_wraps() {
        let memory = guest_memory();
        let mut ring = Ring::new(0x1000, 4);
        let mut queue = queue(&ring, false);
        let mut used = UsedRing::new(&queue);
        for batch in [
            &[(0, 10), (1, 11), (2, 12)][..],
            &[(3, 13), (0, 14), (1, 15)],
            &[(2, 16)],
        ] {
            used.publish(&mut queue, &memory, batch).unwrap();
            for &expected in batch {
                assert_eq!(ring.take_used(&memory), Some(expected));
            }
            assert_eq!(ring.take_used(&memory), None);
        }
        used.publish(&mut queue, &memory, &[]).unwrap();
        assert_eq!(ring.take_used(&memory), None);
    }

    #[test]
    fn with_event_idx_an_event_anywhere_in_a_batch_wants_an_interrupt() {
        let memory = guest_memory();
        let ring = Ring::new(0x1000, 16);
        let used_event = GuestAddress(ring.available + 4 + 2 * 16);
        for (event, wanted) in [
            (u16::MAX, false),
            (0, true),
            (2, true),
            (3, true),
            (4, false),
        ] {
            memory.write_obj(event, used_event).unwrap();
            let mut queue = queue(&ring, true);
            let mut used = UsedRing::new(&queue);
            for batch in [&[(0, 1), (1, 1), (2, 1)][..], &[(3, 1)]] {
                used.publish(&mut queue, &memory, batch).unwrap();
            }
            assert_eq!(
                used.wants_interrupt(&mut queue, &memory).unwrap(),
                wanted,
                "{event}"
            );
            assert!(!used.wants_interrupt(&mut queue, &memory).unwrap());
        }
    }
}
