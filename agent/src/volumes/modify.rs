//! ModifyVolume and GrowVolume: a larger size, another class, other figures, at any time.
//!
//! The row first says what is wanted; then it is done, by the volume's VMM if its guest runs;
//! then the row says that it is done. What is cut off in between is done again by the next round
//! of reconciliation: every step can be.

use std::sync::Arc;

use hearth_images::crash_point;
use hearth_vmm::control::Request;

use super::{
    VolumeView, check_no_snapshot, check_size_gib,
    classes::choice::ClassChoice,
    get,
    model::{GIB, Modification, ModificationState, Target, Volume, VolumeState},
    view, volume_id,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{
        state::InstanceState,
        vmm::control::{ANSWER, Control, ControlError},
    },
    time::Millis,
};

/// What a caller wants changed; nothing where it is 0 or empty.
#[derive(Clone, Debug, Default)]
pub struct ModifyRequest {
    pub volume_id: String,
    pub size_gib: u64,
    pub volume_class: String,
    pub iops: u32,
    pub throughput_mib: u32,
}

/// ModifyVolume.
pub async fn modify(context: Arc<Context>, request: ModifyRequest) -> ApiResult<VolumeView> {
    Kind::Volume.check(&request.volume_id, "volume_id")?;
    if request.size_gib != 0 {
        check_size_gib(request.size_gib, "size_gib")?;
    }
    let nothing = request.size_gib == 0
        && request.volume_class.is_empty()
        && request.iops == 0
        && request.throughput_mib == 0;
    if nothing {
        return Err(ApiError::new(
            Reason::MissingParameter,
            "give a size_gib, a volume_class, an iops or a throughput_mib",
        ));
    }
    carried_through(async move {
        let _busy = context.busy.mark(&request.volume_id);
        let classes = context.classes.clone();
        let wanted = context
            .db
            .write(move |tx| {
                let volume = get(tx, &request.volume_id, "volume_id")?;
                check_may_change(tx, &volume)?;
                let target = target(&volume, &request)?;
                classes.check(&target.class, target.size_bytes, "")?;
                let after = volume.modifying(target, Millis::now());
                db::volumes::update(tx, &volume, &after)?;
                if after.class.name != volume.class.name {
                    db::volumes::clear_credits(tx, &after.id)?;
                }
                Ok::<_, ApiError>(after)
            })
            .await?;
        crash_point("volume.row-growing");
        let after = finish(&context, wanted).await?;
        view(&context, after).await
    })
    .await
}

/// What a volume shall be like.
fn target(volume: &Volume, request: &ModifyRequest) -> ApiResult<Target> {
    let size_bytes = match request.size_gib {
        0 => volume.size_bytes,
        gib if gib * GIB < volume.size_bytes => {
            return Err(ApiError::invalid(
                "size_gib",
                format!(
                    "{} has {} bytes; a volume only grows",
                    volume.id, volume.size_bytes
                ),
            ));
        }
        gib => gib * GIB,
    };
    let other_class = !request.volume_class.is_empty() && request.volume_class != volume.class.name;
    let class = if other_class {
        // Its own figures, but for those that are asked for.
        let name = request.volume_class.clone();
        ClassChoice::from_wire(name, request.iops, request.throughput_mib)
    } else {
        let kept = |asked, before| if asked > 0 { asked } else { before };
        ClassChoice {
            name: volume.class.name.clone(),
            iops: kept(request.iops, volume.class.iops),
            throughput_mib: kept(request.throughput_mib, volume.class.throughput_mib),
        }
    };
    Ok(Target { size_bytes, class })
}

fn check_may_change(tx: &db::Tx<'_>, volume: &Volume) -> ApiResult<()> {
    let refused = |message: String| {
        ApiError::field(Reason::IncorrectState, "volume_id", message)
            .with("resource_id", &volume.id)
    };
    if volume.is_being_modified() {
        return Err(refused(format!("{} is being modified already", volume.id)));
    }
    check_no_snapshot(tx, volume, "volume_id")?;
    match (volume.state, &volume.attachment) {
        (VolumeState::Available, _) => Ok(()),
        (VolumeState::InUse, Some(attachment)) => {
            let instance = db::instances::get(tx, &attachment.instance_id)?;
            match instance.map(|instance| instance.state) {
                Some(InstanceState::Stopped | InstanceState::Running) => Ok(()),
                state => Err(refused(format!(
                    "{} is in use by {}, which is {}; wait until it is running or stopped",
                    volume.id,
                    attachment.instance_id,
                    state.map_or("gone", InstanceState::word)
                ))),
            }
        }
        (state, _) => Err(refused(format!("{} is {}", volume.id, state.word()))),
    }
}

