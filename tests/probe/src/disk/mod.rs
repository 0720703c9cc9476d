//! Disks: a virtio-blk driver (virtio 1.2 section 5.2) with many requests in flight on many
//! queues, discard and write-zeroes. It polls.

pub mod load;
pub mod transfer;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::command::Failure;
use crate::cpu::clock;
use crate::memory::dma::Buffer;
use crate::virtio::Found;
use crate::virtio::queue::{Descriptor, Queue, flags};
use crate::virtio::registers::{Registers, VERSION_1, offset};

/// Unit of all sectors.
pub const SECTOR: u64 = 512;

/// Feature bits (section 5.2.3).
pub mod feature {
    #![allow(missing_docs)]
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLOCK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const MULTI_QUEUE: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const ALL: u64 =
        READ_ONLY | BLOCK_SIZE | FLUSH | TOPOLOGY | MULTI_QUEUE | DISCARD | WRITE_ZEROES;
}

/// Types of requests (section 5.2.6).
pub mod operation {
    #![allow(missing_docs)]
    pub const READ: u32 = 0;
    pub const WRITE: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Entries of our queues, if the device allows; a request takes up to three.
const QUEUE_SIZE: u32 = 256;
const DESCRIPTORS: u16 = 3;
/// Most requests in flight on a queue.
pub const SLOTS_MAX: u16 = 64;
/// Bytes of a slot: header, status, padding.
const SLOT_BYTES: u64 = 32;
/// Of `struct virtio_blk_req`, before the data.
pub const HEADER_BYTES: u32 = 16;
/// What the status byte is before the device writes it.
const NO_STATUS: u8 = 0xff;
/// How long a request may take, in nanoseconds.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// What the device says of itself.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Properties {
    pub size_bytes: u64,
    pub read_only: bool,
    pub block_bytes: u64,
    pub physical_block_bytes: u64,
    pub queues: u16,
    pub queue_size: u16,
    pub flush: bool,
    pub discard: bool,
    pub write_zeroes: bool,
    pub max_discard_bytes: u64,
    pub max_write_zeroes_bytes: u64,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// See [`operation`].
    pub operation: u32,
    /// First sector.
    pub sector: u64,
    /// Guest-physical address and bytes of the data, if it has any.
    pub data: Option<(u64, u32)>,
}

/// A request that the device is done with.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    /// Its slot.
    pub slot: u16,
    /// The status byte.
    pub status: u8,
}

/// A disk.
pub struct Disk {
    registers: Registers,
    properties: Properties,
    queues: Vec<Queue>,
    /// Headers and status bytes of all queues' slots.
    slots: Buffer,
    broken: bool,
}

impl Drop for Disk {
    /// Takes the queues away from the device before their memory goes.
    fn drop(&mut self) {
        self.registers.reset();
    }
}

impl Disk {
    /// Resets the device and makes it ready.
    pub fn open(found: Found) -> Result<Self, Failure> {
        let registers = found.registers();
        let features = registers
            .negotiate(VERSION_1 | feature::ALL)
            .ok_or("the disk refuses its own features")?;
        let properties = read_properties(registers, features);
        let mut queues = Vec::new();
        for index in 0..properties.queues {
            let size = registers.queue_size_max(index).min(QUEUE_SIZE) as u16;
            if size < DESCRIPTORS {
                return Err(format!("queue {index} has {size} entries").into());
            }
            let queue = Queue::new(index, size).ok_or("no memory for a queue")?;
            registers.set_queue(index, size.into(), &queue.rings());
            queues.push(queue);
        }
        let slots = SLOT_BYTES * u64::from(SLOTS_MAX) * u64::from(properties.queues);
        let slots = Buffer::new(slots as usize).ok_or("no memory for requests")?;
        registers.driver_ok();
        let queue_size = queues[0].size;
        let properties = Properties {
            queue_size,
            ..properties
        };
        Ok(Self {
            registers,
            properties,
            queues,
            slots,
            broken: false,
        })
    }

    /// What it is.
    pub fn properties(&self) -> Properties {
        Properties {
            size_bytes: size_bytes(self.registers),
            ..self.properties
        }
    }

    /// Whether it has to be opened anew.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Most requests in flight on one queue.
    pub fn slots(&self) -> u16 {
        (self.properties.queue_size / DESCRIPTORS).min(SLOTS_MAX)
    }

    fn slot_address(&self, queue: usize, slot: u16) -> u64 {
        let index = queue as u64 * u64::from(SLOTS_MAX) + u64::from(slot);
        self.slots.address() + SLOT_BYTES * index
    }

