//! What snapshots hold, block by block, in parts that go out one after the other: a slow caller
//! holds up its own reading and nothing else.

use hearth_images::{Block, ChangedBlock, ErrorKind, SnapshotReader};
use tokio::sync::mpsc;

use super::{get_completed, snapshot_id};
use crate::{
    blocking::blocking,
    context::Context,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
};

/// Most blocks of one GetSnapshotBlock.
const MAX_BLOCKS: usize = 1_000;

/// Indexes in one part of a list.
const PART: usize = 4_096;

/// Parts that may wait for a slow caller.
const WAITING: usize = 2;

/// A stream of parts; an error is its last.
pub type Parts<T> = mpsc::Receiver<ApiResult<T>>;

/// One part of a list.
#[derive(Debug)]
pub struct Part<T> {
    pub size_bytes: u64,
    pub blocks: Vec<T>,
}

/// ListSnapshotBlocks.
pub async fn list(context: &Context, id: String, start: u64) -> ApiResult<Parts<Part<u64>>> {
    let reader = open(context, id, "snapshot_id").await?;
    Ok(parts(reader.size_bytes(), reader.blocks(start)))
}

/// ListChangedBlocks.
pub async fn changed(
    context: &Context,
    first: String,
    second: String,
    start: u64,
) -> ApiResult<Parts<Part<ChangedBlock>>> {
    check(context, first.clone(), "first_snapshot_id").await?;
    check(context, second.clone(), "second_snapshot_id").await?;
    let (store, first, second) = (
        context.store.clone(),
        snapshot_id(&first)?,
        snapshot_id(&second)?,
    );
    let changed = blocking("comparing snapshots", move || {
        store.changed_blocks(&first, &second, start)
    })
    .await?
    .map_err(|error| match error.kind() {
        ErrorKind::Unrelated => ApiError::field(
            Reason::InvalidParameterValue,
            "second_snapshot_id",
            error.to_string(),
        ),
        _ => ApiError::from_store(&error, "", "comparing snapshots"),
    })?;
    Ok(parts(changed.size_bytes(), changed))
}

/// GetSnapshotBlock.
pub async fn read(context: &Context, id: String, indexes: Vec<u64>) -> ApiResult<Parts<Block>> {
    let field = "block_indexes";
    if indexes.is_empty() {
        let message = "say which blocks";
        return Err(ApiError::field(Reason::MissingParameter, field, message));
    }
    if indexes.len() > MAX_BLOCKS {
        return Err(ApiError::invalid(
            field,
            format!(
                "{} blocks are too many; at most {MAX_BLOCKS}",
                indexes.len()
            ),
        ));
    }
    let reader = open(context, id, "snapshot_id").await?;
    let count = reader.block_count();
    if let Some(at) = indexes.iter().position(|index| *index >= count) {
        return Err(ApiError::invalid(
            format!("{field}[{at}]"),
            format!("the snapshot has {count} blocks, from 0 on"),
        ));
    }
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        for index in indexes {
            let block = reader
                .block(index)
                .map_err(|error| ApiError::from_store(&error, "", "reading a block"));
            let last = block.is_err();
            if sender.blocking_send(block).is_err() || last {
                return;
            }
        }
    });
    Ok(receiver)
}

async fn check(context: &Context, id: String, field: &'static str) -> ApiResult<()> {
    Kind::Snapshot.check(&id, field)?;
    context
        .db
        .read(move |connection| get_completed(connection, &id, field).map(drop))
        .await
}

async fn open(context: &Context, id: String, field: &'static str) -> ApiResult<SnapshotReader> {
    check(context, id.clone(), field).await?;
    let (store, id) = (context.store.clone(), snapshot_id(&id)?);
    blocking("opening a snapshot", move || store.read_snapshot(&id))
        .await?
        .map_err(|error| ApiError::from_store(&error, "", "opening a snapshot"))
}

/// Sends what an iterator gives in parts; at least one.
fn parts<T: Send + 'static>(
    size_bytes: u64,
    mut blocks: impl Iterator<Item = hearth_images::Result<T>> + Send + 'static,
) -> Parts<Part<T>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut first = true;
        loop {
            let part: hearth_images::Result<Vec<T>> = blocks.by_ref().take(PART).collect();
            let part = part
                .map(|blocks| Part { size_bytes, blocks })
                .map_err(|error| ApiError::from_store(&error, "", "listing blocks"));
            let full = part.as_ref().is_ok_and(|part| part.blocks.len() == PART);
            let empty = part.as_ref().is_ok_and(|part| part.blocks.is_empty());
            if (empty && !first) || sender.blocking_send(part).is_err() || !full {
                return;
            }
            first = false;
        }
    });
    receiver
}
