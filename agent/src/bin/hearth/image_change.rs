//! `hearth image create`, `modify` and `deprecate`.

use std::time::{Duration, SystemTime};

use clap::Args;
use hearth_proto::v1::{
    BootProtocol, CopyImageRequest, CreateImageBlockDevice, CreateImageRequest,
    DisableImageDeprecationRequest, EnableImageDeprecationRequest, Image,
    ModifyImageAttributeRequest, RegisterImageBlockDevice, RegisterImageRequest, Tag,
};

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::parse_tag,
    image_files::parse_boot_protocol,
};

#[derive(Args)]
pub struct CreateArgs {
    /// The instance's id or name.
    instance: String,
    /// Name of the image.
    #[arg(long)]
    name: String,
    /// Words for people.
    #[arg(long, default_value = "")]
    description: String,
    /// Leave a running instance alone; its disks are taken as after a power failure.
    #[arg(long)]
    no_reboot: bool,
    /// A disk to leave out; may be repeated.
    #[arg(long, value_name = "DEVICE")]
    without: Vec<String>,
    /// Seconds that the guest may take to shut down [default: 120]
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0,
        hide_default_value = true
    )]
    timeout: u32,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
    /// A call repeated with the same token returns the first call's result.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    client_token: String,
}

#[derive(Args)]
pub struct RegisterArgs {
    /// Name of the image.
    #[arg(long)]
    name: String,
    /// Snapshot of the root.
    #[arg(long, value_name = "SNAPSHOT")]
    root: String,
    /// A further disk; may be repeated.
    #[arg(long, value_name = "DEVICE=SNAPSHOT[,delete]", value_parser = parse_disk)]
    disk: Vec<RegisterImageBlockDevice>,
    /// The image whose kernel it has; by default it is found in the root.
    #[arg(long, value_name = "IMAGE")]
    kernel_of: Option<String>,
    /// Kernel arguments, instead of the other image's or those found in the root.
    #[arg(
        long,
        value_name = "ARGS",
        allow_hyphen_values = true,
        default_value = "",
        hide_default_value = true
    )]
    kernel_args: String,
    /// How the kernel is entered.
    #[arg(long, value_name = "linux64|pvh", value_parser = parse_boot_protocol)]
    boot_protocol: Option<BootProtocol>,
    /// Words for people.
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
    /// A call repeated with the same token returns the first call's result.
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true
    )]
    client_token: String,
}

#[derive(Args)]
pub struct CopyArgs {
    /// The image's id or name; one's own, or one that is shared.
    image: String,
    /// Name of the copy.
    #[arg(long)]
    name: String,
    /// Words for people; by default the other image's.
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
    /// A call repeated with the same token returns the first call's result.
    #[arg(
        long,
        value_name = "TOKEN",
        default_value = "",
        hide_default_value = true
    )]
    client_token: String,
}

/// Reads `/dev/vdb=snap-…`, and `,delete` behind it.
fn parse_disk(text: &str) -> Result<RegisterImageBlockDevice, String> {
    let (device, rest) = text
        .split_once('=')
        .ok_or("expected DEVICE=SNAPSHOT or DEVICE=SNAPSHOT,delete")?;
    let (snapshot, delete) = match rest.split_once(',') {
        None => (rest, false),
        Some((snapshot, "delete")) => (snapshot, true),
        Some((_, other)) => return Err(format!("`{other}` is not `delete`")),
    };
    Ok(RegisterImageBlockDevice {
        device_name: device.to_owned(),
        snapshot_id: snapshot.to_owned(),
        delete_on_termination: delete,
    })
}

#[derive(Args)]
pub struct ModifyArgs {
    /// The image's id or name.
    image: String,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    /// Kernel arguments of instances to come.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// How the kernel is entered, by instances to come.
    #[arg(long, value_name = "linux64|pvh", value_parser = parse_boot_protocol)]
    boot_protocol: Option<BootProtocol>,
}

#[derive(Args)]
pub struct DeprecateArgs {
    /// The image's id or name.
    image: String,
    /// From when on: so many days from now [default: now]
    #[arg(long, value_name = "DAYS", conflicts_with = "never")]
    in_days: Option<u32>,
    /// Not any more.
    #[arg(long)]
    never: bool,
}

const NO_IMAGE: &str = "the answer has no image";

