//! A virtio-net device (virtio 1.2 section 5.1) as smoltcp wants it.
//!
//! Frames are sent and buffers given back without ringing the doorbell; [`Card::flush`] does
//! that once for many.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::Mac;
use super::unanswered::Unanswered;
use crate::command::Failure;
use crate::cpu::clock;
use crate::memory::dma::Buffer;
use crate::virtio::Found;
use crate::virtio::queue::{Descriptor, Queue, flags};
use crate::virtio::registers::{Registers, VERSION_1, offset};

/// `VIRTIO_NET_F_MAC`: the card has an address of its own.
const FEATURE_MAC: u64 = 1 << 5;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Most entries of each queue, and so frames in flight.
const QUEUE_SIZE: u32 = 256;
/// `struct virtio_net_hdr` (section 5.1.6): all zeroes, as nothing is offloaded.
pub const HEADER_BYTES: usize = 12;
/// Frames with their header fit.
const BUFFER_BYTES: usize = 2048;
/// Largest frame that is sent as it is.
pub const RAW_FRAME_BYTES: usize = BUFFER_BYTES - HEADER_BYTES;
/// Largest Ethernet frame that the stack sends.
const FRAME_BYTES: usize = 1514;
/// How long a frame may wait for room in the queue, in nanoseconds.
const SEND_TIMEOUT_NS: u64 = 1_000_000_000;

/// Frames since the card was opened.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub received: u64,
    pub sent: u64,
    pub dropped: u64,
}

/// A network card.
pub struct Card {
    registers: Registers,
    mac: Mac,
    /// Tokens of smoltcp for receiving and sending exist at the same time.
    rings: RefCell<Rings>,
}

struct Rings {
    registers: Registers,
    receive: Side,
    transmit: Side,
    /// Buffers of the transmit side that the device does not have.
    free: Vec<u16>,
    counters: Counters,
    unanswered: Unanswered,
}

/// A queue, of which each descriptor has a buffer of its own.
struct Side {
    queue: Queue,
    buffers: Buffer,
    /// Whether the doorbell has to be rung.
    unrung: bool,
}

/// A frame in its buffer.
#[derive(Clone, Copy)]
struct Place {
    buffer: u16,
    length: usize,
}

impl Side {
    fn new(registers: Registers, index: u16) -> Result<Self, Failure> {
        let size = registers.queue_size_max(index).min(QUEUE_SIZE) as u16;
        if size == 0 {
            return Err(format!("the card has no queue {index}").into());
        }
        let queue = Queue::new(index, size).ok_or("no memory for a queue")?;
        let bytes = BUFFER_BYTES * usize::from(size);
        let buffers = Buffer::uncleared(bytes).ok_or("no memory for frames")?;
        registers.set_queue(index, size.into(), &queue.rings());
        Ok(Self {
            queue,
            buffers,
            unrung: false,
        })
    }

    /// Gives a buffer to the device: to write to, or to send so many bytes of.
    fn offer(&mut self, buffer: u16, length: usize, flags: u16) {
        let address = self.buffers.address() + (BUFFER_BYTES * usize::from(buffer)) as u64;
        let descriptor = Descriptor {
            address,
            length: length as u32,
            flags,
            next: 0,
        };
        self.queue.set_descriptor(buffer, descriptor);
        self.queue.offer(buffer);
        self.unrung = true;
    }

    /// A buffer's bytes; the device must not have it.
    fn bytes(&mut self, buffer: u16) -> &mut [u8] {
        &mut self.buffers.bytes()[BUFFER_BYTES * usize::from(buffer)..][..BUFFER_BYTES]
    }

    fn ring(&mut self, registers: Registers) {
        if core::mem::take(&mut self.unrung) {
            self.queue.notify(registers);
        }
    }
}

