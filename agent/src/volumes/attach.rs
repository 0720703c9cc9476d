//! AttachVolume and DetachVolume.
//!
//! Of an instance that is stopped only rows change, and the VMM reads them at the next start. Of
//! one that runs, the row says what is wanted, and the instance's task has the VMM do it
//! ([`crate::instances::driver::plug`]).

use std::{sync::Arc, time::Duration};

use hearth_images::crash_point;
use hearth_vmm::config::MAX_DEVICES;
use tokio::{sync::oneshot, time::timeout};

use super::{
    VolumeView, check_free, check_no_snapshot, get,
    model::{Attachment, AttachmentState, Volume, VolumeState},
    view,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{Instances, devices, model::Instance, state::InstanceState},
    time::Millis,
};

/// How long a running guest may take to let go of a disk when the caller does not say.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(120);

/// Longest that a guest may be given.
const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a caller waits for a disk to be plugged in.
const PLUG_IN: Duration = Duration::from_secs(60);

/// What a caller wants attached.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    pub volume_id: String,
    pub instance_id: String,
    pub device_name: String,
    pub delete_on_termination: bool,
    pub read_only: bool,
}

/// What a caller wants detached.
#[derive(Clone, Debug)]
pub struct DetachRequest {
    pub volume_id: String,
    /// Whatever a running guest does.
    pub force: bool,
    /// How long a running guest may take.
    pub patience: Duration,
}

/// AttachVolume.
pub async fn attach(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: AttachRequest,
) -> ApiResult<VolumeView> {
    Kind::Volume.check(&request.volume_id, "volume_id")?;
    Kind::Instance.check(&request.instance_id, "instance_id")?;
    if !request.device_name.is_empty() {
        devices::check(&request.device_name, "device_name")?;
    }
    carried_through(async move {
        let volume = context
            .db
            .write(move |tx| commit_attach(tx, &request))
            .await?;
        let volume = match &volume.attachment {
            Some(attachment) if attachment.state == AttachmentState::Attaching => {
                crash_point("attachment.row-attaching");
                plug_in(&context, &instances, &volume.id, &attachment.instance_id).await?
            }
            _ => volume,
        };
        view(&context, volume).await
    })
    .await
}

/// Has the instance's task plug in a volume whose row says so.
async fn plug_in(
    context: &Context,
    instances: &Instances,
    volume_id: &str,
    instance_id: &str,
) -> ApiResult<Volume> {
    let (reply, result) = oneshot::channel();
    instances.volumes_changed(instance_id, Some((volume_id.to_owned(), reply)));
    // No answer means that the guest has ended meanwhile, or that it takes long: the row says.
    if let Ok(Ok(outcome)) = timeout(PLUG_IN, result).await {
        outcome?;
    }
    let id = volume_id.to_owned();
    let volume = context
        .db
        .read(move |connection| get(connection, &id, "volume_id"))
        .await?;
    if volume.attachment.is_none() {
        return Err(ApiError::field(
            Reason::IncorrectInstanceState,
            "instance_id",
            format!("{instance_id} has ended before {volume_id} was plugged in"),
        )
        .with("resource_id", instance_id));
    }
    Ok(volume)
}

