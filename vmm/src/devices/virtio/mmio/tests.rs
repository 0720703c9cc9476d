use proptest::prelude::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::*;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{MEMORY_BYTES, Ring, TestDriver, VERSION_1, guest_memory};

const CONFIGURING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const ACTIVE: u32 = CONFIGURING | DRIVER_OK;

fn driver() -> TestDriver {
    TestDriver::new(Rng::new())
}

fn configuring() -> TestDriver {
    let mut driver = driver();
    assert!(driver.negotiate(VERSION_1));
    driver
}

fn assert_serves(driver: &mut TestDriver) {
    let (bytes, len) = driver.request(0, &[], &[64]);
    assert_eq!(len, 64);
    assert_ne!(bytes, [0xee; 64]);
}

#[test]
fn a_driver_finds_a_version_2_device() {
    let mut driver = driver();
    assert_eq!(driver.read(VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_RNG);
    assert_eq!(driver.read(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    assert_eq!(driver.read(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    driver.write(VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn ring_features_are_offered_and_banks_past_the_second_are_empty() {
    let mut driver = driver();
    assert_eq!(driver.offered_features(), COMMON_FEATURES);
    driver.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn features_ok_needs_version_1_and_nothing_that_was_not_offered() {
    let mut driver = driver();
    assert!(!driver.negotiate(0));
    assert!(!driver.negotiate(VERSION_1 | 1 << 34));
    assert!(!driver.negotiate(VERSION_1 | 1));
    assert!(driver.negotiate(VERSION_1));
    assert!(driver.negotiate(COMMON_FEATURES));
}

#[test]
fn features_written_at_the_wrong_time_are_ignored() {
    let mut driver = driver();
    driver.write_features(VERSION_1);
    driver.write(VIRTIO_MMIO_STATUS, CONFIGURING);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);

    let mut driver = configuring();
    driver.write_features(0);
    assert_eq!(driver.transport.driver_features, VERSION_1);
}

#[test]
fn status_steps_out_of_order_are_not_taken() {
    let mut driver = driver();
    driver.write(VIRTIO_MMIO_STATUS, DRIVER);
    assert_eq!(driver.status(), 0);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | FEATURES_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE | DRIVER,
        "bits can't be cleared"
    );
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | NEEDS_RESET);
    assert_eq!(
        driver.status(),
        ACKNOWLEDGE | DRIVER,
        "not the driver's bit"
    );
}

#[test]
fn several_status_steps_fit_in_one_write() {
    let mut driver = driver();
    driver.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    driver.write_features(VERSION_1);
    driver.write(VIRTIO_MMIO_STATUS, ACTIVE);
    assert_eq!(driver.status(), ACTIVE);
}

#[test]
fn after_failed_only_a_reset_helps() {
    let mut driver = configuring();
    driver.write(VIRTIO_MMIO_STATUS, CONFIGURING | FAILED);
    driver.write(VIRTIO_MMIO_STATUS, ACTIVE | FAILED);
    assert_eq!(driver.status(), CONFIGURING | FAILED);
    driver.start(0, 1);
    assert_serves(&mut driver);
}

#[test]
fn queue_registers_are_closed_but_while_configuring() {
    let ring = Ring::new(0, 16);
    let mut driver = driver();
    driver.set_up_queue(0, &ring);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.start(0, 0);
    driver.set_up_queue(0, &ring);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(driver.status(), ACTIVE);
}

#[test]
fn a_ready_queue_keeps_its_registers_until_it_is_made_unready() {
    let mut driver = configuring();
    driver.set_up_queue(0, &Ring::new(0x4000, 16));
    driver.write(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x8000);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
    let queue = driver.transport.queues[0].ready_queue().unwrap();
    assert_eq!((queue.desc_table(), queue.size()), (0x4000, 16));
    driver.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 8);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.transport.queues[0].ready_queue().unwrap().size(), 8);
}

#[test]
fn a_queue_that_cannot_be_one_needs_a_reset() {
    let with = |change: fn(&mut Ring)| {
        let mut ring = Ring::new(0x4000, 16);
        change(&mut ring);
        ring
    };
    for ring in [
        with(|ring| ring.size = 0),
        with(|ring| ring.size = 3),
        with(|ring| ring.size = 128),
        with(|ring| ring.descriptors += 8),
        with(|ring| ring.available += 1),
        with(|ring| ring.used += 2),
        with(|ring| ring.descriptors = MEMORY_BYTES),
        with(|ring| ring.available = MEMORY_BYTES - 16),
        with(|ring| ring.used = !3),
        with(|ring| ring.descriptors = !15),
    ] {
        let mut driver = configuring();
        driver.set_up_queue(0, &ring);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(driver.status(), CONFIGURING | NEEDS_RESET);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.write(VIRTIO_MMIO_STATUS, ACTIVE | NEEDS_RESET);
        driver.wait_needs_reset();
        driver.start(0, 1);
        assert_serves(&mut driver);
    }
    let mut driver = configuring();
    driver.write(VIRTIO_MMIO_QUEUE_NUM, 0x1_0010);
    driver.write(VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.status(), CONFIGURING | NEEDS_RESET);
}

#[test]
fn a_reset_forgets_everything_and_the_device_starts_again() {
    let mut driver = TestDriver::started(Rng::new(), COMMON_FEATURES, 1);
    for _ in 0..3 {
        assert_serves(&mut driver);
        driver.wait_interrupt();
        assert_eq!(
            driver.read(VIRTIO_MMIO_INTERRUPT_STATUS),
            VIRTIO_MMIO_INT_VRING
        );
        driver.write(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        assert_eq!(driver.read(VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(driver.transport.driver_features, 0);
        driver.start(COMMON_FEATURES, 1);
    }
}

#[test]
fn an_interrupt_is_acknowledged() {
    let mut driver = TestDriver::started(Rng::new(), 0, 1);
    assert_serves(&mut driver);
    driver.wait_interrupt();
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_broken_ring_needs_a_reset_and_a_reset_mends_it() {
    let mut driver = TestDriver::started(Rng::new(), 0, 1);
    let memory = Arc::clone(&driver.memory);
    driver.rings[0].set_available_index(&memory, 1000);
    driver.notify(0);
    driver.wait_needs_reset();
    assert_eq!(driver.status(), ACTIVE | NEEDS_RESET);
    driver.start(0, 1);
    assert_serves(&mut driver);
}

#[test]
fn registers_take_32_bit_accesses_only() {
    let mut driver = driver();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (2, 4), (0xff, 4), (3, 0)] {
        let mut data = vec![0xff; len];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; len], "{len} bytes at {offset}");
        driver.transport.write(offset, &data);
    }
    driver
        .transport
        .write(VIRTIO_MMIO_STATUS.into(), &[ACKNOWLEDGE as u8]);
    assert_eq!(driver.status(), 0);
    let mut data = [0xff; 8];
    driver.transport.read(u64::MAX, &mut data);
    driver.transport.write(u64::MAX, &data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_notification_of_a_queue_that_is_not_there_is_ignored() {
    let mut driver = TestDriver::started(Rng::new(), 0, 1);
    driver.notify(1);
    driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, u32::MAX);
    assert_serves(&mut driver);
}

#[test]
fn every_queue_has_an_eventfd_with_its_index() {
    let driver = driver();
    let indexes: Vec<u32> = driver.transport.queue_eventfds().map(|(i, _)| i).collect();
    assert_eq!(indexes, [0]);
}

fn register_write() -> impl Strategy<Value = (u64, u32)> {
    let register = prop_oneof![
        4 => (0u64..0x44).prop_map(|word| word * 4),
        1 => any::<u64>(),
    ];
    let value = prop_oneof![
        Just(0),
        Just(1),
        Just(16),
        Just(CONFIGURING),
        Just(ACTIVE),
        (0u32..0x800).prop_map(|page| page << 12),
        any::<u32>(),
    ];
    (register, value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_register_writes_panics(
        negotiated: bool,
        writes in prop::collection::vec(register_write(), 0..60),
    ) {
        let mut driver = driver();
        if negotiated {
            driver.negotiate(COMMON_FEATURES);
        }
        for (offset, value) in writes {
            driver.transport.write(offset, &value.to_le_bytes());
            driver.transport.read(offset, &mut [0; 4]);
        }
        driver.start(0, 1);
        assert_serves(&mut driver);
    }
}

#[test]
fn a_device_with_no_queue_ready_is_active_and_idle() {
    let mut transport = MmioTransport::new(guest_memory(), Box::new(Rng::new())).unwrap();
    let mut write = |register: u32, value: u32| {
        transport.write(register.into(), &value.to_le_bytes());
    };
    write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write(VIRTIO_MMIO_STATUS, ACTIVE);
    assert_eq!(transport.status, ACTIVE);
    transport.stop();
}
