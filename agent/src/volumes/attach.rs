//! AttachVolume and DetachVolume: rows only; the VMM reads them at the next start.

use std::sync::Arc;

use super::{
    VolumeView, check_free, get,
    model::{Attachment, Volume, VolumeState},
    view,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{devices, model::Instance, state::InstanceState},
};

/// What a caller wants attached.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    pub volume_id: String,
    pub instance_id: String,
    pub device_name: String,
    pub delete_on_termination: bool,
    pub read_only: bool,
}

/// AttachVolume.
pub async fn attach(context: Arc<Context>, request: AttachRequest) -> ApiResult<VolumeView> {
    Kind::Volume.check(&request.volume_id, "volume_id")?;
    Kind::Instance.check(&request.instance_id, "instance_id")?;
    if !request.device_name.is_empty() {
        devices::check(&request.device_name, "device_name")?;
    }
    carried_through(async move {
        let attached = context
            .db
            .write(move |tx| commit_attach(tx, &request))
            .await?;
        view(&context, attached).await
    })
    .await
}

fn commit_attach(tx: &mut db::Tx<'_>, request: &AttachRequest) -> ApiResult<Volume> {
    let volume = get(tx, &request.volume_id, "volume_id")?;
    check_free(&volume, "volume_id")?;
    let instance = stopped_instance(tx, &request.instance_id, "instance_id")?;
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
    let taken: Vec<String> = db::volumes::of_instance(tx, &instance.id)?
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
    let after = Volume {
        state: VolumeState::InUse,
        attachment: Some(Attachment {
            instance_id: instance.id,
            device,
            delete_on_termination: request.delete_on_termination,
            read_only: request.read_only,
        }),
        ..volume.clone()
    };
    db::volumes::update(tx, &volume, &after)?;
    Ok(after)
}

/// DetachVolume.
pub async fn detach(context: Arc<Context>, volume_id: String) -> ApiResult<VolumeView> {
    Kind::Volume.check(&volume_id, "volume_id")?;
    carried_through(async move {
        let detached = context
            .db
            .write(move |tx| commit_detach(tx, &volume_id))
            .await?;
        view(&context, detached).await
    })
    .await
}

fn commit_detach(tx: &mut db::Tx<'_>, volume_id: &str) -> ApiResult<Volume> {
    let volume = get(tx, volume_id, "volume_id")?;
    let refused = |message: String| {
        ApiError::field(Reason::IncorrectState, "volume_id", message).with("resource_id", volume_id)
    };
    let Some(attachment) = volume.attachment.as_ref() else {
        return Err(refused(format!("{volume_id} is attached to nothing")));
    };
    let instance = stopped_instance(tx, &attachment.instance_id, "volume_id")?;
    if instance.root_device.as_deref() == Some(attachment.device.as_str()) {
        return Err(refused(format!(
            "{volume_id} is the root of {}",
            instance.id
        )));
    }
    if volume.growing_to.is_some() {
        return Err(refused(format!("{volume_id} is being made larger")));
    }
    let after = volume.detached();
    db::volumes::update(tx, &volume, &after)?;
    Ok(after)
}

fn stopped_instance(tx: &db::Tx<'_>, id: &str, field: &str) -> ApiResult<Instance> {
    let instance = db::instances::get(tx, id)?.ok_or_else(|| Kind::Instance.missing(id, field))?;
    if instance.state != InstanceState::Stopped {
        return Err(ApiError::field(
            Reason::IncorrectInstanceState,
            field,
            format!(
                "{id} is {}; its disks change only while it is stopped",
                instance.state.word()
            ),
        )
        .with("resource_id", id)
        .with("state", instance.state.word()));
    }
    Ok(instance)
}
