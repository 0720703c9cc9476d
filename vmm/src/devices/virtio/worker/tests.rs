use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{Ring, guest_memory, wait_for};

struct Fixture {
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    ring: Ring,
    notify: EventFd,
}

impl Fixture {
    fn new() -> Self {
        Fixture {
            memory: guest_memory(),
            interrupt: Arc::new(Interrupt::new().unwrap()),
            ring: Ring::new(0x1000, 16),
            notify: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    fn spawn(&self, event_idx: bool, handler: impl ChainHandler) -> Worker {
        let mut queue = Queue::new(16).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.ring.descriptors))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.ring.available))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.ring.used))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let queue = ActiveQueue {
            index: 0,
            queue,
            notify: self.notify.try_clone().unwrap(),
        };
        Worker::spawn(
            "test".to_owned(),
            queue,
            Arc::clone(&self.memory),
            Arc::clone(&self.interrupt),
            handler,
        )
        .unwrap()
    }

    fn submit(&mut self) {
        self.ring.submit(&self.memory, &[(0x8000, 16, true)]);
    }

    fn wait_used(&mut self) {
        wait_for("a used buffer", || self.ring.take_used(&self.memory));
    }

    fn wait_needs_reset(&self) {
        wait_for("a need of reset", || {
            self.interrupt.needs_reset().then_some(())
        });
    }
}

/// Calls the function for each chain.
struct Serve<F>(F);

impl<F: FnMut() -> Result<u32, QueueError> + Send + 'static> ChainHandler for Serve<F> {
    fn serve(&mut self, _chain: Chain<'_>, _pause: &mut Pause<'_>) -> Result<Served, QueueError> {
        (self.0)().map(Served::Completed)
    }

    fn failed(&mut self, _error: &QueueError) {}
}

#[test]
fn what_was_in_the_queue_before_the_start_needs_no_notification() {
    let mut fixture = Fixture::new();
    fixture.submit();
    let _worker = fixture.spawn(true, Serve(|| Ok(0)));
    fixture.wait_used();
}

#[test]
fn with_event_idx_interrupts_come_where_the_driver_asked_for_them() {
    let mut fixture = Fixture::new();
    let used_event = GuestAddress(fixture.ring.available + 4 + 2 * 16);
    fixture.memory.write_obj(2u16, used_event).unwrap();
    let _worker = fixture.spawn(true, Serve(|| Ok(0)));
    for _ in 0..2 {
        fixture.submit();
        fixture.notify.write(1).unwrap();
        fixture.wait_used();
    }
    assert!(fixture.interrupt.eventfd().read().is_err());
    fixture.submit();
    fixture.notify.write(1).unwrap();
    wait_for("an interrupt", || fixture.interrupt.eventfd().read().ok());
}

#[test]
fn every_chain_is_served_when_the_driver_notifies_only_where_it_is_asked_to() {
    let mut fixture = Fixture::new();
    let _worker = fixture.spawn(true, Serve(|| Ok(0)));
    let avail_event = GuestAddress(fixture.ring.used + 4 + 8 * 16);
    // Spins, so that chains come at the moment when the worker is about to fall asleep.
    'chains: for index in 0..60_000u16 {
        fixture.submit();
        std::sync::atomic::fence(Ordering::SeqCst);
        let asked: u16 = fixture.memory.load(avail_event, Ordering::SeqCst).unwrap();
        if asked == index {
            fixture.notify.write(1).unwrap();
        }
        for _ in 0..1000 {
            if fixture.ring.take_used(&fixture.memory).is_some() {
                continue 'chains;
            }
            std::hint::spin_loop();
        }
        fixture.wait_used();
    }
}

#[test]
fn a_driver_that_never_pauses_cannot_keep_a_worker_from_ending() {
    let fixture = Fixture::new();
    let memory = Arc::clone(&fixture.memory);
    let mut ring = Ring::new(0x1000, 16);
    ring.submit(&memory, &[(0x8000, 16, true)]);
    let (started, is_started) = std::sync::mpsc::channel();
    let worker = fixture.spawn(
        false,
        Serve(move || {
            ring.make_available(&memory, 0);
            let _ = started.send(());
            Ok(0)
        }),
    );
    is_started.recv().unwrap();
    drop(worker);
}

#[test]
fn a_worker_that_fails_or_panics_needs_a_reset() {
    let errors: [fn() -> Result<u32, QueueError>; 2] = [
        || Err(io::Error::other("broken").into()),
        || panic!("a bug, as this test wants it"),
    ];
    for error in errors {
        let mut fixture = Fixture::new();
        fixture.submit();
        let worker = fixture.spawn(false, Serve(error));
        fixture.wait_needs_reset();
        drop(worker);
    }
}
