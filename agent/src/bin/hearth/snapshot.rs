//! `hearth snapshot …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CopySnapshotRequest, CreateSnapshotRequest, CreateSnapshotsRequest, CreateSnapshotsResponse,
    DeleteSnapshotRequest, DescribeSnapshotAttributeRequest, DescribeSnapshotsRequest,
    DescribeSnapshotsResponse, ExportSnapshotRequest, Filter, ListChangedBlocksRequest,
    ListSnapshotBlocksRequest, ModifySnapshotAttributeRequest, Snapshot,
};
use tonic::Status;

use crate::{
    client::Client,
    download::TargetArgs,
    failure::{Failure, flags, rpc_with_flags},
    filters::{name_of, parse_filter},
    human,
    labels::LabelArgs,
    output::{self, Output},
    pages::all_pages,
    sharing,
};

/// What volumes held at one point in time.
#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a volume, or of an instance's volumes at one point in time.
    Create(CreateArgs),
    /// List snapshots: your own, and those shared with you.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about snapshots.
    Show(IdsArgs),
    /// Delete snapshots. Volumes made from them live on.
    #[command(visible_alias = "rm")]
    Delete(IdsArgs),
    /// Make a snapshot of your own with the same contents; takes no room.
    Copy(CopyArgs),
    /// Let other accounts, or all, make volumes from a snapshot.
    Share(ShareArgs),
    /// Take that back. Volumes that they made live on.
    Unshare(ShareArgs),
    /// List the blocks of 512 KiB that hold data.
    Blocks(BlocksArgs),
    /// List the blocks of 512 KiB that differ between two snapshots.
    Diff(DiffArgs),
    /// Write a snapshot into a file of its own.
    Export(ExportArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// The volume's id.
    #[arg(
        value_name = "VOLUME",
        required_unless_present = "instance",
        conflicts_with = "instance"
    )]
    volume: Option<String>,
    /// All volumes of this instance (id or name), at one point in time.
    #[arg(long)]
    instance: Option<String>,
    /// With --instance: only this volume; may be repeated.
    #[arg(long = "volume", value_name = "VOLUME", requires = "instance")]
    only: Vec<String>,
    /// With --instance: not the root.
    #[arg(long, requires = "instance")]
    exclude_root: bool,
    /// Stop the instance first, and start it again afterwards.
    #[arg(long)]
    stop_first: bool,
    /// With --stop-first: seconds until a guest that does not shut down is stopped by force.
    #[arg(long, value_name = "SECONDS", requires = "stop_first")]
    timeout: Option<u32>,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: snapshot-id, status, volume-id, volume-size, owner-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct IdsArgs {
    /// The snapshots' ids.
    #[arg(required = true, value_name = "SNAPSHOT")]
    ids: Vec<String>,
}

#[derive(Args)]
pub struct ExportArgs {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT")]
    id: String,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args)]
pub struct CopyArgs {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT")]
    id: String,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ShareArgs {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT")]
    id: String,
    #[command(flatten)]
    with: sharing::WithArgs,
}

#[derive(Args)]
pub struct BlocksArgs {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT")]
    id: String,
    /// Leave out the blocks before this one.
    #[arg(long, default_value_t = 0, value_name = "BLOCK")]
    from: u64,
}

#[derive(Args)]
pub struct DiffArgs {
    /// The older snapshot's id.
    #[arg(value_name = "FIRST")]
    first: String,
    /// The newer snapshot's id.
    #[arg(value_name = "SECOND")]
    second: String,
    /// Leave out the blocks before this one.
    #[arg(long, default_value_t = 0, value_name = "BLOCK")]
    from: u64,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: SnapshotCommand,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => create(client, output, args).await,
        SnapshotCommand::List(args) => list(client, output, args).await,
        SnapshotCommand::Show(args) => show(client, output, args).await,
        SnapshotCommand::Delete(args) => delete(client, args).await,
        SnapshotCommand::Copy(args) => copy(client, output, args).await,
        SnapshotCommand::Share(args) => share(client, output, args, true).await,
        SnapshotCommand::Unshare(args) => share(client, output, args, false).await,
        SnapshotCommand::Blocks(args) => blocks(client, output, args).await,
        SnapshotCommand::Diff(args) => diff(client, output, args).await,
        SnapshotCommand::Export(args) => export(client, output, args).await,
    }
}

