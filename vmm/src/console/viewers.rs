//! Those who watch the console live, each with a thread and a backlog of its own.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes that may wait for one viewer before it is let go. A viewer may pause for as long as it
/// likes; only how much it misses counts.
const MAX_BACKLOG: usize = 1 << 20;
/// How long viewers have, in all, to read what waits for them when the guest has ended.
const GOODBYE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Viewers {
    viewers: Vec<Viewer>,
}

struct Viewer {
    stream: UnixStream,
    inbox: Arc<Inbox>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    changed: Condvar,
}

#[derive(Default)]
struct InboxState {
    backlog: Vec<u8>,
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Waits for output; `None` when there is none left and none will come.
    fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.backlog.is_empty() && !state.closed {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Some(std::mem::take(&mut state.backlog)).filter(|bytes| !bytes.is_empty())
    }
}

impl Viewers {
    /// Adds a viewer that first gets `past`.
    pub fn add(&mut self, stream: UnixStream, past: Vec<u8>) -> io::Result<()> {
        stream.set_write_timeout(None)?;
        let inbox = Arc::new(Inbox::default());
        inbox.lock().backlog = past;
        let (mut writer, source) = (stream.try_clone()?, Arc::clone(&inbox));
        let thread = std::thread::Builder::new()
            .name("viewer".into())
            .spawn(move || {
                while let Some(bytes) = source.take() {
                    if writer.write_all(&bytes).is_err() {
                        break;
                    }
                }
                source.close();
                hang_up(&writer);
            })?;
        self.viewers.push(Viewer {
            stream,
            inbox,
            thread,
        });
        Ok(())
    }

    /// Hands `chunk` to every viewer; those that have gone, or are too far behind, are let go.
    pub fn send(&mut self, chunk: &[u8]) {
        self.viewers.retain(|viewer| {
            let mut state = viewer.inbox.lock();
            let keeps_up = state.backlog.len() + chunk.len() <= MAX_BACKLOG;
            if keeps_up && !state.closed {
                state.backlog.extend_from_slice(chunk);
                viewer.inbox.changed.notify_one();
                return true;
            }
            drop(state);
            viewer.inbox.close();
            hang_up(&viewer.stream);
            false
        });
    }

    /// Lets all go, after they got what waits for them, or did not read it in time.
    pub fn close(&mut self) {
        for viewer in &self.viewers {
            viewer.inbox.close();
        }
        let deadline = Instant::now() + GOODBYE;
        for viewer in self.viewers.drain(..) {
            while !viewer.thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            hang_up(&viewer.stream);
            if viewer.thread.join().is_err() {
                tracing::error!("a viewer's thread panicked");
            }
        }
    }
}

/// Also wakes a thread that waits for the other side to read.
fn hang_up(stream: &UnixStream) {
    // Fails only when the other side has gone already.
    drop(stream.shutdown(Shutdown::Both));
}
