//! What the host may change of a block device while its guest runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::SECTOR_BYTES;
use crate::devices::virtio::Interrupt;

/// The host's handle of a block device; the device and its queues hold clones.
#[derive(Clone)]
pub struct BlockControl(Arc<Shared>);

struct Shared {
    size_bytes: AtomicU64,
    driver: Mutex<Driver>,
}

/// Whom to tell of changes.
enum Driver {
    /// Nobody yet. `changed`: what it may have read of the configuration space is out of date.
    Inactive {
        changed: bool,
    },
    Active(Arc<Interrupt>),
}

impl BlockControl {
    pub(super) fn new(size_bytes: u64) -> Self {
        BlockControl(Arc::new(Shared {
            size_bytes: AtomicU64::new(size_bytes),
            driver: Mutex::new(Driver::Inactive { changed: false }),
        }))
    }

    /// Size of the disk in bytes, as the driver may know it.
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes.load(Ordering::Acquire)
    }

    /// Whole sectors of the disk.
    pub fn sectors(&self) -> u64 {
        self.size_bytes() / SECTOR_BYTES
    }

    /// Tells the driver of a new size (virtio 1.2 section 5.2.5.1: a configuration change
    /// notification). The storage must have that size already. A disk only grows: a smaller size
    /// is that of an earlier request.
    pub fn set_size(&self, size_bytes: u64) {
        let mut driver = self.driver();
        if self.0.size_bytes.fetch_max(size_bytes, Ordering::AcqRel) >= size_bytes {
            return;
        }
        match &mut *driver {
            Driver::Inactive { changed } => *changed = true,
            Driver::Active(interrupt) => interrupt.signal_config(),
        }
    }

    /// The driver is ready, and may be interrupted.
    pub(super) fn activated(&self, interrupt: &Arc<Interrupt>) {
        let mut driver = self.driver();
        if matches!(*driver, Driver::Inactive { changed: true }) {
            interrupt.signal_config();
        }
        *driver = Driver::Active(Arc::clone(interrupt));
    }

    /// The driver may not be interrupted any more.
    pub(super) fn reset(&self) {
        *self.driver() = Driver::Inactive { changed: false };
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.0.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_in_whole_sectors() {
        assert_eq!(BlockControl::new(3 * 512 + 511).sectors(), 3);
    }

    #[test]
    fn a_driver_hears_of_a_new_size_once_it_listens() {
        let control = BlockControl::new(1 << 20);
        let interrupt = Arc::new(Interrupt::new().unwrap());
        control.set_size(1 << 21);
        assert_eq!(interrupt.config_generation(), 0);
        control.activated(&interrupt);
        assert_eq!(interrupt.config_generation(), 1);
        control.set_size(1 << 21);
        assert_eq!(interrupt.config_generation(), 1, "nothing has changed");
        control.set_size(1 << 22);
        assert_eq!(interrupt.config_generation(), 2);
        control.reset();
        control.set_size(1 << 23);
        assert_eq!(interrupt.config_generation(), 2);
        assert_eq!(control.sectors(), 1 << 14);
    }
}
