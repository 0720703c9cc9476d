//! `hearthd`: the daemon of Hearth. See `docs/agent.md`.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use hearth_agent::{boot_finder, config::Settings, server};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Turns this Linux machine into a small EC2: runs micro-VMs on /dev/kvm and serves the gRPC API
/// hearth.v1 on a Unix socket.
///
/// Works with no arguments, as root. Drive it with `hearth` or any gRPC client, for example
/// `grpcurl -plaintext unix:///run/hearth/hearthd.sock list`.
///
/// SIGTERM and SIGINT end hearthd and leave the guests running; the next hearthd goes on with
/// them. RUST_LOG sets what is logged (default: info), to standard error.
#[derive(Debug, Parser)]
#[command(name = "hearthd", version)]
struct Arguments {
    /// Where everything is kept: the database, volumes, images, and a directory for each
    /// instance. One hearthd at a time.
    #[arg(
        long,
        env = "HEARTH_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/hearth"
    )]
    state_dir: PathBuf,

    /// The Unix socket to listen on. Whoever may open it may do everything.
    #[arg(
        long,
        env = "HEARTH_SOCKET",
        value_name = "PATH",
        default_value = "/run/hearth/hearthd.sock"
    )]
    socket: PathBuf,

    /// The program that runs one micro-VM [default: hearth-vmm beside hearthd]
    #[arg(long, env = "HEARTH_VMM", value_name = "PATH")]
    vmm: Option<PathBuf>,

    /// The region that instances are told they are in, such as `rack-7`; the availability zone
    /// is the same with an `a` behind it [default: the host's name]
    #[arg(long, env = "HEARTH_REGION", value_name = "NAME")]
    region: Option<String>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == boot_finder::ARGUMENT)
    {
        return boot_finder::child(arguments);
    }
    match start(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        // Or a log that can't be written, on a full disk, would panic who logs.
        .log_internal_errors(false)
        .init();
    // Guests' disks, memory files and consoles are nobody else's business.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let vmm = match arguments.vmm {
        Some(vmm) => vmm,
        None => std::env::current_exe()
            .context("finding hearth-vmm beside hearthd")?
            .with_file_name("hearth-vmm"),
    };
    let settings = Settings {
        state_dir: arguments.state_dir,
        socket: arguments.socket,
        vmm,
        region: arguments.region,
    };
    // These errors tell their causes themselves.
    let settings = settings
        .checked()
        .map_err(|error| anyhow::Error::msg(error.to_string()))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?
        .block_on(run(settings))
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let until = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let ready = |socket: &std::path::Path| println!("hearthd: listening on {}", socket.display());
    server::serve(settings, until, ready)
        .await
        .map_err(|error| anyhow::Error::msg(error.to_string()))
}
