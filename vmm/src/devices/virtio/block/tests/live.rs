//! What the host changes under a driver that goes on.

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK,
};

use super::*;

fn capacity(driver: &mut TestDriver) -> u64 {
    let mut capacity = [0; 8];
    driver
        .transport
        .read(VIRTIO_MMIO_CONFIG.into(), &mut capacity);
    u64::from_le_bytes(capacity)
}

#[test]
fn a_driver_is_told_of_a_new_size_and_may_use_it() {
    let volume = Volume::new();
    let disk = Arc::new(volume.open(Access::ReadWrite));
    let block = Block::new(Arc::clone(&disk), "vol-1", false, 1, Arc::new(|_, _| ()));
    let control = block.control();
    let mut driver = TestDriver::started(block, FLUSH | EVENT_IDX, 1);
    let data = [7; 512];
    assert_eq!(driver.write_disk(0, SECTORS, &data), IOERR);
    let generation = driver.read(VIRTIO_MMIO_CONFIG_GENERATION);
    driver.write(VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);

    volume
        .store
        .grow_disk(&disk, &volume.id, 2 * DISK_BYTES)
        .unwrap();
    // Not before the driver is told.
    assert_eq!(capacity(&mut driver), SECTORS);
    assert_eq!(driver.write_disk(0, SECTORS, &data), IOERR);
    control.set_size(disk.size_bytes());
    assert_eq!(capacity(&mut driver), 2 * SECTORS);
    assert_ne!(driver.read(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    let status = driver.read(VIRTIO_MMIO_INTERRUPT_STATUS);
    assert_ne!(status & VIRTIO_MMIO_INT_CONFIG, 0);
    assert_eq!(driver.write_disk(0, 2 * SECTORS - 1, &data), OK);
    assert_eq!(
        driver.read_disk(0, 2 * SECTORS - 1, 512),
        (data.to_vec(), OK)
    );
    assert_eq!(driver.write_disk(0, 2 * SECTORS, &data), IOERR);
    // A disk never gets smaller.
    control.set_size(DISK_BYTES);
    assert_eq!(capacity(&mut driver), 2 * SECTORS);
    driver.transport.stop();
    assert_eq!(
        volume.store.volume(&volume.id).unwrap().size_bytes,
        2 * DISK_BYTES
    );
}
