//! CopyImage: an image of the same disks and the same kernel, which the caller owns. Constant
//! time: its snapshots are second names of the same layers.

use std::sync::Arc;

use hearth_images::{SnapshotId, crash_point};

use super::{
    check_description, check_name, check_name_free, get,
    model::{Image, ImageDisk, ImageState},
    snapshot_id, undo,
};
use crate::{
    blocking::{blocking, carried_through},
    busy::BusyGuard,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::{Instances, devices::ROOT},
    snapshots::{
        self,
        model::{Snapshot, SnapshotState},
    },
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const COPY: &str = "CopyImage";

/// What a caller wants copied.
#[derive(Clone, Debug)]
pub struct CopyRequest {
    /// The account that will own the copy and its snapshots.
    pub owner: String,
    pub source_image_id: String,
    pub name: String,
    /// Empty keeps the source's.
    pub description: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// A new image, its new snapshots, and what each is a copy of in the store.
struct New {
    image: Image,
    snapshots: Vec<(String, Snapshot)>,
    _busy: Vec<BusyGuard>,
}

impl CopyRequest {
    fn insert(
        &self,
        tx: &mut db::Tx<'_>,
        id: &str,
        context: &Context,
    ) -> ApiResult<Result<New, Image>> {
        if let Some(token) = &self.token
            && let Some(ids) = token.earlier(tx)?
        {
            let id = ids.first().map(String::as_str).unwrap_or_default();
            return Ok(Err(get(tx, id, "client_token")?));
        }
        let source = get(tx, &self.source_image_id, "source_image_id")?;
        if source.state != ImageState::Available {
            return Err(ApiError::field(
                Reason::ImageUnavailable,
                "source_image_id",
                format!("the image {} is {}", source.id, source.state.word()),
            ));
        }
        check_name_free(tx, &self.owner, &self.name, "name")?;
        // A root that came with an import goes by the image's own name in the store.
        let imported = (source.has_root && source.root_disk().is_none()).then(|| ImageDisk {
            device: ROOT.to_owned(),
            snapshot_id: source.id.clone(),
            size_bytes: source.root_size_bytes,
            delete_on_termination: true,
        });
        let mut new = New {
            image: Image {
                seq: 0,
                id: id.to_owned(),
                owner: self.owner.clone(),
                name: self.name.clone(),
                description: match self.description.as_str() {
                    "" => source.description.clone(),
                    description => description.to_owned(),
                },
                state: ImageState::Pending,
                create_time: Millis::now(),
                tags: self.tags.clone(),
                client_token: self.client_token.clone(),
                disks: Vec::new(),
                source_instance_id: None,
                deprecation_time: None,
                ..source.clone()
            },
            snapshots: Vec::new(),
            _busy: Vec::new(),
        };
        for disk in imported.iter().chain(&source.disks) {
            let snapshot = self.snapshot(disk, id)?;
            new.image.disks.push(ImageDisk {
                snapshot_id: snapshot.id.clone(),
                ..disk.clone()
            });
            // Before the row can be seen.
            new._busy.push(context.busy.mark(&snapshot.id));
            new.snapshots.push((disk.snapshot_id.clone(), snapshot));
        }
        for (_, snapshot) in &mut new.snapshots {
            db::snapshots::insert(tx, snapshot)?;
        }
        db::images::insert(tx, &mut new.image)?;
        if let Some(token) = &self.token {
            token.keep(tx, std::slice::from_ref(&new.image.id))?;
        }
        Ok(Ok(new))
    }

    fn snapshot(&self, disk: &ImageDisk, image_id: &str) -> ApiResult<Snapshot> {
        let of_snapshot = Kind::Snapshot.matches(&disk.snapshot_id);
        Ok(Snapshot {
            seq: 0,
            id: Kind::Snapshot.new_id()?,
            owner: self.owner.clone(),
            state: SnapshotState::Pending,
            state_message: String::new(),
            volume_id: String::new(),
            source_id: of_snapshot.then(|| disk.snapshot_id.clone()),
            size_bytes: disk.size_bytes,
            description: format!(
                "made by CopyImage of {} for {image_id}",
                self.source_image_id
            ),
            create_time: Millis::now(),
            tags: Vec::new(),
            client_token: String::new(),
            starts_instance: None,
        })
    }
}

/// CopyImage.
pub async fn copy(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: CopyRequest,
) -> ApiResult<Image> {
    Kind::Image.check(&request.source_image_id, "source_image_id")?;
    check_name(&request.name, "name")?;
    check_description(&request.description, "description")?;
    tags::check(&request.tags, "tags")?;
    carried_through(async move {
        let id = Kind::Image.new_id()?;
        let _busy = context.busy.mark(&id);
        let shared = context.clone();
        let inserted = context
            .db
            .write(move |tx| request.insert(tx, &id, &shared))
            .await?;
        let New {
            image,
            snapshots,
            _busy,
        } = match inserted {
            Ok(new) => new,
            Err(earlier) => return Ok(earlier),
        };
        crash_point("image.row-copying");
        let result = match copy_in_store(&context, &snapshots).await {
            Ok(()) => finish(&context, image.clone(), snapshots.clone()).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            undo(&context, image).await?;
            let snapshots = snapshots.into_iter().map(|(_, snapshot)| snapshot);
            snapshots::delete::undo(&context, &instances, snapshots.collect()).await;
        }
        result
    })
    .await
}

async fn copy_in_store(context: &Context, snapshots: &[(String, Snapshot)]) -> ApiResult<()> {
    let pairs: Vec<(SnapshotId, SnapshotId)> = snapshots
        .iter()
        .map(|(from, to)| Ok((snapshot_id(from)?, snapshot_id(&to.id)?)))
        .collect::<ApiResult<_>>()?;
    let store = context.store.clone();
    blocking("copying snapshots", move || {
        pairs
            .iter()
            .try_for_each(|(from, to)| store.copy_snapshot(from, to).map(drop))
    })
    .await?
    .map_err(|error| ApiError::from_store(&error, "", "copying snapshots"))?;
    crash_point("image.snapshots-copied");
    Ok(())
}

async fn finish(
    context: &Context,
    pending: Image,
    snapshots: Vec<(String, Snapshot)>,
) -> ApiResult<Image> {
    let available = context
        .db
        .write(move |tx| {
            for (_, before) in &snapshots {
                let after = Snapshot {
                    state: SnapshotState::Completed,
                    ..before.clone()
                };
                db::snapshots::update(tx, before, &after)?;
            }
            let available = Image {
                state: ImageState::Available,
                ..pending.clone()
            };
            db::images::update(tx, &pending, &available)?;
            Ok::<_, ApiError>(available)
        })
        .await?;
    crash_point("image.row-available");
    Ok(available)
}
