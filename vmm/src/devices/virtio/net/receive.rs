//! Frames from the tap to the guest (virtio 1.2 sections 5.1.6.3 and 5.1.6.4).
//!
//! A frame is read straight into the guest's buffers, as many as are there up to the largest
//! frame that can come. Behind them lies a buffer of our own, so that a frame that is larger than
//! what the guest has ready isn't cut: what ran over waits there until the guest gives more.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_GSO_NONE,
};
use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::config::{Config, MAX_FRAME_BYTES};
use super::counters::Counters;
use super::header::{HEADER_BYTES, HeaderBytes};
use super::pair::Shared;
use super::tap::{MAX_SLICES, Tap};
use super::throttle::NetThrottle;
use super::used::UsedRing;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::queue::{ActiveQueue, Chain, QueueError};

/// Frames that share one interrupt, at most.
const BATCH: usize = 64;

/// How a round of receiving ended.
#[derive(Debug)]
pub(super) enum Received {
    /// The tap has no frame.
    TapEmpty,
    /// There may be more in the tap.
    More,
    /// The guest gives no buffers.
    NoBuffers,
    /// The next frame may come at this time, and none before.
    Paced(Nanos),
    /// The tap can't be read any more.
    TapGone(io::Error),
}

/// What was negotiated for frames that the guest receives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// A frame may be in several chains.
    mergeable: bool,
    /// The guest takes frames whose checksum isn't there yet.
    checksum: bool,
    /// Bytes that are to be ready for a frame, with its header.
    room_wanted: usize,
    /// Most bytes of a frame that isn't to be segmented, where the driver was told.
    max_plain_frame: Option<usize>,
}

impl Rules {
    pub(super) fn new(features: u64, config: &Config) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let segmented = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
        let frame = if segmented {
            MAX_FRAME_BYTES
        } else {
            config.max_plain_frame()
        };
        Rules {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            room_wanted: HEADER_BYTES + frame,
            max_plain_frame: config.mtu.map(|_| config.max_plain_frame()),
        }
    }
}

/// A frame that was larger than the buffers that were ready.
struct Overrun {
    header: HeaderBytes,
    /// Bytes with the header.
    total: usize,
    /// How many of them had room in the guest's buffers, or in the header; the others are at the
    /// start of `Receiver::spill`.
    placed: usize,
}

