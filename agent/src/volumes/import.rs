//! ImportVolume: a volume from a raw or qcow2 file that a caller sends and nobody trusts.

use std::sync::Arc;

use hearth_images::{DiskFormat, ErrorKind, ImportOptions, ImportSource, VolumeInfo, crash_point};

use super::{
    VolumeView, check_size_gib, earlier, finish_creating,
    model::{GIB, Volume, VolumeState},
    undo_creating, view, volume_id,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult},
    ids::Kind,
    images::file,
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
    transfer::Body,
};

/// Name of the operation for client tokens.
pub const IMPORT: &str = "ImportVolume";

/// What a caller says about the file.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub format: Option<DiskFormat>,
    pub length_bytes: u64,
    pub sha256: String,
    pub size_gib: u64,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

impl ImportRequest {
    /// Checks all that needs neither database nor file.
    pub fn check(&self) -> ApiResult<()> {
        file::check_length(
            self.length_bytes,
            hearth_images::MAX_DISK_BYTES,
            "header.length_bytes",
        )?;
        file::check_sha256(&self.sha256, "header.sha256")?;
        if self.size_gib != 0 {
            check_size_gib(self.size_gib, "header.size_gib")?;
        }
        tags::check(&self.tags, "header.tags")
    }
}

/// Reads the file from `body`.
pub async fn import(
    context: Arc<Context>,
    request: ImportRequest,
    body: Body,
) -> ApiResult<VolumeView> {
    request.check()?;
    carried_through(async move {
        let id = Kind::Volume.new_id()?;
        let _busy = context.busy.mark(&id);
        let row = request.clone();
        let (volume, new) = context.db.write(move |tx| insert(tx, &id, &row)).await?;
        if !new {
            return view(&context, volume).await;
        }
        crash_point("volume.row-importing");
        let (store, id) = (context.store.clone(), volume_id(&volume.id)?);
        let done = blocking("importing a volume", move || {
            receive(&store, &id, &request, body)
        })
        .await?;
        match done {
            Ok(info) => {
                crash_point("volume.imported");
                let available = finish_creating(&context, volume, info.size_bytes).await?;
                view(&context, available).await
            }
            Err(error) => {
                undo_creating(&context, IMPORT, volume).await?;
                Err(error)
            }
        }
    })
    .await
}

fn insert(tx: &mut db::Tx<'_>, id: &str, request: &ImportRequest) -> ApiResult<(Volume, bool)> {
    if let Some(earlier) = earlier(tx, request.token.as_ref())? {
        return Ok((earlier, false));
    }
    let mut volume = Volume {
        seq: 0,
        id: id.to_owned(),
        owner: request.owner.clone(),
        state: VolumeState::Creating,
        size_bytes: request.size_gib * GIB,
        image_id: None,
        snapshot_id: None,
        attachment: None,
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
        growing_to: None,
    };
    db::volumes::insert(tx, &mut volume)?;
    if let Some(token) = &request.token {
        token.keep(tx, std::slice::from_ref(&volume.id))?;
    }
    Ok((volume, true))
}

fn receive(
    store: &hearth_images::Store,
    id: &hearth_images::VolumeId,
    request: &ImportRequest,
    mut body: Body,
) -> ApiResult<VolumeInfo> {
    let options = ImportOptions {
        format: request.format,
        length_bytes: Some(request.length_bytes),
        sha256: file::wanted_sha256(&request.sha256),
        grow_to_bytes: (request.size_gib != 0).then_some(request.size_gib * GIB),
    };
    let mut bytes = std::io::Read::take(&mut body, request.length_bytes);
    let result = store.import_volume(id, ImportSource::Stream(&mut bytes), options);
    let info = result.map_err(|error| {
        let field = match error.kind() {
            ErrorKind::InvalidSize if request.size_gib != 0 => "header.size_gib",
            ErrorKind::DigestMismatch => "header.sha256",
            ErrorKind::LengthMismatch => "header.length_bytes",
            _ => "data",
        };
        let error = match error.kind() {
            // The stream's own error; the body knows better.
            ErrorKind::Io => ApiError::internal("importing a volume", &error),
            _ => ApiError::from_store(&error, field, "importing a volume"),
        };
        body.or_incomplete(error)
    })?;
    body.finish()?;
    Ok(info)
}
