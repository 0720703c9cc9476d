//! `hearth image …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    BootProtocol, CreateImageResponse, DeregisterImageRequest, DescribeImagesResponse, DiskFormat,
    ExportImageRequest, Filter, Image, ImageFile, ImportImageHeader, ImportImageRequest,
    ModifyLaunchPermissionRequest, Tag, import_image_request::Message,
};
use prost_types::Timestamp;

use crate::{
    client::Client,
    download::TargetArgs,
    failure::{Failure, flags, rpc_with_flags},
    filters::parse_filter,
    human,
    image_change::{self, CopyArgs, CreateArgs, DeprecateArgs, ModifyArgs, RegisterArgs},
    image_files::{FileToSend, ImageFiles, format_of, parse_boot_protocol, parse_format},
    labels::LabelArgs,
    output::{self, Output},
    sharing,
    upload::{self, Upload},
};

/// What instances are made from.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Send an image to the agent: a disk with its kernel inside, a directory with an image.json,
    /// or single files.
    Import(ImportArgs),
    /// Make an image of an instance and all its disks.
    Create(CreateArgs),
    /// Make an image of snapshots.
    Register(RegisterArgs),
    /// Make an image of one's own of another.
    Copy(CopyArgs),
    /// Change an image, for instances to come.
    Modify(ModifyArgs),
    /// Say that an image should not be used any more.
    Deprecate(DeprecateArgs),
    /// List images.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about images.
    Show(IdsArgs),
    /// Write an image's root into a file of its own.
    Export(ExportArgs),
    /// Take images away from new instances.
    #[command(visible_alias = "rm")]
    Deregister(IdsArgs),
    /// Let other accounts, or all, make instances from an image.
    Share(ShareArgs),
    /// Take that back. Instances that they made live on.
    Unshare(ShareArgs),
}

#[derive(Args)]
pub struct ImportArgs {
    /// Disk image, raw or qcow2, or a directory with an image.json, which names the files beside
    /// it.
    #[arg(value_name = "DISK|DIR", required_unless_present_any = ["kernel", "root"])]
    dir: Option<PathBuf>,
    /// Name of the image; by default what the directory says, or the disk's file name.
    #[arg(long, required_unless_present = "dir")]
    name: Option<String>,
    /// An uncompressed ELF kernel or a bzImage; without it, kernel, initrd and kernel arguments
    /// are found inside the root disk.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    kernel: Option<PathBuf>,
    /// Initial RAM file system.
    #[arg(long, value_name = "FILE", conflicts_with = "dir", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Root disk, raw or qcow2.
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    root: Option<PathBuf>,
    /// Format of the root disk; by default by its name.
    #[arg(long, value_name = "raw|qcow2", value_parser = parse_format)]
    format: Option<DiskFormat>,
    /// Kernel arguments; they replace those found inside the root disk, but for its root=.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// How the kernel is entered; by default the Linux boot protocol.
    #[arg(long, value_name = "linux64|pvh", value_parser = parse_boot_protocol)]
    boot_protocol: Option<BootProtocol>,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: image-id, name, state, architecture, owner-id, tag:KEY, tag-key.
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
    /// Deregistered ones too.
    #[arg(long, short)]
    all: bool,
    /// Also deprecated ones of other accounts.
    #[arg(long)]
    deprecated: bool,
}

#[derive(Args)]
pub struct IdsArgs {
    /// The images' ids or names.
    #[arg(required = true, value_name = "IMAGE")]
    ids: Vec<String>,
}

#[derive(Args)]
pub struct ExportArgs {
    /// The image's id or name.
    #[arg(value_name = "IMAGE")]
    id: String,
    #[command(flatten)]
    target: TargetArgs,
}

#[derive(Args)]
pub struct ShareArgs {
    /// The image's id or name.
    #[arg(value_name = "IMAGE")]
    id: String,
    #[command(flatten)]
    with: sharing::WithArgs,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: ImageCommand,
) -> Result<(), Failure> {
    match command {
        ImageCommand::Import(args) => import(client, output, args).await,
        ImageCommand::Create(args) => {
            let image = image_change::create(client, args).await?;
            print_made(output, "CreateImageResponse", image)
        }
        ImageCommand::Register(args) => {
            let image = image_change::register(client, args).await?;
            print_made(output, "RegisterImageResponse", image)
        }
        ImageCommand::Copy(args) => {
            let image = image_change::copy(client, args).await?;
            print_made(output, "CopyImageResponse", image)
        }
        ImageCommand::Modify(args) => {
            let image = image_change::modify(client, args).await?;
            print_made(output, "ModifyImageAttributeResponse", image)
        }
        ImageCommand::Deprecate(args) => {
            let image = image_change::deprecate(client, args).await?;
            print_made(output, "EnableImageDeprecationResponse", image)
        }
        ImageCommand::List(args) => list(client, output, args).await,
        ImageCommand::Show(args) => show(client, output, args).await,
        ImageCommand::Export(args) => export(client, output, args).await,
        ImageCommand::Deregister(args) => deregister(client, args).await,
        ImageCommand::Share(args) => share(client, output, args, true).await,
        ImageCommand::Unshare(args) => share(client, output, args, false).await,
    }
}