/// GrowVolume: ModifyVolume of the size alone, which must be more than before.
pub async fn grow(context: Arc<Context>, id: String, size_gib: u64) -> ApiResult<VolumeView> {
    Kind::Volume.check(&id, "volume_id")?;
    check_size_gib(size_gib, "size_gib")?;
    let (wanted, field) = (id.clone(), "volume_id");
    let volume = context.db.read(move |c| get(c, &wanted, field)).await?;
    if size_gib * GIB <= volume.size_bytes {
        return Err(ApiError::invalid(
            "size_gib",
            format!("{id} has {} bytes; a volume only grows", volume.size_bytes),
        ));
    }
    let request = ModifyRequest {
        volume_id: id,
        size_gib,
        ..ModifyRequest::default()
    };
    modify(context, request).await
}

/// Where a volume's changes are made.
enum Place {
    /// In the store: no VMM has it open.
    Store,
    /// By the VMM of this instance.
    Vmm(String),
    /// Its instance is starting or ending.
    Later,
}

/// Carries a modification that is in the row through, if it can be now.
///
/// # Errors
/// When the volume can't get the size; the row then says so, too. A VMM that does not answer is
/// no error: the row goes on saying what is wanted.
pub async fn finish(context: &Context, volume: Volume) -> ApiResult<Volume> {
    if !volume.is_being_modified() {
        return Ok(volume);
    }
    let id = volume.id.clone();
    match place(context, &volume).await? {
        Place::Later => Ok(volume),
        Place::Store => match grow_in_store(context, &volume).await {
            Ok(size_bytes) => commit(context, id, Ok(size_bytes)).await,
            Err(error) => {
                commit(context, id, Err(error.message().to_owned())).await?;
                Err(error)
            }
        },
        Place::Vmm(instance_id) => match tell_vmm(context, &volume, &instance_id).await {
            Ok(()) => {
                let size_bytes = volume.growing_to.unwrap_or(volume.size_bytes);
                commit(context, id, Ok(size_bytes)).await
            }
            Err(ControlError::Refused(message)) => {
                commit(context, id, Err(message.clone())).await?;
                Err(ApiError::field(
                    Reason::IncorrectState,
                    "volume_id",
                    format!("its VMM refused: {message}"),
                )
                .with("resource_id", &volume.id))
            }
            Err(error) => {
                tracing::warn!(volume = volume.id, %error, "modified as soon as its VMM answers");
                Ok(volume)
            }
        },
    }
}

async fn place(context: &Context, volume: &Volume) -> ApiResult<Place> {
    let Some(attachment) = &volume.attachment else {
        return Ok(Place::Store);
    };
    let id = attachment.instance_id.clone();
    let instance = context.db.read(move |c| db::instances::get(c, &id)).await?;
    Ok(
        match instance.map(|instance| (instance.state, instance.id)) {
            None | Some((InstanceState::Stopped | InstanceState::Terminated, _)) => Place::Store,
            Some((InstanceState::Running, id)) => Place::Vmm(id),
            Some(_) => Place::Later,
        },
    )
}

/// Gives the size that the volume has then.
async fn grow_in_store(context: &Context, volume: &Volume) -> ApiResult<u64> {
    let Some(target) = volume.growing_to else {
        return Ok(volume.size_bytes);
    };
    let (store, id) = (context.store.clone(), volume_id(&volume.id)?);
    let grown = blocking("growing a volume", move || {
        // Done already, when an earlier agent was cut off right after it.
        match store.volume(&id) {
            Ok(info) if info.size_bytes >= target => Ok(info),
            _ => store.grow_volume(&id, target),
        }
    })
    .await?;
    crash_point("volume.grown");
    grown
        .map(|info| info.size_bytes)
        .map_err(|error| ApiError::from_store(&error, "size_gib", "growing a volume"))
}

