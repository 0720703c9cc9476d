//! The agent's types as the wire's, and the other way round.

use std::time::Duration;

use hearth_images::DiskFormat;
use hearth_proto::v1;

pub use super::{
    convert_network::{
        address, interface, interface_of, network, network_request, pool, port_forward,
    },
    convert_volume::{volume, volume_class},
};

use crate::{
    error::{ApiError, ApiResult},
    events::Event,
    images::{
        file::DeclaredFile,
        model::{BootProtocol, Image, ImageState},
    },
    instances::{InstanceView, STOP_PATIENCE, devices, driver::Change, state::InstanceState},
    sharing::{Change as PermissionChange, Permissions},
    snapshots::model::{Snapshot, SnapshotState},
    tags::Tag,
    time::Millis,
    volumes::model::Volume,
};

pub fn tags_in(tags: Vec<v1::Tag>) -> Vec<Tag> {
    tags.into_iter()
        .map(|tag| Tag {
            key: tag.key,
            value: tag.value,
        })
        .collect()
}

pub fn tags_out(tags: Vec<Tag>) -> Vec<v1::Tag> {
    tags.into_iter()
        .map(|tag| v1::Tag {
            key: tag.key,
            value: tag.value,
        })
        .collect()
}

/// Longest time a guest may be given to shut down, in seconds.
const MAX_STOP_SECONDS: u32 = 3600;

/// How long a guest may take to shut down; 0 is the usual time.
pub fn stop_patience(seconds: u32, field: &str) -> ApiResult<Duration> {
    match seconds {
        0 => Ok(STOP_PATIENCE),
        1..=MAX_STOP_SECONDS => Ok(Duration::from_secs(seconds.into())),
        _ => Err(ApiError::invalid(
            field,
            format!("at most {MAX_STOP_SECONDS}"),
        )),
    }
}

/// A point in time.
pub fn time_in(time: &prost_types::Timestamp, field: &str) -> ApiResult<Millis> {
    let millis = time
        .seconds
        .checked_mul(1000)
        .and_then(|millis| millis.checked_add(i64::from(time.nanos) / 1_000_000));
    match millis {
        // As the protocol defines it: the years 1 to 9999.
        Some(millis) if (0..=253_402_300_799_999).contains(&millis) => Ok(Millis(millis)),
        _ => Err(ApiError::invalid(field, "not a time after 1970")),
    }
}

/// Unspecified is `None`.
pub fn disk_format(format: i32, field: &str) -> ApiResult<Option<DiskFormat>> {
    match v1::DiskFormat::try_from(format) {
        Ok(v1::DiskFormat::Unspecified) => Ok(None),
        Ok(v1::DiskFormat::Raw) => Ok(Some(DiskFormat::Raw)),
        Ok(v1::DiskFormat::Qcow2) => Ok(Some(DiskFormat::Qcow2)),
        Err(_) => Err(ApiError::invalid(
            field,
            format!("{format} is not a disk format"),
        )),
    }
}

pub fn boot_protocol(protocol: i32, field: &str) -> ApiResult<BootProtocol> {
    match v1::BootProtocol::try_from(protocol) {
        Ok(v1::BootProtocol::Unspecified) => Ok(BootProtocol::Auto),
        Ok(v1::BootProtocol::Linux64) => Ok(BootProtocol::Linux64),
        Ok(v1::BootProtocol::Pvh) => Ok(BootProtocol::Pvh),
        Err(_) => Err(ApiError::invalid(
            field,
            format!("{protocol} is not a boot protocol"),
        )),
    }
}

pub fn declared(file: v1::ImageFile) -> DeclaredFile {
    DeclaredFile {
        length_bytes: file.length_bytes,
        sha256: file.sha256,
    }
}

pub fn instance_state(state: InstanceState) -> v1::InstanceState {
    match state {
        InstanceState::Pending => v1::InstanceState::Pending,
        InstanceState::Running => v1::InstanceState::Running,
        InstanceState::Stopping => v1::InstanceState::Stopping,
        InstanceState::Stopped => v1::InstanceState::Stopped,
        InstanceState::ShuttingDown => v1::InstanceState::ShuttingDown,
        InstanceState::Terminated => v1::InstanceState::Terminated,
    }
}

pub fn instance(view: InstanceView) -> v1::Instance {
    let InstanceView {
        instance,
        volumes,
        interfaces,
    } = view;
    let reason = instance.reason;
    let network_interfaces = interfaces
        .into_iter()
        .map(|(interface, network)| interface_of(interface, &network, &instance.tags))
        .collect();
    v1::Instance {
        instance_id: instance.id,
        owner_id: instance.owner,
        image_id: instance.image_id,
        instance_type: instance.instance_type,
        state: instance_state(instance.state).into(),
        state_reason: (!reason.code.is_empty()).then_some(v1::StateReason {
            code: reason.code,
            message: reason.message,
        }),
        vcpus: instance.vcpus,
        memory_bytes: instance.memory_bytes,
        block_devices: volumes.into_iter().filter_map(block_device).collect(),
        launch_time: Some(instance.launch_time.into()),
        tags: tags_out(instance.tags),
        client_token: instance.client_token,
        kernel_args: instance.kernel_args,
        user_data: instance.user_data,
        vmm_pid: instance.vmm_pid.unwrap_or(0),
        root_device_name: instance.root_device.unwrap_or_default(),
        tap_interfaces: instance
            .interfaces
            .into_iter()
            .map(|interface| v1::TapInterface {
                tap_name: interface.tap,
                mac_address: interface.mac,
            })
            .collect(),
        network_interfaces,
        key_name: instance.launch.key_name,
        metadata_options: Some((&instance.metadata_options).into()),
    }
}

