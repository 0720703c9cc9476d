//! From an instance's row to its running VMM: volumes first, then the process.

use std::sync::Arc;

use hearth_images::crash_point;
use hearth_vmm::{
    config::{self, BootConfig, DiskConfig, NetConfig, PROTOCOL_VERSION, PlatformChoice, VmConfig},
    devices::virtio::{block::throttle::limits::MachineLimits, net::limits::NetLimits},
};

use super::{
    interfaces,
    model::Instance,
    system,
    vmm::{
        adopt::{Found, adopt},
        spawn::{self, StartError, Started},
    },
};
use crate::{
    blocking::blocking,
    context::Context,
    db,
    error::{ApiResult, full_cause},
    images::model::BootProtocol,
    instance_types::InstanceType,
    networks::plug,
    volumes::{
        self,
        model::{Volume, VolumeState},
    },
};

/// Starts the guest of an instance. The error is words for people.
pub async fn start(context: Arc<Context>, instance: Instance) -> Result<Started, String> {
    let id = instance.id.clone();
    let disks = context
        .db
        .read(move |connection| db::volumes::of_instance(connection, &id))
        .await
        .map_err(|error| full_cause(&error))?;
    // Those that were on their way out when the last guest ended do not come back.
    let disks: Vec<Volume> = disks
        .into_iter()
        .filter(|volume| !volume.detaches())
        .collect();
    let store = context.store.clone();
    let to_make: Vec<Volume> = disks
        .iter()
        .filter(|v| v.state == VolumeState::Creating)
        .cloned()
        .collect();
    if !to_make.is_empty() {
        blocking("making volumes", move || {
            to_make
                .iter()
                .try_for_each(|volume| volumes::make(&store, volume).map(drop))
        })
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("making a volume: {}", full_cause(&error)))?;
        crash_point("launch.volumes-made");
    }
    let nets = plug::up(&context, &instance.id).await?;
    let config = config(&context, &instance, &disks, nets).map_err(|error| error.to_string())?;
    let (run_dir, id) = (config.run_dir.clone(), instance.id);
    match spawn::start(context.host.vmm().to_owned(), config).await {
        // Somebody was faster: an earlier start that was given up.
        Err(error @ StartError::Alive) => match adopt(&run_dir, &id).await {
            Ok(Found::Alive(vmm)) => Ok(Started::Up(vmm)),
            _ => Err(error.to_string()),
        },
        result => result.map_err(|error| full_cause(&error)),
    }
}

fn config(
    context: &Context,
    instance: &Instance,
    disks: &[Volume],
    mut nets: Vec<NetConfig>,
) -> ApiResult<VmConfig> {
    nets.extend(interfaces::configs(instance));
    let kernels = context.settings.kernels();
    let vcpus = u8::try_from(instance.vcpus)
        .map_err(|error| crate::error::ApiError::internal("reading an instance's row", error))?;
    let shape = context.types.get(&instance.instance_type);
    Ok(VmConfig {
        version: PROTOCOL_VERSION,
        instance_id: instance.id.clone(),
        vcpus,
        memory_bytes: instance.memory_bytes,
        boot: BootConfig {
            kernel: kernels.join(&instance.kernel),
            initrd: instance.initrd.as_ref().map(|digest| kernels.join(digest)),
            kernel_args: instance.kernel_args.clone(),
            protocol: match instance.boot_protocol {
                BootProtocol::Auto => config::BootProtocol::Auto,
                BootProtocol::Linux64 => config::BootProtocol::Linux64,
                BootProtocol::Pvh => config::BootProtocol::Pvh,
            },
        },
        disks: disks
            .iter()
            .map(|volume| disk_config(context, volume))
            .collect(),
        disk_limits: shape.map_or_else(MachineLimits::default, InstanceType::disk_limits),
        nets,
        net_limits: shape.map_or_else(NetLimits::default, InstanceType::net_limits),
        system: Some(system::of(instance)),
        run_dir: context.settings.run_dir(&instance.id),
        platform: PlatformChoice::Auto,
    })
}

/// A volume as its VMM takes it, with the credits that it has now.
pub fn disk_config(context: &Context, volume: &Volume) -> DiskConfig {
    let credits = volumes::credits::now(&context.classes, volume);
    DiskConfig {
        serial: volume.serial(),
        store: context.settings.store(),
        volume: volume.id.clone(),
        read_only: volume.attachment.as_ref().is_some_and(|a| a.read_only),
        queues: 0,
        limits: context
            .classes
            .limits(&volume.class, volume.size_bytes, credits),
    }
}
