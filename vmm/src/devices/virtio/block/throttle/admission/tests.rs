//! Devices that wait for a turn which would come in hours: whatever comes sooner is told apart
//! from it without a look at a clock.

use std::io;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_OUT};
use vm_memory::VolatileSlice;

use super::super::MachineThrottle;
use super::super::limits::{DiskLimits, Limit, MachineLimits};
use super::*;
use crate::devices::virtio::block::{Block, Storage};
use crate::devices::virtio::testing::TestDriver;

/// A disk that forgets everything.
struct Forgetful;

impl Storage for Forgetful {
    fn size_bytes(&self) -> u64 {
        1 << 30
    }
    fn read(&self, _into: &[VolatileSlice<'_>], _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _from: &[VolatileSlice<'_>], _offset: u64) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}

/// One byte in a second: a sector takes eight minutes.
fn slow() -> DiskLimits {
    DiskLimits {
        bytes: Some(Limit {
            per_second: 1,
            burst: None,
        }),
        ..DiskLimits::default()
    }
}

fn driver(throttle: &Arc<DiskThrottle>, queues: u16) -> TestDriver {
    let block = Block::new(Forgetful, "vol-1", false, queues, Arc::new(|_, _| ()))
        .with_throttle(Arc::clone(throttle));
    TestDriver::started(block, 0, queues.into())
}

/// Puts a write of one sector, or a flush, into a queue without waiting.
fn submit(driver: &mut TestDriver, queue: usize, kind: u32) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    let header = driver.buffer(&header);
    let data = driver.buffer(&[1; 512]);
    let status = driver.buffer(&[0xee]);
    let memory = Arc::clone(&driver.memory);
    let parts = [(header, 16, false), (data, 512, false), (status, 1, true)];
    driver.rings[queue].submit(&memory, &parts);
}

#[test]
fn a_request_that_waits_is_let_through_by_new_limits() {
    let machine = MachineThrottle::new(&MachineLimits::default());
    let throttle = machine.add_disk(&slow());
    let mut driver = driver(&throttle, 2);
    for queue in [0, 1] {
        submit(&mut driver, queue, VIRTIO_BLK_T_OUT);
        submit(&mut driver, queue, VIRTIO_BLK_T_OUT);
        driver.notify(queue);
    }
    // One of the four has the first turn; it is told of while the next waits.
    driver.wait_interrupt();
    throttle.set_limits(&DiskLimits::default());
    for queue in [0, 1, 0, 1] {
        driver.wait_used(queue);
    }
    driver.transport.stop();
}

#[test]
fn a_worker_that_waits_ends_at_once_and_its_request_is_not_done() {
    let machine = MachineThrottle::new(&MachineLimits::default());
    let throttle = machine.add_disk(&slow());
    let mut driver = driver(&throttle, 1);
    for _ in 0..2 {
        submit(&mut driver, 0, VIRTIO_BLK_T_OUT);
    }
    driver.notify(0);
    driver.wait_used(0);
    driver.transport.stop();
    let memory = Arc::clone(&driver.memory);
    assert_eq!(driver.rings[0].take_used(&memory), None);
    assert!(
        lock(&throttle.waiting).is_empty(),
        "nobody is left to be woken"
    );
}

#[test]
fn what_is_not_counted_does_not_wait() {
    let machine = MachineThrottle::new(&MachineLimits::default());
    let throttle = machine.add_disk(&slow());
    let mut driver = driver(&throttle, 2);
    submit(&mut driver, 0, VIRTIO_BLK_T_OUT);
    driver.notify(0);
    driver.wait_used(0);
    for _ in 0..10 {
        submit(&mut driver, 1, VIRTIO_BLK_T_FLUSH);
        driver.notify(1);
        driver.wait_used(1);
    }
    driver.transport.stop();
}

#[test]
fn disks_of_a_machine_share_its_limits_and_not_their_own() {
    let shared = MachineLimits {
        operations_per_second: None,
        bytes_per_second: Some(1),
    };
    for (limits, second_waits) in [(MachineLimits::default(), false), (shared, true)] {
        let machine = MachineThrottle::new(&limits);
        let throttles = [(); 2].map(|()| {
            let own = if second_waits {
                DiskLimits::default()
            } else {
                slow()
            };
            machine.add_disk(&own)
        });
        let mut drivers = throttles.each_ref().map(|throttle| driver(throttle, 1));
        submit(&mut drivers[0], 0, VIRTIO_BLK_T_OUT);
        drivers[0].notify(0);
        drivers[0].wait_used(0);
        submit(&mut drivers[1], 0, VIRTIO_BLK_T_OUT);
        drivers[1].notify(0);
        if second_waits {
            drivers[1].transport.stop();
            let memory = Arc::clone(&drivers[1].memory);
            assert_eq!(drivers[1].rings[0].take_used(&memory), None);
        } else {
            drivers[1].wait_used(0);
            drivers[1].transport.stop();
        }
        drivers[0].transport.stop();
    }
}