pub async fn create(client: &mut Client, args: CreateArgs) -> Result<Image, Failure> {
    let left_out = |device_name| CreateImageBlockDevice {
        device_name,
        no_device: true,
        delete_on_termination: None,
    };
    let request = CreateImageRequest {
        instance_id: client.instance_id(&args.instance).await?,
        name: args.name,
        description: args.description,
        no_reboot: args.no_reboot,
        block_devices: args.without.into_iter().map(left_out).collect(),
        tags: args.tag,
        client_token: args.client_token,
        stop_timeout_seconds: args.timeout,
    };
    let answer = client.images.create_image(request).await;
    let answer = answer.map_err(|status| {
        rpc_with_flags(
            status,
            &flags([
                ("instance_id", "INSTANCE"),
                ("name", "--name"),
                ("description", "--description"),
                ("block_devices", "--without"),
                ("stop_timeout_seconds", "--timeout"),
            ]),
        )
    })?;
    answer
        .into_inner()
        .image
        .ok_or_else(|| Failure::new(NO_IMAGE))
}

pub async fn register(client: &mut Client, args: RegisterArgs) -> Result<Image, Failure> {
    let kernel_image_id = match &args.kernel_of {
        Some(image) => client.image_id(image).await?,
        None => String::new(),
    };
    let request = RegisterImageRequest {
        name: args.name,
        description: args.description,
        root_snapshot_id: args.root,
        block_devices: args.disk,
        kernel_image_id,
        kernel_args: args.kernel_args,
        boot_protocol: args
            .boot_protocol
            .unwrap_or(BootProtocol::Unspecified)
            .into(),
        tags: args.tag,
        client_token: args.client_token,
    };
    let answer = client.images.register_image(request).await;
    let answer = answer.map_err(|status| {
        rpc_with_flags(
            status,
            &flags([
                ("name", "--name"),
                ("root_snapshot_id", "--root"),
                ("block_devices", "--disk"),
                ("kernel_image_id", "--kernel-of"),
                ("kernel_args", "--kernel-args"),
            ]),
        )
    })?;
    answer
        .into_inner()
        .image
        .ok_or_else(|| Failure::new(NO_IMAGE))
}

pub async fn copy(client: &mut Client, args: CopyArgs) -> Result<Image, Failure> {
    let request = CopyImageRequest {
        source_image_id: client.image_id(&args.image).await?,
        name: args.name,
        description: args.description,
        tags: args.tag,
        client_token: args.client_token,
    };
    let answer = client.images.copy_image(request).await;
    let answer = answer.map_err(|status| {
        let names = [("source_image_id", "IMAGE"), ("name", "--name")];
        rpc_with_flags(status, &flags(names))
    })?;
    answer
        .into_inner()
        .image
        .ok_or_else(|| Failure::new(NO_IMAGE))
}

pub async fn modify(client: &mut Client, args: ModifyArgs) -> Result<Image, Failure> {
    let request = ModifyImageAttributeRequest {
        image_id: client.image_id(&args.image).await?,
        description: args.description,
        kernel_args: args.kernel_args,
        boot_protocol: args.boot_protocol.map(Into::into),
    };
    let answer = client.images.modify_image_attribute(request).await;
    let answer = answer.map_err(|status| {
        let names = [("image_id", "IMAGE"), ("kernel_args", "--kernel-args")];
        rpc_with_flags(status, &flags(names))
    })?;
    answer
        .into_inner()
        .image
        .ok_or_else(|| Failure::new(NO_IMAGE))
}

pub async fn deprecate(client: &mut Client, args: DeprecateArgs) -> Result<Image, Failure> {
    let image_id = client.image_id(&args.image).await?;
    let failed = |status| rpc_with_flags(status, &flags([("image_id", "IMAGE")]));
    let image = if args.never {
        let request = DisableImageDeprecationRequest { image_id };
        let answer = client.images.disable_image_deprecation(request).await;
        answer.map_err(failed)?.into_inner().image
    } else {
        // A moment ahead, so that "now" is not over when it arrives.
        let after = match args.in_days {
            None => Duration::from_secs(5),
            Some(days) => Duration::from_secs(u64::from(days) * 24 * 60 * 60 + 5),
        };
        let request = EnableImageDeprecationRequest {
            image_id,
            deprecate_at: Some((SystemTime::now() + after).into()),
        };
        let answer = client.images.enable_image_deprecation(request).await;
        answer.map_err(failed)?.into_inner().image
    };
    image.ok_or_else(|| Failure::new(NO_IMAGE))
}
