//! A thread that serves one queue: sleeps until the driver notifies or the device ends it.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use tracing::error;
use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestMemory;
use super::interrupt::Interrupt;
use super::queue::{ActiveQueue, Chain, QueueError};
use super::spin::Spin;

/// How long a completed chain may wait for others to share one interrupt with. An interrupt
/// costs the guest two MMIO exits, a slow request next in the queue costs it more.
const MAX_INTERRUPT_DELAY: Duration = Duration::from_micros(500);

/// What a device does with the chains of a queue, on the worker's thread.
pub trait ChainHandler: Send + 'static {
    /// Serves one chain to its end; may sleep by `pause` before. An error is the driver's fault
    /// and ends the queue.
    fn serve(&mut self, chain: Chain<'_>, pause: &mut Pause<'_>) -> Result<Served, QueueError>;

    /// The queue has been given up: nothing is served any more before a reset.
    fn failed(&mut self, error: &QueueError);
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It goes back to the driver: so many bytes were written at the start of its writable part.
    Completed(u32),
    /// The worker was told to end while the chain waited: nothing was done with it, and the
    /// driver doesn't get it back.
    Ended,
}

/// How a handler sleeps.
pub struct Pause<'a> {
    queue: &'a mut ActiveQueue,
    memory: &'a GuestMemory,
    interrupt: &'a Interrupt,
    control: &'a Control,
    waiting_since: &'a mut Option<Instant>,
    busy: bool,
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The time is over, or a signal came.
    ByTime,
    /// The other descriptor is readable.
    ByOther,
    /// The worker shall end.
    ToEnd,
}

impl Pause<'_> {
    /// Whether the chain was there already when the worker was done with the one before it.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Sleeps for `time`, until `other` is readable, or until the worker shall end. The driver
    /// is first told of the chains that it got back before.
    pub fn sleep(&mut self, time: Duration, other: &EventFd) -> Result<Woken, QueueError> {
        if self.waiting_since.take().is_some() {
            interrupt_if_wanted(self.queue, self.memory, self.interrupt)?;
        }
        // SAFETY: both are open for as long as the borrows of their owners, which outlive this call.
        let (wake, other) = unsafe {
            (
                BorrowedFd::borrow_raw(self.control.wake.as_raw_fd()),
                BorrowedFd::borrow_raw(other.as_raw_fd()),
            )
        };
        let mut fds = [
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        Ok(if self.control.ended.load(Ordering::SeqCst) {
            Woken::ToEnd
        } else if fds[1].revents().contains(PollFlags::IN) {
            Woken::ByOther
        } else {
            Woken::ByTime
        })
    }
}

/// Handle of a running worker. Dropping it ends the worker, too.
pub struct Worker {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

struct Control {
    ended: AtomicBool,
    wake: EventFd,
}

impl Worker {
    /// Starts a thread (the kernel shows the first 15 bytes of `name`) that has `handler` serve
    /// what is in the queue, and then what comes with each notification.
    pub fn spawn(
        name: String,
        queue: ActiveQueue,
        memory: Arc<GuestMemory>,
        interrupt: Arc<Interrupt>,
        handler: impl ChainHandler,
    ) -> io::Result<Worker> {
        let control = Arc::new(Control {
            ended: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        });
        let epoll = Epoll::new()?;
        for fd in [queue.notify.as_raw_fd(), control.wake.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let mut service = Service {
            queue,
            memory,
            interrupt,
            handler,
            busy: false,
            spin: Spin::new(),
        };
        let thread = thread::Builder::new().name(name).spawn({
            let control = Arc::clone(&control);
            move || {
                let _guard = PanicGuard(Arc::clone(&service.interrupt));
                if let Err(error) = service.run(&epoll, &control) {
                    service.handler.failed(&error);
                    service.interrupt.signal_needs_reset();
                }
            }
        })?;
        Ok(Worker {
            control,
            thread: Some(thread),
        })
    }

    /// Tells the worker to end after the chain that it is serving, without waiting for that.
    pub fn signal_end(&self) {
        self.control.ended.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then the worker is about to wake up anyway.
        let _ = self.control.wake.write(1);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal_end();
        if let Some(thread) = self.thread.take() {
            let name = thread.thread().name().unwrap_or("virtio").to_owned();
            if thread.join().is_err() {
                error!(thread = name, "virtio worker panicked");
            }
        }
    }
}

/// Ends all `workers` at the same time and waits for them.
pub fn end_all(workers: &mut Vec<Worker>) {
    workers.iter().for_each(Worker::signal_end);
    workers.clear();
}

/// A bug of ours in one device shall look to the guest like a broken device, and not like one
/// that takes for ever.
pub(super) struct PanicGuard(pub(super) Arc<Interrupt>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.signal_needs_reset();
        }
    }
}

