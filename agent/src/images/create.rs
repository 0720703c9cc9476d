//! CreateImage: an image of an instance, with all its disks at one point in time.
//!
//! Its row, as `pending`, and those of the snapshots that it will have come first, in one
//! transaction; what is cut off is taken back with the snapshots.

use std::{sync::Arc, time::Duration};

use hearth_images::crash_point;

use super::{
    check_description, check_name, check_name_free, get,
    model::{Image, ImageDisk, ImageState},
    undo,
};
use crate::{
    blocking::carried_through,
    busy::BusyGuard,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{Instances, devices::ROOT, state::InstanceState},
    snapshots::{
        self,
        model::Snapshot,
        take::{self, Source, TakeRequest},
    },
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    volumes::model::Volume,
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateImage";

/// What a caller wants an image of.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own the image and its snapshots.
    pub owner: String,
    pub instance_id: String,
    pub name: String,
    pub description: String,
    /// Leaves a running instance alone: its disks are as after a power failure.
    pub no_reboot: bool,
    /// How long the guest may take to shut down.
    pub patience: Duration,
    pub disks: Vec<DiskChange>,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// What is to be different with a disk.
#[derive(Clone, Debug, Default)]
pub struct DiskChange {
    pub device_name: String,
    /// Leave it out.
    pub no_device: bool,
    pub delete_on_termination: Option<bool>,
}

impl CreateRequest {
    fn check(&self) -> ApiResult<()> {
        Kind::Instance.check(&self.instance_id, "instance_id")?;
        check_name(&self.name, "name")?;
        check_description(&self.description, "description")?;
        tags::check(&self.tags, "tags")?;
        for (index, disk) in self.disks.iter().enumerate() {
            let field = format!("block_devices[{index}].device_name");
            if disk.device_name.is_empty() {
                let message = "say which disk of the instance";
                return Err(ApiError::field(Reason::MissingParameter, field, message));
            }
            let before = &self.disks[..index];
            if before
                .iter()
                .any(|other| other.device_name == disk.device_name)
            {
                return Err(ApiError::invalid(
                    field,
                    format!("{} is there twice", disk.device_name),
                ));
            }
        }
        Ok(())
    }

    /// The volumes that the image will have, of those of the instance.
    fn plan(&self, volumes: Vec<Volume>) -> ApiResult<Vec<Volume>> {
        for (index, change) in self.disks.iter().enumerate() {
            let field = format!("block_devices[{index}]");
            let has = |volume: &Volume| device(volume) == change.device_name;
            if !volumes.iter().any(has) {
                return Err(ApiError::invalid(
                    format!("{field}.device_name"),
                    format!("{} has no {:?}", self.instance_id, change.device_name),
                ));
            }
            if change.no_device && change.device_name == ROOT {
                return Err(ApiError::field(
                    Reason::InvalidParameterCombination,
                    format!("{field}.no_device"),
                    "the root can't be left out",
                ));
            }
        }
        let wanted = |volume: &Volume| !self.change_of(volume).is_some_and(|c| c.no_device);
        Ok(volumes.into_iter().filter(wanted).collect())
    }

    fn change_of(&self, volume: &Volume) -> Option<&DiskChange> {
        let name = device(volume);
        self.disks.iter().find(|change| change.device_name == name)
    }

    fn disk(&self, volume: &Volume, snapshot: &Snapshot) -> ImageDisk {
        let attached = volume.attachment.as_ref();
        ImageDisk {
            device: device(volume).to_owned(),
            snapshot_id: snapshot.id.clone(),
            size_bytes: volume.size_bytes,
            delete_on_termination: self
                .change_of(volume)
                .and_then(|change| change.delete_on_termination)
                .unwrap_or_else(|| attached.is_some_and(|a| a.delete_on_termination)),
        }
    }

    fn insert(&self, tx: &mut db::Tx<'_>, id: &str, context: &Context) -> ApiResult<Inserted> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            let id = ids.first().map(String::as_str).unwrap_or_default();
            return Ok(Inserted::Earlier(get(tx, id, "client_token")?));
        }
        let instance = db::instances::get(tx, &self.instance_id)?
            .ok_or_else(|| Kind::Instance.missing(&self.instance_id, "instance_id"))?;
        if !matches!(
            instance.state,
            InstanceState::Running | InstanceState::Stopped
        ) {
            let word = instance.state.word();
            return Err(ApiError::field(
                Reason::IncorrectInstanceState,
                "instance_id",
                format!(
                    "{} is {word}; an image is made of a running or a stopped instance",
                    instance.id
                ),
            )
            .with("state", word));
        }
        check_name_free(tx, &self.owner, &self.name, "name")?;
        let volumes = self.plan(db::volumes::of_instance(tx, &instance.id)?)?;
        let taking = TakeRequest {
            owner: self.owner.clone(),
            source: Source::Instance {
                instance_id: instance.id.clone(),
                volume_ids: volumes.iter().map(|volume| volume.id.clone()).collect(),
                exclude_root: false,
            },
            description: format!("made by CreateImage of {} for {id}", instance.id),
            tags: Vec::new(),
            client_token: String::new(),
            token: None,
            stop_first: !self.no_reboot,
            patience: self.patience,
        };
        let taking = taking.insert(tx, context)?;
        let disk = |snapshot: &Snapshot| {
            let of_it = |volume: &&Volume| volume.id == snapshot.volume_id;
            let volume = volumes.iter().find(of_it)?;
            Some(self.disk(volume, snapshot))
        };
        let disks: Vec<_> = taking.snapshots.iter().filter_map(disk).collect();
        let root = disks.iter().find(|disk| disk.device == ROOT);
        let mut image = Image {
            seq: 0,
            id: id.to_owned(),
            owner: self.owner.clone(),
            name: self.name.clone(),
            description: self.description.clone(),
            state: ImageState::Pending,
            architecture: "x86_64".to_owned(),
            kernel: instance.kernel.clone(),
            initrd: instance.initrd.clone(),
            kernel_args: instance.kernel_args.clone(),
            boot_protocol: instance.boot_protocol,
            has_root: root.is_some(),
            root_size_bytes: root.map_or(0, |root| root.size_bytes),
            create_time: Millis::now(),
            tags: self.tags.clone(),
            client_token: self.client_token.clone(),
            disks,
            source_instance_id: Some(instance.id.clone()),
            deprecation_time: None,
        };
        db::images::insert(tx, &mut image)?;
        if let Some(token) = &self.token {
            token.keep(tx, std::slice::from_ref(&image.id))?;
        }
        Ok(Inserted::New {
            image,
            snapshots: taking.snapshots,
            _busy: taking.busy,
        })
    }
}

