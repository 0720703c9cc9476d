//! virtio-mmio devices (virtio 1.2 section 4.2): where they are, and a virtqueue of our own.
//!
//! `virtio-drivers` drives the random number device. Its block driver has one queue, a fixed depth
//! and no discard, and refuses to be misused; its network driver rings the doorbell for each frame,
//! which from user mode on software KVM costs 90 µs. So disks and cards are driven by [`queue`].

pub mod queue;
pub mod registers;

use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

use self::registers::Registers;
use crate::cpu::ports;

/// First window.
const BASE: u64 = 0xd000_0000;
/// Bytes of a window, and distance of one from the next.
const STRIDE: u64 = 0x1000;
const WINDOWS: u64 = 16;
/// Where QEMU's microvm has them: 24 windows of 512 bytes.
const QEMU_BASE: u64 = 0xfeb0_0000;
const QEMU_STRIDE: u64 = 0x200;
const QEMU_WINDOWS: u64 = 24;

/// Kinds of devices (section 5).
pub mod kind {
    /// Network card.
    pub const NETWORK: u32 = 1;
    /// Disk.
    pub const BLOCK: u32 = 2;
    /// Source of random numbers.
    pub const RANDOM: u32 = 4;
}

/// A device that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Guest-physical address of its registers.
    pub base: u64,
    /// Bytes of its registers.
    pub size: u64,
    /// See [`kind`].
    pub kind: u32,
}

impl Found {
    /// Its registers.
    pub fn registers(&self) -> Registers {
        Registers::new(self.base)
    }

    /// For a driver of `virtio-drivers`. There must be one at a time.
    pub fn transport(&self) -> Option<MmioTransport<'static>> {
        let header = NonNull::new(self.base as *mut VirtIOHeader)?;
        // SAFETY: the window of a device, which is there for ever; only one driver at a time uses
        // it, as the doc says.
        unsafe { MmioTransport::new(header, self.size as usize) }.ok()
    }
}

/// First port of the bytes that say which of the windows' disks are there (`_STA` in ACPI).
const STATUS_PORT: u16 = 0x610;

impl Found {
    /// Whether the machine wants it to be used: a disk that is to be let go of is not.
    pub fn is_wanted(&self) -> bool {
        match (self.kind, self.base.checked_sub(BASE)) {
            // A machine without such registers reads as ones.
            (kind::BLOCK, Some(offset)) if offset < WINDOWS * STRIDE => {
                ports::read8(STATUS_PORT + (offset / STRIDE) as u16) != 0
            }
            _ => true,
        }
    }
}

/// Looks at every window. Each costs an exit to the VMM or two.
pub fn find() -> Vec<Found> {
    let mut found = scan(BASE, STRIDE, WINDOWS);
    if found.is_empty() {
        found = scan(QEMU_BASE, QEMU_STRIDE, QEMU_WINDOWS);
        // QEMU fills its windows from the last one down.
        found.reverse();
    }
    found
}

fn scan(base: u64, stride: u64, windows: u64) -> Vec<Found> {
    (0..windows)
        .filter_map(|index| {
            let base = base + index * stride;
            let registers = Registers::new(base);
            let kind = registers.is_virtio().then(|| registers.device_id())?;
            (kind != 0).then_some(Found {
                base,
                size: stride,
                kind,
            })
        })
        .collect()
}
