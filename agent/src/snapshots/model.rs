//! A snapshot as the agent knows it.

use crate::{tags::Tag, time::Millis};

crate::db::state_names! {
    /// Where a snapshot is in its life.
    ///
    /// ```text
    ///   (none) ──► pending ──► completed ──► deleting ──► (none)
    ///                 │            │            ▲
    ///                 │            └► error ────┤
    ///                 └─────────────────────────┘ (failed, or cut off by a crash)
    /// ```
    SnapshotState {
        Pending = "pending",
        Completed = "completed",
        Error = "error",
        Deleting = "deleting",
    }
}

/// One snapshot: one row, and a snapshot of the same id in the volume store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub state: SnapshotState,
    /// Why it is in error.
    pub state_message: String,
    /// The volume that it was taken of; empty for a copy.
    pub volume_id: String,
    /// The snapshot that it was copied from.
    pub source_id: Option<String>,
    pub size_bytes: u64,
    pub description: String,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
    /// The instance that was stopped for it, until it was started again.
    pub starts_instance: Option<String>,
}
