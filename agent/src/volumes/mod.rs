//! Volumes: rows that say what is wanted, and disks in the store of `hearth-images`.
//!
//! - [`attach`]: putting volumes on stopped instances
//! - [`classes`]: what volumes may do in a second
//! - [`credits`]: how much of it they have saved
//! - [`import`]: volumes from files that callers send
//! - [`modify`]: larger ones, other classes

pub mod attach;
pub mod classes;
pub mod credits;
pub mod import;
pub mod model;
pub mod modify;

use std::sync::Arc;

use hearth_images::{ErrorKind, SnapshotId, Store, VolumeId, VolumeSource, crash_point};
use rusqlite::Connection;

use self::{
    classes::{Classes, Figures, choice::ClassChoice},
    model::{GIB, MAX_SIZE_GIB, Volume, VolumeState},
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    images::model::ImageState,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    snapshots,
    tags::{self, Tag},
    time::Millis,
    tokens::{self, ClientToken},
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateVolume";

/// What a caller wants made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub size_gib: u64,
    pub image_id: String,
    pub class: ClassChoice,
    pub snapshot_id: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// A volume, and what it alone takes on the host's disk.
#[derive(Clone, Debug)]
pub struct VolumeView {
    pub volume: Volume,
    pub allocated_bytes: u64,
    pub figures: Figures,
    /// Of a volume that has a burst.
    pub burst_balance_percent: Option<f64>,
}

/// CreateVolume.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<VolumeView> {
    let empty = request.image_id.is_empty() && request.snapshot_id.is_empty();
    if empty || request.size_gib != 0 {
        check_size_gib(request.size_gib, "size_gib")?;
        let size_bytes = request.size_gib * GIB;
        context.classes.check(&request.class, size_bytes, "")?;
    }
    if !request.image_id.is_empty() {
        Kind::Image.check(&request.image_id, "image_id")?;
    }
    if !request.snapshot_id.is_empty() {
        Kind::Snapshot.check(&request.snapshot_id, "snapshot_id")?;
        if !request.image_id.is_empty() {
            return Err(ApiError::field(
                Reason::InvalidParameterCombination,
                "snapshot_id",
                "give either a snapshot or an image",
            ));
        }
    }
    tags::check(&request.tags, "tags")?;
    carried_through(async move {
        let id = Kind::Volume.new_id()?;
        let _busy = context.busy.mark(&id);
        let classes = context.classes.clone();
        let (volume, new) = context
            .db
            .write(move |tx| insert_creating(tx, &classes, &id, &request))
            .await?;
        if !new {
            return view(&context, volume).await;
        }
        crash_point("volume.row-creating");
        let (store, row) = (context.store.clone(), volume.clone());
        match blocking("making a volume", move || make(&store, &row)).await? {
            Ok(size_bytes) => {
                crash_point("volume.made");
                let available = finish_creating(&context, volume, size_bytes).await?;
                view(&context, available).await
            }
            Err(error) => {
                undo_creating(&context, CREATE, volume).await?;
                Err(ApiError::from_store(&error, "size_gib", "making a volume"))
            }
        }
    })
    .await
}

fn insert_creating(
    tx: &mut db::Tx<'_>,
    classes: &Classes,
    id: &str,
    request: &CreateRequest,
) -> ApiResult<(Volume, bool)> {
    if let Some(earlier) = earlier(tx, request.token.as_ref())? {
        return Ok((earlier, false));
    }
    let (size_bytes, snapshot_id) = if !request.snapshot_id.is_empty() {
        let (id, size_gib) = (&request.snapshot_id, request.size_gib);
        let size_bytes = snapshots::volume_size(tx, id, size_gib, "snapshot_id", "size_gib")?;
        (size_bytes, Some(id.clone()))
    } else if request.image_id.is_empty() {
        (request.size_gib * GIB, None)
    } else {
        root_of_image(tx, &request.image_id, request.size_gib)?
    };
    classes.check(&request.class, size_bytes, "")?;
    let mut volume = Volume {
        seq: 0,
        id: id.to_owned(),
        owner: request.owner.clone(),
        state: VolumeState::Creating,
        size_bytes,
        image_id: (!request.image_id.is_empty()).then(|| request.image_id.clone()),
        snapshot_id,
        attachment: None,
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
        growing_to: None,
        class: request.class.clone(),
        credits: None,
        modification: None,
    };
    db::volumes::insert(tx, &mut volume)?;
    if let Some(token) = &request.token {
        token.keep(tx, std::slice::from_ref(&volume.id))?;
    }
    Ok((volume, true))
}