enum Inserted {
    Earlier(Image),
    New {
        image: Image,
        snapshots: Vec<Snapshot>,
        _busy: Vec<BusyGuard>,
    },
}

fn device(volume: &Volume) -> &str {
    volume
        .attachment
        .as_ref()
        .map_or("", |attachment| attachment.device.as_str())
}

/// CreateImage.
pub async fn create(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: CreateRequest,
) -> ApiResult<Image> {
    request.check()?;
    carried_through(async move {
        let id = Kind::Image.new_id()?;
        let _busy = context.busy.mark(&id);
        let (patience, shared) = (request.patience, context.clone());
        let inserted = context
            .db
            .write(move |tx| request.insert(tx, &id, &shared))
            .await?;
        let (pending, snapshots, _busy_snapshots) = match inserted {
            Inserted::Earlier(image) => return Ok(image),
            Inserted::New {
                image,
                snapshots,
                _busy,
            } => (image, snapshots, _busy),
        };
        crash_point("image.row-creating");
        match take::taken(&context, &instances, &snapshots, patience).await {
            Ok(completed) => {
                crash_point("image.snapshots-taken");
                let result = finish(&context, pending.clone()).await;
                if result.is_err() {
                    undo(&context, pending).await?;
                }
                take::start_again(&context, &instances, &completed).await;
                result
            }
            Err(error) => {
                undo(&context, pending).await?;
                snapshots::delete::undo(&context, &instances, snapshots).await;
                Err(error)
            }
        }
    })
    .await
}

pub(super) async fn finish(context: &Context, pending: Image) -> ApiResult<Image> {
    let available = Image {
        state: ImageState::Available,
        ..pending.clone()
    };
    let row = available.clone();
    context
        .db
        .write(move |tx| db::images::update(tx, &pending, &row))
        .await?;
    crash_point("image.row-available");
    Ok(available)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        instances::STOP_PATIENCE,
        volumes::model::{Attachment, AttachmentState, GIB, VolumeState},
    };

    fn volume(device: &str, delete_on_termination: bool) -> Volume {
        Volume {
            class: Default::default(),
            credits: None,
            modification: None,
            seq: 1,
            id: format!("vol-{device}"),
            owner: "local".to_owned(),
            state: VolumeState::InUse,
            size_bytes: GIB,
            image_id: None,
            snapshot_id: None,
            attachment: Some(Attachment {
                state: AttachmentState::Attached,
                detach_deadline: None,
                instance_id: "i-0123456789abcdef0".to_owned(),
                device: device.to_owned(),
                delete_on_termination,
                read_only: false,
            }),
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            growing_to: None,
        }
    }

    fn request(disks: Vec<DiskChange>) -> CreateRequest {
        CreateRequest {
            owner: "local".to_owned(),
            instance_id: "i-0123456789abcdef0".to_owned(),
            name: "name".to_owned(),
            description: String::new(),
            no_reboot: false,
            patience: STOP_PATIENCE,
            disks,
            tags: Vec::new(),
            client_token: String::new(),
            token: None,
        }
    }

    fn change(device_name: &str, no_device: bool) -> DiskChange {
        DiskChange {
            device_name: device_name.to_owned(),
            no_device,
            delete_on_termination: None,
        }
    }

    #[test]
    fn an_image_has_the_disks_of_its_instance_but_for_what_is_changed() {
        let volumes = vec![
            volume("/dev/vda", true),
            volume("/dev/vdb", false),
            volume("/dev/vdc", false),
        ];
        let delete = DiskChange {
            delete_on_termination: Some(true),
            ..change("/dev/vdc", false)
        };
        let request = request(vec![change("/dev/vdb", true), delete]);
        let planned = request.plan(volumes).expect("plan");
        let devices: Vec<_> = planned.iter().map(device).collect();
        assert_eq!(devices, ["/dev/vda", "/dev/vdc"]);
        assert!(
            request
                .change_of(&planned[1])
                .is_some_and(|change| change.delete_on_termination == Some(true))
        );
    }

    #[test]
    fn impossible_changes_name_their_field() {
        let volumes = vec![volume("/dev/vda", true)];
        for (changes, field) in [
            (vec![change("", true)], "block_devices[0].device_name"),
            (
                vec![change("/dev/vda", false), change("/dev/vda", false)],
                "block_devices[1].device_name",
            ),
            (
                vec![change("/dev/vdz", true)],
                "block_devices[0].device_name",
            ),
            (vec![change("/dev/vda", true)], "block_devices[0].no_device"),
        ] {
            let request = request(changes);
            let error = request
                .check()
                .and_then(|()| request.plan(volumes.clone()))
                .expect_err(field);
            assert_eq!(error.fields(), [field]);
        }
    }
}
