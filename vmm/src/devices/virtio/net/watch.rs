//! What a thread of a pair of queues sleeps on.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::tap::Tap;
use crate::devices::virtio::queue::ActiveQueue;

/// Descriptors that the thread waits for: two queues, the end, the tap, the time.
pub(super) struct Watch {
    epoll: Epoll,
    tap: Option<TapWatch>,
    timer: OwnedFd,
    timer_is_set: bool,
}

struct TapWatch {
    fd: i32,
    events: EventSet,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// The driver has notified of receive buffers.
    Receive,
    /// The driver has notified of frames to send.
    Transmit,
    /// The thread is to end.
    Wake,
    /// The tap has a frame, takes one, or neither ever more.
    Tap {
        readable: bool,
        writable: bool,
        gone: bool,
    },
    /// The time of [`Watch::set_timer`] has come.
    Time,
}

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const WAKE: u64 = 2;
const TAP: u64 = 3;
const TIMER: u64 = 4;

/// How many there are.
const SOURCES: usize = 5;

/// What a tap is always watched for. It never has anything urgent; but the kernel announces the
/// removal of its interface to those who wait for something to read, and to no others.
const REMOVAL: EventSet = EventSet::PRIORITY;

impl Watch {
    pub(super) fn new(
        receive: &ActiveQueue,
        transmit: &ActiveQueue,
        wake: &EventFd,
        tap: &Tap,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        for (fd, events, token) in [
            (receive.notify.as_raw_fd(), EventSet::IN, RECEIVE),
            (transmit.notify.as_raw_fd(), EventSet::IN, TRANSMIT),
            (wake.as_raw_fd(), EventSet::IN, WAKE),
            (tap.as_raw_fd(), REMOVAL, TAP),
            (timer.as_raw_fd(), EventSet::IN, TIMER),
        ] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))?;
        }
        let tap = Some(TapWatch {
            fd: tap.as_raw_fd(),
            events: REMOVAL,
        });
        Ok(Watch {
            epoll,
            tap,
            timer,
            timer_is_set: false,
        })
    }

    /// Chooses what to be woken for by the tap. Its errors wake in any case.
    pub(super) fn set_tap(&mut self, readable: bool, writable: bool) -> io::Result<()> {
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
    pub(super) fn forget_tap(&mut self) -> io::Result<()> {
        match self.tap.take() {
            Some(tap) => self
                .epoll
                .ctl(ControlOperation::Delete, tap.fd, EpollEvent::default()),
            None => Ok(()),
        }
    }

    /// Wakes once after `time`, and not at any time that was set before.
    pub(super) fn set_timer(&mut self, time: Option<Duration>) -> io::Result<()> {
        if time.is_none() && !self.timer_is_set {
            return Ok(());
        }
        // All zeroes is no time at all: a timer that is due already still has to fire.
        let time = time.map_or(Duration::ZERO, |time| time.max(Duration::from_nanos(1)));
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec::try_from(time).map_err(io::Error::other)?,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.timer_is_set = !time.is_zero();
        Ok(())
    }

    /// What the tap is ready for now, of these.
    pub(super) fn tap_is_ready(&self, readable: bool, writable: bool) -> io::Result<bool> {
        let Some(tap) = &self.tap else {
            return Ok(false);
        };
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, readable);
        wanted.set(PollFlags::OUT, writable);
        if wanted.is_empty() {
            return Ok(false);
        }
        // SAFETY: the tap is open for as long as the thread has it, and the thread has `self`.
        let tap = unsafe { BorrowedFd::borrow_raw(tap.fd) };
        let mut fds = [PollFd::from_borrowed_fd(tap, wanted)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&at_once)) {
            Ok(_) => Ok(fds[0].revents().intersects(wanted)),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sleeps until something happens. A signal is nothing.
    pub(super) fn sleep(&mut self) -> io::Result<impl Iterator<Item = Happened> + use<>> {
        let mut events = [EpollEvent::default(); SOURCES];
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        if events[..count].iter().any(|event| event.data() == TIMER) {
            self.timer_is_set = false;
            let mut expirations = [0; 8];
            // Fails only if it has been read already.
            let _ = rustix::io::read(self.timer.as_fd(), &mut expirations);
        }
        Ok(events.into_iter().take(count).map(|event| {
            let set = event.event_set();
            match event.data() {
                RECEIVE => Happened::Receive,
                TRANSMIT => Happened::Transmit,
                TAP => Happened::Tap {
                    readable: set.contains(EventSet::IN),
                    writable: set.contains(EventSet::OUT),
                    gone: set.intersects(EventSet::ERROR | EventSet::HANG_UP),
                },
                TIMER => Happened::Time,
                _ => Happened::Wake,
            }
        }))
    }
}
