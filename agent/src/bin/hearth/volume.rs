//! `hearth volume …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    AttachVolumeRequest, AttachVolumeResponse, AttachmentState, CreateVolumeRequest,
    DeleteVolumeRequest, DescribeVolumesRequest, DescribeVolumesResponse, DetachVolumeRequest,
    DetachVolumeResponse, DiskFormat, ExportVolumeRequest, Filter, GrowVolumeRequest,
    ImportVolumeHeader, ImportVolumeRequest, Volume, import_volume_request::Message,
};
use tonic::Status;

use crate::{
    client::Client,
    download::TargetArgs,
    failure::{Failure, flags, rpc_with_flags},
    filters::{name_of, parse_filter},
    human::{self, parse_gib},
    image_files::{format_of, parse_format},
    labels::LabelArgs,
    output::{self, Output},
    pages::all_pages,
    upload::{self, Upload},
    volume_classes::{self, ClassArgs, ModifyArgs},
    volume_wait,
};

/// Block volumes.
#[derive(Subcommand)]
pub enum VolumeCommand {
    /// Make an empty volume, or one from a snapshot or an image's root.
    Create(CreateArgs),
    /// Make a volume from a raw or qcow2 file.
    Import(ImportArgs),
    /// List volumes.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about volumes.
    Show(IdsArgs),
    /// Make a volume larger.
    Grow(GrowArgs),
    /// Change a volume's size, class or figures, also while a guest uses it.
    Modify(ModifyArgs),
    /// List the classes that volumes can have.
    Classes,
    /// Delete volumes that nothing uses.
    #[command(visible_alias = "rm")]
    Delete(IdsArgs),
    /// Write a volume that no running instance uses into a file of its own.
    Export(ExportArgs),
    /// Attach a volume to a running or stopped instance.
    Attach(AttachArgs),
    /// Detach a volume from a running or stopped instance; unmount it in the guest first.
    Detach(DetachArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// Size in GiB (20, 20G, 1T).
    #[arg(long, value_parser = parse_gib, required_unless_present_any = ["image", "snapshot"])]
    size: Option<u64>,
    /// Start with the content of this image's root (id or name).
    #[arg(long)]
    image: Option<String>,
    /// Start with the content of this snapshot.
    #[arg(long, conflicts_with = "image")]
    snapshot: Option<String>,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The file.
    file: PathBuf,
    /// Its format; by default by its name.
    #[arg(long, value_name = "raw|qcow2", value_parser = parse_format)]
    format: Option<DiskFormat>,
    /// Its SHA-256 in hexadecimal, to be checked.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Grow to this size, in GiB (20, 20G, 1T).
    #[arg(long, value_parser = parse_gib)]
    size: Option<u64>,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: volume-id, status, size, attachment.instance-id, image-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct IdsArgs {
    /// The volumes' ids.
    #[arg(required = true, value_name = "VOLUME")]
    ids: Vec<String>,
}

#[derive(Args)]
pub struct DetachArgs {
    /// The volume's id.
    #[arg(value_name = "VOLUME")]
    id: String,
    /// Take it away at once, whatever a running guest does: its requests fail from then on, and
    /// what it has not flushed may be lost.
    #[arg(long)]
    force: bool,
    /// How long a running guest may take to let go of it, in seconds; then it stays attached.
    #[arg(long, value_name = "SECONDS", default_value_t = 120,
          value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Return when the volume is available.
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub struct GrowArgs {
    /// The volume's id.
    #[arg(value_name = "VOLUME")]
    id: String,
    /// New size in GiB (20, 20G, 1T).
    #[arg(value_parser = parse_gib)]
    size: u64,
}

#[derive(Args)]
pub struct AttachArgs {
    /// The volume's id.
    #[arg(value_name = "VOLUME")]
    id: String,
    /// The instance's id or `Name`.
    instance: String,
    /// Device name, such as /dev/vdc; the next free one when not given.
    #[arg(long)]
    device: Option<String>,
    /// The guest may not write.
    #[arg(long)]
    read_only: bool,
    /// Delete the volume with the instance.
    #[arg(long)]
    delete_on_termination: bool,
    /// Return when a running instance has it.
    #[arg(long)]
    wait: bool,
}

#[derive(Args)]
pub struct ExportArgs {
    /// The volume's id.
    #[arg(value_name = "VOLUME")]
    id: String,
    #[command(flatten)]
    target: TargetArgs,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: VolumeCommand,
) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create(args) => create(client, output, args).await,
        VolumeCommand::Import(args) => import(client, output, args).await,
        VolumeCommand::List(args) => list(client, output, args).await,
        VolumeCommand::Show(args) => show(client, output, args).await,
        VolumeCommand::Grow(args) => grow(client, output, args).await,
        VolumeCommand::Modify(args) => volume_classes::modify(client, output, args).await,
        VolumeCommand::Classes => volume_classes::classes(client, output).await,
        VolumeCommand::Delete(args) => delete(client, args).await,
        VolumeCommand::Export(args) => export(client, output, args).await,
        VolumeCommand::Attach(args) => attach(client, output, args).await,
        VolumeCommand::Detach(args) => detach(client, output, args).await,
    }
}

pub fn failed(status: Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("volume_ids", "VOLUME"),
            ("volume_id", "VOLUME"),
            ("size_gib", "--size"),
            ("header.size_gib", "--size"),
            ("volume_class", "--class"),
            ("header.volume_class", "--class"),
            ("iops", "--iops"),
            ("header.iops", "--iops"),
            ("throughput_mib", "--throughput"),
            ("header.throughput_mib", "--throughput"),
            ("image_id", "--image"),
            ("snapshot_id", "--snapshot"),
            ("instance_id", "INSTANCE"),
            ("device_name", "--device"),
            ("timeout_seconds", "--timeout"),
            ("sha256", "--sha256"),
            ("header.sha256", "--sha256"),
            ("format", "--format"),
            ("header.format", "--format"),
            ("length_bytes", "FILE"),
            ("header.length_bytes", "FILE"),
            ("data", "FILE"),
            ("tags", "--tag"),
            ("header.tags", "--tag"),
            ("client_token", "--client-token"),
        ]),
    )
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let image_id = match &args.image {
        Some(id_or_name) => client.image_id(id_or_name).await?,
        None => String::new(),
    };
    let request = CreateVolumeRequest {
        size_gib: args.size.unwrap_or(0),
        image_id,
        snapshot_id: args.snapshot.unwrap_or_default(),
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
        volume_class: args.class.class.unwrap_or_default(),
        iops: args.class.iops.unwrap_or(0),
        throughput_mib: args.class.throughput.unwrap_or(0),
    };
    let answer = client
        .volumes
        .create_volume(request)
        .await
        .map_err(failed)?
        .into_inner();
    match output {
        Output::Json => output::json("CreateVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

async fn import(client: &mut Client, output: Output, args: ImportArgs) -> Result<(), Failure> {
    let format = format_of(&args.file, args.format)?;
    let mut upload = Upload::new();
    let length_bytes = upload.add(args.file).await?;
    let header = ImportVolumeHeader {
        format: format.into(),
        length_bytes,
        sha256: args.sha256.unwrap_or_default(),
        size_gib: args.size.unwrap_or(0),
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
        volume_class: args.class.class.unwrap_or_default(),
        iops: args.class.iops.unwrap_or(0),
        throughput_mib: args.class.throughput.unwrap_or(0),
    };
    let (stream, sending) = upload.send(
        ImportVolumeRequest {
            message: Some(Message::Header(header)),
        },
        |piece| ImportVolumeRequest {
            message: Some(Message::Data(piece)),
        },
    );
    let answer = client.volumes.import_volume(stream).await.map_err(failed);
    let answer = upload::outcome(answer, sending).await?.into_inner();
    match output {
        Output::Json => output::json("ImportVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let volumes = describe(client, Vec::new(), args.filter).await?;
    match output {
        Output::Json => print_json(volumes),
        Output::Table if volumes.is_empty() => {
            eprintln!("No volumes. Make one with `hearth volume create --size GIB`.");
            Ok(())
        }
        Output::Table => print_volumes(&volumes),
    }
}

async fn show(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let volumes = describe(client, args.ids, Vec::new()).await?;
    if output == Output::Json {
        return print_json(volumes);
    }
    for (index, volume) in volumes.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        print_one(volume)?;
    }
    Ok(())
}

async fn grow(client: &mut Client, output: Output, args: GrowArgs) -> Result<(), Failure> {
    let request = GrowVolumeRequest {
        volume_id: args.id,
        size_gib: args.size,
    };
    let answer = client
        .volumes
        .grow_volume(request)
        .await
        .map_err(failed)?
        .into_inner();
    match output {
        Output::Json => output::json("GrowVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

async fn delete(client: &mut Client, args: IdsArgs) -> Result<(), Failure> {
    for volume_id in args.ids {
        client
            .volumes
            .delete_volume(DeleteVolumeRequest { volume_id })
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn export(client: &mut Client, output: Output, args: ExportArgs) -> Result<(), Failure> {
    let target = args.target.open()?;
    let request = ExportVolumeRequest {
        volume_id: args.id,
        format: target.format().into(),
    };
    let answers = client.store.export_volume(request).await.map_err(failed)?;
    target.receive(answers.into_inner()).await?.print(output)
}

async fn attach(client: &mut Client, output: Output, args: AttachArgs) -> Result<(), Failure> {
    let request = AttachVolumeRequest {
        volume_id: args.id,
        instance_id: client.instance_id(&args.instance).await?,
        device_name: args.device.unwrap_or_default(),
        delete_on_termination: args.delete_on_termination,
        read_only: args.read_only,
    };
    let answer = client
        .volumes
        .attach_volume(request)
        .await
        .map_err(failed)?
        .into_inner();
    let answer = match answer.volume {
        Some(volume) if args.wait => AttachVolumeResponse {
            volume: Some(volume_wait::attached(client, volume).await?),
        },
        volume => AttachVolumeResponse { volume },
    };
    match output {
        Output::Json => output::json("AttachVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

async fn detach(client: &mut Client, output: Output, args: DetachArgs) -> Result<(), Failure> {
    let request = DetachVolumeRequest {
        volume_id: args.id,
        force: args.force,
        timeout_seconds: args.timeout,
    };
    let answer = client
        .volumes
        .detach_volume(request)
        .await
        .map_err(failed)?
        .into_inner();
    let answer = match answer.volume {
        Some(volume) if args.wait => DetachVolumeResponse {
            volume: Some(volume_wait::detached(client, volume).await?),
        },
        volume => DetachVolumeResponse { volume },
    };
    match output {
        Output::Json => output::json("DetachVolumeResponse", &answer),
        Output::Table => print_volumes(answer.volume.as_slice()),
    }
}

pub async fn describe(
    client: &mut Client,
    volume_ids: Vec<String>,
    filters: Vec<Filter>,
) -> Result<Vec<Volume>, Failure> {
    all_pages(async |page| {
        let request = DescribeVolumesRequest {
            volume_ids: volume_ids.clone(),
            filters: filters.clone(),
            page,
        };
        let answer = client.volumes.describe_volumes(request).await;
        let answer = answer.map_err(failed)?.into_inner();
        Ok((answer.volumes, answer.next_token))
    })
    .await
}

fn print_json(volumes: Vec<Volume>) -> Result<(), Failure> {
    output::json(
        "DescribeVolumesResponse",
        &DescribeVolumesResponse {
            volumes,
            next_token: String::new(),
        },
    )
}

fn state_word(volume: &Volume) -> String {
    human::enum_word(volume.state().as_str_name(), "VOLUME_STATE_")
}

fn attached_to(volume: &Volume) -> String {
    match &volume.attachment {
        Some(attachment) => {
            let place = format!("{} {}", attachment.instance_id, attachment.device_name);
            match attachment.state() {
                AttachmentState::Attached => place,
                state => format!(
                    "{place} ({})",
                    human::enum_word(state.as_str_name(), "ATTACHMENT_STATE_")
                ),
            }
        }
        None => "-".to_owned(),
    }
}

pub fn print_volumes(volumes: &[Volume]) -> Result<(), Failure> {
    let row = |volume: &Volume| {
        vec![
            volume.volume_id.clone(),
            name_of(&volume.tags).to_owned(),
            state_word(volume),
            human::bytes(volume.size_bytes),
            human::bytes(volume.allocated_bytes),
            volume.volume_class.clone(),
            attached_to(volume),
            human::age(volume.create_time.as_ref()),
        ]
    };
    let header = [
        "VOLUME",
        "NAME",
        "STATE",
        "SIZE",
        "OWN DATA",
        "CLASS",
        "ATTACHED TO",
        "AGE",
    ];
    output::table(&header, &[3, 4, 7], volumes.iter().map(row).collect())
}

fn print_one(volume: &Volume) -> Result<(), Failure> {
    let tags: Vec<String> = volume
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    output::fields(vec![
        ("Volume", volume.volume_id.clone()),
        ("State", state_word(volume)),
        ("Size", human::bytes(volume.size_bytes)),
        ("Own data", human::bytes(volume.allocated_bytes)),
        ("Class", volume.volume_class.clone()),
        ("Figures", volume_classes::figures(volume)),
        (
            "Burst balance",
            volume
                .burst_balance_percent
                .map_or_else(String::new, |percent| format!("{percent:.1} %")),
        ),
        ("Modification", volume_classes::modification(volume)),
        ("Image", volume.image_id.clone()),
        ("Snapshot", volume.snapshot_id.clone()),
        ("Attached to", attached_to(volume)),
        ("Created", human::time_and_age(volume.create_time.as_ref())),
        ("Tags", tags.join("\n")),
        ("Owner", volume.owner_id.clone()),
    ])
}