/// The volume that an earlier call with this token made.
fn earlier(connection: &Connection, token: Option<&ClientToken>) -> ApiResult<Option<Volume>> {
    let Some(ids) = token
        .map(|token| token.earlier(connection))
        .transpose()?
        .flatten()
    else {
        return Ok(None);
    };
    let id = ids.first().map(String::as_str).unwrap_or_default();
    get(connection, id, "client_token").map(Some)
}

/// The size of a volume made from an image's root, and the root's snapshot, if it has one of its
/// own.
fn root_of_image(
    connection: &Connection,
    image_id: &str,
    size_gib: u64,
) -> ApiResult<(u64, Option<String>)> {
    let image = db::images::get(connection, image_id)?
        .ok_or_else(|| Kind::Image.missing(image_id, "image_id"))?;
    if image.state != ImageState::Available {
        return Err(ApiError::field(
            Reason::ImageUnavailable,
            "image_id",
            format!("the image {image_id} is {}", image.state.word()),
        ));
    }
    if !image.has_root {
        return Err(ApiError::invalid(
            "image_id",
            format!("the image {image_id} has no root"),
        ));
    }
    let snapshot = image.root_disk().map(|disk| disk.snapshot_id.clone());
    let wanted = size_gib * GIB;
    match wanted {
        0 => Ok((image.root_size_bytes, snapshot)),
        wanted if wanted < image.root_size_bytes => Err(ApiError::invalid(
            "size_gib",
            format!(
                "the image's root has {} bytes; a volume only grows",
                image.root_size_bytes
            ),
        )),
        wanted => Ok((wanted, snapshot)),
    }
}

/// Commits that a volume is there.
async fn finish_creating(context: &Context, volume: Volume, size_bytes: u64) -> ApiResult<Volume> {
    let available = context
        .db
        .write(move |tx| {
            let after = Volume {
                state: VolumeState::Available,
                size_bytes,
                ..volume.clone()
            };
            db::volumes::update(tx, &volume, &after)?;
            Ok::<_, ApiError>(after)
        })
        .await?;
    crash_point("volume.row-available");
    Ok(available)
}

/// Takes back a volume that could not be made: store, row and client token.
pub async fn undo_creating(
    context: &Context,
    operation: &'static str,
    volume: Volume,
) -> ApiResult<()> {
    remove_from_store(context, &volume.id).await?;
    context
        .db
        .write(move |tx| {
            tokens::forget(tx, &volume.owner, operation, &volume.client_token)?;
            Ok(db::volumes::remove(tx, &volume)?)
        })
        .await
}

/// DeleteVolume.
pub async fn delete(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::Volume.check(&id, "volume_id")?;
    carried_through(async move {
        let _busy = context.busy.mark(&id);
        let deleting = context
            .db
            .write(move |tx| {
                let volume = get(tx, &id, "volume_id")?;
                check_free(&volume, "volume_id")?;
                check_no_snapshot(tx, &volume, "volume_id")?;
                let after = volume.deleting();
                db::volumes::update(tx, &volume, &after)?;
                Ok::<_, ApiError>(after)
            })
            .await?;
        crash_point("volume.row-deleting");
        finish_deleting(&context, &deleting).await
    })
    .await
}

/// Carries a deletion that is in the database through: store first, row last.
pub async fn finish_deleting(context: &Context, volume: &Volume) -> ApiResult<()> {
    remove_from_store(context, &volume.id).await?;
    crash_point("volume.gone-from-store");
    let volume = volume.clone();
    context
        .db
        .write(move |tx| db::volumes::remove(tx, &volume))
        .await?;
    crash_point("volume.row-removed");
    Ok(())
}

async fn remove_from_store(context: &Context, id: &str) -> ApiResult<()> {
    let (store, id) = (context.store.clone(), volume_id(id)?);
    match blocking("deleting a volume", move || store.delete_volume(&id)).await? {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(ApiError::from_store(&error, "", "deleting a volume"))
        }
        _ => Ok(()),
    }
}

/// DescribeVolumes.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<VolumeView>> {
    let page = context
        .db
        .read(move |connection| query.page(connection, "volume_ids", get, db::volumes::after))
        .await?;
    let balances = credits::balances(context, &page.objects).await;
    let (store, classes) = (context.store.clone(), context.classes.clone());
    blocking("looking at volumes", move || Page {
        objects: page
            .objects
            .into_iter()
            .zip(balances)
            .map(|(volume, balance)| with_allocated(&store, &classes, volume, balance))
            .collect(),
        next_token: page.next_token,
    })
    .await
}

/// A volume with what it takes on the disk.
pub async fn view(context: &Context, volume: Volume) -> ApiResult<VolumeView> {
    let balances = credits::balances(context, std::slice::from_ref(&volume)).await;
    let balance = balances.into_iter().next().flatten();
    let (store, classes) = (context.store.clone(), context.classes.clone());
    blocking("looking at a volume", move || {
        with_allocated(&store, &classes, volume, balance)
    })
    .await
}

