use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::devices::virtio::testing::{MEMORY_BYTES, Ring, guest_memory, write_descriptor};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
const TABLE: u64 = 0x10_0000;

struct Fixture {
    memory: Arc<GuestMemory>,
    ring: Ring,
    queue: ActiveQueue,
}

/// A queue of 16 entries; memory beside it is zeroes.
fn fixture() -> Fixture {
    let ring = Ring::new(0x1000, 16);
    let mut queue = Queue::new(16).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(ring.descriptors))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(ring.available))
        .unwrap();
    queue
        .try_set_used_ring_address(GuestAddress(ring.used))
        .unwrap();
    queue.set_ready(true);
    Fixture {
        memory: guest_memory(),
        ring,
        queue: ActiveQueue {
            index: 0,
            queue,
            notify: EventFd::new(EFD_NONBLOCK).unwrap(),
        },
    }
}

impl Fixture {
    fn submit(&mut self, descriptors: &[Descriptor]) {
        self.ring.submit_raw(&self.memory, descriptors);
    }

    /// Lengths of the readable and the writable part of the next chain.
    fn pop(&mut self) -> Result<Option<(usize, usize)>, QueueError> {
        let chain = self.queue.pop(&self.memory)?;
        Ok(chain.map(|chain| (chain.readable.len(), chain.writable.len())))
    }

    /// What a single chain of `descriptors` makes of the queue.
    fn pop_only(descriptors: &[Descriptor]) -> Result<Option<(usize, usize)>, QueueError> {
        let mut fixture = fixture();
        fixture.submit(descriptors);
        fixture.pop()
    }
}

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor::new(addr, len, flags, next)
}

#[test]
fn chains_come_in_order_and_then_none() {
    let mut fixture = fixture();
    fixture.submit(&[desc(0x4000, 10, NEXT, 1), desc(0x5000, 20, WRITE, 0)]);
    fixture.submit(&[desc(0x6000, 30, 0, 0)]);
    assert_eq!(fixture.pop().unwrap(), Some((10, 20)));
    assert_eq!(fixture.pop().unwrap(), Some((30, 0)));
    assert_eq!(fixture.pop().unwrap(), None);
}

#[test]
fn an_indirect_table_is_followed() {
    let mut fixture = fixture();
    write_descriptor(&fixture.memory, TABLE, &desc(0x4000, 16, NEXT, 1));
    write_descriptor(&fixture.memory, TABLE + 16, &desc(0x5000, 512, WRITE, 0));
    fixture.submit(&[desc(TABLE, 32, INDIRECT, 0)]);
    assert_eq!(fixture.pop().unwrap(), Some((16, 512)));
}

#[test]
fn empty_descriptors_do_no_harm() {
    let chain = [desc(0x4000, 0, NEXT | WRITE, 1), desc(0x4000, 8, 0, 0)];
    assert_eq!(Fixture::pop_only(&chain).unwrap(), Some((8, 0)));
    assert_eq!(
        Fixture::pop_only(&[desc(u64::MAX, 0, WRITE, 0)]).unwrap(),
        Some((0, 0))
    );
}

#[test]
fn loops_and_bad_indexes_are_broken_chains() {
    for chain in [
        [desc(0x4000, 1, NEXT, 0)].as_slice(),
        &[desc(0x4000, 1, NEXT, 1), desc(0x4000, 1, NEXT, 0)],
        &[desc(0x4000, 1, NEXT, 16)],
        &[desc(0x4000, 1, NEXT, u16::MAX)],
    ] {
        assert!(matches!(
            Fixture::pop_only(chain),
            Err(QueueError::BrokenChain { head: 0, .. })
        ));
    }
    let mut fixture = fixture();
    fixture.ring.make_available(&fixture.memory.clone(), 16);
    assert!(matches!(
        fixture.pop(),
        Err(QueueError::BrokenChain { head: 16, after: 0 })
    ));
}

#[test]
fn bad_indirect_tables_are_broken_chains() {
    for table in [
        desc(TABLE, 0, INDIRECT, 0),
        desc(TABLE, 24, INDIRECT, 0),
        desc(TABLE, 16 << 16, INDIRECT, 0),
        desc(MEMORY_BYTES, 16, INDIRECT, 0),
        desc(u64::MAX - 15, 32, INDIRECT, 0),
    ] {
        assert!(matches!(
            Fixture::pop_only(&[table]),
            Err(QueueError::BrokenChain { after: 0, .. })
        ));
    }
    let mut fixture = fixture();
    write_descriptor(&fixture.memory, TABLE, &desc(TABLE, 16, INDIRECT, 0));
    fixture.submit(&[desc(TABLE, 16, INDIRECT, 0)]);
    assert!(matches!(
        fixture.pop(),
        Err(QueueError::BrokenChain { after: 0, .. })
    ));
}

#[test]
fn a_chain_of_4_gib_is_broken() {
    let mut fixture = fixture();
    let len = MEMORY_BYTES as u32;
    for index in 0..=(u32::MAX / len) as u16 + 1 {
        let at = TABLE + 16 * u64::from(index);
        write_descriptor(&fixture.memory, at, &desc(0, len, NEXT, index + 1));
    }
    fixture.submit(&[desc(TABLE, 16 * 1024, INDIRECT, 0)]);
    assert!(matches!(fixture.pop(), Err(QueueError::BrokenChain { .. })));
}