async fn export(client: &mut Client, output: Output, args: ExportArgs) -> Result<(), Failure> {
    let target = args.target.open()?;
    let request = ExportImageRequest {
        image_id: client.image_id(&args.id).await?,
        format: target.format().into(),
    };
    let flags = flags([("image_id", "IMAGE"), ("format", "--format")]);
    let failed = |status| rpc_with_flags(status, &flags);
    let answers = client.store.export_image(request).await.map_err(failed)?;
    target.receive(answers.into_inner()).await?.print(output)
}

async fn import(client: &mut Client, output: Output, args: ImportArgs) -> Result<(), Failure> {
    let format = args.format;
    let boot_protocol = args.boot_protocol.unwrap_or(BootProtocol::Unspecified);
    let (files, tags, client_token) = files(args)?;
    let mut upload = Upload::new();
    let kernel = match files.kernel {
        Some(file) => Some(image_file(&mut upload, file, DiskFormat::Unspecified).await?),
        None => None,
    };
    let initrd = match files.initrd {
        Some(file) => Some(image_file(&mut upload, file, DiskFormat::Unspecified).await?),
        None => None,
    };
    let root = match files.root {
        Some(file) => {
            let format = format_of(&file.path, format)?;
            Some(image_file(&mut upload, file, format).await?)
        }
        None => None,
    };
    let header = ImportImageHeader {
        name: files.name,
        description: files.description,
        architecture: files.architecture,
        kernel_args: files.kernel_args,
        boot_protocol: boot_protocol.into(),
        kernel,
        initrd,
        root,
        tags,
        client_token,
    };
    let message = |message| ImportImageRequest {
        message: Some(message),
    };
    let (stream, sending) = upload.send(message(Message::Header(header)), |piece| {
        ImportImageRequest {
            message: Some(Message::Data(piece)),
        }
    });
    let answer = client.images.import_image(stream).await.map_err(|status| {
        rpc_with_flags(
            status,
            &flags([
                ("name", "--name"),
                ("header.name", "--name"),
                ("kernel", "--kernel"),
                ("header.kernel", "--kernel"),
                ("initrd", "--initrd"),
                ("header.initrd", "--initrd"),
                ("root", "--root"),
                ("header.root", "--root"),
                ("kernel_args", "--kernel-args"),
                ("header.kernel_args", "--kernel-args"),
                ("header.boot_protocol", "--boot-protocol"),
            ]),
        )
    });
    let answer = upload::outcome(answer, sending).await?.into_inner();
    match output {
        Output::Json => output::json("ImportImageResponse", &answer),
        Output::Table => print_images(answer.image.as_slice()),
    }
}

/// From the directory or the flags; a flag beside a directory overrides what is in it.
fn files(args: ImportArgs) -> Result<(ImageFiles, Vec<Tag>, String), Failure> {
    let unchecked = |path| FileToSend {
        path,
        sha256: String::new(),
    };
    let mut files = match args.dir {
        Some(dir) => ImageFiles::read(&dir)?,
        None => ImageFiles {
            kernel: args.kernel.map(unchecked),
            initrd: args.initrd.map(unchecked),
            root: args.root.map(unchecked),
            ..ImageFiles::default()
        },
    };
    files.name = args.name.unwrap_or(files.name);
    files.description = args.description.unwrap_or(files.description);
    files.kernel_args = args.kernel_args.unwrap_or(files.kernel_args);
    Ok((
        files,
        args.labels.tag,
        args.labels.client_token.unwrap_or_default(),
    ))
}

