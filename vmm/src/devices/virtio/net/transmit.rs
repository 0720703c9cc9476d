//! Frames from the guest to the tap (virtio 1.2 section 5.1.6.2).

use std::io;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::VolatileSlice;

use super::counters::Counters;
use super::header::{HEADER_BYTES, HeaderBytes, Permitted};
use super::pair::Shared;
use super::tap::{MAX_SLICES, Tap};
use super::throttle::NetThrottle;
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::queue::{ActiveQueue, Chain, QueueError};

/// How a round of sending ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The queue is empty.
    QueueEmpty,
    /// The next frame may go at this time, and none before.
    Paced(Nanos),
    /// There may be more in the queue.
    More,
    /// The tap takes no more for now; the next frame is still in the queue.
    TapFull,
    /// The tap's interface is gone. Frames are taken from the queue and dropped.
    TapGone,
}

/// What became of one frame.
enum Outcome {
    /// The tap took so many bytes of it.
    Sent(usize),
    Dropped,
    TapFull,
    TapGone,
}

/// Serves a transmit queue.
pub(super) struct Transmitter<'m> {
    pub(super) queue: ActiveQueue,
    memory: &'m GuestMemory,
    interrupt: &'m Interrupt,
    tap: &'m Tap,
    throttle: &'m NetThrottle,
    counters: &'m Counters,
    permitted: Permitted,
    /// The queue has not been found empty since the last frame.
    busy: bool,
}

impl<'m> Transmitter<'m> {
    pub(super) fn new(queue: ActiveQueue, shared: &'m Shared) -> Self {
        Transmitter {
            queue,
            memory: &shared.memory,
            interrupt: &shared.interrupt,
            tap: &shared.lane.tap,
            throttle: &shared.throttle,
            counters: &shared.counters,
            permitted: shared.permitted,
            busy: false,
        }
    }

    /// Sends what is in the queue, a full queue at most.
    pub(super) fn round(&mut self) -> Result<Sent, QueueError> {
        self.queue.suppress_notifications(self.memory)?;
        let mut completed = false;
        let sent = self.send_available(&mut completed);
        // Also after an error: what was completed before it is valid.
        if completed && self.queue.wants_interrupt(self.memory)? {
            self.interrupt.signal_queue();
        }
        sent
    }

    fn send_available(&mut self, completed: &mut bool) -> Result<Sent, QueueError> {
        let mut gone = false;
        for _ in 0..self.queue.queue.size() {
            let meter = &self.throttle.sent;
            let now = meter.limits_anything().then(|| self.throttle.now());
            if let Some(until) = now.and_then(|now| meter.closed_until(now))
                && self.queue.has_available(self.memory)?
                && !gone
            {
                return Ok(Sent::Paced(until));
            }
            let Some(chain) = self.queue.pop(self.memory)? else {
                self.busy = false;
                return Ok(if gone {
                    Sent::TapGone
                } else {
                    Sent::QueueEmpty
                });
            };
            let head = chain.head;
            match self.send(chain)? {
                Outcome::Sent(bytes) => {
                    if let Some(now) = now {
                        meter.passed(now, bytes, std::mem::replace(&mut self.busy, true));
                    }
                }
                Outcome::Dropped => {}
                Outcome::TapGone => gone = true,
                Outcome::TapFull => {
                    self.queue.queue.go_to_previous_position();
                    return Ok(Sent::TapFull);
                }
            }
            self.queue.complete(self.memory, head, 0)?;
            *completed = true;
        }
        Ok(if gone { Sent::TapGone } else { Sent::More })
    }

    fn send(&self, chain: Chain<'_>) -> Result<Outcome, QueueError> {
        let Chain {
            head,
            readable: mut header,
            ..
        } = chain;
        let frame = header.split_off(HEADER_BYTES);
        let mut bytes = HeaderBytes::default();
        if header.copy_to(&mut bytes) < HEADER_BYTES {
            return Err(QueueError::BadRequest {
                head,
                what: "the frame's header is cut off",
            });
        }
        // The tap gets this copy: the guest could change its own after the check.
        let Ok(mut bytes) = self.permitted.check(&bytes, frame.len()) else {
            self.counters.send_malformed.add(1);
            return Ok(Outcome::Dropped);
        };
        let mut slices = Vec::with_capacity(1 + frame.slices().len());
        slices.push(VolatileSlice::from(&mut bytes[..]));
        slices.extend_from_slice(frame.slices());
        if slices.len() > MAX_SLICES {
            self.counters.send_malformed.add(1);
            return Ok(Outcome::Dropped);
        }
        let error = loop {
            match self.tap.write(&slices) {
                Ok(_) => {
                    self.counters.sent_frames.add(1);
                    self.counters.sent_bytes.add(frame.len() as u64);
                    return Ok(Outcome::Sent(frame.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        match error.raw_os_error() {
            Some(libc::EAGAIN) => return Ok(Outcome::TapFull),
            Some(libc::EBADFD) => {
                self.counters.send_refused.add(1);
                return Ok(Outcome::TapGone);
            }
            // EINVAL: what only the kernel sees in a header; EIO: the interface is down; ENOBUFS,
            // ENOMEM: no memory. To drop a frame is what a network may always do.
            _ => self.counters.send_refused.add(1),
        }
        Ok(Outcome::Dropped)
    }
}
