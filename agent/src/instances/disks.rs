//! Which disks a new instance gets: from the image and from what the caller asks.

use super::devices;
use crate::{
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    images::model::{Image, ImageDisk},
    volumes::{
        check_size_gib,
        classes::{Classes, choice::ClassChoice},
        model::GIB,
    },
};

/// A disk that a caller asks for.
#[derive(Clone, Debug, Default)]
pub struct DiskRequest {
    pub device_name: String,
    pub size_gib: u64,
    /// Empty is the default one.
    pub volume_class: String,
    pub iops: u32,
    pub throughput_mib: u32,
    pub volume_id: String,
    pub snapshot_id: String,
    pub delete_on_termination: Option<bool>,
    pub read_only: bool,
}

/// A disk that the instance will have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub device: String,
    pub source: DiskSource,
    /// Of a new one.
    pub class: ClassChoice,
    pub delete_on_termination: bool,
    pub read_only: bool,
    /// The request's field, for errors.
    pub field: String,
}

/// Where a disk comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// The image's root, at least as large as there.
    Root { size_bytes: u64 },
    /// A further disk of the image, at least as large as there.
    OfImage {
        snapshot_id: String,
        size_bytes: u64,
    },
    /// A new one.
    Empty { size_gib: u64 },
    /// A new one with the content of a snapshot; a size of 0 keeps the snapshot's.
    Snapshot { id: String, size_gib: u64 },
    /// One that is there.
    Existing(String),
}

/// Plans the disks of each of `count` instances.
pub fn plan(
    image: &Image,
    requests: &[DiskRequest],
    count: u32,
    classes: &Classes,
) -> ApiResult<Vec<Disk>> {
    let mut disks: Vec<Disk> = Vec::new();
    let mut taken: Vec<String> = Vec::new();
    // Names that the caller gave go first, so that a free letter is really free.
    for (index, request) in requests.iter().enumerate() {
        if request.device_name.is_empty() {
            continue;
        }
        let field = format!("block_devices[{index}].device_name");
        devices::check(&request.device_name, &field)?;
        if taken.contains(&request.device_name) {
            return Err(ApiError::invalid(
                field,
                format!("{} is there twice", request.device_name),
            ));
        }
        taken.push(request.device_name.clone());
    }
    if image.has_root && !taken.iter().any(|name| name == devices::ROOT) {
        taken.push(devices::ROOT.to_owned());
        disks.push(root(
            image,
            &DiskRequest::default(),
            String::new(),
            classes,
        )?);
    }
    for disk in image.further_disks() {
        if !taken.contains(&disk.device) {
            taken.push(disk.device.clone());
            disks.push(of_image(
                disk,
                &DiskRequest::default(),
                String::new(),
                classes,
            )?);
        }
    }
    for (index, request) in requests.iter().enumerate() {
        let field = format!("block_devices[{index}]");
        if let Some(disk) = image
            .further_disks()
            .find(|disk| disk.device == request.device_name)
        {
            disks.push(of_image(disk, request, field, classes)?);
            continue;
        }
        if image.has_root && request.device_name == devices::ROOT {
            disks.push(root(image, request, field, classes)?);
            continue;
        }
        let device = if request.device_name.is_empty() {
            let name = devices::next_free(&taken, &format!("{field}.device_name"))?;
            taken.push(name.clone());
            name
        } else {
            request.device_name.clone()
        };
        disks.push(Disk {
            device,
            source: source(request, count, &field, classes)?,
            class: request.class(),
            delete_on_termination: request.delete_on_termination.unwrap_or(false),
            read_only: request.read_only,
            field,
        });
    }
    let mut existing: Vec<&str> = Vec::new();
    for disk in &disks {
        if let DiskSource::Existing(id) = &disk.source {
            if existing.contains(&id.as_str()) {
                return Err(ApiError::field(
                    Reason::VolumeInUse,
                    format!("{}.volume_id", disk.field),
                    format!("{id} is there twice"),
                ));
            }
            existing.push(id);
        }
    }
    Ok(disks)
}

impl DiskRequest {
    fn class(&self) -> ClassChoice {
        ClassChoice::from_wire(self.volume_class.clone(), self.iops, self.throughput_mib)
    }

    /// Whether something was asked for that only a new volume can have.
    fn asks_for_class(&self) -> bool {
        !self.volume_class.is_empty() || self.iops != 0 || self.throughput_mib != 0
    }
}

