//! An image as the agent knows it.

use crate::{tags::Tag, time::Millis};

crate::db::state_names! {
    /// Where an image is in its life: `(none) ──► pending ──► available ──► deregistered ──►
    /// (none)`; a pending one whose import fails goes at once.
    ImageState {
        Pending = "pending",
        Available = "available",
        Deregistered = "deregistered",
    }
}

crate::db::state_names! {
    /// How the image's kernel is entered.
    BootProtocol {
        Auto = "auto",
        Linux64 = "linux64",
        Pvh = "pvh",
    }
}

/// One image: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub name: String,
    pub description: String,
    pub state: ImageState,
    pub architecture: String,
    /// SHA-256 of the kernel, which names its file; empty until its bytes are there.
    pub kernel: String,
    /// SHA-256 of the initrd.
    pub initrd: Option<String>,
    pub kernel_args: String,
    pub boot_protocol: BootProtocol,
    /// Whether the volume store has a snapshot of the image's id.
    pub has_root: bool,
    pub root_size_bytes: u64,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
}