impl Card {
    /// Makes the device ready.
    pub fn open(found: Found) -> Result<Self, Failure> {
        let registers = found.registers();
        registers
            .negotiate(VERSION_1 | FEATURE_MAC)
            .ok_or("the card refuses its own features")?;
        let mac = read_mac(registers);
        let mut receive = Side::new(registers, RECEIVE)?;
        let transmit = Side::new(registers, TRANSMIT)?;
        registers.driver_ok();
        for buffer in 0..receive.queue.size {
            receive.offer(buffer, BUFFER_BYTES, flags::WRITE);
        }
        receive.ring(registers);
        let free = (0..transmit.queue.size).collect();
        let rings = Rings {
            registers,
            receive,
            transmit,
            free,
            counters: Counters::default(),
            unanswered: Unanswered::default(),
        };
        Ok(Self {
            registers,
            mac,
            rings: RefCell::new(rings),
        })
    }

    /// Its address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Frames so far.
    pub fn counters(&self) -> Counters {
        self.rings.borrow().counters
    }

    /// Whether a frame has come that nobody has taken.
    pub fn has_received(&self) -> bool {
        self.rings.borrow().receive.queue.has_used()
    }

    /// How long until a frame is to be given to the stack again, in nanoseconds.
    pub fn wait(&self) -> Option<u64> {
        self.rings.borrow().unanswered.wait()
    }

    /// Whether the device has sent all that it was given.
    pub fn has_sent(&self) -> bool {
        let mut rings = self.rings.borrow_mut();
        rings.can_send();
        rings.free.len() == usize::from(rings.transmit.queue.size)
    }

    /// Whether a frame that comes shall interrupt.
    pub fn set_interrupts(&self, wanted: bool) {
        self.rings.borrow().receive.queue.set_interrupts(wanted);
    }

    /// Says that what was there is seen, so that the next interrupt is a new one.
    pub fn acknowledge(&self) {
        let pending = self.registers.read(offset::INTERRUPT_STATUS);
        if pending != 0 {
            self.registers.write(offset::INTERRUPT_ACKNOWLEDGE, pending);
        }
    }

    /// Tells the device of what it was given, unless it looks by itself.
    pub fn flush(&self) {
        self.rings.borrow_mut().ring();
    }

    /// Takes a frame, whatever it is.
    pub fn receive_frame(&self) -> Option<Vec<u8>> {
        let mut rings = self.rings.borrow_mut();
        let place = rings.take_received()?;
        let frame = rings.receive.bytes(place.buffer)[HEADER_BYTES..][..place.length].to_vec();
        rings.give_back(place.buffer);
        rings.ring();
        Some(frame)
    }

    /// Takes a frame and forgets it; gives its length. The doorbell is not rung.
    pub fn discard_frame(&self) -> Option<usize> {
        let mut rings = self.rings.borrow_mut();
        let place = rings.take_received()?;
        rings.give_back(place.buffer);
        Some(place.length)
    }

    /// Sends a frame as it is.
    pub fn send_frame(&self, frame: &[u8]) -> Result<(), Failure> {
        if frame.is_empty() || frame.len() > RAW_FRAME_BYTES {
            return Err(format!("a frame has 1 to {RAW_FRAME_BYTES} bytes").into());
        }
        let copy = |bytes: &mut [u8]| bytes.copy_from_slice(frame);
        let sent = self.rings.borrow_mut().send(frame.len(), copy);
        sent.ok_or_else(|| "the card takes no more frames".into())
    }
}

impl Drop for Card {
    /// Takes the queues away from the device before their memory goes.
    fn drop(&mut self) {
        self.registers.reset();
    }
}

/// The first six bytes of the configuration space (section 5.1.4).
pub fn read_mac(registers: Registers) -> Mac {
    let [low, high] = [0, 4].map(|at| registers.read(offset::CONFIG + at).to_le_bytes());
    Mac([low[0], low[1], low[2], low[3], high[0], high[1]])
}

impl Rings {
    fn ring(&mut self) {
        self.transmit.ring(self.registers);
        self.receive.ring(self.registers);
    }

