//! CreateSnapshot and CreateSnapshots.
//!
//! The rows come first, as `pending`, and say whether an instance was stopped for them. While
//! they are pending nobody starts on their volumes, deletes them or makes them larger.

use std::{sync::Arc, time::Duration};

use hearth_images::crash_point;

use super::{
    check_description, delete, get,
    model::{Snapshot, SnapshotState},
    store,
};
use crate::{
    blocking::carried_through,
    busy::BusyGuard,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{
        Instances, STOP_PATIENCE,
        model::Instance,
        state::{Asked, InstanceState},
    },
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    volumes::{
        self,
        model::{AttachmentState, Volume, VolumeState},
    },
};

/// Names of the operations for client tokens.
pub const CREATE: &str = "CreateSnapshot";
pub const CREATE_MANY: &str = "CreateSnapshots";

/// How much longer than its guest an instance may take to be stopped.
const STOPPED: Duration = Duration::from_secs(120);

/// What is to be taken snapshots of.
#[derive(Clone, Debug)]
pub enum Source {
    Volume(String),
    Instance {
        instance_id: String,
        /// Only these; all when empty.
        volume_ids: Vec<String>,
        exclude_root: bool,
    },
}

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct TakeRequest {
    /// The account that will own the snapshots.
    pub owner: String,
    pub source: Source,
    pub description: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
    /// Stop the instance first, and start it again.
    pub stop_first: bool,
    /// How long the guest may take to shut down for that.
    pub patience: Duration,
}

/// What became of it.
#[derive(Debug)]
pub struct Taken {
    pub snapshots: Vec<Snapshot>,
    /// For people.
    pub warnings: Vec<String>,
}

/// Rows that were just made, or those of an earlier call.
pub struct Inserted {
    pub snapshots: Vec<Snapshot>,
    warnings: Vec<String>,
    /// Nobody else works on them; none for those of an earlier call.
    pub busy: Vec<BusyGuard>,
}

/// Takes snapshots, all at one point in time; all or none.
pub async fn take(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: TakeRequest,
) -> ApiResult<Taken> {
    request.check()?;
    let patience = request.patience;
    carried_through(async move {
        let (row, shared) = (request.clone(), context.clone());
        let inserted = context.db.write(move |tx| row.insert(tx, &shared)).await?;
        let Inserted {
            snapshots,
            warnings,
            busy,
        } = inserted;
        if busy.is_empty() {
            return Ok(Taken {
                snapshots,
                warnings,
            });
        }
        crash_point("snapshot.rows-pending");
        match taken(&context, &instances, &snapshots, patience).await {
            Ok(snapshots) => {
                crash_point("snapshot.rows-completed");
                start_again(&context, &instances, &snapshots).await;
                Ok(Taken {
                    snapshots,
                    warnings,
                })
            }
            Err(error) => {
                delete::undo(&context, &instances, snapshots).await;
                Err(error)
            }
        }
    })
    .await
}

/// Everything between the pending rows and the completed ones. A guest that has to be stopped
/// may take `patience` to shut down.
pub async fn taken(
    context: &Context,
    instances: &Instances,
    snapshots: &[Snapshot],
    patience: Duration,
) -> ApiResult<Vec<Snapshot>> {
    for instance_id in snapshots.iter().filter_map(|s| s.starts_instance.as_ref()) {
        stop(instances, instance_id, patience).await?;
        crash_point("snapshot.instance-stopped");
    }
    let sizes = store::take(context, snapshots).await?;
    crash_point("snapshot.taken");
    let snapshots = snapshots.to_vec();
    let completed = context
        .db
        .write(move |tx| {
            let mut completed = Vec::with_capacity(snapshots.len());
            for (before, size_bytes) in snapshots.into_iter().zip(sizes) {
                let after = Snapshot {
                    state: SnapshotState::Completed,
                    size_bytes,
                    ..before.clone()
                };
                db::snapshots::update(tx, &before, &after)?;
                completed.push(after);
            }
            Ok::<_, ApiError>(completed)
        })
        .await?;
    context.merge_wanted.notify_one();
    Ok(completed)
}