fn root(image: &Image, request: &DiskRequest, field: String, classes: &Classes) -> ApiResult<Disk> {
    if !request.volume_id.is_empty() {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            format!("{field}.volume_id"),
            "the root comes from the image",
        ));
    }
    if !request.snapshot_id.is_empty() {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            format!("{field}.snapshot_id"),
            "the root comes from the image",
        ));
    }
    let of_image = image
        .disks
        .iter()
        .find(|disk| disk.device == devices::ROOT)
        .is_none_or(|disk| disk.delete_on_termination);
    let size_bytes = size_from(image.root_size_bytes, request, &field)?;
    classes.check(&request.class(), size_bytes, &path_of(&field))?;
    Ok(Disk {
        device: devices::ROOT.to_owned(),
        source: DiskSource::Root { size_bytes },
        class: request.class(),
        delete_on_termination: request.delete_on_termination.unwrap_or(of_image),
        read_only: request.read_only,
        field,
    })
}

/// A further disk of the image, with what the caller changes of it.
fn of_image(
    disk: &ImageDisk,
    request: &DiskRequest,
    field: String,
    classes: &Classes,
) -> ApiResult<Disk> {
    let given = [
        ("volume_id", &request.volume_id),
        ("snapshot_id", &request.snapshot_id),
    ];
    if let Some((name, _)) = given.iter().find(|(_, id)| !id.is_empty()) {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            format!("{field}.{name}"),
            format!("{} comes from the image", disk.device),
        ));
    }
    let size_bytes = size_from(disk.size_bytes, request, &field)?;
    classes.check(&request.class(), size_bytes, &path_of(&field))?;
    Ok(Disk {
        device: disk.device.clone(),
        source: DiskSource::OfImage {
            snapshot_id: disk.snapshot_id.clone(),
            size_bytes,
        },
        class: request.class(),
        delete_on_termination: request
            .delete_on_termination
            .unwrap_or(disk.delete_on_termination),
        read_only: request.read_only,
        field,
    })
}

/// What comes before the name of a field of this mapping; a disk that nobody asked for has none.
fn path_of(field: &str) -> String {
    match field {
        "" => String::new(),
        field => format!("{field}."),
    }
}

/// The size of a disk that the image has with `size_bytes`.
fn size_from(size_bytes: u64, request: &DiskRequest, field: &str) -> ApiResult<u64> {
    if request.size_gib == 0 {
        return Ok(size_bytes);
    }
    let size_field = format!("{field}.size_gib");
    check_size_gib(request.size_gib, &size_field)?;
    let wanted = request.size_gib * GIB;
    if wanted < size_bytes {
        return Err(ApiError::invalid(
            size_field,
            format!("the image's disk has {size_bytes} bytes; a volume only grows"),
        ));
    }
    Ok(wanted)
}