async fn image_file(
    upload: &mut Upload,
    file: FileToSend,
    format: DiskFormat,
) -> Result<ImageFile, Failure> {
    let length_bytes = upload.add(file.path).await?;
    Ok(ImageFile {
        length_bytes,
        sha256: file.sha256,
        format: format.into(),
    })
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let mut filters = args.filter;
    if !args.all && !filters.iter().any(|filter| filter.name == "state") {
        filters.push(Filter {
            name: "state".to_owned(),
            values: ["pending", "available"].map(str::to_owned).to_vec(),
        });
    }
    let images = client
        .describe_images(&[], &filters, args.deprecated)
        .await?;
    match output {
        Output::Json => print_json(images),
        Output::Table if images.is_empty() => {
            eprintln!("No images. Send one with `hearth image import DISK`.");
            Ok(())
        }
        Output::Table => print_images(&images),
    }
}

async fn show(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let mut ids = Vec::with_capacity(args.ids.len());
    for id_or_name in &args.ids {
        ids.push(client.image_id(id_or_name).await?);
    }
    let images = client.describe_images(&ids, &[], true).await?;
    if output == Output::Json {
        return print_json(images);
    }
    for (index, image) in images.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        print_one(image)?;
    }
    Ok(())
}

async fn deregister(client: &mut Client, args: IdsArgs) -> Result<(), Failure> {
    for id_or_name in &args.ids {
        let image_id = client.image_id(id_or_name).await?;
        client
            .images
            .deregister_image(DeregisterImageRequest { image_id })
            .await
            .map_err(|status| rpc_with_flags(status, &flags([("image_id", "IMAGE")])))?;
    }
    Ok(())
}

/// All answers with one image have the same form.
fn print_made(output: Output, message: &str, image: Image) -> Result<(), Failure> {
    match output {
        Output::Json => {
            let answer = CreateImageResponse { image: Some(image) };
            output::json(message, &answer)
        }
        Output::Table => print_images(&[image]),
    }
}

async fn share(
    client: &mut Client,
    output: Output,
    args: ShareArgs,
    may: bool,
) -> Result<(), Failure> {
    let request = ModifyLaunchPermissionRequest {
        image_id: client.image_id(&args.id).await?,
        launch_permission: Some(args.with.change(may)),
    };
    let answer = client
        .images
        .modify_launch_permission(request)
        .await
        .map_err(|status| {
            let flags = flags([
                ("image_id", "IMAGE"),
                ("launch_permission", "--with/--public"),
            ]);
            rpc_with_flags(status, &flags)
        })?
        .into_inner();
    match output {
        Output::Json => output::json("ModifyLaunchPermissionResponse", &answer),
        Output::Table => sharing::print(answer.launch_permission),
    }
}

fn print_json(images: Vec<Image>) -> Result<(), Failure> {
    output::json(
        "DescribeImagesResponse",
        &DescribeImagesResponse {
            images,
            next_token: String::new(),
        },
    )
}

fn state_word(image: &Image) -> String {
    human::enum_word(image.state().as_str_name(), "IMAGE_STATE_")
}

fn root_size(image: &Image) -> String {
    if image.has_root {
        human::bytes(image.root_size_bytes)
    } else {
        "-".to_owned()
    }
}

fn print_images(images: &[Image]) -> Result<(), Failure> {
    let row = |image: &Image| {
        vec![
            image.image_id.clone(),
            image.name.clone(),
            state_word(image),
            image.architecture.clone(),
            root_size(image),
            human::age(image.create_time.as_ref()),
        ]
    };
    let header = ["IMAGE", "NAME", "STATE", "ARCHITECTURE", "ROOT", "AGE"];
    output::table(&header, &[4, 5], images.iter().map(row).collect())
}

fn print_one(image: &Image) -> Result<(), Failure> {
    let tags: Vec<String> = image
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    let disks: Vec<String> = image
        .block_devices
        .iter()
        .map(|disk| {
            let size = human::bytes(disk.size_bytes);
            format!("{} {size} {}", disk.device_name, disk.snapshot_id)
                .trim_end()
                .to_owned()
        })
        .collect();
    output::fields(vec![
        ("Image", image.image_id.clone()),
        ("Name", image.name.clone()),
        ("Description", image.description.clone()),
        ("State", state_word(image)),
        ("Architecture", image.architecture.clone()),
        ("Kernel arguments", image.kernel_args.clone()),
        (
            "Initrd",
            if image.has_initrd { "yes" } else { "no" }.to_owned(),
        ),
        ("Root", root_size(image)),
        ("Disks", disks.join("\n")),
        ("Made of", image.source_instance_id.clone()),
        (
            "Deprecated from",
            image
                .deprecation_time
                .as_ref()
                .map(|time| Timestamp { nanos: 0, ..*time }.to_string())
                .unwrap_or_default(),
        ),
        ("Created", human::time_and_age(image.create_time.as_ref())),
        ("Tags", tags.join("\n")),
        ("Owner", image.owner_id.clone()),
    ])
}
