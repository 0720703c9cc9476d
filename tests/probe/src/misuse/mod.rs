//! What no driver should do with a device's queue and registers. The device may answer with an
//! error, ask for a reset, or say nothing; the next ordinary command resets it and goes on.

mod cases;

use alloc::format;

use crate::command::Failure;
use crate::cpu::clock;
use crate::disk::{HEADER_BYTES, feature};
use crate::memory::dma::Buffer;
use crate::virtio::Found;
use crate::virtio::kind;
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
/// `VIRTIO_NET_F_CTRL_VQ`.
const FEATURE_CONTROL_QUEUE: u64 = 1 << 17;
/// Class and command (section 5.1.6.5).
const COMMAND_BYTES: u32 = 2;

/// What is misused of a device.
struct Target {
    /// Number of the queue.
    queue: u16,
    /// Another queue without which the device does not work.
    other: Option<u16>,
    features: u64,
    /// Length of a chain's first part.
    header_bytes: u32,
    /// Whether the device writes a chain's first, second and last part.
    writes: [bool; 3],
    groups: &'static [&'static [Case]],
}

impl Target {
    fn of(kind: u32, queue: u16) -> Result<Self, Failure> {
        let common = Self {
            queue,
            other: None,
            features: VERSION_1,
            header_bytes: HEADER_BYTES,
            writes: [true; 3],
            groups: &[cases::CHAINS, cases::RINGS, cases::REGISTERS],
        };
        match (kind, queue) {
            (kind::BLOCK, 0) => Ok(Self {
                features: VERSION_1 | feature::ALL,
                writes: [false, true, true],
                groups: &[
                    cases::CHAINS,
                    cases::REQUESTS,
                    cases::RINGS,
                    cases::REGISTERS,
                ],
                ..common
            }),
            // Receives, or sends.
            (kind::NETWORK, 0 | 1) => Ok(Self {
                other: Some(1 - queue),
                header_bytes: crate::net::card::HEADER_BYTES as u32,
                writes: [queue == 0; 3],
                groups: &[cases::CHAINS, cases::FRAMES, cases::RINGS, cases::REGISTERS],
                ..common
            }),
            // The control queue, which is here for a driver that has not agreed to several pairs.
            (kind::NETWORK, 2) => Ok(Self {
                features: VERSION_1 | FEATURE_CONTROL_QUEUE,
                header_bytes: COMMAND_BYTES,
                writes: [false, false, true],
                groups: &[
                    cases::CHAINS,
                    cases::COMMANDS,
                    cases::RINGS,
                    cases::REGISTERS,
                ],
                ..common
            }),
            (kind::RANDOM, 0) => Ok(common),
            _ => Err("the device has no such queue".into()),
        }
    }
}

/// A device with one queue, and what chains are made of.
struct Bench {
    target: Target,
    registers: Registers,
    queue: Queue,
    other: Option<Queue>,
    area: Buffer,
    capacity: u64,
    offered: bool,
}

impl Bench {
    fn new(found: Found, target: Target) -> Result<Self, Failure> {
        let registers = found.registers();
        registers
            .negotiate(target.features)
            .ok_or("the device refuses its own features")?;
        if registers.queue_size_max(target.queue) == 0 {
            return Err("the device has no such queue".into());
        }
        let config = |at| u64::from(registers.read(offset::CONFIG + at));
        let mut area = Buffer::new(AREA_BYTES).ok_or("no memory")?;
        area.bytes()[STATUS as usize] = NO_STATUS;
        let queue = Queue::new(target.queue, SIZE).ok_or("no memory")?;
        let other = match target.other {
            Some(index) => Some(Queue::new(index, SIZE).ok_or("no memory")?),
            None => None,
        };
        Ok(Self {
            target,
            registers,
            queue,
            other,
            area,
            capacity: config(4) << 32 | config(0),
            offered: false,
        })
    }

    fn start(&self, size: u32, rings: &Rings) {
        if let Some(other) = &self.other {
            self.registers
                .set_queue(other.index, SIZE.into(), &other.rings());
        }
        self.registers.set_queue(self.queue.index, size, rings);
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

    /// A chain as it should be: of a disk, a read of eight sectors.
    fn chain(&self) -> [Descriptor; 3] {
        let parts = [
            (0, self.target.header_bytes),
            (DATA, DATA_BYTES),
            (STATUS, 1),
        ];
        core::array::from_fn(|index| {
            let (offset, length) = parts[index];
            let write = if self.target.writes[index] {
                flags::WRITE
            } else {
                0
            };
            let last = index + 1 == parts.len();
            Descriptor {
                address: self.at(offset),
                length,
                flags: if last { write } else { write | flags::NEXT },
                next: if last { 0 } else { index as u16 + 1 },
            }
        })
    }

    fn put(&mut self, chain: &[Descriptor]) {
        for (index, descriptor) in chain.iter().enumerate() {
            self.queue.set_descriptor(index as u16, *descriptor);
        }
    }

    fn offer(&mut self, head: u16) {
        self.offered = true;
        self.queue.offer(head);
        self.ring();
    }

    /// Rings the doorbell, also if the device does not want it.
    fn ring(&self) {
        self.registers.notify(self.queue.index.into());
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

    /// Starts the device, and gives its control queue a command with so many bytes of data, which
    /// begin with this number.
    fn command(&mut self, command: &[u8; 2], number: u16, length: u32) {
        let bytes = self.area.bytes();
        bytes[..2].copy_from_slice(command);
        bytes[DATA as usize..][..2].copy_from_slice(&number.to_le_bytes());
        self.chain_with(|_, chain| chain[1].length = length);
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

/// Does it with one of the device's queues. The device must not be in use; it is reset before and
/// afterwards.
pub fn run(found: Found, queue: u16, kind: &str, options: &Options) -> Result<Outcome, Failure> {
    let target = Target::of(found.kind, queue)?;
    let cases = || target.groups.iter().flat_map(|group| group.iter());
    let Some((_, misuse)) = cases().find(|(name, _)| *name == kind) else {
        let mut names = alloc::string::String::new();
        for (name, _) in cases() {
            names.push(' ');
            names.push_str(name);
        }
        return Err(format!("kind is one of{names}").into());
    };
    let mut bench = Bench::new(found, target)?;
    misuse(&mut bench, options);
    let outcome = bench.wait(options);
    bench.registers.reset();
    Ok(outcome)
}
