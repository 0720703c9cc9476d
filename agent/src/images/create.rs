//! CreateImage: an image of an instance, with all its disks at one point in time.
//!
//! The row comes first, as `pending`, and names the snapshots that are about to be taken and
//! whether the instance has to be started again; so whatever is cut off can be taken back
//! ([`take_back_cut_off`]).

use std::{sync::Arc, time::Duration};

use hearth_images::{SnapshotId, VolumeId, crash_point};
use hearth_vmm::control::{DiskSnapshot, Reply, Request};

use super::{
    check_description, check_name, check_name_free, get,
    model::{Image, ImageDisk, ImageState},
    undo,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{
        Instances, STOP_PATIENCE,
        devices::ROOT,
        model::Instance,
        state::{Asked, InstanceState},
        vmm::control::{ANSWER, Control},
    },
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    volumes::model::{Volume, VolumeState},
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateImage";

/// How long a VMM may take to make durable what was written and to take the snapshots.
const SNAPSHOTS: Duration = Duration::from_secs(300);

/// What a caller wants an image of.
#[derive(Clone, Debug)]
pub struct CreateRequest {
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

/// How the snapshots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The instance is stopped already.
    AtRest,
    /// It is stopped, and started again.
    StopFirst,
    /// It runs on.
    Live,
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

    /// The disks of the image, of an instance that has these volumes.
    fn plan(&self, volumes: &[Volume]) -> ApiResult<Vec<ImageDisk>> {
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
        let mut disks = Vec::new();
        for volume in volumes {
            let name = device(volume);
            let change = self.disks.iter().find(|change| change.device_name == name);
            if change.is_some_and(|change| change.no_device) {
                continue;
            }
            if volume.state != VolumeState::InUse || volume.growing_to.is_some() {
                return Err(ApiError::field(
                    Reason::IncorrectState,
                    "instance_id",
                    format!("its volume {} is being worked on", volume.id),
                )
                .with("resource_id", &volume.id));
            }
            let attached = volume.attachment.as_ref();
            disks.push(ImageDisk {
                device: name.to_owned(),
                snapshot_id: Kind::Snapshot.new_id()?,
                size_bytes: volume.size_bytes,
                delete_on_termination: change
                    .and_then(|change| change.delete_on_termination)
                    .unwrap_or_else(|| attached.is_some_and(|a| a.delete_on_termination)),
            });
        }
        Ok(disks)
    }

    fn insert(&self, tx: &mut db::Tx<'_>, id: &str) -> ApiResult<Inserted> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            let id = ids.first().map(String::as_str).unwrap_or_default();
            return Ok(Inserted::Earlier(get(tx, id, "client_token")?));
        }
        let instance = db::instances::get(tx, &self.instance_id)?
            .ok_or_else(|| Kind::Instance.missing(&self.instance_id, "instance_id"))?;
        let way = match (instance.state, self.no_reboot) {
            (InstanceState::Stopped, _) => Way::AtRest,
            (InstanceState::Running, false) => Way::StopFirst,
            (InstanceState::Running, true) => Way::Live,
            (state, _) => return Err(incorrect_state(&instance.id, state)),
        };
        check_name_free(tx, &instance.owner, &self.name, "name")?;
        let volumes = db::volumes::of_instance(tx, &instance.id)?;
        let disks = self.plan(&volumes)?;
        let root = disks.iter().find(|disk| disk.device == ROOT);
        let mut image = Image {
            seq: 0,
            id: id.to_owned(),
            owner: instance.owner.clone(),
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
            starts_instance: way == Way::StopFirst,
            deprecation_time: None,
        };
        db::images::insert(tx, &mut image)?;
        if let Some(token) = &self.token {
            token.keep(tx, std::slice::from_ref(&image.id))?;
        }
        let taken = |disk: &ImageDisk| {
            let volume = volumes
                .iter()
                .find(|volume| device(volume) == disk.device)?;
            Some((volume.clone(), disk.snapshot_id.clone()))
        };
        let wanted = image.disks.iter().filter_map(taken).collect();
        Ok(Inserted::New(image, way, wanted))
    }
}

/// The volumes to take snapshots of, and what the snapshots are called.
type Wanted = Vec<(Volume, String)>;

enum Inserted {
    Earlier(Image),
    New(Image, Way, Wanted),
}

fn device(volume: &Volume) -> &str {
    volume
        .attachment
        .as_ref()
        .map_or("", |attachment| attachment.device.as_str())
}

fn incorrect_state(id: &str, state: InstanceState) -> ApiError {
    let word = state.word();
    ApiError::field(
        Reason::IncorrectInstanceState,
        "instance_id",
        format!("{id} is {word}; an image is made of a running or a stopped instance"),
    )
    .with("state", word)
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
        let patience = request.patience;
        let inserted = context.db.write(move |tx| request.insert(tx, &id)).await?;
        let (pending, way, wanted) = match inserted {
            Inserted::Earlier(image) => return Ok(image),
            Inserted::New(image, way, wanted) => (image, way, wanted),
        };
        crash_point("image.row-creating");
        let taken = take(&context, &instances, &pending, way, wanted, patience).await;
        if way == Way::StopFirst {
            start_again(&instances, &pending).await;
        }
        let result = match taken {
            Ok(()) => finish(&context, pending.clone()).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            undo(&context, pending).await?;
        }
        result
    })
    .await
}

async fn take(
    context: &Context,
    instances: &Instances,
    image: &Image,
    way: Way,
    wanted: Wanted,
    patience: Duration,
) -> ApiResult<()> {
    let id = image.source_instance_id.clone().unwrap_or_default();
    if wanted.is_empty() {
        return Ok(());
    }
    match way {
        Way::Live => live(context, instances, &id, wanted).await,
        Way::AtRest => at_rest(context, wanted).await,
        Way::StopFirst => {
            stop(instances, &id, patience).await?;
            crash_point("image.instance-stopped");
            at_rest(context, wanted).await
        }
    }?;
    crash_point("image.snapshots-taken");
    Ok(())
}

