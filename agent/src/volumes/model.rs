//! A volume as the agent knows it.

use crate::{tags::Tag, time::Millis};

/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// Largest volume, in GiB.
pub const MAX_SIZE_GIB: u64 = 65_536;

crate::db::state_names! {
    /// Where a volume is in its life.
    ///
    /// ```text
    ///   (none) ──► creating ──► available ◄──► in-use
    ///                 │             │             │ (terminate, delete_on_termination)
    ///                 ▼             ▼             │
    ///              (none)       deleting ◄────────┘ ──► (none)
    /// ```
    VolumeState {
        Creating = "creating",
        Available = "available",
        InUse = "in-use",
        Deleting = "deleting",
    }
}

/// One volume: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub state: VolumeState,
    pub size_bytes: u64,
    /// The image that it was made from.
    pub image_id: Option<String>,
    /// The snapshot that it was made from.
    pub snapshot_id: Option<String>,
    pub attachment: Option<Attachment>,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
    /// Set while it is made larger: the size it will have.
    pub growing_to: Option<u64>,
}

/// What a volume is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub instance_id: String,
    /// `/dev/vda`, ...
    pub device: String,
    pub delete_on_termination: bool,
    pub read_only: bool,
}

impl Volume {
    /// What the guest reads as the disk's serial: the id without its dash, 20 bytes, as EC2
    /// does.
    pub fn serial(&self) -> String {
        self.id.replace('-', "")
    }

    /// Free again, attached to nothing.
    pub fn detached(&self) -> Self {
        Self {
            state: VolumeState::Available,
            attachment: None,
            ..self.clone()
        }
    }

    /// On its way out.
    pub fn deleting(&self) -> Self {
        Self {
            state: VolumeState::Deleting,
            attachment: None,
            ..self.clone()
        }
    }
}
