//! Hands the guest's port and memory-mapped accesses to the devices that own the addresses.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A device behind a range of addresses.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` from the start of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

type Entry = (Range<u64>, Arc<Mutex<dyn BusDevice>>);

/// Devices by address range; one for ports, one for memory.
#[derive(Clone, Default)]
pub struct Bus {
    // Sorted by start; ranges do not overlap.
    devices: Vec<Entry>,
}

impl Bus {
    /// Adds a device. Ranges are our own constants: one that overlaps another is a bug.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<Mutex<dyn BusDevice>>) {
        let at = self
            .devices
            .partition_point(|(other, _)| other.start < range.start);
        let free_before = at == 0 || self.devices[at - 1].0.end <= range.start;
        let free_after = self
            .devices
            .get(at)
            .is_none_or(|(next, _)| range.end <= next.start);
        assert!(
            free_before && free_after,
            "bus ranges overlap at {range:#x?}"
        );
        self.devices.insert(at, (range, device));
    }

    /// Reads; addresses that no device owns give ones, like an empty bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => {
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes; addresses that no device owns swallow it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let at = self
            .devices
            .partition_point(|(range, _)| range.start <= address);
        let (range, device) = self.devices.get(at.checked_sub(1)?)?;
        range
            .contains(&address)
            .then(|| (address - range.start, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u64);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 as u8 + offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = offset + u64::from(data[0]);
        }
    }

    #[test]
    fn accesses_reach_the_device_that_owns_the_address_and_no_other() {
        let mut bus = Bus::default();
        bus.insert(0x100..0x110, Arc::new(Mutex::new(Echo(0x10))));
        bus.insert(0x10..0x20, Arc::new(Mutex::new(Echo(0x40))));
        let read = |address| {
            let mut data = [0];
            bus.read(address, &mut data);
            data[0]
        };
        assert_eq!(read(0x102), 0x12);
        assert_eq!(read(0x1f), 0x4f);
        assert_eq!(read(0x20), 0xff);
        assert_eq!(read(0x0f), 0xff);
        bus.write(0x101, &[7]);
        assert_eq!(read(0x100), 8);
        bus.write(0x5000, &[7]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_ranges_are_a_bug() {
        let mut bus = Bus::default();
        bus.insert(0..8, Arc::new(Mutex::new(Echo(0))));
        bus.insert(7..9, Arc::new(Mutex::new(Echo(0))));
    }
}
