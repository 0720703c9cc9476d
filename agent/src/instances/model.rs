//! An instance as the agent knows it; the wire's form is made in `api`.

use serde::{Deserialize, Serialize};

use super::{metadata_options::MetadataOptions, state::InstanceState};
use crate::{images::model::BootProtocol, tags::Tag, time::Millis};

/// One instance: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub image_id: String,
    pub instance_type: String,
    pub state: InstanceState,
    /// Why it is in this state.
    pub reason: StateReason,
    pub vcpus: u32,
    pub memory_bytes: u64,
    /// SHA-256 of the kernel, which names its file.
    pub kernel: String,
    /// SHA-256 of the initrd.
    pub initrd: Option<String>,
    pub kernel_args: String,
    pub boot_protocol: BootProtocol,
    pub interfaces: Vec<Interface>,
    pub user_data: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    /// The device that came from the image.
    pub root_device: Option<String>,
    pub launch_time: Millis,
    /// Whether it was ever running.
    pub launched: bool,
    /// What is under way, so that it goes on after a crash of the agent.
    pub operation: Operation,
    /// Process id of its VMM, for people; never trusted to be alive.
    pub vmm_pid: Option<u32>,
    /// When it was terminated.
    pub ended: Option<Millis>,
    pub launch: Launch,
    pub metadata_options: MetadataOptions,
}

/// What its launch left for the metadata service to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// `r-…`, the same for all instances of one call.
    pub reservation_id: String,
    /// Its place among them, from 0.
    pub index: u32,
    /// Name of the key pair, if one was asked for.
    pub key_name: String,
    /// That key pair's public key as it was then: deleting the key pair takes nothing away.
    pub public_key: String,
}

/// A network interface on a tap that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub tap: String,
    /// Six bytes in hexadecimal with colons.
    pub mac: String,
}

/// What is under way with an instance, beyond its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum Operation {
    /// Nothing.
    None,
    /// It shuts down; by force after the deadline (milliseconds since 1970).
    Stop { deadline: i64 },
    /// It shuts down to be started again; by force after the deadline.
    Reboot { deadline: i64 },
    /// It has ended and is about to be started again.
    Restart,
}

/// A code and words for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateReason {
    pub code: String,
    pub message: String,
}

impl StateReason {
    /// No reason.
    pub fn none() -> Self {
        Self::default()
    }

    /// The caller asked for it.
    pub fn user(message: &str) -> Self {
        Self {
            code: "Client.UserInitiatedShutdown".to_owned(),
            message: message.to_owned(),
        }
    }

    /// The guest did it.
    pub fn guest() -> Self {
        Self {
            code: "Client.InstanceInitiatedShutdown".to_owned(),
            message: "the guest powered itself off".to_owned(),
        }
    }

    /// Something broke.
    pub fn broken(message: impl Into<String>) -> Self {
        Self {
            code: "Server.InternalError".to_owned(),
            message: message.into(),
        }
    }
}
