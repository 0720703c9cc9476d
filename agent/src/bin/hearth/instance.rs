//! `hearth instance …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    DescribeInstanceTypesRequest, DescribeInstancesResponse, Filter, GetConsoleOutputRequest,
    Instance, InstanceState, InstanceStateChange, InstanceType, RebootInstancesRequest,
    StartInstancesRequest, StartInstancesResponse, StopInstancesRequest, StopInstancesResponse,
    TerminateInstancesRequest, TerminateInstancesResponse,
};

use crate::{
    client::Client,
    console::{self, ConsoleArgs},
    failure::{Failure, flags, rpc, rpc_with_flags},
    filters::{name_of, parse_filter},
    human,
    metadata::{self, MetadataOptionsArgs},
    output::{self, Output},
    run::{self, RunArgs},
    wait::{self, state_word},
};

/// Micro-VMs.
#[derive(Subcommand)]
pub enum InstanceCommand {
    /// Make instances from an image and start them.
    Run(Box<RunArgs>),
    /// List instances.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about instances.
    Show(IdsArgs),
    /// Start stopped instances.
    Start(ChangeArgs),
    /// Shut instances down; their volumes stay.
    Stop(StopArgs),
    /// Shut instances down and boot them again.
    Reboot(IdsArgs),
    /// End instances for good.
    #[command(visible_alias = "rm")]
    Terminate(ChangeArgs),
    /// Connect to the serial console.
    Console(ConsoleArgs),
    /// Print the last 64 KiB that the guest wrote on its serial console.
    ConsoleOutput(IdArgs),
    /// Show or change how an instance may use the metadata service.
    MetadataOptions(MetadataOptionsArgs),
    /// List instance types.
    Types,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: instance-id, image-id, instance-type, instance-state-name, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
    /// Terminated ones too.
    #[arg(long, short)]
    all: bool,
}

#[derive(Args)]
pub struct IdArgs {
    /// The instance's id or `Name`.
    #[arg(value_name = "INSTANCE")]
    id: String,
}

#[derive(Args)]
pub struct IdsArgs {
    /// The instances' ids or `Name`s.
    #[arg(required = true, value_name = "INSTANCE")]
    ids: Vec<String>,
}

