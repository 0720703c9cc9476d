//! An image as the agent knows it.

use crate::{instances::devices::ROOT, tags::Tag, time::Millis};

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
    /// The disks that have snapshots of their own; a root that came with an import has none.
    pub disks: Vec<ImageDisk>,
    /// The instance that it was made of.
    pub source_instance_id: Option<String>,
    /// From then on it is deprecated.
    pub deprecation_time: Option<Millis>,
}

/// A disk that an image gives to its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageDisk {
    /// `/dev/vda`, …
    pub device: String,
    pub snapshot_id: String,
    pub size_bytes: u64,
    pub delete_on_termination: bool,
}

impl Image {
    /// The root, unless it came with an import and is the image's own.
    pub fn root_disk(&self) -> Option<&ImageDisk> {
        self.disks.iter().find(|disk| disk.device == ROOT)
    }

    /// The disks besides the root.
    pub fn further_disks(&self) -> impl Iterator<Item = &ImageDisk> {
        self.disks.iter().filter(|disk| disk.device != ROOT)
    }
}