/// Whether a round has emptied the queue.
#[derive(PartialEq, Eq)]
enum Round {
    Drained,
    MoreToDo,
}

struct Service<H> {
    queue: ActiveQueue,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    handler: H,
    /// The queue has not been found empty since the last chain.
    busy: bool,
    spin: Spin,
}

impl<H: ChainHandler> Service<H> {
    fn run(&mut self, epoll: &Epoll, control: &Control) -> Result<(), QueueError> {
        let mut events = [EpollEvent::default(); 2];
        loop {
            while self.round(control)? == Round::MoreToDo {}
            if control.ended.load(Ordering::SeqCst) {
                return Ok(());
            }
            let asleep = Instant::now();
            match epoll.wait(-1, &mut events) {
                Ok(_) => {
                    self.spin.slept(asleep.elapsed());
                    // Which of the two it was doesn't matter; a read of an empty one just fails.
                    drop(self.queue.notify.read());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn round(&mut self, control: &Control) -> Result<Round, QueueError> {
        self.queue.suppress_notifications(&self.memory)?;
        let mut waiting_since = None;
        let served = self.serve_available(control, &mut waiting_since);
        // Also after an error: what was completed before it is valid.
        if waiting_since.is_some() {
            self.interrupt_if_wanted()?;
        }
        served?;
        if control.ended.load(Ordering::SeqCst) {
            return Ok(Round::Drained);
        }
        // Before the driver is told that it has to notify.
        let Service {
            queue,
            memory,
            spin,
            ..
        } = self;
        if spin.look(|| queue.has_available(memory))? {
            return Ok(Round::MoreToDo);
        }
        let more = self.queue.request_notifications(&self.memory)?;
        Ok(if more {
            Round::MoreToDo
        } else {
            Round::Drained
        })
    }

    /// Serves until the queue is empty, the worker shall end, or a full queue has been served
    /// (so that a driver which never pauses still gets its interrupt).
    fn serve_available(
        &mut self,
        control: &Control,
        waiting_since: &mut Option<Instant>,
    ) -> Result<(), QueueError> {
        for _ in 0..self.queue.queue.size() {
            if control.ended.load(Ordering::SeqCst) {
                break;
            }
            let Some(chain) = self.queue.pop(&self.memory)? else {
                self.busy = false;
                break;
            };
            let head = chain.head;
            let mut pause = Pause {
                queue: &mut self.queue,
                memory: &self.memory,
                interrupt: &self.interrupt,
                control,
                waiting_since,
                busy: std::mem::replace(&mut self.busy, true),
            };
            let Served::Completed(written) = self.handler.serve(chain, &mut pause)? else {
                break;
            };
            self.queue.complete(&self.memory, head, written)?;
            let since = *waiting_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= MAX_INTERRUPT_DELAY {
                *waiting_since = None;
                self.interrupt_if_wanted()?;
            }
        }
        Ok(())
    }

    fn interrupt_if_wanted(&mut self) -> Result<(), QueueError> {
        interrupt_if_wanted(&mut self.queue, &self.memory, &self.interrupt)
    }
}

fn interrupt_if_wanted(
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &Interrupt,
) -> Result<(), QueueError> {
    if queue.wants_interrupt(memory)? {
        interrupt.signal_queue();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
