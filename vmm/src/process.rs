//! The life of the VMM process: configuration in, guest, exit report out.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hearth_images::crash_point;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::config::{VmConfig, run_files};
use crate::console::Console;
use crate::control::server::{self, Controlled, Subscribers};
use crate::control::{Event, ExitReason, ExitReport};
use crate::devices::virtio::errors::OnError;
use crate::exit::ExitSwitch;
use crate::machine::{Machine, Outside, StartError, io_error};

/// Runs the guest of `config` to its end. `started` is when the process began; `terminate`
/// becomes readable when someone wants it to end (SIGTERM).
pub fn run(config: &VmConfig, started: Instant, terminate: &OwnedFd) -> ExitReport {
    let subscribers = Subscribers::default();
    let report = match run_guest(config, started, terminate, &subscribers) {
        Ok(report) => report,
        Err(error) => ExitReport {
            reason: ExitReason::StartFailed,
            message: error.to_string(),
            credits: Vec::new(),
        },
    };
    if let Err(error) = write_report(&config.run_dir, &report) {
        tracing::error!(%error, "the exit report could not be written");
    }
    subscribers.send(&Event::Exited(report.clone()));
    report
}

fn run_guest(
    config: &VmConfig,
    started: Instant,
    terminate: &OwnedFd,
    subscribers: &Subscribers,
) -> Result<ExitReport, StartError> {
    let exit = Arc::new(ExitSwitch::new().map_err(io_error("eventfd"))?);
    let log_path = config.run_dir.join(run_files::CONSOLE_LOG);
    let (console, console_thread) = Console::start(&log_path).map_err(io_error("console log"))?;
    let listener = server::bind(&config.run_dir).map_err(io_error("control socket"))?;

    let outside = Outside {
        console: Arc::clone(&console),
        exit: Arc::clone(&exit),
        on_disk_error: disk_error_reporter(subscribers),
        on_net_error: net_error_reporter(subscribers),
    };
    crash_point("vmm.bound");
    let machine = Machine::build(config, outside)?;
    crash_point("vmm.built");
    let start_to_guest_ns = started.elapsed().as_nanos() as u64;
    let machine = machine.start()?;
    crash_point("vmm.started");
    let controlled = Controlled {
        instance_id: config.instance_id.clone(),
        exit: Arc::clone(&exit),
        console,
        serial: machine.serial(),
        power: machine.power(),
        disks: machine.disks(),
        nets: machine.nets(),
        hotplug: machine.hotplug(),
        subscribers: subscribers.clone(),
        start_to_guest_ns,
    };
    server::serve(listener, Arc::new(controlled)).map_err(io_error("control thread"))?;

    wait(exit.event(), terminate).map_err(io_error("poll"))?;
    exit.announce(ExitReason::Killed, "terminated by a signal");
    crash_point("vmm.stopping");
    let disks = machine.disks();
    machine.stop();
    console_thread.finish();
    crash_point("vmm.stopped");
    let report = exit.announced().unwrap_or(ExitReport {
        reason: ExitReason::InternalError,
        message: "ended without a reason".into(),
        credits: Vec::new(),
    });
    Ok(ExitReport {
        credits: disks.credits(),
        ..report
    })
}

fn disk_error_reporter(subscribers: &Subscribers) -> OnError {
    let subscribers = subscribers.clone();
    Arc::new(move |serial, message| {
        tracing::warn!(serial, message, "disk");
        let serial = serial.to_string();
        subscribers.send(&Event::DiskError { serial, message });
    })
}

fn net_error_reporter(subscribers: &Subscribers) -> OnError {
    let subscribers = subscribers.clone();
    Arc::new(move |tap, message| {
        tracing::warn!(tap, message, "network interface");
        let tap = tap.to_string();
        subscribers.send(&Event::NetError { tap, message });
    })
}

fn wait(exit: &EventFd, terminate: &OwnedFd) -> io::Result<()> {
    // SAFETY: `exit` is open for as long as the borrow lives.
    let exit = unsafe { rustix::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(exit)) };
    let mut fds = [
        PollFd::new(&exit, PollFlags::IN),
        PollFd::from_borrowed_fd(terminate.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Readers see the whole report or none. It need not survive the host's own end: no guest does.
fn write_report(run_dir: &Path, report: &ExitReport) -> io::Result<()> {
    let path = run_dir.join(run_files::EXIT_REPORT);
    let fresh = path.with_extension("json.new");
    let mut file = File::create(&fresh)?;
    serde_json::to_writer(&mut file, report)?;
    file.write_all(b"\n")?;
    crash_point("vmm.report-written");
    std::fs::rename(&fresh, &path)
}
