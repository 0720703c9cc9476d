//! The serial console outside the guest: a log file of bounded size, the recent past in memory,
//! and any number of viewers.
//!
//! The UART only appends to a buffer; a thread of its own does the slow work, so that neither a
//! full disk nor a viewer that does not read ever holds up the guest.

mod log;
mod viewers;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use log::ConsoleLog;
use viewers::Viewers;

/// Output that is kept for viewers who ask for a replay, in bytes.
const REPLAY_BYTES: usize = 64 << 10;
/// Output that waits for the console thread; beyond, the oldest is dropped.
const MAX_WAITING: usize = 4 << 20;

/// The console of one guest.
pub struct Console {
    shared: Mutex<Shared>,
    work: Condvar,
}

struct Shared {
    waiting: Vec<u8>,
    recent: VecDeque<u8>,
    viewers: Viewers,
    closing: bool,
}

impl Console {
    /// Opens the log at `log_path` and starts the thread that writes it.
    pub fn start(log_path: &Path) -> io::Result<(Arc<Self>, ConsoleThread)> {
        let log = ConsoleLog::open(log_path)?;
        let console = Arc::new(Self {
            shared: Mutex::new(Shared {
                waiting: Vec::new(),
                recent: VecDeque::with_capacity(REPLAY_BYTES),
                viewers: Viewers::default(),
                closing: false,
            }),
            work: Condvar::new(),
        });
        let worker = Arc::clone(&console);
        let handle = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || worker.run(log))?;
        let thread = ConsoleThread {
            console: Arc::clone(&console),
            handle: Some(handle),
        };
        Ok((console, thread))
    }

    /// Sends output to `stream` from now on, after what is still kept if `replay` is set. The
    /// viewer is let go when it closes or falls too far behind.
    pub fn attach(&self, stream: UnixStream, replay: bool) -> io::Result<()> {
        let mut shared = self.lock();
        let past = match replay {
            true => shared.recent.iter().copied().collect(),
            false => Vec::new(),
        };
        shared.viewers.add(stream, past)
    }

    fn write(&self, bytes: &[u8]) {
        let mut shared = self.lock();
        shared.waiting.extend_from_slice(bytes);
        let excess = shared.waiting.len().saturating_sub(MAX_WAITING);
        shared.waiting.drain(..excess);
        self.work.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut log: ConsoleLog) {
        loop {
            let mut shared = self.lock();
            while shared.waiting.is_empty() && !shared.closing {
                shared = self
                    .work
                    .wait(shared)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if shared.waiting.is_empty() {
                shared.viewers.close();
                return;
            }
            let chunk = std::mem::take(&mut shared.waiting);
            let kept = chunk.len().min(REPLAY_BYTES);
            let excess = (shared.recent.len() + kept).saturating_sub(REPLAY_BYTES);
            shared.recent.drain(..excess);
            shared.recent.extend(&chunk[chunk.len() - kept..]);
            shared.viewers.send(&chunk);
            drop(shared);
            log.append(&chunk);
        }
    }
}

/// The thread behind a [`Console`].
pub struct ConsoleThread {
    console: Arc<Console>,
    handle: Option<JoinHandle<()>>,
}

impl ConsoleThread {
    /// Writes out what waits, says goodbye to the viewers, ends the thread.
    pub fn finish(mut self) {
        self.console.lock().closing = true;
        self.console.work.notify_one();
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("the console thread panicked");
        }
    }
}

/// The UART's side of a [`Console`].
pub struct ConsoleWriter(Arc<Console>);

impl ConsoleWriter {
    /// Writes to `console`.
    pub fn new(console: &Arc<Console>) -> Self {
        Self(Arc::clone(console))
    }
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn log_replay_and_live_viewers_get_all_output_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let (console, thread) = Console::start(&path).unwrap();
        let mut uart = ConsoleWriter::new(&console);
        uart.write_all(b"early ").unwrap();
        while console.lock().recent.len() < 6 {
            std::thread::yield_now();
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        console.attach(near, true).unwrap();
        uart.write_all(b"late").unwrap();
        thread.finish();
        let mut seen = String::new();
        far.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "early late");
        assert_eq!(std::fs::read(&path).unwrap(), b"early late");
    }

    #[test]
    fn a_viewer_that_never_reads_does_not_hold_up_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (console, thread) = Console::start(&dir.path().join("log")).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        console.attach(near, false).unwrap();
        let mut uart = ConsoleWriter::new(&console);
        for _ in 0..1000 {
            uart.write_all(&[b'x'; 4096]).unwrap();
        }
        thread.finish();
    }
}