async fn tell_vmm(
    context: &Context,
    volume: &Volume,
    instance_id: &str,
) -> Result<(), ControlError> {
    let run_dir = context.settings.run_dir(instance_id);
    let mut control = Control::connect(&run_dir, instance_id, ANSWER).await?;
    let serial = volume.serial();
    let mut size_bytes = volume.size_bytes;
    if let Some(target) = volume.growing_to {
        size_bytes = target;
        let serial = serial.clone();
        control
            .tell(&Request::ResizeDisk { serial, size_bytes })
            .await?;
    }
    // Credits stay as the VMM has counted them.
    let limits = context.classes.limits(&volume.class, size_bytes, None);
    control.tell(&Request::SetThrottle { serial, limits }).await
}

/// Commits how a modification ended: with this size, or with words why not.
async fn commit(context: &Context, id: String, result: Result<u64, String>) -> ApiResult<Volume> {
    context
        .db
        .write(move |tx| {
            let volume = get(tx, &id, "volume_id")?;
            let after = match result {
                Ok(size_bytes) => Volume {
                    size_bytes,
                    ..volume.modified(ModificationState::Completed, String::new())
                },
                Err(message) => volume.modified(ModificationState::Failed, message),
            };
            db::volumes::update(tx, &volume, &after)?;
            Ok(after)
        })
        .await
}

impl Volume {
    /// With this to become.
    fn modifying(&self, target: Target, now: Millis) -> Self {
        let original = Target {
            size_bytes: self.size_bytes,
            class: self.class.clone(),
        };
        Self {
            growing_to: (target.size_bytes > self.size_bytes).then_some(target.size_bytes),
            class: target.class.clone(),
            modification: Some(Modification {
                state: ModificationState::Modifying,
                original,
                target,
                start: now.0,
                end: None,
                message: String::new(),
            }),
            ..self.clone()
        }
    }

    /// With its modification at an end.
    fn modified(&self, state: ModificationState, message: String) -> Self {
        let mut after = Self {
            growing_to: None,
            ..self.clone()
        };
        if let Some(modification) = &mut after.modification {
            modification.state = state;
            modification.end = Some(Millis::now().0);
            modification.message = message;
            if state == ModificationState::Failed {
                after.class = modification.original.class.clone();
            }
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            seq: 1,
            id: "vol-0123456789abcdef0".to_owned(),
            owner: "o".to_owned(),
            state: VolumeState::Available,
            size_bytes: 10 * GIB,
            image_id: None,
            snapshot_id: None,
            attachment: None,
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
            growing_to: None,
            class: ClassChoice::from_wire("gp3".to_owned(), 4000, 0),
            credits: None,
            modification: None,
        }
    }

    fn asked(size_gib: u64, volume_class: &str, iops: u32) -> ModifyRequest {
        ModifyRequest {
            size_gib,
            volume_class: volume_class.to_owned(),
            iops,
            ..ModifyRequest::default()
        }
    }

    #[test]
    fn what_is_not_asked_for_stays_and_another_class_starts_with_its_own_figures() {
        let target = |request| target(&volume(), &request).expect("fine");
        let same = target(asked(0, "", 5000));
        assert_eq!((same.size_bytes, same.class.iops), (10 * GIB, 5000));
        let larger = target(asked(20, "gp3", 0));
        assert_eq!((larger.size_bytes, larger.class.iops), (20 * GIB, 4000));
        let other = target(asked(0, "gp2", 0));
        assert_eq!((other.class.name.as_str(), other.class.iops), ("gp2", 0));
        let error = super::target(&volume(), &asked(9, "", 0)).expect_err("smaller");
        assert_eq!(error.fields(), ["size_gib"]);
    }

    #[test]
    fn a_failed_modification_leaves_what_was_before() {
        let request = asked(20, "gp2", 0);
        let target = target(&volume(), &request).expect("fine");
        let modifying = volume().modifying(target, Millis(5));
        assert!(modifying.is_being_modified());
        assert_eq!(modifying.growing_to, Some(20 * GIB));
        let failed = modifying.modified(ModificationState::Failed, "no room".to_owned());
        assert!(!failed.is_being_modified());
        assert_eq!(
            (failed.size_bytes, &failed.class),
            (10 * GIB, &volume().class)
        );
        assert_eq!(failed.modification.expect("kept").message, "no room");
        let completed = modifying.modified(ModificationState::Completed, String::new());
        assert_eq!(completed.class.name, "gp2");
    }
}
