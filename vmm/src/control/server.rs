//! The VMM's end of the control socket: one thread that accepts, one for each connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::disks::{self, DiskError};
use super::{Event, ExitReason, Phase, Reply, Request, VmStatus};
use crate::acpi::pm::PowerManagement;
use crate::config::{PROTOCOL_VERSION, run_files};
use crate::console::Console;
use crate::devices::serial::SerialPort;
use crate::exit::ExitSwitch;
use crate::machine::disks::Disks;
use crate::machine::hotplug::HotPlug;
use crate::machine::nets::Nets;

/// Longest request, in bytes.
const MAX_LINE: u64 = 64 << 10;
/// How long a client may take to read what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

type Writer = Arc<Mutex<UnixStream>>;

/// What the control socket controls.
pub struct Controlled {
    /// For [`Reply::Hello`].
    pub instance_id: String,
    /// Where an end is announced.
    pub exit: Arc<ExitSwitch>,
    /// The console.
    pub console: Arc<Console>,
    /// The serial line.
    pub serial: Arc<Mutex<SerialPort>>,
    /// The power button.
    pub power: Arc<Mutex<PowerManagement>>,
    /// The disks.
    pub disks: Disks,
    /// The network interfaces.
    pub nets: Nets,
    /// Plugs and unplugs disks.
    pub hotplug: HotPlug,
    /// Those who want events.
    pub subscribers: Subscribers,
    /// For [`VmStatus`].
    pub start_to_guest_ns: u64,
}

/// Connections that want events.
#[derive(Clone, Default)]
pub struct Subscribers(Arc<Mutex<Vec<Writer>>>);

impl Subscribers {
    /// Sends `event` to all; those that have gone are forgotten.
    pub fn send(&self, event: &Event) {
        let reply = Reply::Event(event.clone());
        lock(&self.0).retain(|writer| send(writer, &reply).is_ok());
    }

    fn add(&self, writer: &Writer) {
        lock(&self.0).push(Arc::clone(writer));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn send(writer: &Writer, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    lock(writer).write_all(&line)
}

/// Makes the socket in `run_dir`, in place of one that an earlier VMM left. The path is taken
/// through an open directory: a socket's path may only have 108 bytes.
pub fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    let dir = std::fs::File::open(run_dir)?;
    let path = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(run_files::CONTROL_SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(&path),
    }
}

/// Serves `listener` until the process ends.
pub fn serve(listener: UnixListener, controlled: Arc<Controlled>) -> io::Result<()> {
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let outcome = stream.and_then(|stream| {
                    let controlled = Arc::clone(&controlled);
                    std::thread::Builder::new()
                        .name("client".into())
                        .spawn(move || serve_client(stream, &controlled))
                });
                if let Err(error) = outcome {
                    tracing::warn!(%error, "control connection");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
    Ok(())
}

fn serve_client(stream: UnixStream, controlled: &Controlled) {
    if let Err(error) = Client::new(stream).and_then(|client| client.serve(controlled)) {
        tracing::debug!(%error, "control connection");
    }
}

struct Client {
    reader: BufReader<UnixStream>,
    writer: Writer,
}

enum Next {
    Request(Request),
    Malformed(String),
    Closed,
}

impl Client {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let writer = Arc::new(Mutex::new(stream.try_clone()?));
        Ok(Self {
            reader: BufReader::new(stream),
            writer,
        })
    }

    fn next(&mut self) -> io::Result<Next> {
        let mut line = Vec::new();
        let read = (&mut self.reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(Next::Closed);
        }
        Ok(match serde_json::from_slice(&line) {
            Ok(request) => Next::Request(request),
            Err(error) => Next::Malformed(error.to_string()),
        })
    }

    fn refuse(&self, message: String) -> io::Result<()> {
        send(&self.writer, &Reply::Error { message })
    }

    fn reply(&self, outcome: Result<Reply, DiskError>) -> io::Result<()> {
        match outcome {
            Ok(reply) => send(&self.writer, &reply),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    fn serve(mut self, controlled: &Controlled) -> io::Result<()> {
        match self.next()? {
            Next::Request(Request::Hello {
                version: PROTOCOL_VERSION,
            }) => {
                let hello = Reply::Hello {
                    version: PROTOCOL_VERSION,
                    instance_id: controlled.instance_id.clone(),
                    pid: std::process::id(),
                };
                send(&self.writer, &hello)?;
            }
            Next::Request(Request::Hello { version }) => {
                return self.refuse(format!(
                    "this VMM speaks version {PROTOCOL_VERSION}, not {version}"
                ));
            }
            Next::Request(_) => return self.refuse("the first request must be hello".into()),
            Next::Malformed(message) => return self.refuse(message),
            Next::Closed => return Ok(()),
        }
        loop {
            match self.next()? {
                Next::Request(Request::AttachConsole { replay }) => {
                    return self.console(controlled, replay);
                }
                Next::Request(request) => self.answer(controlled, &request)?,
                Next::Malformed(message) => return self.refuse(message),
                Next::Closed => return Ok(()),
            }
        }
    }

    fn answer(&self, controlled: &Controlled, request: &Request) -> io::Result<()> {
        let exit = &controlled.exit;
        match request {
            Request::Status => {
                let phase = match exit.announced() {
                    None => Phase::Running,
                    Some(_) => Phase::Exiting,
                };
                let start_to_guest_ns = controlled.start_to_guest_ns;
                return send(
                    &self.writer,
                    &Reply::Status(VmStatus {
                        phase,
                        start_to_guest_ns,
                    }),
                );
            }
            Request::PowerButton => {
                exit.power_button_pressed();
                lock(&controlled.power).press_power_button();
            }
            Request::SnapshotDisks { disks } => {
                return self.reply(disks::snapshot(&controlled.disks, disks));
            }
            Request::ReloadDisks => return self.reply(disks::reload(&controlled.disks)),
            Request::ResizeDisk { serial, size_bytes } => {
                return self.reply(disks::resize(&controlled.disks, serial, *size_bytes));
            }
            Request::SetThrottle { serial, limits } => {
                return self.reply(disks::set_throttle(&controlled.disks, serial, limits));
            }
            Request::DiskStatus { serial } => {
                return self.reply(disks::status(&controlled.disks, serial));
            }
            Request::AttachDisk { disk } => {
                return self.reply(disks::attach(&controlled.hotplug, disk));
            }
            Request::DetachDisk {
                serial,
                force,
                patience_ms,
            } => {
                let hotplug = &controlled.hotplug;
                return self.reply(disks::detach(hotplug, serial, *force, *patience_ms));
            }
            Request::NetStatus => {
                return send(&self.writer, &Reply::NetStatus(controlled.nets.status()));
            }
            Request::ListDisks => return self.reply(disks::list(&controlled.hotplug)),
            Request::Kill => exit.announce(ExitReason::Killed, "told to"),
            Request::Subscribe => controlled.subscribers.add(&self.writer),
            Request::Hello { .. } | Request::AttachConsole { .. } => {
                return self.refuse("not legal here".into());
            }
        }
        send(&self.writer, &Reply::Done)
    }

    /// The connection is the console from here on.
    fn console(mut self, controlled: &Controlled, replay: bool) -> io::Result<()> {
        send(&self.writer, &Reply::Done)?;
        let viewer = lock(&self.writer).try_clone()?;
        controlled.console.attach(viewer, replay)?;
        let mut typed = [0u8; 4096];
        loop {
            let count = self.reader.read(&mut typed)?;
            if count == 0 {
                return Ok(());
            }
            lock(&controlled.serial).type_in(&typed[..count]);
        }
    }
}