fn commit_attach(tx: &mut db::Tx<'_>, request: &AttachRequest) -> ApiResult<Volume> {
    let volume = get(tx, &request.volume_id, "volume_id")?;
    check_free(&volume, "volume_id")?;
    check_no_snapshot(tx, &volume, "volume_id")?;
    let instance = settled_instance(tx, &request.instance_id, "instance_id")?;
    if volume.owner != instance.owner {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            "instance_id",
            format!(
                "{} belongs to {}, {} to {}: they must have one owner",
                volume.id, volume.owner, instance.id, instance.owner
            ),
        ));
    }
    let others = db::volumes::of_instance(tx, &instance.id)?;
    let most = MAX_DEVICES.saturating_sub(instance.interfaces.len());
    if others.len() >= most {
        return Err(ApiError::field(
            Reason::AttachmentLimitExceeded,
            "instance_id",
            format!("{} has {most} disks, and no place for more", instance.id),
        )
        .with("resource_id", &instance.id));
    }
    let taken: Vec<String> = others
        .into_iter()
        .filter_map(|other| other.attachment.map(|a| a.device))
        .chain(instance.root_device)
        .collect();
    let device = match request.device_name.as_str() {
        "" => devices::next_free(&taken, "device_name")?,
        name if taken.iter().any(|other| other == name) => {
            return Err(ApiError::invalid(
                "device_name",
                format!("{} has a disk at {name} already", instance.id),
            ));
        }
        name => name.to_owned(),
    };
    let state = match instance.state {
        InstanceState::Running => AttachmentState::Attaching,
        _ => AttachmentState::Attached,
    };
    let after = Volume {
        state: VolumeState::InUse,
        attachment: Some(Attachment {
            instance_id: instance.id,
            device,
            delete_on_termination: request.delete_on_termination,
            read_only: request.read_only,
            state,
            detach_deadline: None,
        }),
        ..volume.clone()
    };
    if state == AttachmentState::Attaching {
        db::volumes::update_attachment(tx, &volume, &after, "")?;
    } else {
        db::volumes::update(tx, &volume, &after)?;
    }
    Ok(after)
}

/// DetachVolume.
pub async fn detach(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: DetachRequest,
) -> ApiResult<VolumeView> {
    Kind::Volume.check(&request.volume_id, "volume_id")?;
    if request.patience > MAX_PATIENCE {
        return Err(ApiError::invalid(
            "timeout_seconds",
            format!("at most {} seconds", MAX_PATIENCE.as_secs()),
        ));
    }
    carried_through(async move {
        let volume = context
            .db
            .write(move |tx| commit_detach(tx, &request))
            .await?;
        if let Some(attachment) = &volume.attachment {
            crash_point("attachment.row-detaching");
            instances.volumes_changed(&attachment.instance_id, None);
        }
        view(&context, volume).await
    })
    .await
}

fn commit_detach(tx: &mut db::Tx<'_>, request: &DetachRequest) -> ApiResult<Volume> {
    let volume_id = request.volume_id.as_str();
    let volume = get(tx, volume_id, "volume_id")?;
    let refused = |message: String| {
        ApiError::field(Reason::IncorrectState, "volume_id", message).with("resource_id", volume_id)
    };
    let Some(attachment) = volume.attachment.as_ref() else {
        return Err(refused(format!("{volume_id} is attached to nothing")));
    };
    let instance = settled_instance(tx, &attachment.instance_id, "volume_id")?;
    if instance.root_device.as_deref() == Some(attachment.device.as_str()) {
        return Err(refused(format!(
            "{volume_id} is the root of {}",
            instance.id
        )));
    }
    if volume.is_being_modified() {
        return Err(refused(format!("{volume_id} is being modified")));
    }
    if instance.state != InstanceState::Running {
        let after = volume.detached();
        db::volumes::update(tx, &volume, &after)?;
        return Ok(after);
    }
    match attachment.state {
        AttachmentState::Attached => {}
        AttachmentState::Detaching if request.force => {}
        state => {
            let error = refused(format!("{volume_id} is {} already", state.word()));
            return Err(error.with("state", state.word()));
        }
    }
    let deadline = (!request.force).then(|| Millis::now().after(request.patience));
    let after = volume.with_attachment_state(AttachmentState::Detaching, deadline);
    db::volumes::update_attachment(tx, &volume, &after, "")?;
    Ok(after)
}

/// The instance, if it is neither on its way up nor down.
fn settled_instance(tx: &db::Tx<'_>, id: &str, field: &str) -> ApiResult<Instance> {
    let instance = db::instances::get(tx, id)?.ok_or_else(|| Kind::Instance.missing(id, field))?;
    match instance.state {
        InstanceState::Stopped | InstanceState::Running => Ok(instance),
        state => Err(ApiError::field(
            Reason::IncorrectInstanceState,
            field,
            format!(
                "{id} is {}; its disks change only while it is running or stopped",
                state.word()
            ),
        )
        .with("resource_id", id)
        .with("state", state.word())),
    }
}
