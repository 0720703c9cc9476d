//! Volumes, snapshots and images as stand-alone files.

use std::sync::Arc;

use hearth_images::{DiskFormat, ErrorKind, Export, Piece, SnapshotId, Store, VolumeId};
use tokio::sync::mpsc;

use crate::{
    blocking::blocking,
    busy::BusyGuard,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, hex},
    images::model::ImageState,
    volumes::model::VolumeState,
};

/// What is sent.
#[derive(Debug)]
pub enum Message {
    Header {
        format: DiskFormat,
        length_bytes: u64,
        size_bytes: u64,
    },
    Data(Vec<u8>),
    Zeroes(u64),
    /// Hexadecimal SHA-256 of the whole file.
    Trailer(String),
}

/// The messages of an export.
pub type Messages = mpsc::Receiver<ApiResult<Message>>;

/// ExportVolume.
pub async fn volume(context: Arc<Context>, id: String, format: DiskFormat) -> ApiResult<Messages> {
    Kind::Volume.check(&id, "volume_id")?;
    let busy = context.busy.mark(&id);
    let (row_id, name) = (id.clone(), id.clone());
    let row = context
        .db
        .read(move |connection| db::volumes::get(connection, &row_id))
        .await?
        .ok_or_else(|| Kind::Volume.missing(&id, "volume_id"))?;
    if !matches!(row.state, VolumeState::Available | VolumeState::InUse) {
        return Err(ApiError::field(
            Reason::IncorrectState,
            "volume_id",
            format!("{id} is {}", row.state.word()),
        )
        .with("resource_id", &id));
    }
    let doing = "exporting a volume";
    let opened = open(&context, doing, move |store| {
        store.export_volume(&VolumeId::new(name)?, format)
    })
    .await?;
    let export = opened.map_err(|error| match (error.kind(), &row.attachment) {
        (ErrorKind::InUse, Some(attachment)) => ApiError::field(
            Reason::VolumeInUse,
            "volume_id",
            format!(
                "{id} is in use by {}; stop it, or export a snapshot",
                attachment.instance_id
            ),
        )
        .with("resource_id", &id),
        // Deleted a moment ago.
        (ErrorKind::NotFound, _) => Kind::Volume.missing(&id, "volume_id"),
        _ => ApiError::from_store(&error, "volume_id", doing),
    })?;
    Ok(send(&context, export, Some(busy), doing))
}

/// ExportSnapshot.
pub async fn snapshot(
    context: Arc<Context>,
    id: String,
    format: DiskFormat,
) -> ApiResult<Messages> {
    Kind::Snapshot.check(&id, "snapshot_id")?;
    let missing = Kind::Snapshot.missing(&id, "snapshot_id");
    let doing = "exporting a snapshot";
    stored_snapshot(&context, id, format, missing, "snapshot_id", doing).await
}

/// ExportImage.
pub async fn image(context: Arc<Context>, id: String, format: DiskFormat) -> ApiResult<Messages> {
    Kind::Image.check(&id, "image_id")?;
    let missing = Kind::Image.missing(&id, "image_id");
    let row_id = id.clone();
    let Some(row) = context
        .db
        .read(move |connection| db::images::get(connection, &row_id))
        .await?
    else {
        return Err(missing);
    };
    if row.state != ImageState::Available {
        return Err(ApiError::field(
            Reason::ImageUnavailable,
            "image_id",
            format!("the image {id} is {}", row.state.word()),
        ));
    }
    if !row.has_root {
        return Err(ApiError::invalid(
            "image_id",
            format!("the image {id} has no root"),
        ));
    }
    let doing = "exporting an image";
    let stored = row.root_disk().map_or(id, |disk| disk.snapshot_id.clone());
    stored_snapshot(&context, stored, format, missing, "image_id", doing).await
}

async fn stored_snapshot(
    context: &Arc<Context>,
    id: String,
    format: DiskFormat,
    missing: ApiError,
    field: &str,
    doing: &'static str,
) -> ApiResult<Messages> {
    let opened = open(context, doing, move |store| {
        store.export_snapshot(&SnapshotId::new(id)?, format)
    })
    .await?;
    let export = opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => missing,
        _ => ApiError::from_store(&error, field, doing),
    })?;
    Ok(send(context, export, None, doing))
}

async fn open(
    context: &Context,
    doing: &'static str,
    start: impl FnOnce(&Store) -> hearth_images::Result<Export> + Send + 'static,
) -> ApiResult<hearth_images::Result<Export>> {
    let store = context.store.clone();
    blocking(doing, move || start(&store)).await
}

/// Sends everything, until nobody listens any more or the daemon ends.
fn send(
    context: &Arc<Context>,
    mut export: Export,
    busy: Option<BusyGuard>,
    doing: &'static str,
) -> Messages {
    let (sender, receiver) = mpsc::channel(4);
    let context = context.clone();
    tokio::task::spawn_blocking(move || {
        let header = Message::Header {
            format: export.format(),
            length_bytes: export.length_bytes(),
            size_bytes: export.size_bytes(),
        };
        let mut next = Ok(header);
        loop {
            let failed = next.is_err();
            if sender.blocking_send(next).is_err() || failed {
                return;
            }
            next = match export.next_piece() {
                _ if context.shutdown.is_ending() => {
                    Err(ApiError::new(Reason::Unavailable, "hearthd is ending"))
                }
                Ok(Some(Piece::Data(data))) => Ok(Message::Data(data)),
                Ok(Some(Piece::Zeroes(length))) => Ok(Message::Zeroes(length)),
                Ok(None) => break,
                Err(error) => Err(ApiError::from_store(&error, "", doing)),
            };
        }
        // The volume may be started again before the caller has seen the end.
        let sha256 = hex(&export.sha256());
        drop(busy);
        let _ = sender.blocking_send(Ok(Message::Trailer(sha256)));
    });
    receiver
}