#[test]
fn a_chain_is_at_most_1024_descriptors_long() {
    for (count, whole) in [(1024, true), (1025, false)] {
        let mut fixture = fixture();
        for index in 0..count {
            let flags = if index + 1 < count { NEXT } else { 0 };
            let at = TABLE + 16 * u64::from(index);
            write_descriptor(&fixture.memory, at, &desc(0x4000, 1, flags, index + 1));
        }
        fixture.submit(&[desc(TABLE, 16 * u32::from(count), INDIRECT, 0)]);
        match fixture.pop() {
            Ok(Some((1024, 0))) => assert!(whole),
            Err(QueueError::LongChain { head: 0 }) => assert!(!whole),
            other => panic!("{count} descriptors: {other:?}"),
        }
    }
}

#[test]
fn readable_after_writable_is_refused() {
    let chain = [desc(0x4000, 8, NEXT | WRITE, 1), desc(0x4000, 8, 0, 0)];
    assert!(matches!(
        Fixture::pop_only(&chain),
        Err(QueueError::ChainOrder { head: 0 })
    ));
}

#[test]
fn buffers_outside_memory_are_refused() {
    for (addr, len) in [
        (MEMORY_BYTES, 1),
        (MEMORY_BYTES - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
        (0, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            assert!(matches!(
                Fixture::pop_only(&[desc(addr, len, flags, 0)]),
                Err(QueueError::BadBuffer { .. })
            ));
        }
    }
}

#[test]
fn an_available_index_that_jumped_is_a_ring_error() {
    let mut fixture = fixture();
    fixture
        .ring
        .set_available_index(&fixture.memory.clone(), 17);
    assert!(matches!(fixture.pop(), Err(QueueError::Ring(_))));
}

#[test]
fn the_driver_can_switch_interrupts_off() {
    let mut fixture = fixture();
    fixture.queue.complete(&fixture.memory, 3, 77).unwrap();
    assert_eq!(fixture.ring.take_used(&fixture.memory), Some((3, 77)));
    assert!(fixture.queue.wants_interrupt(&fixture.memory).unwrap());
    let flags = GuestAddress(fixture.ring.available);
    fixture.memory.write_obj(1u16, flags).unwrap();
    assert!(!fixture.queue.wants_interrupt(&fixture.memory).unwrap());
}

#[test]
fn with_event_idx_the_driver_says_after_which_buffer_it_wants_an_interrupt() {
    let mut fixture = fixture();
    fixture.queue.queue.set_event_idx(true);
    let used_event = GuestAddress(fixture.ring.available + 4 + 2 * 16);
    fixture.memory.write_obj(2u16, used_event).unwrap();
    let wanted: Vec<bool> = (0..4)
        .map(|head| {
            fixture.queue.complete(&fixture.memory, head, 0).unwrap();
            fixture.queue.wants_interrupt(&fixture.memory).unwrap()
        })
        .collect();
    assert_eq!(wanted, [false, false, true, false]);
}

#[test]
fn a_chain_that_came_just_before_notifications_were_requested_is_seen() {
    let mut fixture = fixture();
    fixture
        .queue
        .suppress_notifications(&fixture.memory)
        .unwrap();
    let flags: u16 = fixture
        .memory
        .read_obj(GuestAddress(fixture.ring.used))
        .unwrap();
    assert_eq!(flags, 1);
    assert!(
        !fixture
            .queue
            .request_notifications(&fixture.memory)
            .unwrap()
    );
    fixture.submit(&[desc(0x4000, 1, 0, 0)]);
    assert!(
        fixture
            .queue
            .request_notifications(&fixture.memory)
            .unwrap()
    );
}

fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let addr = prop_oneof![
        4 => (0..MEMORY_BYTES / 16).prop_map(|unit| unit * 16),
        1 => Just(TABLE),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![Just(16u32), Just(64), 0..8192u32, any::<u32>()];
    (addr, len, 0..8u16, 0..18u16)
        .prop_map(|(addr, len, flags, next)| Descriptor::new(addr, len, flags, next))
}

proptest! {
    #[test]
    fn no_descriptor_table_panics_or_yields_more_than_it_says(
        direct in prop::collection::vec(any_descriptor(), 16),
        indirect in prop::collection::vec(any_descriptor(), 4),
        heads in prop::collection::vec(0..18u16, 1..16),
    ) {
        let mut fixture = fixture();
        for (at, table) in [(fixture.ring.descriptors, &direct), (TABLE, &indirect)] {
            for (index, descriptor) in (0..).zip(table) {
                write_descriptor(&fixture.memory, at + 16 * index, descriptor);
            }
        }
        let memory = Arc::clone(&fixture.memory);
        heads.iter().for_each(|&head| fixture.ring.make_available(&memory, head));
        for head in heads {
            match fixture.queue.pop(&memory) {
                Ok(chain) => {
                    let chain = chain.expect("as many chains as heads");
                    prop_assert_eq!(chain.head, head);
                    prop_assert!(chain.readable.len() + chain.writable.len() <= u32::MAX as usize);
                }
                Err(QueueError::Ring(error)) => prop_assert!(false, "the ring is good: {error}"),
                Err(_) => {}
            }
        }
        prop_assert!(fixture.queue.pop(&memory).unwrap().is_none());
    }
}
