//! Snapshots: what volumes held at one point in time.
//!
//! - [`take`]: the rows of new ones, and whether an instance stops for them
//! - [`store`]: their taking, of volumes at rest or under a running guest
//! - [`copy`]: another snapshot of the same contents
//! - [`delete`]: their end, also of those that a crash cut off
//! - [`blocks`]: what they hold, block by block

pub mod blocks;
pub mod copy;
pub mod delete;
pub mod model;
mod store;
pub mod take;

use hearth_images::SnapshotId;
use rusqlite::Connection;

use self::model::{Snapshot, SnapshotState};
use crate::{
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::Tag,
    volumes::model::GIB,
};

/// Longest description, in characters.
const MAX_DESCRIPTION: usize = 255;

/// DescribeSnapshots.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<Snapshot>> {
    context
        .db
        .read(move |connection| query.page(connection, "snapshot_ids", get, db::snapshots::after))
        .await
}

/// Looks one up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Snapshot> {
    db::snapshots::get(connection, id)?.ok_or_else(|| Kind::Snapshot.missing(id, field))
}

/// The same, and it must be there to be used.
pub fn get_completed(connection: &Connection, id: &str, field: &str) -> ApiResult<Snapshot> {
    let snapshot = get(connection, id, field)?;
    if snapshot.state == SnapshotState::Completed {
        return Ok(snapshot);
    }
    Err(ApiError::field(
        Reason::IncorrectState,
        field,
        format!("the snapshot {id} is {}", snapshot.state.word()),
    )
    .with("resource_id", id)
    .with("state", snapshot.state.word()))
}

/// The size in bytes of a new volume from a snapshot; a size of 0 keeps the snapshot's.
pub fn volume_size(
    connection: &Connection,
    id: &str,
    size_gib: u64,
    id_field: &str,
    size_field: &str,
) -> ApiResult<u64> {
    let snapshot = get_completed(connection, id, id_field)?;
    match size_gib * GIB {
        0 => Ok(snapshot.size_bytes),
        wanted if wanted < snapshot.size_bytes => Err(ApiError::invalid(
            size_field,
            format!(
                "the snapshot {id} has {} bytes; a volume only grows",
                snapshot.size_bytes
            ),
        )),
        wanted => Ok(wanted),
    }
}

fn check_description(description: &str) -> ApiResult<()> {
    let count = description.chars().count();
    if count <= MAX_DESCRIPTION {
        return Ok(());
    }
    Err(ApiError::invalid(
        "description",
        format!("{count} characters are too many; at most {MAX_DESCRIPTION}"),
    ))
}

/// The store's name of a snapshot, or of the root that an imported image has.
pub fn snapshot_id(id: &str) -> ApiResult<SnapshotId> {
    SnapshotId::new(id).map_err(|error| ApiError::internal("naming a snapshot", error))
}

impl Described for Snapshot {
    const KIND: Kind = Kind::Snapshot;
    const FILTERS: &'static [&'static str] = &[
        "snapshot-id",
        "status",
        "volume-id",
        "volume-size",
        "owner-id",
        "description",
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
        vec![match filter {
            "snapshot-id" => self.id.clone(),
            "status" => self.state.word().to_owned(),
            "volume-id" => self.volume_id.clone(),
            "volume-size" => self.size_bytes.div_ceil(GIB).to_string(),
            "owner-id" => self.owner.clone(),
            "description" => self.description.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags) + self.description.len() + self.state_message.len()
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
