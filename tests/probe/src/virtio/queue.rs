//! A split virtqueue (virtio 1.2 section 2.7) of which every field can be written freely.

use core::sync::atomic::{Ordering, fence};

use super::registers::{Registers, Rings};
use crate::memory::dma::Buffer;

/// Descriptor flags.
pub mod flags {
    #![allow(missing_docs)]
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}

/// The driver polls: the device need not interrupt (section 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// The device polls: it needs no doorbell (section 2.7.8).
const NO_NOTIFY: u16 = 1;

/// A descriptor.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// See [`flags`].
    pub flags: u16,
    /// The next descriptor of the chain.
    pub next: u16,
}

/// An entry of the used ring.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Head of the chain.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub length: u32,
}

/// A queue that the device was given.
pub struct Queue {
    /// Its number.
    pub index: u16,
    /// Its entries.
    pub size: u16,
    rings: Rings,
    next_available: u16,
    next_used: u16,
    /// Owns the rings' memory.
    _memory: Buffer,
}

impl Queue {
    /// Allocates a queue; `None` if there is no room. The device is not told.
    pub fn new(index: u16, size: u16) -> Option<Self> {
        // Descriptors: 16 bytes each; available: 6 + 2 each; used: 6 + 8 each, aligned to 4.
        let entries = u64::from(size);
        let available = 16 * entries;
        let used = (available + 6 + 2 * entries).next_multiple_of(64);
        let memory = Buffer::new((used + 6 + 8 * entries) as usize)?;
        let base = memory.address();
        let rings = Rings {
            descriptors: base,
            available: base + available,
            used: base + used,
        };
        let queue = Self {
            index,
            size,
            rings,
            next_available: 0,
            next_used: 0,
            _memory: memory,
        };
        queue.write_available(0, NO_INTERRUPT);
        Some(queue)
    }

    /// Where its parts are.
    pub fn rings(&self) -> Rings {
        self.rings
    }

    /// Writes a descriptor.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        assert!(index < self.size, "a descriptor outside of the table");
        let table = self.rings.descriptors as *mut Descriptor;
        // SAFETY: inside of the table, which is ours.
        unsafe { table.add(index.into()).write_volatile(descriptor) };
    }

    /// Word `at` of the available ring: flags, index, entries.
    fn write_available(&self, at: u16, value: u16) {
        // SAFETY: at most `size + 2` words are there, and no caller goes beyond.
        unsafe {
            (self.rings.available as *mut u16)
                .add(at.into())
                .write_volatile(value)
        };
    }

    /// Makes a chain available. `head` is written as it is, though it be no descriptor.
    pub fn offer(&mut self, head: u16) {
        self.write_available(2 + self.next_available % self.size, head);
        let next = self.next_available.wrapping_add(1);
        self.publish(next);
    }

    /// Writes the available index, whatever it is.
    pub fn publish(&mut self, index: u16) {
        self.next_available = index;
        fence(Ordering::Release);
        self.write_available(1, index);
    }

    /// Rings the doorbell unless the device says that it need not be.
    pub fn notify(&self, registers: Registers) {
        // The index must be visible before the flag is read (section 2.7.13.4.1).
        fence(Ordering::SeqCst);
        // SAFETY: the used ring's first word.
        let flags = unsafe { (self.rings.used as *const u16).read_volatile() };
        if flags & NO_NOTIFY == 0 {
            registers.notify(self.index.into());
        }
    }

    /// Whether the device shall interrupt. To be followed by a look at the used ring.
    pub fn set_interrupts(&self, wanted: bool) {
        self.write_available(0, if wanted { 0 } else { NO_INTERRUPT });
        // The flag must be visible before the ring is looked at.
        fence(Ordering::SeqCst);
    }

    /// Whether the used ring has an entry that was not taken.
    pub fn has_used(&self) -> bool {
        // SAFETY: the used ring's index, which the device writes.
        let index = unsafe { (self.rings.used as *const u16).add(1).read_volatile() };
        index != self.next_used
    }

    /// Takes the next entry of the used ring.
    pub fn take_used(&mut self) -> Option<Used> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = 2 * u64::from(self.next_used % self.size) + 1;
        // SAFETY: entries of eight bytes follow flags and index.
        let (head, length) = unsafe {
            let words = (self.rings.used as *const u32).add(entry as usize);
            (words.read_volatile(), words.add(1).read_volatile())
        };
        self.next_used = self.next_used.wrapping_add(1);
        Some(Used { head, length })
    }
}