#[derive(Args)]
pub struct ChangeArgs {
    #[command(flatten)]
    which: IdsArgs,
    /// Return when it is done.
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub struct StopArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// At once, without asking the guest.
    #[arg(long)]
    force: bool,
    /// How many seconds the guest may take before it is stopped by force.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: InstanceCommand,
) -> Result<(), Failure> {
    match command {
        InstanceCommand::Run(args) => run::run(client, output, *args).await,
        InstanceCommand::List(args) => list(client, output, args).await,
        InstanceCommand::Show(args) => show(client, output, args).await,
        InstanceCommand::Start(args) => start(client, output, args).await,
        InstanceCommand::Stop(args) => stop(client, output, args).await,
        InstanceCommand::Reboot(args) => reboot(client, output, args).await,
        InstanceCommand::Terminate(args) => terminate(client, output, args).await,
        InstanceCommand::Console(args) => console::console(client, args).await,
        InstanceCommand::ConsoleOutput(args) => console_output(client, output, args).await,
        InstanceCommand::MetadataOptions(args) => metadata::modify(client, output, args).await,
        InstanceCommand::Types => types(client, output).await,
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let mut filters = args.filter;
    let by_state = |filter: &Filter| filter.name == "instance-state-name";
    if !args.all && !filters.iter().any(by_state) {
        let living = ["pending", "running", "stopping", "stopped", "shutting-down"];
        filters.push(Filter {
            name: "instance-state-name".to_owned(),
            values: living.map(str::to_owned).to_vec(),
        });
    }
    let instances = client.describe_instances(&[], &filters).await?;
    print(output, instances, |instances| {
        if instances.is_empty() {
            eprintln!("No instances. Make one with `hearth run IMAGE`.");
            return Ok(());
        }
        print_instances(instances)
    })
}

async fn show(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let ids = client.instance_ids(&args.ids).await?;
    let instances = client.describe_instances(&ids, &[]).await?;
    print(output, instances, |instances| {
        for (index, instance) in instances.iter().enumerate() {
            if index > 0 {
                output::line("")?;
            }
            print_one(instance)?;
        }
        Ok(())
    })
}

fn print(
    output: Output,
    instances: Vec<Instance>,
    table: impl FnOnce(&[Instance]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match output {
        Output::Table => table(&instances),
        Output::Json => output::json(
            "DescribeInstancesResponse",
            &DescribeInstancesResponse {
                instances,
                next_token: String::new(),
            },
        ),
    }
}

/// One line for each.
pub fn print_instances(instances: &[Instance]) -> Result<(), Failure> {
    let header = [
        "INSTANCE", "NAME", "STATE", "TYPE", "VCPUS", "MEMORY", "IMAGE", "AGE",
    ];
    let row = |instance: &Instance| {
        vec![
            instance.instance_id.clone(),
            name_of(&instance.tags).to_owned(),
            state_word(instance.state()),
            instance.instance_type.clone(),
            instance.vcpus.to_string(),
            human::bytes(instance.memory_bytes),
            instance.image_id.clone(),
            human::age(instance.launch_time.as_ref()),
        ]
    };
    output::table(&header, &[4, 5, 7], instances.iter().map(row).collect())
}

fn print_one(instance: &Instance) -> Result<(), Failure> {
    let reason = instance.state_reason.clone().unwrap_or_default();
    let why = match (reason.code.as_str(), reason.message.as_str()) {
        ("", message) => message.to_owned(),
        (code, "") => code.to_owned(),
        (code, message) => format!("{message} ({code})"),
    };
    let disks: Vec<String> = instance
        .block_devices
        .iter()
        .map(|disk| {
            let mut line = format!("{} {}", disk.device_name, disk.volume_id);
            if disk.read_only {
                line.push_str(", read-only");
            }
            if disk.delete_on_termination {
                line.push_str(", deleted on termination");
            }
            line
        })
        .collect();
    let interfaces: Vec<String> = instance
        .network_interfaces
        .iter()
        .map(|it| {
            let public = match it.public_ipv4.as_str() {
                "" => String::new(),
                public => format!(" (public {public})"),
            };
            let addresses = format!("{}{public} {}", it.private_ipv4, it.private_ipv6);
            let (device, network) = (it.device_index, &it.network_id);
            format!("eth{device} {} in {network}", addresses.trim_end())
        })
        .collect();
    let taps: Vec<String> = instance
        .tap_interfaces
        .iter()
        .map(|interface| format!("{} {}", interface.tap_name, interface.mac_address))
        .collect();
    let tags: Vec<String> = instance
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    let pid = match instance.vmm_pid {
        0 => String::new(),
        pid => pid.to_string(),
    };
    output::fields(vec![
        ("Instance", instance.instance_id.clone()),
        ("State", state_word(instance.state())),
        ("Reason", why),
        ("Image", instance.image_id.clone()),
        ("Type", instance.instance_type.clone()),
        ("vCPUs", instance.vcpus.to_string()),
        ("Memory", human::bytes(instance.memory_bytes)),
        ("Disks", disks.join("\n")),
        ("Kernel arguments", instance.kernel_args.clone()),
        ("Interfaces", interfaces.join("\n")),
        ("Taps", taps.join("\n")),
        ("Key", instance.key_name.clone()),
        (
            "Metadata",
            instance
                .metadata_options
                .as_ref()
                .map(metadata::words)
                .unwrap_or_default(),
        ),
        (
            "Launched",
            human::time_and_age(instance.launch_time.as_ref()),
        ),
        ("VMM process", pid),
        ("Tags", tags.join("\n")),
        ("Owner", instance.owner_id.clone()),
    ])
}

fn id_flags() -> Vec<(String, String)> {
    flags([
        ("instance_ids", "INSTANCE"),
        ("instance_id", "INSTANCE"),
        ("timeout_seconds", "--timeout"),
    ])
}

async fn start(client: &mut Client, output: Output, args: ChangeArgs) -> Result<(), Failure> {
    let instance_ids = client.instance_ids(&args.which.ids).await?;
    let request = StartInstancesRequest { instance_ids };
    let changes = client
        .instances
        .start_instances(request)
        .await
        .map_err(|status| rpc_with_flags(status, &id_flags()))?
        .into_inner()
        .changes;
    let changes = settle(client, changes, args.wait, InstanceState::Running).await?;
    match output {
        Output::Json => output::json(
            "StartInstancesResponse",
            &StartInstancesResponse { changes },
        ),
        Output::Table => print_changes(&changes),
    }
}

async fn stop(client: &mut Client, output: Output, args: StopArgs) -> Result<(), Failure> {
    let instance_ids = client.instance_ids(&args.change.which.ids).await?;
    let request = StopInstancesRequest {
        instance_ids,
        force: args.force,
        timeout_seconds: args.timeout.unwrap_or(0),
    };
    let changes = client
        .instances
        .stop_instances(request)
        .await
        .map_err(|status| rpc_with_flags(status, &id_flags()))?
        .into_inner()
        .changes;
    let changes = settle(client, changes, args.change.wait, InstanceState::Stopped).await?;
    match output {
        Output::Json => output::json("StopInstancesResponse", &StopInstancesResponse { changes }),
        Output::Table => print_changes(&changes),
    }
}

async fn terminate(client: &mut Client, output: Output, args: ChangeArgs) -> Result<(), Failure> {
    let instance_ids = client.instance_ids(&args.which.ids).await?;
    let request = TerminateInstancesRequest { instance_ids };
    let changes = client
        .instances
        .terminate_instances(request)
        .await
        .map_err(|status| rpc_with_flags(status, &id_flags()))?
        .into_inner()
        .changes;
    let changes = settle(client, changes, args.wait, InstanceState::Terminated).await?;
    match output {
        Output::Json => output::json(
            "TerminateInstancesResponse",
            &TerminateInstancesResponse { changes },
        ),
        Output::Table => print_changes(&changes),
    }
}

async fn reboot(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let instance_ids = client.instance_ids(&args.ids).await?;
    let request = RebootInstancesRequest {
        instance_ids: instance_ids.clone(),
    };
    let answer = client
        .instances
        .reboot_instances(request)
        .await
        .map_err(|status| rpc_with_flags(status, &id_flags()))?
        .into_inner();
    match output {
        Output::Json => output::json("RebootInstancesResponse", &answer),
        Output::Table => output::line(&format!("{}: reboots", instance_ids.join(", "))),
    }
}

/// With `--wait`, the changes up to the state that was waited for.
async fn settle(
    client: &mut Client,
    mut changes: Vec<InstanceStateChange>,
    wait: bool,
    wanted: InstanceState,
) -> Result<Vec<InstanceStateChange>, Failure> {
    if wait {
        let ids: Vec<_> = changes
            .iter()
            .map(|change| change.instance_id.clone())
            .collect();
        wait::until(client, &ids, wanted).await?;
        for change in &mut changes {
            change.set_current_state(wanted);
        }
    }
    Ok(changes)
}

fn print_changes(changes: &[InstanceStateChange]) -> Result<(), Failure> {
    let row = |change: &InstanceStateChange| {
        vec![
            change.instance_id.clone(),
            state_word(change.previous_state()),
            state_word(change.current_state()),
        ]
    };
    output::table(
        &["INSTANCE", "WAS", "IS"],
        &[],
        changes.iter().map(row).collect(),
    )
}

async fn console_output(client: &mut Client, output: Output, args: IdArgs) -> Result<(), Failure> {
    let instance_id = client.instance_id(&args.id).await?;
    let answer = client
        .instances
        .get_console_output(GetConsoleOutputRequest { instance_id })
        .await
        .map_err(|status| rpc_with_flags(status, &id_flags()))?
        .into_inner();
    match output {
        Output::Json => output::json("GetConsoleOutputResponse", &answer),
        Output::Table => output::bytes(&answer.output),
    }
}

async fn types(client: &mut Client, output: Output) -> Result<(), Failure> {
    let answer = client
        .instances
        .describe_instance_types(DescribeInstanceTypesRequest {})
        .await
        .map_err(rpc)?
        .into_inner();
    if output == Output::Json {
        return output::json("DescribeInstanceTypesResponse", &answer);
    }
    let rows = answer
        .instance_types
        .iter()
        .map(|kind| {
            vec![
                kind.name.clone(),
                kind.vcpus.to_string(),
                human::bytes(kind.memory_mib << 20),
                limit(kind.max_disk_iops),
                limit(kind.max_disk_throughput_mib),
                network(kind),
            ]
        })
        .collect();
    let header = [
        "TYPE",
        "VCPUS",
        "MEMORY",
        "DISK IOPS",
        "DISK MIB/S",
        "NETWORK MBIT/S",
    ];
    output::table(&header, &[1, 2, 3, 4, 5], rows)
}

/// What the network carries in each direction.
fn network(kind: &InstanceType) -> String {
    match (kind.network_bandwidth_mbps, kind.network_burst_mbps) {
        (baseline, 0) => limit(baseline),
        (baseline, burst) => format!("{baseline}, up to {burst}"),
    }
}

/// A figure of all disks, or interfaces, together; 0 is none.
fn limit(figure: u32) -> String {
    match figure {
        0 => "any".to_owned(),
        figure => figure.to_string(),
    }
}
