//! A volume as the agent knows it.

use serde::{Deserialize, Serialize};

use super::classes::choice::ClassChoice;
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

crate::db::state_names! {
    /// Where an attachment is in its life.
    ///
    /// ```text
    ///              plugged in          asked to let go
    ///   attaching ───────────► attached ───────────► detaching ──► (none)
    ///       │                     ▲                     │   it has, or by force,
    ///       ▼ refused             └─────────────────────┘   or the guest has ended
    ///    (none)                        not in time
    /// ```
    ///
    /// To and from an instance that does not run there is nothing between none and attached. When
    /// a guest ends, what was attaching is attached: the next start has it.
    AttachmentState {
        Attaching = "attaching",
        Attached = "attached",
        Detaching = "detaching",
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
    pub class: ClassChoice,
    /// Burst credits at some instant; without it all that it may have.
    pub credits: Option<Credits>,
    /// The last one.
    pub modification: Option<Modification>,
}

/// Burst credits: operations or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credits {
    pub count: u64,
    /// When it was so many.
    pub at: Millis,
}

/// What of a volume can be modified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub size_bytes: u64,
    pub class: ClassChoice,
}

/// A change of a volume, under way or over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modification {
    pub state: ModificationState,
    pub original: Target,
    pub target: Target,
    /// Milliseconds since 1970.
    pub start: i64,
    pub end: Option<i64>,
    /// Why it failed.
    pub message: String,
}

/// How far a modification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModificationState {
    Modifying,
    Completed,
    Failed,
}

/// What a volume is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub instance_id: String,
    /// `/dev/vda`, ...
    pub device: String,
    pub delete_on_termination: bool,
    pub read_only: bool,
    pub state: AttachmentState,
    /// While detaching: how long the guest may take; `None` is by force, at once.
    pub detach_deadline: Option<Millis>,
}

impl Volume {
    /// What the guest reads as the disk's serial: the id without its dash, 20 bytes, as EC2
    /// does.
    pub fn serial(&self) -> String {
        self.id.replace('-', "")
    }

    /// Whether it is becoming what the row says.
    pub fn is_being_modified(&self) -> bool {
        let modifying = |m: &Modification| m.state == ModificationState::Modifying;
        self.growing_to.is_some() || self.modification.as_ref().is_some_and(modifying)
    }

    /// A running guest has been asked to let go of it.
    pub fn detaches(&self) -> bool {
        (self.attachment.as_ref()).is_some_and(|a| a.state == AttachmentState::Detaching)
    }

    /// The same with its attachment in another state; a deadline is only for one that detaches.
    pub fn with_attachment_state(&self, state: AttachmentState, deadline: Option<Millis>) -> Self {
        Self {
            attachment: self.attachment.clone().map(|attachment| Attachment {
                state,
                detach_deadline: deadline,
                ..attachment
            }),
            ..self.clone()
        }
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
