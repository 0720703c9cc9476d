//! What no driver should do with a disk's queue and registers. The device may answer with an
//! error, ask for a reset, or say nothing; the next ordinary command resets it and goes on.

mod cases;

use alloc::format;

use super::{HEADER_BYTES, feature};
use crate::command::Failure;
use crate::cpu::clock;
use crate::memory::dma::Buffer;
use crate::virtio::Found;
use crate::virtio::queue::{Descriptor, Queue, flags};
use crate::virtio::registers::{Registers, Rings, VERSION_1, offset, status};

/// How it is done.
pub struct Options {
    /// How long to wait for an answer, in nanoseconds.
    pub timeout_ns: u64,
    /// For the random kinds.
    pub seed: u64,
    /// For the random kinds: how many accesses.
    pub count: u64,
}

/// What the device did.
pub struct Outcome {
    /// Whether the chain came back; `None` if none was offered.
    pub completed: Option<bool>,
    /// The status byte, if the device wrote it.
    pub status: Option<u8>,
    /// The length that the device wrote into the used ring.
    pub used_length: Option<u32>,
    /// The device status register afterwards.
    pub device_status: u32,
    /// Whether that asks for a reset.
    pub needs_reset: bool,
}

/// How often the status register is read while nothing else happens, in nanoseconds.
const LOOK_NS: u64 = 2_000_000;
/// An address where no memory is, in any guest.
const NOWHERE: u64 = 1 << 46;
/// Where devices are.
const DEVICE_MEMORY: u64 = 0xd000_0000;
/// Offsets in the bench's memory.
const STATUS: u64 = 64;
const INDIRECT: u64 = 1024;
const DATA: u64 = 4096;
const AREA_BYTES: usize = 16 << 10;
const DATA_BYTES: u32 = 4096;
const NO_STATUS: u8 = 0xff;
const SIZE: u16 = 16;

/// A device with one queue, and what chains are made of.
struct Bench {
    registers: Registers,
    queue: Queue,
    area: Buffer,
    capacity: u64,
    offered: bool,
}

impl Bench {
    fn new(found: Found) -> Result<Self, Failure> {
        let registers = found.registers();
        registers
            .negotiate(VERSION_1 | feature::ALL)
            .ok_or("the disk refuses its own features")?;
        let config = |at| u64::from(registers.read(offset::CONFIG + at));
        let mut area = Buffer::new(AREA_BYTES).ok_or("no memory")?;
        area.bytes()[STATUS as usize] = NO_STATUS;
        let queue = Queue::new(0, SIZE).ok_or("no memory")?;
        Ok(Self {
            registers,
            queue,
            area,
            capacity: config(4) << 32 | config(0),
            offered: false,
        })
    }

    fn start(&self, size: u32, rings: &Rings) {
        self.registers.set_queue(0, size, rings);
        self.registers.driver_ok();
    }

    fn start_well(&self) {
        self.start(SIZE.into(), &self.queue.rings());
    }

    fn at(&self, offset: u64) -> u64 {
        self.area.address() + offset
    }

    fn header(&mut self, operation: u32, sector: u64) {
        let bytes = self.area.bytes();
        bytes[..4].copy_from_slice(&operation.to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    }

    /// A read of eight sectors as it should be.
    fn chain(&self) -> [Descriptor; 3] {
        let describe = |offset, length, flags, next| Descriptor {
            address: self.at(offset),
            length,
            flags,
            next,
        };
        [
            describe(0, HEADER_BYTES, flags::NEXT, 1),
            describe(DATA, DATA_BYTES, flags::NEXT | flags::WRITE, 2),
            describe(STATUS, 1, flags::WRITE, 0),
        ]
    }

    fn put(&mut self, chain: &[Descriptor]) {
        for (index, descriptor) in chain.iter().enumerate() {
            self.queue.set_descriptor(index as u16, *descriptor);
        }
    }

    fn offer(&mut self, head: u16) {
        self.offered = true;
        self.queue.offer(head);
        self.registers.notify(0);
    }

    /// Starts the device, and offers a read with these changes.
    fn chain_with(&mut self, change: impl FnOnce(&Self, &mut [Descriptor; 3])) {
        self.start_well();
        let mut chain = self.chain();
        change(self, &mut chain);
        self.put(&chain);
        self.offer(0);
    }

    /// Starts the device, and offers a request of this type, sector and length; its data is
    /// read by the device if `out`.
    fn request(&mut self, operation: u32, sector: u64, length: u32, out: bool) {
        self.header(operation, sector);
        self.chain_with(|_, chain| {
            chain[1].length = length;
            if out {
                chain[1].flags = flags::NEXT;
            }
        });
    }

    /// As `request`, with one segment of a discard or write-zeroes in the data.
    fn segment(&mut self, operation: u32, sector: u64, sectors: u32, bits: u32, length: u32) {
        let data = &mut self.area.bytes()[DATA as usize..];
        for segment in data[..DATA_BYTES as usize].chunks_exact_mut(16) {
            segment[..8].copy_from_slice(&sector.to_le_bytes());
            segment[8..12].copy_from_slice(&sectors.to_le_bytes());
            segment[12..].copy_from_slice(&bits.to_le_bytes());
        }
        self.request(operation, 0, length, true);
    }

    fn wait(&mut self, options: &Options) -> Outcome {
        let start = clock::now();
        let mut used = None;
        let mut looked = start;
        while self.offered && used.is_none() {
            used = self.queue.take_used();
            let now = clock::now();
            if now - start >= options.timeout_ns {
                break;
            }
            // Reading the status is an exit to the VMM, so it is not done all the time.
            if now - looked > LOOK_NS {
                looked = now;
                if self.registers.status() & status::NEEDS_RESET != 0 {
                    break;
                }
            }
            core::hint::spin_loop();
        }
        // A volatile read: the device may have written it.
        // SAFETY: inside of the area.
        let byte = unsafe { (self.at(STATUS) as *const u8).read_volatile() };
        let device_status = self.registers.status();
        Outcome {
            completed: self.offered.then_some(used.is_some()),
            status: (byte != NO_STATUS).then_some(byte),
            used_length: used.map(|used| used.length),
            device_status,
            needs_reset: device_status & status::NEEDS_RESET != 0,
        }
    }
}

/// One kind of misuse.
type Case = (&'static str, fn(&mut Bench, &Options));

const GROUPS: [&[Case]; 4] = [
    cases::CHAINS,
    cases::REQUESTS,
    cases::RINGS,
    cases::REGISTERS,
];

/// Does it. The device must not be in use; it is reset before and afterwards.
pub fn run(found: Found, kind: &str, options: &Options) -> Result<Outcome, Failure> {
    let mut cases = GROUPS.iter().flat_map(|group| group.iter());
    let Some((_, misuse)) = cases.find(|(name, _)| *name == kind) else {
        let mut names = alloc::string::String::new();
        for (name, _) in GROUPS.iter().flat_map(|group| group.iter()) {
            names.push(' ');
            names.push_str(name);
        }
        return Err(format!("kind is one of{names}").into());
    };
    let mut bench = Bench::new(found)?;
    misuse(&mut bench, options);
    let outcome = bench.wait(options);
    bench.registers.reset();
    Ok(outcome)
}
