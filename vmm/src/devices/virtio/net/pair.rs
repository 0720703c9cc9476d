//! A thread that serves one receive and one transmit queue: sleeps until the driver notifies,
//! the tap has a frame, it is time for one, or the device ends it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{error, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::header::Permitted;
use super::receive::{Received, Receiver, Rules};
use super::steering::Lane;
use super::throttle::NetThrottle;
use super::transmit::{Sent, Transmitter};
use super::watch::{Happened, Watch};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::errors::ErrorReporter;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::pacing::clock::Nanos;
use crate::devices::virtio::queue::{ActiveQueue, QueueError};
use crate::devices::virtio::spin::Spin;
use crate::devices::virtio::worker::PanicGuard;

/// To wait for the time of each frame of a fast link would cost more than to let a few pass at once:
/// a sleep is not shorter than this, and the clock lets them make up for it.
const SHORTEST_WAIT: Nanos = 50_000;

/// Whether the driver finds the link up. Shared by the device and its threads.
#[derive(Debug)]
pub(super) struct Link(AtomicBool);

impl Link {
    pub(super) fn up() -> Self {
        Link(AtomicBool::new(true))
    }

    pub(super) fn is_up(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// True if it was up.
    fn take_down(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

/// What a thread needs beside its queues.
pub(super) struct Shared {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) lane: Arc<Lane>,
    pub(super) throttle: Arc<NetThrottle>,
    pub(super) link: Arc<Link>,
    pub(super) counters: Arc<Counters>,
    pub(super) errors: Arc<ErrorReporter>,
    pub(super) permitted: Permitted,
    pub(super) rules: Rules,
}

/// Handle of a running thread. Dropping it ends the thread, too.
pub(super) struct Pair {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

struct Control {
    ended: AtomicBool,
    wake: EventFd,
}

impl Pair {
    /// Starts a thread (the kernel shows the first 15 bytes of `name`).
    pub(super) fn spawn(
        name: String,
        receive: ActiveQueue,
        transmit: ActiveQueue,
        shared: Shared,
    ) -> io::Result<Pair> {
        let control = Arc::new(Control {
            ended: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let watch = Watch::new(&receive, &transmit, &control.wake, &shared.lane.tap)?;
        let thread = thread::Builder::new().name(name).spawn({
            let control = Arc::clone(&control);
            move || {
                let _guard = PanicGuard(Arc::clone(&shared.interrupt));
                let mut service = Service::new(receive, transmit, &shared, watch);
                if let Err(error) = service.run(&control) {
                    shared
                        .errors
                        .report(format!("the guest's driver broke a queue: {error}"));
                    shared.interrupt.signal_needs_reset();
                }
            }
        })?;
        Ok(Pair {
            control,
            thread: Some(thread),
        })
    }

    /// Tells the thread to end, without waiting for that.
    pub(super) fn signal_end(&self) {
        self.control.ended.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the thread is about to wake up anyway.
        let _ = self.control.wake.write(1);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.signal_end();
        if let Some(thread) = self.thread.take() {
            let name = thread.thread().name().unwrap_or("virtio-net").to_owned();
            if thread.join().is_err() {
                error!(thread = name, "virtio worker panicked");
            }
        }
    }
}

/// Whether a direction has something to do, and what it waits for if not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Busy,
    WaitsForDriver,
    WaitsForTap,
    /// For the time that its limit sets.
    WaitsUntil(Nanos),
    /// Receiving, without a tap.
    Over,
}

struct Service<'m> {
    shared: &'m Shared,
    receiver: Receiver<'m>,
    transmitter: Transmitter<'m>,
    receiving: Direction,
    sending: Direction,
    watch: Watch,
    spin: Spin,
}

impl<'m> Service<'m> {
    fn new(receive: ActiveQueue, transmit: ActiveQueue, shared: &'m Shared, watch: Watch) -> Self {
        Service {
            shared,
            receiver: Receiver::new(receive, shared),
            transmitter: Transmitter::new(transmit, shared),
            receiving: Direction::Busy,
            sending: Direction::Busy,
            watch,
            spin: Spin::new(),
        }
    }

    fn run(&mut self, control: &Control) -> Result<(), QueueError> {
        self.receiver.discard_old_frames();
        while !control.ended.load(Ordering::SeqCst) {
            // One round of each in turn, so that neither direction starves the other.
            if self.sending == Direction::Busy {
                self.sending = match self.transmitter.round()? {
                    Sent::More => Direction::Busy,
                    Sent::QueueEmpty => Direction::WaitsForDriver,
                    Sent::TapFull => Direction::WaitsForTap,
                    Sent::Paced(until) => Direction::WaitsUntil(until),
                    Sent::TapGone => {
                        self.tap_gone("it takes no more frames")?;
                        Direction::Busy
                    }
                };
                // Who is asked often answers at once.
                wake(&mut self.receiving, Direction::WaitsForTap);
            }
            if self.receiving == Direction::Busy {
                self.receiving = self.receive()?;
            }
            if self.sending != Direction::Busy && self.receiving != Direction::Busy {
                self.rest()?;
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Direction, QueueError> {
        let receives = self.shared.lane.receives();
        if !*receives {
            // The driver doesn't use this pair, and the host puts nothing into its queue.
            self.receiver.give_up_frame();
            return Ok(Direction::WaitsForTap);
        }
        let received = self.receiver.round()?;
        drop(receives);
        Ok(match received {
            Received::More => Direction::Busy,
            Received::NoBuffers => Direction::WaitsForDriver,
            Received::TapEmpty => Direction::WaitsForTap,
            Received::Paced(until) => Direction::WaitsUntil(until),
            Received::TapGone(error) => {
                self.tap_gone(&error.to_string())?;
                Direction::Over
            }
        })
    }

    /// Neither direction has anything to do: looks for a moment, then sleeps.
    fn rest(&mut self) -> Result<(), QueueError> {
        // Before the driver is told that it has to notify.
        if self.look()? {
            return Ok(());
        }
        let memory = &self.shared.memory;
        if self.sending == Direction::WaitsForDriver
            && self.transmitter.queue.request_notifications(memory)?
        {
            self.sending = Direction::Busy;
        }
        if self.receiving == Direction::WaitsForDriver
            && self.receiver.queue.request_notifications(memory)?
        {
            self.receiving = Direction::Busy;
        }
        if self.sending == Direction::Busy || self.receiving == Direction::Busy {
            return Ok(());
        }
        self.sleep()
    }

    /// Looks whether something comes within microseconds, if that was so of late.
    fn look(&mut self) -> Result<bool, QueueError> {
        let Service {
            shared,
            receiver,
            transmitter,
            receiving,
            sending,
            watch,
            spin,
        } = self;
        spin.look(|| {
            let send = match *sending {
                Direction::WaitsForDriver => transmitter.queue.has_available(&shared.memory)?,
                Direction::WaitsForTap => watch.tap_is_ready(false, true)?,
                Direction::Busy | Direction::WaitsUntil(_) | Direction::Over => false,
            };
            let receive = match *receiving {
                Direction::WaitsForDriver => receiver.queue.has_available(&shared.memory)?,
                Direction::WaitsForTap => watch.tap_is_ready(true, false)?,
                Direction::Busy | Direction::WaitsUntil(_) | Direction::Over => false,
            };
            if send {
                *sending = Direction::Busy;
            }
            if receive {
                *receiving = Direction::Busy;
            }
            Ok(send || receive)
        })
    }

    fn sleep(&mut self) -> Result<(), QueueError> {
        self.watch.set_tap(
            self.receiving == Direction::WaitsForTap,
            self.sending == Direction::WaitsForTap,
        )?;
        self.watch.set_timer(self.time_left())?;
        let asleep = Instant::now();
        let happened = self.watch.sleep()?;
        self.spin.slept(asleep.elapsed());
        for what in happened {
            match what {
                Happened::Receive => {
                    drop(self.receiver.queue.notify.read());
                    wake(&mut self.receiving, Direction::WaitsForDriver);
                }
                Happened::Transmit => {
                    drop(self.transmitter.queue.notify.read());
                    wake(&mut self.sending, Direction::WaitsForDriver);
                }
                Happened::Tap { gone: true, .. } => self.tap_gone("its interface was removed")?,
                Happened::Tap {
                    readable, writable, ..
                } => {
                    if readable {
                        wake(&mut self.receiving, Direction::WaitsForTap);
                    }
                    if writable {
                        wake(&mut self.sending, Direction::WaitsForTap);
                    }
                }
                Happened::Time => {
                    // Whose time it was finds out by itself.
                    for direction in [&mut self.receiving, &mut self.sending] {
                        if matches!(direction, Direction::WaitsUntil(_)) {
                            *direction = Direction::Busy;
                        }
                    }
                }
                // The thread ends; nobody reads this one.
                Happened::Wake => {}
            }
        }
        Ok(())
    }

    /// How long until the first direction that waits for the time may go on.
    fn time_left(&self) -> Option<Duration> {
        let waits = |direction| match direction {
            Direction::WaitsUntil(until) => Some(until),
            _ => None,
        };
        let until = [self.sending, self.receiving]
            .into_iter()
            .filter_map(waits)
            .min()?;
        let left = until.saturating_sub(self.shared.throttle.now());
        Some(Duration::from_nanos(left.max(SHORTEST_WAIT).unsigned_abs()))
    }

    /// The link goes down; the guest's frames are dropped from now on.
    fn tap_gone(&mut self, why: &str) -> io::Result<()> {
        self.receiving = Direction::Over;
        wake(&mut self.sending, Direction::WaitsForTap);
        self.watch.forget_tap()?;
        if self.shared.link.take_down() {
            warn!(why, "virtio-net lost its tap");
            self.shared.errors.report(format!("the tap is lost: {why}"));
            self.shared.interrupt.signal_config();
        }
        Ok(())
    }
}

fn wake(direction: &mut Direction, from: Direction) {
    if *direction == from {
        *direction = Direction::Busy;
    }
}
