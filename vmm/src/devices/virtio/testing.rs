//! The driver's side of a device, for tests: speaks to the registers of a real transport and to
//! rings in guest memory, as a guest's driver does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::mmio::MmioTransport;
use super::{GuestMemory, VirtioDevice};

/// Bytes of guest memory, with a hole after it.
pub const MEMORY_BYTES: u64 = 8 << 20;
const FIRST_BUFFER: u64 = 1 << 20;
/// How long a test may wait for a device before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

pub fn guest_memory() -> Arc<GuestMemory> {
    let ranges = [(GuestAddress(0), MEMORY_BYTES as usize)];
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

/// Where the driver put a ring, and how far it is.
pub struct Ring {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

impl Ring {
    /// Rings of `size` entries at `base`, less than 64 KiB of zeroes.
    pub fn new(base: u64, size: u16) -> Self {
        let available = base + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Ring {
            size,
            descriptors: base,
            available,
            used,
            next_descriptor: 0,
            available_index: 0,
            used_index: 0,
        }
    }

    /// Puts descriptors into the table as they are and makes the first of them available.
    /// Returns its index.
    pub fn submit_raw(&mut self, memory: &GuestMemory, descriptors: &[Descriptor]) -> u16 {
        let head = self.next_descriptor;
        for descriptor in descriptors {
            let at = self.descriptors + 16 * u64::from(self.next_descriptor % self.size);
            write_descriptor(memory, at, descriptor);
            self.next_descriptor = (self.next_descriptor + 1) % self.size;
        }
        self.make_available(memory, head);
        head
    }

    /// Chains descriptors given as address, length, writable, and makes them available.
    pub fn submit(&mut self, memory: &GuestMemory, parts: &[(u64, u32, bool)]) -> u16 {
        let mut next = self.next_descriptor;
        let chain: Vec<_> = (1..=parts.len())
            .zip(parts)
            .map(|(count, &(addr, len, writable))| {
                next = (next + 1) % self.size;
                let more = if count < parts.len() {
                    VRING_DESC_F_NEXT
                } else {
                    0
                };
                let write = if writable { VRING_DESC_F_WRITE } else { 0 };
                Descriptor::new(addr, len, (more | write) as u16, next)
            })
            .collect();
        self.submit_raw(memory, &chain)
    }

    pub fn make_available(&mut self, memory: &GuestMemory, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.available_index % self.size);
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available_index(memory, self.available_index.wrapping_add(1));
    }

    pub fn set_available_index(&mut self, memory: &GuestMemory, index: u16) {
        self.available_index = index;
        memory
            .store(index, GuestAddress(self.available + 2), Ordering::Release)
            .unwrap();
    }

    /// The next entry of the used ring: head and length.
    pub fn take_used(&mut self, memory: &GuestMemory) -> Option<(u16, u32)> {
        let index: u16 = memory
            .load(GuestAddress(self.used + 2), Ordering::Acquire)
            .unwrap();
        if index == self.used_index {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.used_index % self.size);
        self.used_index = self.used_index.wrapping_add(1);
        let [head, len]: [u32; 2] = memory.read_obj(GuestAddress(slot)).unwrap();
        Some((head as u16, len))
    }
}

pub fn write_descriptor(memory: &GuestMemory, at: u64, descriptor: &Descriptor) {
    let address = GuestAddress(at);
    memory.write_obj(descriptor.addr().0, address).unwrap();
    let rest = [
        u64::from(descriptor.len()),
        u64::from(descriptor.flags()) << 32,
        u64::from(descriptor.next()) << 48,
    ];
    let rest = rest.iter().fold(0, |all, part| all | part);
    memory.write_obj(rest, GuestAddress(at + 8)).unwrap();
}

/// A driver of one device.
pub struct TestDriver {
    pub memory: Arc<GuestMemory>,
    pub transport: MmioTransport,
    pub rings: Vec<Ring>,
    next_buffer: u64,
}

impl TestDriver {
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let memory = guest_memory();
        let transport = MmioTransport::new(Arc::clone(&memory), Box::new(device)).unwrap();
        TestDriver {
            memory,
            transport,
            rings: Vec::new(),
            next_buffer: FIRST_BUFFER,
        }
    }

    /// A device that is ready to use, with `queues` queues of 16 entries.
    pub fn started(device: impl VirtioDevice + 'static, features: u64, queues: u32) -> Self {
        let mut driver = TestDriver::new(device);
        driver.start(features, queues);
        driver
    }

    pub fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// Resets and goes on until features can be written.
    pub fn begin(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    }

    pub fn offered_features(&mut self) -> u64 {
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let low = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
        self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES)) << 32
    }

    /// Accepts features. Returns whether the device agreed.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.begin();
        self.write_features(features);
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.write(VIRTIO_MMIO_STATUS, status);
        self.status() == status
    }

    pub fn write_features(&mut self, features: u64) {
        for (select, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        }
    }

    /// Writes the registers of a queue and sets QueueReady.
    pub fn set_up_queue(&mut self, index: u32, ring: &Ring) {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(VIRTIO_MMIO_QUEUE_NUM, ring.size.into());
        for (low, high, address) in [
            (
                VIRTIO_MMIO_QUEUE_DESC_LOW,
                VIRTIO_MMIO_QUEUE_DESC_HIGH,
                ring.descriptors,
            ),
            (
                VIRTIO_MMIO_QUEUE_AVAIL_LOW,
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
                ring.available,
            ),
            (
                VIRTIO_MMIO_QUEUE_USED_LOW,
                VIRTIO_MMIO_QUEUE_USED_HIGH,
                ring.used,
            ),
        ] {
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// From reset to DRIVER_OK.
    pub fn start(&mut self, features: u64, queues: u32) {
        assert!(self.negotiate(features | VERSION_1));
        self.rings.clear();
        for index in 0..queues {
            let base = u64::from(index) << 16;
            self.memory
                .write_slice(&[0; 1 << 16], GuestAddress(base))
                .unwrap();
            let ring = Ring::new(base, 16);
            self.set_up_queue(index, &ring);
            assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
            self.rings.push(ring);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.write(VIRTIO_MMIO_STATUS, status);
        assert_eq!(self.status(), status);
    }

    /// A buffer in guest memory that holds `data`.
    pub fn buffer(&mut self, data: &[u8]) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += (data.len() as u64).next_multiple_of(16);
        self.memory.write_slice(data, GuestAddress(at)).unwrap();
        at
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    pub fn notify(&mut self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Submits what the device reads and room for what it writes, and waits. Returns what was
    /// written there and the used length.
    pub fn request(&mut self, queue: usize, out: &[&[u8]], room: &[usize]) -> (Vec<u8>, u32) {
        let first_buffer = self.next_buffer;
        let mut parts = Vec::new();
        for data in out {
            parts.push((self.buffer(data), data.len() as u32, false));
        }
        for &len in room {
            parts.push((self.buffer(&vec![0xee; len]), len as u32, true));
        }
        let head = self.rings[queue].submit(&self.memory, &parts);
        self.notify(queue);
        let (used, len) = self.wait_used(queue);
        assert_eq!(used, head);
        let written = parts
            .iter()
            .filter(|(_, _, writable)| *writable)
            .flat_map(|&(at, len, _)| self.bytes(at, len as usize))
            .collect();
        self.next_buffer = first_buffer;
        (written, len)
    }

    pub fn wait_used(&mut self, queue: usize) -> (u16, u32) {
        let (ring, memory) = (&mut self.rings[queue], &self.memory);
        wait_for("a used buffer", || ring.take_used(memory))
    }

    pub fn wait_needs_reset(&mut self) {
        wait_for("DEVICE_NEEDS_RESET", || {
            (self.status() & NEEDS_RESET != 0).then_some(())
        });
        wait_for("the configuration interrupt", || {
            (self.read(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG != 0).then_some(())
        });
    }

    /// Waits for an edge on the interrupt line, and takes it.
    pub fn wait_interrupt(&mut self) {
        let irq = self.transport.irq_eventfd();
        wait_for("an interrupt", || irq.read().ok());
    }
}

/// Polls until `poll` has an answer.
pub fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