async fn export(client: &mut Client, output: Output, args: ExportArgs) -> Result<(), Failure> {
    let target = args.target.open()?;
    let request = ExportSnapshotRequest {
        snapshot_id: args.id,
        format: target.format().into(),
    };
    let flags = flags([("snapshot_id", "SNAPSHOT"), ("format", "--format")]);
    let failed = |status| rpc_with_flags(status, &flags);
    let answers = client
        .store
        .export_snapshot(request)
        .await
        .map_err(failed)?;
    target.receive(answers.into_inner()).await?.print(output)
}

fn failed(status: Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("snapshot_ids", "SNAPSHOT"),
            ("snapshot_id", "SNAPSHOT"),
            ("source_snapshot_id", "SNAPSHOT"),
            ("first_snapshot_id", "FIRST"),
            ("second_snapshot_id", "SECOND"),
            ("volume_id", "VOLUME"),
            ("volume_ids", "--volume"),
            ("instance_id", "--instance"),
            ("exclude_root", "--exclude-root"),
            ("stop_timeout_seconds", "--timeout"),
            ("create_volume_permission", "--with/--public"),
            ("description", "--description"),
            ("tags", "--tag"),
            ("client_token", "--client-token"),
        ]),
    )
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let labels = args.labels;
    let stop_timeout_seconds = args.timeout.unwrap_or(0);
    let (description, client_token) = (
        args.description.unwrap_or_default(),
        labels.client_token.unwrap_or_default(),
    );
    let answer = match args.instance {
        None => {
            let request = CreateSnapshotRequest {
                volume_id: args.volume.unwrap_or_default(),
                description,
                tags: labels.tag,
                client_token,
                stop_first: args.stop_first,
                stop_timeout_seconds,
            };
            let answer = client.snapshots.create_snapshot(request).await;
            let answer = answer.map_err(failed)?.into_inner();
            CreateSnapshotsResponse {
                snapshots: answer.snapshot.into_iter().collect(),
                warnings: answer.warnings,
            }
        }
        Some(instance) => {
            let request = CreateSnapshotsRequest {
                instance_id: client.instance_id(&instance).await?,
                volume_ids: args.only,
                exclude_root: args.exclude_root,
                description,
                tags: labels.tag,
                client_token,
                stop_first: args.stop_first,
                stop_timeout_seconds,
            };
            let answer = client.snapshots.create_snapshots(request).await;
            answer.map_err(failed)?.into_inner()
        }
    };
    for warning in &answer.warnings {
        eprintln!("hearth: {}", warning.replace("stop_first", "--stop-first"));
    }
    match output {
        Output::Json => output::json("CreateSnapshotsResponse", &answer),
        Output::Table => print_snapshots(&answer.snapshots),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let snapshots = describe(client, Vec::new(), args.filter).await?;
    match output {
        Output::Json => print_json(snapshots),
        Output::Table if snapshots.is_empty() => {
            eprintln!("No snapshots. Take one with `hearth snapshot create VOLUME`.");
            Ok(())
        }
        Output::Table => print_snapshots(&snapshots),
    }
}

async fn show(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let snapshots = describe(client, args.ids, Vec::new()).await?;
    if output == Output::Json {
        return print_json(snapshots);
    }
    for (index, snapshot) in snapshots.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        print_one(snapshot)?;
        // Only its owner may know with whom it is shared.
        let request = DescribeSnapshotAttributeRequest {
            snapshot_id: snapshot.snapshot_id.clone(),
        };
        if let Ok(answer) = client.snapshots.describe_snapshot_attribute(request).await {
            sharing::print(answer.into_inner().create_volume_permission)?;
        }
    }
    Ok(())
}