fn with_allocated(
    store: &Store,
    classes: &Classes,
    volume: Volume,
    burst_balance_percent: Option<f64>,
) -> VolumeView {
    // Not there yet, or not any more: nothing allocated.
    let allocated =
        VolumeId::new(volume.id.as_str()).and_then(|id| store.volume_allocated_bytes(&id));
    VolumeView {
        figures: classes.figures(&volume.class, volume.size_bytes),
        volume,
        allocated_bytes: allocated.unwrap_or(0),
        burst_balance_percent,
    }
}

/// Makes the volume of a row in the store; one that is there already, from a start that was
/// cut off, is fine. Returns its size in bytes.
pub fn make(store: &Store, volume: &Volume) -> Result<u64, hearth_images::Error> {
    let id = VolumeId::new(volume.id.as_str())?;
    let image = volume
        .snapshot_id
        .as_deref()
        .or(volume.image_id.as_deref())
        .map(SnapshotId::new)
        .transpose()?;
    let source = image
        .as_ref()
        .map_or(VolumeSource::Empty, VolumeSource::Snapshot);
    match store.create_volume(&id, source, Some(volume.size_bytes)) {
        Ok(info) => Ok(info.size_bytes),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            store.volume(&id).map(|info| info.size_bytes)
        }
        Err(error) => Err(error),
    }
}

/// Checks that a volume is attached to nothing and nobody works on it.
pub fn check_free(volume: &Volume, field: &str) -> ApiResult<()> {
    let error = |reason, message: String| {
        Err(ApiError::field(reason, field, message).with("resource_id", &volume.id))
    };
    match (&volume.attachment, volume.state, volume.is_being_modified()) {
        (Some(attachment), ..) => error(
            Reason::VolumeInUse,
            format!(
                "{} is attached to {} as {}",
                volume.id, attachment.instance_id, attachment.device
            ),
        ),
        (None, VolumeState::Available, false) => Ok(()),
        (None, VolumeState::Available, true) => error(
            Reason::IncorrectState,
            format!("{} is being modified", volume.id),
        ),
        (None, state, _) => error(
            Reason::IncorrectState,
            format!("{} is {}", volume.id, state.word()),
        ),
    }
}

/// Checks that no snapshot of a volume is being taken: nobody may open, change or delete it then.
pub fn check_no_snapshot(connection: &Connection, volume: &Volume, field: &str) -> ApiResult<()> {
    match db::snapshots::being_taken_of(connection, &volume.id)? {
        None => Ok(()),
        Some(snapshot) => Err(ApiError::field(
            Reason::IncorrectState,
            field,
            format!("the snapshot {snapshot} of {} is being taken", volume.id),
        )
        .with("resource_id", &volume.id)),
    }
}

/// Checks a size that a caller gave.
pub fn check_size_gib(size_gib: u64, field: &str) -> ApiResult<()> {
    if (1..=MAX_SIZE_GIB).contains(&size_gib) {
        return Ok(());
    }
    Err(ApiError::invalid(
        field,
        format!("a volume has 1 to {MAX_SIZE_GIB} GiB, not {size_gib}"),
    ))
}

pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Volume> {
    db::volumes::get(connection, id)?.ok_or_else(|| Kind::Volume.missing(id, field))
}

pub fn volume_id(id: &str) -> ApiResult<VolumeId> {
    VolumeId::new(id).map_err(|error| ApiError::internal("naming a volume", error))
}

impl Described for Volume {
    const KIND: Kind = Kind::Volume;
    const FILTERS: &'static [&'static str] = &[
        "volume-id",
        "status",
        "size",
        "attachment.instance-id",
        "attachment.device",
        "attachment.status",
        "owner-id",
        "image-id",
        "volume-class",
        "snapshot-id",
    ];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        let attachment = self.attachment.as_ref();
        match filter {
            "volume-id" => vec![self.id.clone()],
            "status" => vec![self.state.word().to_owned()],
            "size" => vec![self.size_bytes.div_ceil(GIB).to_string()],
            "attachment.instance-id" => attachment
                .map(|a| a.instance_id.clone())
                .into_iter()
                .collect(),
            "attachment.device" => attachment.map(|a| a.device.clone()).into_iter().collect(),
            "attachment.status" => attachment
                .map(|a| a.state.word().to_owned())
                .into_iter()
                .collect(),
            "owner-id" => vec![self.owner.clone()],
            "volume-class" => vec![self.class.name.clone()],
            "image-id" => self.image_id.clone().into_iter().collect(),
            "snapshot-id" => self.snapshot_id.clone().into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags)
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
