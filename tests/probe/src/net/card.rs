//! A virtio-net device as smoltcp wants it: frames out, frames in, several in flight.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::mmio::MmioTransport;

use super::Mac;
use crate::command::Failure;
use crate::cpu::clock;
use crate::memory::dma::Identity;
use crate::virtio::Found;
use crate::virtio::registers::{Registers, offset};

/// Entries of each queue, and so most frames in flight.
const QUEUE_SIZE: usize = 64;
/// Frames with their virtio header fit.
const BUFFER_BYTES: usize = 2048;
/// Largest Ethernet frame that the stack sends.
const FRAME_BYTES: usize = 1514;
/// How long a frame may wait for room in the queue, in nanoseconds.
const SEND_TIMEOUT_NS: u64 = 1_000_000_000;

type Driver = VirtIONetRaw<Identity, MmioTransport<'static>, QUEUE_SIZE>;
type Bytes = Box<[u8]>;

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
    driver: Driver,
    /// Buffers that the device has, by token.
    receiving: Vec<Option<Bytes>>,
    sending: Vec<Option<Bytes>>,
    free: Vec<Bytes>,
    header_bytes: usize,
    counters: Counters,
}

impl Card {
    /// Makes the device ready.
    pub fn open(found: Found) -> Result<Self, Failure> {
        let transport = found
            .transport()
            .ok_or("the card is of a version that is not known")?;
        let driver = Driver::new(transport).map_err(|error| format!("virtio-net: {error}"))?;
        let mut header = [0; 64];
        let header_bytes = driver
            .fill_buffer_header(&mut header)
            .map_err(|error| format!("virtio-net: {error}"))?;
        let mac = Mac(driver.mac_address());
        let mut rings = Rings {
            driver,
            receiving: (0..QUEUE_SIZE).map(|_| None).collect(),
            sending: (0..QUEUE_SIZE).map(|_| None).collect(),
            free: (0..QUEUE_SIZE).map(|_| buffer()).collect(),
            header_bytes,
            counters: Counters::default(),
        };
        (0..QUEUE_SIZE).for_each(|_| rings.give_to_receive(buffer()));
        Ok(Self {
            registers: found.registers(),
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
        self.rings.borrow().driver.poll_receive().is_some()
    }

    /// Says that what was there is seen, so that the next interrupt is a new one.
    pub fn acknowledge(&self) {
        let pending = self.registers.read(offset::INTERRUPT_STATUS);
        if pending != 0 {
            self.registers.write(offset::INTERRUPT_ACKNOWLEDGE, pending);
        }
    }

    /// Takes a frame, whatever it is.
    pub fn receive_frame(&self) -> Option<Vec<u8>> {
        let mut rings = self.rings.borrow_mut();
        let (buffer, length) = rings.take_received()?;
        let frame = buffer[rings.header_bytes..][..length].to_vec();
        rings.give_to_receive(buffer);
        Some(frame)
    }

    /// Sends a frame as it is.
    pub fn send_frame(&self, frame: &[u8]) -> Result<(), Failure> {
        let mut rings = self.rings.borrow_mut();
        if frame.is_empty() || frame.len() > BUFFER_BYTES - rings.header_bytes {
            return Err("a frame has 1 to 2036 bytes".into());
        }
        if rings
            .send(frame.len(), |bytes| bytes.copy_from_slice(frame))
            .is_none()
        {
            return Err("the card takes no more frames".into());
        }
        Ok(())
    }
}

fn buffer() -> Bytes {
    vec![0; BUFFER_BYTES].into_boxed_slice()
}

impl Rings {
    /// Gives the device a buffer for a frame to come.
    fn give_to_receive(&mut self, mut buffer: Bytes) {
        // SAFETY: the buffer is kept, untouched, until the device is done with it.
        match unsafe { self.driver.receive_begin(&mut buffer) } {
            Ok(token) => self.receiving[usize::from(token)] = Some(buffer),
            Err(_) => self.counters.dropped += 1,
        }
    }

    /// A frame with its virtio header, and the frame's length.
    fn take_received(&mut self) -> Option<(Bytes, usize)> {
        let token = self.driver.poll_receive()?;
        let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
        // SAFETY: the buffer that was given with this token.
        match unsafe { self.driver.receive_complete(token, &mut buffer) } {
            Ok((_, length)) if length <= BUFFER_BYTES - self.header_bytes => {
                self.counters.received += 1;
                Some((buffer, length))
            }
            _ => {
                self.counters.dropped += 1;
                self.give_to_receive(buffer);
                None
            }
        }
    }

    /// Takes back the buffers of frames that are sent.
    fn reclaim(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let place = self.sending.get_mut(usize::from(token));
            let Some(buffer) = place.and_then(Option::take) else {
                return;
            };
            // SAFETY: the buffer that was given with this token.
            if unsafe { self.driver.transmit_complete(token, &buffer) }.is_err() {
                return;
            }
            self.free.push(buffer);
        }
    }

    fn can_send(&mut self) -> bool {
        self.reclaim();
        !self.free.is_empty() && self.driver.can_send()
    }

    /// Sends a frame that `fill` makes; `None` if the device takes none for long.
    fn send<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> Option<R> {
        let start = clock::ticks();
        while !self.can_send() {
            if clock::nanoseconds(clock::ticks().wrapping_sub(start)) > SEND_TIMEOUT_NS {
                self.counters.dropped += 1;
                return None;
            }
            core::hint::spin_loop();
        }
        let mut buffer = self.free.pop()?;
        self.driver.fill_buffer_header(&mut buffer).ok()?;
        let result = fill(&mut buffer[self.header_bytes..][..length]);
        let whole = &buffer[..self.header_bytes + length];
        // `transmit_complete` looks at the address only, so that it may get the whole buffer.
        // SAFETY: the buffer is kept, untouched, until the device is done with it.
        match unsafe { self.driver.transmit_begin(whole) } {
            Ok(token) => {
                self.sending[usize::from(token)] = Some(buffer);
                self.counters.sent += 1;
            }
            Err(_) => {
                self.counters.dropped += 1;
                self.free.push(buffer);
            }
        }
        Some(result)
    }
}

impl phy::Device for Card {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Room<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        let (buffer, length) = self.rings.borrow_mut().take_received()?;
        let rings = &self.rings;
        Some((
            Received {
                rings,
                buffer: Some(buffer),
                length,
            },
            Room { rings },
        ))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.rings
            .borrow_mut()
            .can_send()
            .then_some(Room { rings: &self.rings })
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
    buffer: Option<Bytes>,
    length: usize,
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let start = self.rings.borrow().header_bytes;
        let frame = self.buffer.as_deref().unwrap_or(&[]);
        f(frame.get(start..start + self.length).unwrap_or(&[]))
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.rings.borrow_mut().give_to_receive(buffer);
        }
    }
}

/// Room for a frame of smoltcp.
pub struct Room<'a> {
    rings: &'a RefCell<Rings>,
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut rings = self.rings.borrow_mut();
        let mut f = Some(f);
        if length <= BUFFER_BYTES - rings.header_bytes {
            let sent = rings.send(length, |bytes| f.take().map(|f| f(bytes)));
            if let Some(Some(result)) = sent {
                return result;
            }
        }
        // The frame is lost, but smoltcp has to be answered.
        let f = f.take().expect("no frame was made yet");
        f(&mut vec![0; length])
    }
}
