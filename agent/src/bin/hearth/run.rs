//! `hearth run`: instances from an image.

use std::{fs, path::PathBuf};

use clap::Args;
use hearth_proto::v1::{
    BlockDeviceMapping, InstanceState, RunInstancesRequest, RunInstancesResponse, Tag, TapInterface,
};
use tonic_types::StatusExt;

use crate::{
    client::Client,
    failure::{self, Failure, flags, rpc_with_flags},
    filters::parse_tag,
    human::{parse_gib, parse_mib},
    instance::print_instances,
    metadata::{self, MetadataArgs},
    output::{self, Output},
    run_networks::{self, NetworkArgs},
    wait,
};

/// Make instances from an image and start them.
#[derive(Args)]
pub struct RunArgs {
    /// Id or name of the image.
    image: String,
    /// Tag `Name` of the instances.
    #[arg(long)]
    name: Option<String>,
    /// Instance type; see `hearth instance types`.
    #[arg(long = "type", value_name = "TYPE")]
    instance_type: Option<String>,
    /// How many instances.
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u32,
    /// Memory instead of the type's, in MiB or with a unit (512, 512M, 2G).
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: Option<u64>,
    /// Number of vCPUs instead of the type's.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Size of the root volume, in GiB (20, 20G, 1T); the image's when not given.
    #[arg(long, value_name = "SIZE", value_parser = parse_gib)]
    root_size: Option<u64>,
    /// Keep the root volume when the instance is terminated.
    #[arg(long)]
    keep_root: bool,
    /// Class of the root volume; see `hearth volume classes`.
    #[arg(long, value_name = "CLASS")]
    root_class: Option<String>,
    /// One more disk: a size in GiB or a volume's id, then options: `device=/dev/vdc`, `ro`,
    /// `delete` (with the instance), and of a new one `class=CLASS`, `iops=N`,
    /// `throughput=MIB`. For example `--disk 10,class=gp2 --disk vol-…,ro`.
    #[arg(long, value_name = "SIZE|VOLUME[,OPTION…]", value_parser = parse_disk)]
    disk: Vec<BlockDeviceMapping>,
    /// Key pair whose public key the guest gets; see `hearth key`.
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// File with the user data, at most 16 KiB.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
    /// Kernel arguments after the image's.
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// A tap of the host's for the guest's next network interface, as it is: `--tap tap0` or
    /// `--tap tap0,02:00:00:00:00:01`.
    #[arg(long, value_name = "TAP[,MAC]", value_parser = parse_tap)]
    tap: Vec<TapInterface>,
    #[command(flatten)]
    networks: NetworkArgs,
    /// A call repeated with the same token returns the first call's result.
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,
    /// Check the request, change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Return when the instances run.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    metadata: MetadataArgs,
}

pub async fn run(client: &mut Client, output: Output, args: RunArgs) -> Result<(), Failure> {
    let (wait, dry_run) = (args.wait, args.dry_run);
    let image_id = client.image_id(&args.image).await?;
    let (mut request, networks, flags) = request(image_id, args)?;
    networks.fill(client, &mut request).await?;
    let answer = match client.instances.run_instances(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let info = status.get_details_error_info();
            if dry_run && info.is_some_and(|info| info.reason == "DryRunOperation") {
                return output::line("The request would have worked (--dry-run).");
            }
            return Err(rpc_with_flags(status, &flags));
        }
    };
    let mut instances = answer.instances;
    if wait {
        let ids: Vec<_> = instances.iter().map(|i| i.instance_id.clone()).collect();
        instances = wait::until(client, &ids, InstanceState::Running).await?;
    }
    match output {
        Output::Json => output::json("RunInstancesResponse", &RunInstancesResponse { instances }),
        Output::Table => print_instances(&instances),
    }
}

type Flags = Vec<(String, String)>;

