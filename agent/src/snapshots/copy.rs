//! CopySnapshot: a second name for the same sealed layer, so constant time.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    check_description, delete, get, get_completed,
    model::{Snapshot, SnapshotState},
    snapshot_id,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db,
    error::{ApiError, ApiResult},
    ids::Kind,
    instances::Instances,
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const COPY: &str = "CopySnapshot";

/// What a caller wants.
#[derive(Clone, Debug)]
pub struct CopyRequest {
    /// The account that will own the copy.
    pub owner: String,
    pub source_id: String,
    pub description: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// CopySnapshot.
pub async fn copy(
    context: Arc<Context>,
    instances: Arc<Instances>,
    request: CopyRequest,
) -> ApiResult<Snapshot> {
    Kind::Snapshot.check(&request.source_id, "source_snapshot_id")?;
    check_description(&request.description)?;
    tags::check(&request.tags, "tags")?;
    carried_through(async move {
        let id = Kind::Snapshot.new_id()?;
        let _busy = context.busy.mark(&id);
        let (source, new_id) = (request.source_id.clone(), id.clone());
        let (pending, new) = context
            .db
            .write(move |tx| insert(tx, new_id, &request))
            .await?;
        if !new {
            return Ok(pending);
        }
        crash_point("snapshot.row-copying");
        let (store, from, to) = (
            context.store.clone(),
            snapshot_id(&source)?,
            snapshot_id(&id)?,
        );
        let copied = blocking("copying a snapshot", move || {
            store.copy_snapshot(&from, &to)
        })
        .await?;
        match copied {
            Ok(info) => {
                crash_point("snapshot.copied");
                complete(&context, pending, info.size_bytes).await
            }
            Err(error) => {
                delete::undo(&context, &instances, vec![pending]).await;
                Err(ApiError::from_store(&error, "", "copying a snapshot"))
            }
        }
    })
    .await
}

async fn complete(context: &Context, before: Snapshot, size_bytes: u64) -> ApiResult<Snapshot> {
    context
        .db
        .write(move |tx| {
            let after = Snapshot {
                state: SnapshotState::Completed,
                size_bytes,
                ..before.clone()
            };
            db::snapshots::update(tx, &before, &after)?;
            Ok::<_, ApiError>(after)
        })
        .await
}

fn insert(tx: &mut db::Tx<'_>, id: String, request: &CopyRequest) -> ApiResult<(Snapshot, bool)> {
    if let Some(token) = &request.token
        && let Some(ids) = token.earlier(tx)?
    {
        let earlier = ids.first().map(String::as_str).unwrap_or_default();
        return Ok((get(tx, earlier, "client_token")?, false));
    }
    let source = get_completed(tx, &request.source_id, "source_snapshot_id")?;
    let description = match request.description.as_str() {
        "" => source.description,
        description => description.to_owned(),
    };
    let mut copy = Snapshot {
        seq: 0,
        id,
        owner: request.owner.clone(),
        state: SnapshotState::Pending,
        state_message: String::new(),
        volume_id: String::new(),
        source_id: Some(source.id),
        size_bytes: source.size_bytes,
        description,
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
        starts_instance: None,
    };
    db::snapshots::insert(tx, &mut copy)?;
    if let Some(token) = &request.token {
        token.keep(tx, std::slice::from_ref(&copy.id))?;
    }
    Ok((copy, true))
}
