//! `hearth`: drives `hearthd` from a terminal or a script.
//!
//! One file for each noun of the API ([`instance`], [`volume`], [`snapshot`], [`image`], [`events`]), each with
//! its arguments and what they do. [`client`] talks to the agent, [`failure`] turns what went
//! wrong into a line and a hint, [`output`] prints tables and JSON.

mod address;
mod client;
mod completion;
mod console;
mod download;
mod events;
mod failure;
mod filters;
mod flow_log;
mod human;
mod image;
mod image_change;
mod image_files;
mod instance;
mod key;
mod labels;
mod metadata;
mod net;
mod network;
mod output;
mod pages;
mod port_forward;
mod prefix_list;
mod run;
mod run_networks;
mod sg;
mod sg_explain;
mod sg_names;
mod sg_rules;
mod sharing;
mod snapshot;
mod ssh;
mod store;
mod tunnel;
mod upload;
mod volume;
mod volume_classes;
mod volume_wait;
mod wait;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{client::Client, failure::Failure, output::Output};

/// Run micro-VMs on this machine: instances, volumes, snapshots and images, in EC2's words.
#[derive(Parser)]
#[command(
    name = "hearth",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Start with `hearth image import DIR` and `hearth run IMAGE --wait`.")]
struct Cli {
    /// The agent's Unix socket.
    #[arg(
        long,
        global = true,
        env = "HEARTH_SOCKET",
        value_name = "PATH",
        default_value = client::DEFAULT_SOCKET
    )]
    socket: PathBuf,

    /// The account to act as; `*` looks at all of them.
    #[arg(
        long,
        global = true,
        env = "HEARTH_ACCOUNT",
        value_name = "NAME",
        default_value = "local"
    )]
    account: String,

    /// Tables for people, or one JSON document for programs.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    output: Output,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make instances from an image and start them (short for `instance run`).
    Run(Box<run::RunArgs>),
    /// Micro-VMs.
    #[command(subcommand, visible_alias = "instances")]
    Instance(instance::InstanceCommand),
    /// Block volumes.
    #[command(subcommand, visible_alias = "volumes")]
    Volume(volume::VolumeCommand),
    /// What volumes held at one point in time.
    #[command(subcommand, visible_alias = "snapshots")]
    Snapshot(snapshot::SnapshotCommand),
    /// What instances are made from.
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Virtual networks.
    #[command(subcommand, visible_alias = "networks")]
    Network(network::NetworkCommand),
    /// Who has which address.
    Net(net::NetArgs),
    /// Public (elastic) addresses.
    #[command(subcommand, visible_alias = "addresses")]
    Address(address::AddressCommand),
    /// Ports of the host that are instances'.
    #[command(subcommand, visible_alias = "port-forwards")]
    PortForward(port_forward::PortForwardCommand),
    /// SSH keys for instances.
    #[command(subcommand, visible_alias = "keys")]
    Key(key::KeyCommand),
    /// Security groups: who may talk to an instance, and to whom it may talk.
    #[command(subcommand, visible_alias = "security-group")]
    Sg(sg::SgCommand),
    /// Named lists of address blocks for the rules of security groups.
    #[command(subcommand, visible_alias = "prefix-lists")]
    PrefixList(prefix_list::PrefixListCommand),
    /// Who talked to whom through interfaces, and whether it was let through.
    #[command(subcommand, visible_alias = "flow-logs")]
    FlowLog(flow_log::FlowLogCommand),
    /// The volume store as a whole.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// What happened, and what happens.
    Events(events::EventsArgs),
    /// Connect to an instance's serial console (short for `instance console`).
    Console(console::ConsoleArgs),
    /// Log in to an instance with SSH, through the agent.
    Ssh(ssh::SshArgs),
    /// Forward a TCP port of this machine to one of an instance, through the agent.
    Tunnel(tunnel::TunnelArgs),
    /// Print the completion script of a shell.
    Completion(completion::CompletionArgs),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::new(format!("no async runtime: {error}")).report(),
    };
    match runtime.block_on(dispatch(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let output = cli.output;
    let connect = || Client::connect(&cli.socket, &cli.account);
    match cli.command {
        Command::Run(args) => run::run(&mut connect().await?, output, *args).await,
        Command::Instance(command) => {
            instance::dispatch(&mut connect().await?, output, command).await
        }
        Command::Volume(command) => volume::dispatch(&mut connect().await?, output, command).await,
        Command::Snapshot(command) => {
            snapshot::dispatch(&mut connect().await?, output, command).await
        }
        Command::Image(command) => image::dispatch(&mut connect().await?, output, command).await,
        Command::Network(command) => {
            network::dispatch(&mut connect().await?, output, command).await
        }
        Command::Net(args) => net::net(&mut connect().await?, output, args).await,
        Command::Address(command) => {
            address::dispatch(&mut connect().await?, output, command).await
        }
        Command::PortForward(command) => {
            port_forward::dispatch(&mut connect().await?, output, command).await
        }
        Command::Key(command) => key::dispatch(&mut connect().await?, output, command).await,
        Command::Sg(command) => sg::dispatch(&mut connect().await?, output, command).await,
        Command::PrefixList(command) => {
            prefix_list::dispatch(&mut connect().await?, output, command).await
        }
        Command::FlowLog(command) => {
            flow_log::dispatch(&mut connect().await?, output, command).await
        }
        Command::Store(command) => store::dispatch(&mut connect().await?, output, command).await,
        Command::Events(args) => events::events(&mut connect().await?, output, args).await,
        Command::Console(args) => console::console(&mut connect().await?, args).await,
        Command::Ssh(args) => {
            ssh::ssh(&mut connect().await?, &cli.socket, &cli.account, args).await
        }
        Command::Tunnel(args) => tunnel::tunnel(&mut connect().await?, args).await,
        Command::Completion(args) => completion::completion(args),
        Command::Version => output::line(&format!("hearth {}", env!("CARGO_PKG_VERSION"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