/// The request, and which flag filled which of its fields.
fn request(
    image_id: String,
    args: RunArgs,
) -> Result<(RunInstancesRequest, NetworkArgs, Flags), Failure> {
    let mut flags = flags([
        ("image_id", "IMAGE"),
        ("instance_type", "--type"),
        ("min_count", "--count"),
        ("max_count", "--count"),
        ("memory_mib", "--memory"),
        ("vcpus", "--vcpus"),
        ("user_data", "--user-data"),
        ("tags", "--tag"),
        ("extra_kernel_args", "--kernel-args"),
        ("client_token", "--client-token"),
        ("tap_interfaces", "--tap"),
        ("key_name", "--key"),
    ]);
    flags.extend(failure::flags(metadata::FLAGS));
    let user_data = match &args.user_data {
        None => String::new(),
        Some(path) => fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("--user-data {}: {error}", path.display())))?,
    };
    let mut tags = args.tag;
    if let Some(name) = args.name {
        tags.insert(
            0,
            Tag {
                key: "Name".to_owned(),
                value: name,
            },
        );
        flags.push(("tags[0]".to_owned(), "--name".to_owned()));
        flags.rotate_right(1);
    }
    let mut block_devices = Vec::new();
    if args.root_size.is_some() || args.root_class.is_some() || args.keep_root {
        flags.push((
            "block_devices[0].volume_class".to_owned(),
            "--root-class".to_owned(),
        ));
        flags.push(("block_devices[0]".to_owned(), "--root-size".to_owned()));
        block_devices.push(BlockDeviceMapping {
            device_name: "/dev/vda".to_owned(),
            size_gib: args.root_size.unwrap_or(0),
            delete_on_termination: Some(!args.keep_root),
            volume_class: args.root_class.unwrap_or_default(),
            ..Default::default()
        });
    }
    for disk in args.disk {
        flags.push((
            format!("block_devices[{}]", block_devices.len()),
            "--disk".to_owned(),
        ));
        block_devices.push(disk);
    }
    flags.push(("block_devices".to_owned(), "--disk".to_owned()));
    flags.extend(run_networks::FLAGS.map(|(field, flag)| (field.to_owned(), flag.to_owned())));
    let request = RunInstancesRequest {
        image_id,
        instance_type: args.instance_type.unwrap_or_default(),
        min_count: args.count,
        max_count: args.count,
        block_devices,
        user_data,
        tags,
        client_token: args.client_token.unwrap_or_default(),
        dry_run: args.dry_run,
        extra_kernel_args: args.kernel_args.unwrap_or_default(),
        vcpus: args.vcpus.unwrap_or(0),
        memory_mib: args.memory.unwrap_or(0),
        tap_interfaces: args.tap,
        key_name: args.key.unwrap_or_default(),
        metadata_options: Some(args.metadata.options()),
        ..Default::default()
    };
    Ok((request, args.networks, flags))
}

/// Reads `tap0`, `tap0,02:00:00:00:00:01`. The agent judges both.
fn parse_tap(text: &str) -> Result<TapInterface, String> {
    let (tap, mac) = text.split_once(',').unwrap_or((text, ""));
    Ok(TapInterface {
        tap_name: tap.to_owned(),
        mac_address: mac.to_owned(),
    })
}

fn parse_number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not a whole number"))
}

/// Reads `10`, `10G,delete`, `vol-…,ro,device=/dev/vdc`.
fn parse_disk(text: &str) -> Result<BlockDeviceMapping, String> {
    let mut parts = text.split(',');
    let what = parts.next().unwrap_or_default();
    let mut disk = BlockDeviceMapping::default();
    if what.starts_with("vol-") {
        disk.volume_id = what.to_owned();
    } else {
        disk.size_gib = parse_gib(what)
            .map_err(|error| format!("`{what}` is neither a volume's id nor a size: {error}"))?;
    }
    for option in parts {
        match option.split_once('=') {
            Some(("device", name)) => disk.device_name = name.to_owned(),
            Some(("class", name)) => disk.volume_class = name.to_owned(),
            Some(("iops", number)) => disk.iops = parse_number(number)?,
            Some(("throughput", number)) => disk.throughput_mib = parse_number(number)?,
            None if option == "ro" => disk.read_only = true,
            None if option == "delete" => disk.delete_on_termination = Some(true),
            _ => {
                return Err(format!(
                    "`{option}` is none of device=NAME, ro, delete, class=CLASS, iops=N, \
                     throughput=MIB"
                ));
            }
        }
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_size_or_a_volume_with_options() {
        let disk = parse_disk("10G,delete").unwrap();
        assert_eq!(
            (disk.size_gib, disk.delete_on_termination),
            (10, Some(true))
        );
        let disk = parse_disk("vol-0a,ro,device=/dev/vdc").unwrap();
        assert_eq!((disk.volume_id.as_str(), disk.read_only), ("vol-0a", true));
        assert_eq!(disk.device_name, "/dev/vdc");
        let disk = parse_disk("10,class=gp3,iops=4000,throughput=200").unwrap();
        assert_eq!(disk.volume_class, "gp3");
        assert_eq!((disk.iops, disk.throughput_mib), (4000, 200));
        assert!(parse_disk("1,iops=many").is_err());
        assert!(parse_disk("big").is_err());
        assert!(parse_disk("1,fast").is_err());
    }
}
