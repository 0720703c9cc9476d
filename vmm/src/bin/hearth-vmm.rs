//! `hearth-vmm`: runs one micro-VM. Started by `hearthd`; see `hearth_vmm::config`.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use hearth_vmm::config::VmConfig;
use hearth_vmm::control::ExitReason;

const USAGE: &str = "usage: hearth-vmm --config-fd N | --config FILE
Runs one micro-VM to its end; the configuration is a JSON document (see hearth_vmm::config).";

fn main() -> ExitCode {
    let started = Instant::now();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // Or a log that can't be written, on a full disk, would panic the thread that logs.
        .log_internal_errors(false)
        .init();
    match run(started) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hearth-vmm: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(started: Instant) -> anyhow::Result<ExitCode> {
    let config = read_config()?;
    let terminate = block_termination_signals().context("signals")?;
    let report = hearth_vmm::process::run(&config, started, &terminate);
    tracing::info!(reason = ?report.reason, message = report.message, "the guest has ended");
    Ok(match report.reason {
        ExitReason::PowerOff | ExitReason::Reset | ExitReason::Killed => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn read_config() -> anyhow::Result<VmConfig> {
    let mut arguments = std::env::args().skip(1);
    let mut file = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--config-fd"), Some(number)) => inherited_file(&number)?,
        (Some("--config"), Some(path)) => File::open(&path).with_context(|| path.clone())?,
        (Some("--help" | "-h"), _) => {
            println!("{USAGE}");
            std::process::exit(0);
        }
        (Some("--version" | "-V"), _) => {
            println!("hearth-vmm {}", env!("CARGO_PKG_VERSION"));
            std::process::exit(0);
        }
        _ => bail!("{USAGE}"),
    };
    let mut text = String::new();
    // A pipe can't seek, and need not.
    drop(file.rewind());
    file.read_to_string(&mut text)
        .context("reading the configuration")?;
    serde_json::from_str(&text).context("the configuration")
}

fn inherited_file(number: &str) -> anyhow::Result<File> {
    let fd: RawFd = number.parse().context("--config-fd wants a number")?;
    if fd < 3 {
        bail!("--config-fd wants a descriptor of 3 or more");
    }
    // SAFETY: nothing has opened a descriptor of this number yet: this is the first thing that
    // the process does, and 0 to 2 are excluded. A closed one is told from the error of the read.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// SIGTERM and SIGINT become readable on the returned descriptor, in every thread.
fn block_termination_signals() -> std::io::Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is used; the calls take no other
    // memory of ours. No other thread runs yet, so that all inherit the mask.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        if libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: signalfd returned this descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