fn source(
    request: &DiskRequest,
    count: u32,
    field: &str,
    classes: &Classes,
) -> ApiResult<DiskSource> {
    if request.volume_id.is_empty() && !request.snapshot_id.is_empty() {
        Kind::Snapshot.check(&request.snapshot_id, &format!("{field}.snapshot_id"))?;
        if request.size_gib != 0 {
            check_size_gib(request.size_gib, &format!("{field}.size_gib"))?;
        }
        return Ok(DiskSource::Snapshot {
            id: request.snapshot_id.clone(),
            size_gib: request.size_gib,
        });
    }
    if request.volume_id.is_empty() {
        check_size_gib(request.size_gib, &format!("{field}.size_gib"))?;
        let size_bytes = request.size_gib * GIB;
        classes.check(&request.class(), size_bytes, &format!("{field}."))?;
        return Ok(DiskSource::Empty {
            size_gib: request.size_gib,
        });
    }
    let volume_field = format!("{field}.volume_id");
    Kind::Volume.check(&request.volume_id, &volume_field)?;
    let combination = |message: &str| {
        ApiError::field(
            Reason::InvalidParameterCombination,
            volume_field.clone(),
            message,
        )
    };
    if !request.snapshot_id.is_empty() {
        return Err(combination("give either a volume or a snapshot"));
    }
    if request.size_gib != 0 {
        return Err(combination("give either a volume or the size of a new one"));
    }
    if request.asks_for_class() {
        return Err(combination(
            "give either a volume or the class of a new one; ModifyVolume changes a volume's class",
        ));
    }
    if count > 1 {
        return Err(combination("a volume can be attached to one instance only"));
    }
    Ok(DiskSource::Existing(request.volume_id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{images::model::ImageState, time::Millis};

    fn image(root_gib: u64) -> Image {
        Image {
            seq: 1,
            id: "img-0123456789abcdef0".to_owned(),
            owner: "local".to_owned(),
            name: "name".to_owned(),
            description: String::new(),
            state: ImageState::Available,
            architecture: "x86_64".to_owned(),
            kernel: "k".to_owned(),
            initrd: None,
            kernel_args: String::new(),
            boot_protocol: crate::images::model::BootProtocol::Auto,
            has_root: root_gib > 0,
            root_size_bytes: root_gib * GIB,
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            disks: Vec::new(),
            source_instance_id: None,
            deprecation_time: None,
        }
    }

    fn plan(image: &Image, requests: &[DiskRequest], count: u32) -> ApiResult<Vec<Disk>> {
        let classes = Classes::load("/nonexistent".as_ref()).expect("built in");
        super::plan(image, requests, count, &classes)
    }

    fn named(device_name: &str, size_gib: u64) -> DiskRequest {
        DiskRequest {
            device_name: device_name.to_owned(),
            size_gib,
            ..Default::default()
        }
    }

    #[test]
    fn the_root_comes_from_the_image_and_grows_on_request() {
        let disks = plan(&image(1), &[], 1).expect("plan");
        assert_eq!(disks.len(), 1);
        assert_eq!(disks[0].source, DiskSource::Root { size_bytes: GIB });
        assert!(disks[0].delete_on_termination);
        let disks = plan(&image(1), &[named("/dev/vda", 3), named("", 2)], 1).expect("plan");
        assert_eq!(
            disks[0].source,
            DiskSource::Root {
                size_bytes: 3 * GIB
            }
        );
        assert_eq!(disks[1].device, "/dev/vdb");
        assert!(!disks[1].delete_on_termination);
        assert!(plan(&image(0), &[], 1).expect("no root").is_empty());
    }

    #[test]
    fn free_letters_go_around_the_ones_that_were_asked_for() {
        let requests = [named("", 1), named("/dev/vdb", 1), named("", 1)];
        let disks = plan(&image(1), &requests, 1).expect("plan");
        let devices: Vec<&str> = disks.iter().map(|disk| disk.device.as_str()).collect();
        assert_eq!(devices, ["/dev/vda", "/dev/vdc", "/dev/vdb", "/dev/vdd"]);
    }

    #[test]
    fn impossible_disks_name_their_field() {
        let volume = DiskRequest {
            volume_id: "vol-0123456789abcdef0".to_owned(),
            ..Default::default()
        };
        let both = DiskRequest {
            size_gib: 1,
            ..volume.clone()
        };
        let volume_and_class = DiskRequest {
            volume_class: "gp3".to_owned(),
            ..volume.clone()
        };
        let of_class = |size_gib, volume_class: &str, iops| DiskRequest {
            volume_class: volume_class.to_owned(),
            iops,
            ..named("", size_gib)
        };
        let root_volume = DiskRequest {
            device_name: "/dev/vda".to_owned(),
            ..volume.clone()
        };
        for (requests, count, field) in [
            (vec![named("", 0)], 1, "block_devices[0].size_gib"),
            (vec![named("", 65_537)], 1, "block_devices[0].size_gib"),
            (vec![named("", u64::MAX)], 1, "block_devices[0].size_gib"),
            (vec![named("/dev/vda", 1)], 1, "block_devices[0].size_gib"),
            (
                vec![named("/dev/../x", 1)],
                1,
                "block_devices[0].device_name",
            ),
            (
                vec![named("/dev/vdb", 1), named("/dev/vdb", 1)],
                1,
                "block_devices[1].device_name",
            ),
            (vec![volume.clone()], 2, "block_devices[0].volume_id"),
            (vec![volume_and_class], 1, "block_devices[0].volume_id"),
            (
                vec![of_class(1, "x", 0)],
                1,
                "block_devices[0].volume_class",
            ),
            (vec![of_class(1, "st1", 0)], 1, "block_devices[0].size_gib"),
            (vec![of_class(9, "gp3", 5000)], 1, "block_devices[0].iops"),
            (vec![both], 1, "block_devices[0].volume_id"),
            (vec![root_volume], 1, "block_devices[0].volume_id"),
            (
                vec![volume.clone(), volume],
                1,
                "block_devices[1].volume_id",
            ),
        ] {
            let error = plan(&image(2), &requests, count).expect_err(field);
            assert_eq!(error.fields(), [field]);
        }
    }
}