/// Snapshots of the disks of a guest that runs on.
async fn live(context: &Context, instances: &Instances, id: &str, wanted: Wanted) -> ApiResult<()> {
    let request = Request::SnapshotDisks {
        disks: wanted
            .into_iter()
            .map(|(volume, snapshot)| DiskSnapshot {
                serial: volume.serial(),
                snapshot,
            })
            .collect(),
    };
    let asked = async {
        let mut control = Control::connect(&context.settings.run_dir(id), id, ANSWER).await?;
        control.ask(&request, SNAPSHOTS).await
    };
    let problem = match asked.await {
        Ok(Reply::Snapshots { pause_ns, .. }) => {
            tracing::info!(instance = id, pause_ns, "snapshots for an image");
            return Ok(());
        }
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    };
    // It may have stopped by itself.
    let instance = instances.get(id).await?;
    match instance.state {
        InstanceState::Running => Err(ApiError::internal("taking snapshots of a guest", problem)),
        state => Err(incorrect_state(id, state)),
    }
}

async fn at_rest(context: &Context, wanted: Wanted) -> ApiResult<()> {
    let store = context.store.clone();
    let taken = blocking("taking snapshots", move || {
        let wanted = wanted
            .iter()
            .map(|(volume, snapshot)| {
                Ok((
                    VolumeId::new(volume.id.as_str())?,
                    SnapshotId::new(snapshot.as_str())?,
                ))
            })
            .collect::<Result<Vec<_>, hearth_images::Error>>()?;
        let pairs: Vec<_> = wanted.iter().map(|(volume, id)| (volume, id)).collect();
        store.snapshot_volumes(&pairs)
    });
    taken
        .await?
        .map(drop)
        .map_err(|error| ApiError::from_store(&error, "instance_id", "taking snapshots"))
}

/// Stops the guest and waits until it is.
async fn stop(instances: &Instances, id: &str, patience: Duration) -> ApiResult<()> {
    let asked = Asked::Stop { force: false };
    instances.ask(vec![id.to_owned()], asked, patience).await?;
    let mut live = instances
        .live(id)
        .ok_or_else(|| incorrect_state(id, InstanceState::Terminated))?;
    let stopped = live.wait_for(|live| live.state != InstanceState::Stopping);
    match stopped.await.map(|live| live.state) {
        Ok(InstanceState::Stopped) => Ok(()),
        Ok(state) => Err(incorrect_state(id, state)),
        Err(_) => Err(incorrect_state(id, InstanceState::Terminated)),
    }
}

/// The instance was running before. Fine when somebody has started or terminated it.
async fn start_again(instances: &Instances, image: &Image) {
    let id = image.source_instance_id.clone().unwrap_or_default();
    let started = instances.ask(vec![id.clone()], Asked::Start, STOP_PATIENCE);
    if let Err(error) = started.await {
        tracing::warn!(instance = id, image = image.id, %error, "it was not started again");
    }
}

async fn finish(context: &Context, pending: Image) -> ApiResult<Image> {
    let available = Image {
        state: ImageState::Available,
        starts_instance: false,
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

/// Takes back images of instances whose making an earlier agent did not end, once their
/// instances are as they were.
pub async fn take_back_cut_off(context: &Context, instances: &Instances) -> ApiResult<()> {
    let pending = context
        .db
        .read(|connection| db::images::in_state(connection, ImageState::Pending))
        .await?;
    for image in pending {
        let Some(instance_id) = image.source_instance_id.clone() else {
            continue;
        };
        if context.busy.contains(&image.id) {
            continue;
        }
        let instance: Option<Instance> = context
            .db
            .read(move |connection| db::instances::get(connection, &instance_id))
            .await?;
        let state = instance.map(|instance| instance.state);
        match state {
            // Still on its way down: the next round.
            Some(InstanceState::Stopping) if image.starts_instance => continue,
            Some(InstanceState::Stopped) if image.starts_instance => {
                start_again(instances, &image).await;
            }
            _ => {}
        }
        tracing::info!(image = image.id, "its making was cut off; taken back");
        undo(context, image).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::model::{Attachment, GIB};

    fn volume(device: &str, delete_on_termination: bool) -> Volume {
        Volume {
            seq: 1,
            id: format!("vol-{device}"),
            owner: "local".to_owned(),
            state: VolumeState::InUse,
            size_bytes: GIB,
            image_id: None,
            snapshot_id: None,
            attachment: Some(Attachment {
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
        let volumes = [
            volume("/dev/vda", true),
            volume("/dev/vdb", false),
            volume("/dev/vdc", false),
        ];
        let delete = DiskChange {
            delete_on_termination: Some(true),
            ..change("/dev/vdc", false)
        };
        let disks = request(vec![change("/dev/vdb", true), delete])
            .plan(&volumes)
            .expect("plan");
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| (disk.device.as_str(), disk.delete_on_termination))
            .collect();
        assert_eq!(disks, [("/dev/vda", true), ("/dev/vdc", true)]);
    }

    #[test]
    fn impossible_changes_name_their_field() {
        let volumes = [volume("/dev/vda", true)];
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
                .and_then(|()| request.plan(&volumes))
                .expect_err(field);
            assert_eq!(error.fields(), [field]);
        }
        let growing = Volume {
            growing_to: Some(2 * GIB),
            ..volume("/dev/vda", true)
        };
        let error = request(Vec::new()).plan(&[growing]).expect_err("growing");
        assert_eq!(error.reason(), Reason::IncorrectState);
    }
}