async fn delete(client: &mut Client, args: IdsArgs) -> Result<(), Failure> {
    for snapshot_id in args.ids {
        client
            .snapshots
            .delete_snapshot(DeleteSnapshotRequest { snapshot_id })
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn copy(client: &mut Client, output: Output, args: CopyArgs) -> Result<(), Failure> {
    let request = CopySnapshotRequest {
        source_snapshot_id: args.id,
        description: args.description.unwrap_or_default(),
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
    };
    let answer = client.snapshots.copy_snapshot(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CopySnapshotResponse", &answer),
        Output::Table => print_snapshots(answer.snapshot.as_slice()),
    }
}

async fn share(
    client: &mut Client,
    output: Output,
    args: ShareArgs,
    may: bool,
) -> Result<(), Failure> {
    let request = ModifySnapshotAttributeRequest {
        snapshot_id: args.id,
        create_volume_permission: Some(args.with.change(may)),
    };
    let answer = client.snapshots.modify_snapshot_attribute(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("ModifySnapshotAttributeResponse", &answer),
        Output::Table => sharing::print(answer.create_volume_permission),
    }
}

async fn blocks(client: &mut Client, output: Output, args: BlocksArgs) -> Result<(), Failure> {
    let request = ListSnapshotBlocksRequest {
        snapshot_id: args.id,
        starting_block_index: args.from,
    };
    let answer = client.snapshots.list_snapshot_blocks(request).await;
    let mut parts = answer.map_err(failed)?.into_inner();
    while let Some(part) = parts.message().await.map_err(failed)? {
        match output {
            Output::Json => output::json_line("ListSnapshotBlocksResponse", &part)?,
            Output::Table => part
                .block_indexes
                .iter()
                .try_for_each(|index| output::line(&index.to_string()))?,
        }
    }
    Ok(())
}

async fn diff(client: &mut Client, output: Output, args: DiffArgs) -> Result<(), Failure> {
    let request = ListChangedBlocksRequest {
        first_snapshot_id: args.first,
        second_snapshot_id: args.second,
        starting_block_index: args.from,
    };
    let answer = client.snapshots.list_changed_blocks(request).await;
    let mut parts = answer.map_err(failed)?.into_inner();
    while let Some(part) = parts.message().await.map_err(failed)? {
        if output == Output::Json {
            output::json_line("ListChangedBlocksResponse", &part)?;
            continue;
        }
        for block in &part.blocks {
            let word = match (block.in_first, block.in_second) {
                (false, true) => "new",
                (true, false) => "gone",
                _ => "changed",
            };
            output::line(&format!("{} {word}", block.block_index))?;
        }
    }
    Ok(())
}

async fn describe(
    client: &mut Client,
    snapshot_ids: Vec<String>,
    filters: Vec<Filter>,
) -> Result<Vec<Snapshot>, Failure> {
    all_pages(async |page| {
        let request = DescribeSnapshotsRequest {
            snapshot_ids: snapshot_ids.clone(),
            filters: filters.clone(),
            page,
        };
        let answer = client.snapshots.describe_snapshots(request).await;
        let answer = answer.map_err(failed)?.into_inner();
        Ok((answer.snapshots, answer.next_token))
    })
    .await
}

fn print_json(snapshots: Vec<Snapshot>) -> Result<(), Failure> {
    output::json(
        "DescribeSnapshotsResponse",
        &DescribeSnapshotsResponse {
            snapshots,
            next_token: String::new(),
        },
    )
}

fn state_word(snapshot: &Snapshot) -> String {
    human::enum_word(snapshot.state().as_str_name(), "SNAPSHOT_STATE_")
}

/// The volume or the snapshot that it came from.
fn source(snapshot: &Snapshot) -> String {
    match snapshot.volume_id.as_str() {
        "" => snapshot.source_snapshot_id.clone(),
        volume => volume.to_owned(),
    }
}

fn print_snapshots(snapshots: &[Snapshot]) -> Result<(), Failure> {
    let row = |snapshot: &Snapshot| {
        vec![
            snapshot.snapshot_id.clone(),
            name_of(&snapshot.tags).to_owned(),
            state_word(snapshot),
            human::bytes(snapshot.size_bytes),
            source(snapshot),
            snapshot.owner_id.clone(),
            human::age(snapshot.create_time.as_ref()),
        ]
    };
    let header = ["SNAPSHOT", "NAME", "STATE", "SIZE", "OF", "OWNER", "AGE"];
    output::table(&header, &[3, 6], snapshots.iter().map(row).collect())
}

fn print_one(snapshot: &Snapshot) -> Result<(), Failure> {
    let tags: Vec<String> = snapshot
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    output::fields(vec![
        ("Snapshot", snapshot.snapshot_id.clone()),
        ("State", state_word(snapshot)),
        ("Why", snapshot.state_message.clone()),
        ("Size", human::bytes(snapshot.size_bytes)),
        ("Of", source(snapshot)),
        ("Description", snapshot.description.clone()),
        (
            "Created",
            human::time_and_age(snapshot.create_time.as_ref()),
        ),
        ("Tags", tags.join("\n")),
        ("Owner", snapshot.owner_id.clone()),
    ])
}