fn block_device(volume: Volume) -> Option<v1::InstanceBlockDevice> {
    let attachment = volume.attachment?;
    Some(v1::InstanceBlockDevice {
        device_name: attachment.device,
        volume_id: volume.id,
        delete_on_termination: attachment.delete_on_termination,
        read_only: attachment.read_only,
    })
}

pub fn changes(changes: Vec<(String, Change)>) -> Vec<v1::InstanceStateChange> {
    changes
        .into_iter()
        .map(|(instance_id, change)| v1::InstanceStateChange {
            instance_id,
            previous_state: instance_state(change.previous).into(),
            current_state: instance_state(change.current).into(),
        })
        .collect()
}

pub fn snapshot(snapshot: Snapshot) -> v1::Snapshot {
    let (state, progress) = match snapshot.state {
        SnapshotState::Pending => (v1::SnapshotState::Pending, 0),
        SnapshotState::Completed => (v1::SnapshotState::Completed, 100),
        SnapshotState::Error => (v1::SnapshotState::Error, 0),
        SnapshotState::Deleting => (v1::SnapshotState::Deleting, 0),
    };
    v1::Snapshot {
        snapshot_id: snapshot.id,
        owner_id: snapshot.owner,
        state: state.into(),
        state_message: snapshot.state_message,
        progress,
        volume_id: snapshot.volume_id,
        source_snapshot_id: snapshot.source_id.unwrap_or_default(),
        size_bytes: snapshot.size_bytes,
        description: snapshot.description,
        create_time: Some(snapshot.create_time.into()),
        tags: tags_out(snapshot.tags),
        client_token: snapshot.client_token,
    }
}

fn block_devices(image: &Image) -> Vec<v1::ImageBlockDevice> {
    let has_root_disk = image.disks.iter().any(|disk| disk.device == devices::ROOT);
    let imported = (image.has_root && !has_root_disk).then(|| v1::ImageBlockDevice {
        device_name: devices::ROOT.to_owned(),
        snapshot_id: String::new(),
        size_bytes: image.root_size_bytes,
        delete_on_termination: true,
    });
    let own = image.disks.iter().map(|disk| v1::ImageBlockDevice {
        device_name: disk.device.clone(),
        snapshot_id: disk.snapshot_id.clone(),
        size_bytes: disk.size_bytes,
        delete_on_termination: disk.delete_on_termination,
    });
    imported.into_iter().chain(own).collect()
}

pub fn image(image: Image) -> v1::Image {
    let state = match image.state {
        ImageState::Pending => v1::ImageState::Pending,
        ImageState::Available => v1::ImageState::Available,
        ImageState::Deregistered => v1::ImageState::Deregistered,
    };
    v1::Image {
        block_devices: block_devices(&image),
        source_instance_id: image.source_instance_id.unwrap_or_default(),
        deprecation_time: image.deprecation_time.map(Into::into),
        image_id: image.id,
        owner_id: image.owner,
        name: image.name,
        description: image.description,
        state: state.into(),
        architecture: image.architecture,
        kernel_args: image.kernel_args,
        boot_protocol: match image.boot_protocol {
            BootProtocol::Auto => v1::BootProtocol::Unspecified,
            BootProtocol::Linux64 => v1::BootProtocol::Linux64,
            BootProtocol::Pvh => v1::BootProtocol::Pvh,
        }
        .into(),
        has_initrd: image.initrd.is_some(),
        has_root: image.has_root,
        root_size_bytes: image.root_size_bytes,
        create_time: Some(image.create_time.into()),
        tags: tags_out(image.tags),
        client_token: image.client_token,
    }
}

/// What is to change of an object's permissions.
pub fn permission_change(
    change: Option<v1::PermissionChange>,
    field: &'static str,
) -> PermissionChange {
    let change = change.unwrap_or_default();
    PermissionChange {
        add: change.add_accounts,
        remove: change.remove_accounts,
        public: change.public,
        field,
    }
}

pub fn permissions(permissions: Permissions) -> v1::Permissions {
    v1::Permissions {
        accounts: permissions.accounts,
        public: permissions.public,
    }
}

pub fn event(event: Event) -> v1::Event {
    v1::Event {
        // Sequences start at 1.
        sequence: event.sequence.unsigned_abs(),
        time: Some(event.time.into()),
        r#type: event.kind,
        resource_id: event.resource_id,
        previous_state: event.previous_state,
        state: event.state,
        reason_code: event.reason_code,
        message: event.message,
    }
}