    /// A frame that came. Its buffer has to be given back.
    fn take_received(&mut self) -> Option<Place> {
        let used = self.receive.queue.take_used()?;
        let buffer = used.head as u16 % self.receive.queue.size;
        let length = (used.length as usize)
            .min(BUFFER_BYTES)
            .saturating_sub(HEADER_BYTES);
        self.counters.received += 1;
        Some(Place { buffer, length })
    }

    /// Lets the device write the next frame into a buffer.
    fn give_back(&mut self, buffer: u16) {
        self.receive.offer(buffer, BUFFER_BYTES, flags::WRITE);
    }

    fn can_send(&mut self) -> bool {
        while let Some(used) = self.transmit.queue.take_used() {
            self.free.push(used.head as u16 % self.transmit.queue.size);
        }
        !self.free.is_empty()
    }

    /// Sends a frame that `fill` makes; `None` if the device takes none for long.
    fn send<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        if !self.can_send() {
            self.ring();
            let start = clock::ticks();
            while !self.can_send() {
                if clock::nanoseconds(clock::ticks().wrapping_sub(start)) > SEND_TIMEOUT_NS {
                    self.counters.dropped += 1;
                    return None;
                }
                core::hint::spin_loop();
            }
        }
        let buffer = self.free.pop()?;
        let bytes = self.transmit.bytes(buffer);
        bytes[..HEADER_BYTES].fill(0);
        let result = fill(&mut bytes[HEADER_BYTES..][..length]);
        self.transmit.offer(buffer, HEADER_BYTES + length, 0);
        self.counters.sent += 1;
        Some(result)
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let again = self.rings.borrow_mut().unanswered.next();
        let frame = match again {
            Some((came, frame)) => Frame::Again { came, frame },
            None => Frame::New(self.rings.borrow_mut().take_received()?),
        };
        let rings = &self.rings;
        Some((Received { rings, frame }, Room { rings }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        let can_send = self.rings.borrow_mut().can_send();
        can_send.then_some(Room { rings: &self.rings })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES;
        capabilities
    }
}

/// A frame for smoltcp.
pub struct Received<'a> {
    rings: &'a RefCell<Rings>,
    frame: Frame,
}

enum Frame {
    /// Its buffer has to be given back.
    New(Place),
    /// It was not answered before.
    Again {
        /// At this time.
        came: u64,
        frame: Vec<u8>,
    },
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        // A copy, as the answer is sent through the same cell while `f` runs.
        let mut copy = [0; BUFFER_BYTES];
        let (came, frame) = match &self.frame {
            Frame::New(place) => {
                let frame = &mut copy[..place.length];
                let mut rings = self.rings.borrow_mut();
                let bytes = rings.receive.bytes(place.buffer);
                frame.copy_from_slice(&bytes[HEADER_BYTES..][..place.length]);
                (clock::now(), &*frame)
            }
            Frame::Again { came, frame } => (*came, &frame[..]),
        };
        self.rings.borrow_mut().unanswered.delivers(frame);
        let result = f(frame);
        self.rings.borrow_mut().unanswered.delivered(frame, came);
        result
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        if let Frame::New(place) = self.frame {
            self.rings.borrow_mut().give_back(place.buffer);
        }
    }
}

/// Room for a frame of smoltcp.
pub struct Room<'a> {
    rings: &'a RefCell<Rings>,
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut f = Some(f);
        if length <= RAW_FRAME_BYTES {
            let mut rings = self.rings.borrow_mut();
            let mut unanswered = core::mem::take(&mut rings.unanswered);
            let sent = rings.send(length, |bytes| {
                f.take().map(|f| {
                    let result = f(bytes);
                    unanswered.sends(bytes);
                    result
                })
            });
            rings.unanswered = unanswered;
            if let Some(Some(result)) = sent {
                return result;
            }
        }
        // The frame is lost, but smoltcp has to be answered.
        let f = f.take().expect("no frame was made yet");
        f(&mut vec![0; length])
    }
}