    /// Puts a request into a slot that is free, without ringing the doorbell.
    pub fn submit(&mut self, queue: usize, slot: u16, request: &Request) {
        let header = self.slot_address(queue, slot);
        let status = header + u64::from(HEADER_BYTES);
        // SAFETY: the slot is inside of `slots` and the device isn't using it.
        unsafe {
            (header as *mut [u32; 2]).write_volatile([request.operation, 0]);
            ((header + 8) as *mut u64).write_volatile(request.sector);
            (status as *mut u8).write_volatile(NO_STATUS);
        }
        let queue = &mut self.queues[queue];
        let first = slot * DESCRIPTORS;
        let last = first + 1 + u16::from(request.data.is_some());
        queue.set_descriptor(
            first,
            Descriptor {
                address: header,
                length: HEADER_BYTES,
                flags: flags::NEXT,
                next: first + 1,
            },
        );
        if let Some((address, length)) = request.data {
            let device_writes = matches!(request.operation, operation::READ | operation::GET_ID);
            let write = if device_writes { flags::WRITE } else { 0 };
            queue.set_descriptor(
                first + 1,
                Descriptor {
                    address,
                    length,
                    flags: flags::NEXT | write,
                    next: last,
                },
            );
        }
        queue.set_descriptor(
            last,
            Descriptor {
                address: status,
                length: 1,
                flags: flags::WRITE,
                next: 0,
            },
        );
        queue.offer(first);
    }

    /// Rings a queue's doorbell.
    pub fn notify(&self, queue: usize) {
        self.queues[queue].notify(self.registers);
    }

    /// A request that is done.
    pub fn take(&mut self, queue: usize) -> Option<Completed> {
        let used = self.queues[queue].take_used()?;
        let slot = used.head as u16 / DESCRIPTORS;
        let status = self.slot_address(queue, slot) + u64::from(HEADER_BYTES);
        // SAFETY: inside of `slots`: the slot is a submitted one's or, if the device is wrong,
        // still less than the size of the queue.
        let status = unsafe { (status as *const u8).read_volatile() };
        Some(Completed { slot, status })
    }

    /// Gives up: the disk is opened anew by the next command.
    pub fn give_up(&mut self) -> Failure {
        self.broken = true;
        // Nothing is in flight any more after this, so that buffers may go.
        self.registers.reset();
        "the disk does not answer".into()
    }

    /// One request, to its end.
    pub fn run(&mut self, request: &Request) -> Result<(), Failure> {
        self.submit(0, 0, request);
        self.notify(0);
        let start = clock::ticks();
        loop {
            if let Some(completed) = self.take(0) {
                return check(completed.status);
            }
            if clock::nanoseconds(clock::ticks().wrapping_sub(start)) > TIMEOUT_NS {
                return Err(self.give_up());
            }
            core::hint::spin_loop();
        }
    }

    /// The serial (section 5.2.6.1, `VIRTIO_BLK_T_GET_ID`).
    pub fn serial(&mut self) -> Result<String, Failure> {
        let mut buffer = Buffer::new(20).ok_or("no memory")?;
        let data = Some((buffer.address(), 20));
        self.run(&Request {
            operation: operation::GET_ID,
            sector: 0,
            data,
        })?;
        let bytes = buffer.bytes();
        let end = bytes
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// What a status byte says.
pub fn check(status: u8) -> Result<(), Failure> {
    match status {
        0 => Ok(()),
        1 => Err("the disk says IOERR".into()),
        2 => Err("the disk says UNSUPP".into()),
        NO_STATUS => Err("the disk has written no status".into()),
        other => Err(format!("the disk says status {other}").into()),
    }
}

/// `capacity`, which the host may make larger at any time.
fn size_bytes(registers: Registers) -> u64 {
    let config = |at: u64| u64::from(registers.read(offset::CONFIG + at));
    // Of two halves that don't belong together the upper one has changed meanwhile.
    loop {
        let upper = config(4);
        let sectors = upper << 32 | config(0);
        if config(4) == upper {
            return sectors.saturating_mul(SECTOR);
        }
    }
}

/// Fields of `struct virtio_blk_config` (section 5.2.4).
fn read_properties(registers: Registers, features: u64) -> Properties {
    let has = |bit| features & bit != 0;
    let config = |at: u64| registers.read(offset::CONFIG + at);
    let block_bytes = if has(feature::BLOCK_SIZE) {
        config(20).into()
    } else {
        SECTOR
    };
    let exponent = if has(feature::TOPOLOGY) {
        config(24) & 0xff
    } else {
        0
    };
    let sectors_if = |bit, at| {
        if has(bit) {
            u64::from(config(at)) * SECTOR
        } else {
            0
        }
    };
    Properties {
        size_bytes: size_bytes(registers),
        read_only: has(feature::READ_ONLY),
        block_bytes,
        physical_block_bytes: block_bytes << exponent.min(31),
        // The upper half of the word that starts with `unused0`, `writeback`.
        queues: if has(feature::MULTI_QUEUE) {
            ((config(32) >> 16) as u16).max(1)
        } else {
            1
        },
        queue_size: 0,
        flush: has(feature::FLUSH),
        discard: has(feature::DISCARD),
        write_zeroes: has(feature::WRITE_ZEROES),
        max_discard_bytes: sectors_if(feature::DISCARD, 36),
        max_write_zeroes_bytes: sectors_if(feature::WRITE_ZEROES, 48),
    }
}