/// Serves a receive queue.
pub(super) struct Receiver<'m> {
    pub(super) queue: ActiveQueue,
    memory: &'m GuestMemory,
    interrupt: &'m Interrupt,
    tap: &'m Tap,
    throttle: &'m NetThrottle,
    counters: &'m Counters,
    rules: Rules,
    used: UsedRing,
    /// Chains taken from the queue that hold no frame yet.
    ready: VecDeque<Chain<'m>>,
    ready_bytes: usize,
    spill: Vec<u8>,
    overrun: Option<Overrun>,
    /// The tap has not been found empty since the last frame.
    busy: bool,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(queue: ActiveQueue, shared: &'m Shared) -> Self {
        Receiver {
            used: UsedRing::new(&queue),
            queue,
            memory: &shared.memory,
            interrupt: &shared.interrupt,
            tap: &shared.lane.tap,
            throttle: &shared.throttle,
            counters: &shared.counters,
            rules: shared.rules,
            ready: VecDeque::new(),
            ready_bytes: 0,
            spill: vec![0; MAX_FRAME_BYTES],
            overrun: None,
            busy: false,
        }
    }

    /// Receives what is in the tap, a batch at most.
    pub(super) fn round(&mut self) -> Result<Received, QueueError> {
        self.queue.suppress_notifications(self.memory)?;
        let mut outcome = Ok(Received::More);
        for _ in 0..BATCH {
            match self.receive_frame() {
                Ok(Received::More) => {}
                other => {
                    outcome = other;
                    break;
                }
            }
        }
        // Also after an error: what was completed before it is valid.
        if self.used.wants_interrupt(&mut self.queue, self.memory)? {
            self.interrupt.signal_queue();
        }
        outcome
    }

    /// Drops the frame that waits for more buffers, if there is one.
    pub(super) fn give_up_frame(&mut self) {
        if self.overrun.take().is_some() {
            self.drop_frame();
        }
    }

    /// Throws away what came before the driver was ready: it may be in a shape that this driver
    /// didn't agree to, and is old.
    pub(super) fn discard_old_frames(&mut self) {
        // More than any tap's queue holds by default; a flood can't keep us here.
        const MOST: usize = 1 << 14;
        for _ in 0..MOST {
            let into = [VolatileSlice::from(&mut self.spill[..])];
            match self.tap.read(&into) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Brings one frame to the guest, or drops it.
    fn receive_frame(&mut self) -> Result<Received, QueueError> {
        if let Some(overrun) = self.overrun.take() {
            return self.finish(overrun);
        }
        self.take_buffers(self.rules.room_wanted)?;
        if self.ready.is_empty() {
            return Ok(Received::NoBuffers);
        }
        let meter = &self.throttle.received;
        let now = meter.limits_anything().then(|| self.throttle.now());
        if let Some(until) = now.and_then(|now| meter.closed_until(now)) {
            return Ok(Received::Paced(until));
        }
        let mut header = HeaderBytes::default();
        let (room, result) = self.read(&mut header);
        let total = match result {
            Ok(total) => total,
            Err(error) => {
                return Ok(match error.raw_os_error() {
                    Some(libc::EINTR) => Received::More,
                    Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS) => {
                        self.busy = false;
                        Received::TapEmpty
                    }
                    _ => Received::TapGone(error),
                });
            }
        };
        if let Some(now) = now {
            let bytes = total.saturating_sub(HEADER_BYTES);
            meter.passed(now, bytes, self.busy);
            self.busy = true;
        }
        if total < HEADER_BYTES || self.too_large(&header, total) {
            return Ok(self.drop_frame());
        }
        if total <= room {
            self.deliver(header, total)?;
            return Ok(Received::More);
        }
        self.finish(Overrun {
            header,
            total,
            placed: room,
        })
    }

    /// Takes chains from the queue until there are `bytes` in them, if the driver gives as many.
    fn take_buffers(&mut self, bytes: usize) -> Result<(), QueueError> {
        let most = if self.rules.mergeable {
            self.queue.queue.size().into()
        } else {
            1
        };
        while self.ready_bytes < bytes && self.ready.len() < most {
            let Some(chain) = self.queue.pop(self.memory)? else {
                break;
            };
            if chain.writable.len() < HEADER_BYTES {
                let what = "a receive buffer has no room for the header";
                return Err(QueueError::BadRequest {
                    head: chain.head,
                    what,
                });
            }
            self.ready_bytes += chain.writable.len();
            self.ready.push_back(chain);
        }
        Ok(())
    }

    /// Reads a frame: its header aside, the rest into the guest's buffers behind the room for the
    /// header, and what they don't hold into `spill`. Returns how many bytes, with the header,
    /// there was room for in the guest's buffers.
    fn read(&mut self, header: &mut HeaderBytes) -> (usize, io::Result<usize>) {
        let mut slices = Vec::with_capacity(64);
        slices.push(VolatileSlice::from(&mut header[..]));
        let mut skip = HEADER_BYTES;
        let mut room = HEADER_BYTES;
        let guest = self.ready.iter().flat_map(|chain| chain.writable.slices());
        for slice in guest {
            if room >= self.rules.room_wanted || slices.len() == MAX_SLICES - 1 {
                break;
            }
            let skipped = skip.min(slice.len());
            skip -= skipped;
            if let Ok(rest) = slice.offset(skipped)
                && !rest.is_empty()
            {
                room += rest.len();
                slices.push(rest);
            }
        }
        slices.push(VolatileSlice::from(&mut self.spill[..]));
        (room, self.tap.read(&slices))
    }

    /// Section 5.1.4.1: a driver that was told the MTU gets nothing beyond it.
    fn too_large(&self, header: &HeaderBytes, total: usize) -> bool {
        let plain = u32::from(header[1]) == VIRTIO_NET_HDR_GSO_NONE;
        let too_large = |most| plain && total - HEADER_BYTES > most;
        total > HEADER_BYTES + MAX_FRAME_BYTES || self.rules.max_plain_frame.is_some_and(too_large)
    }

    /// Goes on with a frame that has bytes in `spill`, as soon as there is room for all of it.
    fn finish(&mut self, overrun: Overrun) -> Result<Received, QueueError> {
        self.take_buffers(overrun.total)?;
        if self.ready_bytes >= overrun.total {
            let spilled = &self.spill[..overrun.total - overrun.placed];
            write_at(&self.ready, overrun.placed, spilled);
            self.deliver(overrun.header, overrun.total)?;
            return Ok(Received::More);
        }
        let most = if self.rules.mergeable {
            self.queue.queue.size().into()
        } else {
            1
        };
        if self.ready.len() >= most {
            // All that the driver can give is not enough.
            return Ok(self.drop_frame());
        }
        self.overrun = Some(overrun);
        Ok(Received::NoBuffers)
    }

    fn drop_frame(&mut self) -> Received {
        self.counters.receive_dropped.add(1);
        Received::More
    }

    /// Writes the header of a frame of `total` bytes, which lies in the first ready chains, and
    /// gives these to the driver.
    fn deliver(&mut self, mut header: HeaderBytes, total: usize) -> Result<(), QueueError> {
        let mut rest = total;
        let mut completed = Vec::with_capacity(1);
        for chain in &self.ready {
            let bytes = chain.writable.len().min(rest);
            rest -= bytes;
            // No loss: a frame has less than 128 KiB.
            completed.push((chain.head, bytes as u32));
            if rest == 0 {
                break;
            }
        }
        if !self.rules.checksum {
            header[0] = 0;
        }
        header[10..].copy_from_slice(&(completed.len() as u16).to_le_bytes());
        write_at(&self.ready, 0, &header);
        for chain in self.ready.drain(..completed.len()) {
            self.ready_bytes -= chain.writable.len();
        }
        self.used
            .publish(&mut self.queue, self.memory, &completed)?;
        self.counters.received_frames.add(1);
        self.counters
            .received_bytes
            .add((total - HEADER_BYTES) as u64);
        Ok(())
    }
}

/// Writes `data` at `offset` of the writable bytes of `chains`, which have room for it.
fn write_at(chains: &VecDeque<Chain<'_>>, mut offset: usize, mut data: &[u8]) {
    for slice in chains.iter().flat_map(|chain| chain.writable.slices()) {
        if data.is_empty() {
            return;
        }
        let skipped = offset.min(slice.len());
        offset -= skipped;
        if let Ok(rest) = slice.offset(skipped) {
            let count = rest.len().min(data.len());
            rest.copy_from(&data[..count]);
            data = &data[count..];
        }
    }
}
