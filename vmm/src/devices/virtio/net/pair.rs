//! A thread that serves one receive and one transmit queue: sleeps until the driver notifies,
//! the tap has a frame, or the device ends it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use tracing::{error, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::header::Permitted;
use super::receive::{Received, Receiver, Rules};
use super::tap::Tap;
use super::transmit::{Sent, Transmitter};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::errors::ErrorReporter;
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::queue::{ActiveQueue, QueueError};
use crate::devices::virtio::worker::PanicGuard;

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
    pub(super) tap: Arc<Tap>,
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
        let watch = Watch::new(&receive, &transmit, &control, &shared.tap)?;
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

/// What the thread sleeps on.
struct Watch {
    epoll: Epoll,
    tap: Option<TapWatch>,
}

struct TapWatch {
    fd: i32,
    events: EventSet,
}

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const WAKE: u64 = 2;
const TAP: u64 = 3;

/// What a tap is always watched for. It never has anything urgent; but the kernel announces the
/// removal of its interface to those who wait for something to read, and to no others.
const REMOVAL: EventSet = EventSet::PRIORITY;

impl Watch {
    fn new(
        receive: &ActiveQueue,
        transmit: &ActiveQueue,
        control: &Control,
        tap: &Tap,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (fd, events, token) in [
            (receive.notify.as_raw_fd(), EventSet::IN, RECEIVE),
            (transmit.notify.as_raw_fd(), EventSet::IN, TRANSMIT),
            (control.wake.as_raw_fd(), EventSet::IN, WAKE),
            (tap.as_raw_fd(), REMOVAL, TAP),
        ] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))?;
        }
        let tap = Some(TapWatch {
            fd: tap.as_raw_fd(),
            events: REMOVAL,
        });
        Ok(Watch { epoll, tap })
    }

    /// Chooses what to be woken for by the tap. Its errors wake in any case.
    fn set_tap(&mut self, readable: bool, writable: bool) -> io::Result<()> {
        let Some(tap) = &mut self.tap else {
            return Ok(());
        };
        let mut events = REMOVAL;
        events.set(EventSet::IN, readable);
        events.set(EventSet::OUT, writable);
        if events != tap.events {
            self.epoll.ctl(
                ControlOperation::Modify,
                tap.fd,
                EpollEvent::new(events, TAP),
            )?;
            tap.events = events;
        }
        Ok(())
    }

    /// A tap that is gone would wake for ever.
    fn forget_tap(&mut self) -> io::Result<()> {
        match self.tap.take() {
            Some(tap) => self
                .epoll
                .ctl(ControlOperation::Delete, tap.fd, EpollEvent::default()),
            None => Ok(()),
        }
    }
}

/// Whether a direction has something to do, and what it waits for if not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Busy,
    WaitsForDriver,
    WaitsForTap,
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
}

impl<'m> Service<'m> {
    fn new(receive: ActiveQueue, transmit: ActiveQueue, shared: &'m Shared, watch: Watch) -> Self {
        let Shared {
            memory,
            interrupt,
            tap,
            counters,
            ..
        } = shared;
        Service {
            shared,
            receiver: Receiver::new(receive, memory, interrupt, tap, counters, shared.rules),
            transmitter: Transmitter {
                queue: transmit,
                memory,
                interrupt,
                tap,
                counters,
                permitted: shared.permitted,
            },
            receiving: Direction::Busy,
            sending: Direction::Busy,
            watch,
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
                    Sent::TapGone => {
                        self.tap_gone("it takes no more frames")?;
                        Direction::Busy
                    }
                };
            }
            if self.receiving == Direction::Busy {
                self.receiving = match self.receiver.round()? {
                    Received::More => Direction::Busy,
                    Received::NoBuffers => Direction::WaitsForDriver,
                    Received::TapEmpty => Direction::WaitsForTap,
                    Received::TapGone(error) => {
                        self.tap_gone(&error.to_string())?;
                        Direction::Over
                    }
                };
            }
            if self.sending != Direction::Busy && self.receiving != Direction::Busy {
                self.sleep()?;
            }
        }
        Ok(())
    }

    fn sleep(&mut self) -> Result<(), QueueError> {
        self.watch.set_tap(
            self.receiving == Direction::WaitsForTap,
            self.sending == Direction::WaitsForTap,
        )?;
        let mut events = [EpollEvent::default(); 4];
        let count = match self.watch.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data() {
                RECEIVE => {
                    drop(self.receiver.queue.notify.read());
                    wake(&mut self.receiving, Direction::WaitsForDriver);
                }
                TRANSMIT => {
                    drop(self.transmitter.queue.notify.read());
                    wake(&mut self.sending, Direction::WaitsForDriver);
                }
                TAP => self.tap_event(event.event_set())?,
                // The thread ends; nobody reads this one.
                _ => {}
            }
        }
        Ok(())
    }

    fn tap_event(&mut self, events: EventSet) -> Result<(), QueueError> {
        if events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            return Ok(self.tap_gone("its interface was removed")?);
        }
        if events.contains(EventSet::IN) {
            wake(&mut self.receiving, Direction::WaitsForTap);
        }
        if events.contains(EventSet::OUT) {
            wake(&mut self.sending, Direction::WaitsForTap);
        }
        Ok(())
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