async fn stop(instances: &Instances, id: &str, patience: Duration) -> ApiResult<()> {
    let asked = Asked::Stop { force: false };
    instances.ask(vec![id.to_owned()], asked, patience).await?;
    let over = |state| !matches!(state, InstanceState::Running | InstanceState::Stopping);
    let state = match instances.live(id) {
        None => InstanceState::Terminated,
        Some(mut live) => {
            let stopped = live.wait_for(|live| over(live.state));
            match tokio::time::timeout(patience + STOPPED, stopped).await {
                Ok(Ok(live)) => live.state,
                Ok(Err(_)) => InstanceState::Terminated,
                Err(_) => InstanceState::Stopping,
            }
        }
    };
    if state == InstanceState::Stopped {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::IncorrectInstanceState,
        format!(
            "{id} was to be stopped for a snapshot and is {}",
            state.word()
        ),
    )
    .with("resource_id", id)
    .with("state", state.word()))
}

/// Starts the instances that were stopped for these snapshots. What fails is tried again by
/// reconciliation.
pub async fn start_again(context: &Context, instances: &Instances, snapshots: &[Snapshot]) {
    for snapshot in snapshots {
        let Some(instance_id) = snapshot.starts_instance.clone() else {
            continue;
        };
        let started = instances
            .ask(vec![instance_id.clone()], Asked::Start, STOP_PATIENCE)
            .await;
        if let Err(error) = started {
            tracing::warn!(instance = instance_id, %error, "starting it after a snapshot");
            if !is_over(context, instance_id).await {
                continue;
            }
        }
        let before = snapshot.clone();
        let cleared = context.db.write(move |tx| {
            let after = Snapshot {
                starts_instance: None,
                ..before.clone()
            };
            db::snapshots::update(tx, &before, &after)
        });
        if let Err(error) = cleared.await {
            tracing::warn!(snapshot = snapshot.id, %error, "its instance was started");
        }
    }
}

/// Whether an instance is terminated, or about to be: there is nothing to start.
async fn is_over(context: &Context, id: String) -> bool {
    let found = context.db.read(move |c| db::instances::get(c, &id)).await;
    match found {
        Ok(None) => true,
        Ok(Some(instance)) => matches!(
            instance.state,
            InstanceState::ShuttingDown | InstanceState::Terminated
        ),
        Err(_) => false,
    }
}

impl TakeRequest {
    fn check(&self) -> ApiResult<()> {
        match &self.source {
            Source::Volume(id) => Kind::Volume.check(id, "volume_id")?,
            Source::Instance {
                instance_id,
                volume_ids,
                exclude_root,
            } => {
                Kind::Instance.check(instance_id, "instance_id")?;
                Kind::Volume.check_optional_list(volume_ids, "volume_ids")?;
                if *exclude_root && !volume_ids.is_empty() {
                    return Err(ApiError::field(
                        Reason::InvalidParameterCombination,
                        "exclude_root",
                        "say which volumes, or leave the root out",
                    ));
                }
            }
        }
        check_description(&self.description)?;
        tags::check(&self.tags, "tags")
    }

    /// Makes the rows, or finds those of an earlier call.
    pub fn insert(&self, tx: &mut db::Tx<'_>, context: &Context) -> ApiResult<Inserted> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            let earlier = ids.iter().map(|id| get(tx, id, "client_token"));
            return Ok(Inserted {
                snapshots: earlier.collect::<ApiResult<_>>()?,
                warnings: Vec::new(),
                busy: Vec::new(),
            });
        }
        let (volumes, instance) = self.volumes(tx)?;
        let running = instance
            .as_ref()
            .filter(|instance| instance.state != InstanceState::Stopped);
        if let Some(instance) = running {
            self.check_instance(instance)?;
        }
        let mut inserted = Inserted {
            snapshots: Vec::with_capacity(volumes.len()),
            warnings: Vec::new(),
            busy: Vec::with_capacity(volumes.len()),
        };
        for volume in volumes {
            let id = Kind::Snapshot.new_id()?;
            // Before the row can be seen.
            inserted.busy.push(context.busy.mark(&id));
            if let Some(instance) = running.filter(|_| !self.stop_first)
                && is_root(instance, &volume)
            {
                inserted.warnings.push(format!(
                    "{id} is of the root of {}, which was running: it holds what a power failure \
                     would have left; stop_first avoids that",
                    instance.id
                ));
            }
            // One row of the call is enough to remember.
            let first = inserted.snapshots.is_empty();
            let mut snapshot = Snapshot {
                seq: 0,
                id,
                owner: self.owner.clone(),
                state: SnapshotState::Pending,
                state_message: String::new(),
                volume_id: volume.id,
                source_id: None,
                size_bytes: volume.size_bytes,
                description: self.description.clone(),
                create_time: Millis::now(),
                tags: self.tags.clone(),
                client_token: self.client_token.clone(),
                starts_instance: running
                    .filter(|_| self.stop_first && first)
                    .map(|instance| instance.id.clone()),
            };
            db::snapshots::insert(tx, &mut snapshot)?;
            inserted.snapshots.push(snapshot);
        }
        if let Some(token) = &self.token {
            let ids: Vec<String> = inserted.snapshots.iter().map(|s| s.id.clone()).collect();
            token.keep(tx, &ids)?;
        }
        Ok(inserted)
    }

    /// The volumes that are wanted, and the instance that they are attached to.
    fn volumes(&self, tx: &db::Tx<'_>) -> ApiResult<(Vec<Volume>, Option<Instance>)> {
        match &self.source {
            Source::Volume(id) => {
                let volume = volumes::get(tx, id, "volume_id")?;
                check_volume(&volume, "volume_id")?;
                let instance = match &volume.attachment {
                    Some(attachment) => db::instances::get(tx, &attachment.instance_id)?,
                    None => None,
                };
                Ok((vec![volume], instance))
            }
            Source::Instance {
                instance_id,
                volume_ids,
                exclude_root,
            } => {
                let instance = db::instances::get(tx, instance_id)?
                    .ok_or_else(|| Kind::Instance.missing(instance_id, "instance_id"))?;
                let mut volumes = db::volumes::of_instance(tx, instance_id)?;
                for (index, id) in volume_ids.iter().enumerate() {
                    if !volumes.iter().any(|volume| volume.id == *id) {
                        let field = format!("volume_ids[{index}]");
                        volumes::get(tx, id, &field)?;
                        return Err(ApiError::invalid(
                            field,
                            format!("{id} is not attached to {instance_id}"),
                        ));
                    }
                }
                volumes.retain(|volume| {
                    let wanted = volume_ids.is_empty() || volume_ids.contains(&volume.id);
                    wanted && !(*exclude_root && is_root(&instance, volume))
                });
                if volumes.is_empty() {
                    return Err(ApiError::field(
                        Reason::IncorrectState,
                        "instance_id",
                        format!("{instance_id} has no such volume"),
                    ));
                }
                volumes
                    .iter()
                    .try_for_each(|volume| check_volume(volume, "instance_id"))?;
                Ok((volumes, Some(instance)))
            }
        }
    }

    fn check_instance(&self, instance: &Instance) -> ApiResult<()> {
        let fine = match instance.state {
            InstanceState::Running => true,
            InstanceState::Pending | InstanceState::Stopping => !self.stop_first,
            _ => false,
        };
        if fine {
            return Ok(());
        }
        let state = instance.state.word();
        Err(ApiError::new(
            Reason::IncorrectInstanceState,
            format!("{} is {state}; no snapshot can be taken now", instance.id),
        )
        .with("resource_id", &instance.id)
        .with("state", state))
    }
}

fn is_root(instance: &Instance, volume: &Volume) -> bool {
    let device = volume.attachment.as_ref().map(|a| a.device.as_str());
    device.is_some() && device == instance.root_device.as_deref()
}

fn check_volume(volume: &Volume, field: &str) -> ApiResult<()> {
    let refused = |what: &str| {
        Err(ApiError::field(
            Reason::IncorrectState,
            field,
            format!("{} is {what}", volume.id),
        )
        .with("resource_id", &volume.id)
        .with("state", volume.state.word()))
    };
    let attachment = volume.attachment.as_ref().map(|a| a.state);
    match volume.state {
        _ if attachment.is_some_and(|state| state != AttachmentState::Attached) => {
            refused("being attached or detached")
        }
        _ if volume.growing_to.is_some() => refused("being made larger"),
        VolumeState::Available | VolumeState::InUse => Ok(()),
        state => refused(state.word()),
    }
}
