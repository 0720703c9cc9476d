//! The control protocol between the agent and a VMM process.
//!
//! A Unix stream socket; each message is one line of JSON. The client sends [`Request`]s and
//! gets one [`Reply`] to each, in order. Two requests change what the connection is for:
//! after [`Request::Subscribe`] the VMM also sends [`Reply::Event`] lines as things happen, and
//! after [`Request::AttachConsole`] both sides send raw bytes of the serial console until one
//! closes. The first request must be [`Request::Hello`].

pub mod disks;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::config::DiskConfig;
use crate::devices::virtio::block::throttle::limits::DiskLimits;
use crate::devices::virtio::net::limits::NetLimits;

/// What a VMM may be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Says which version the client speaks; legal once, first.
    Hello {
        /// [`PROTOCOL_VERSION`](crate::config::PROTOCOL_VERSION).
        version: u32,
    },
    /// How the guest is; always legal.
    Status,
    /// Presses the power button, once. The guest decides what follows; a reset that follows
    /// counts as a power-off.
    PowerButton,
    /// Ends the guest now: vCPUs stop, disks are flushed, the process exits.
    Kill,
    /// Takes snapshots of disks, all at one point in time; all or, after an error, none.
    /// [`Reply::Snapshots`]. Takes as long as it takes to make what was written durable.
    SnapshotDisks {
        /// Which, and what the snapshots are called. All disks must be of one store.
        disks: Vec<DiskSnapshot>,
    },
    /// Makes a disk larger while the guest runs, and tells the guest; [`Reply::Done`].
    ResizeDisk {
        /// [`DiskConfig::serial`].
        serial: String,
        /// The new size, in bytes; not smaller than before.
        size_bytes: u64,
    },
    /// After a merge in the store: goes over to the new files of all disks' layers, so that the
    /// old ones can go; [`Reply::Done`]. The guest goes on.
    ReloadDisks,
    /// Plugs a disk in; [`Reply::Done`] when it is there and the guest has been told.
    AttachDisk {
        /// No disk may have its serial.
        disk: DiskConfig,
    },
    /// Asks the guest to let go of a disk; [`Reply::Done`] when it has and the volume is closed.
    /// A disk that is on its way out already is waited for.
    DetachDisk {
        /// [`DiskConfig::serial`].
        serial: String,
        /// Close the volume at once, whatever the guest does: its requests fail from then on.
        force: bool,
        /// How long the guest may take, in milliseconds; after that the disk stays.
        patience_ms: u64,
    },
    /// Which disks there are; [`Reply::Disks`].
    ListDisks,
    /// Sends events on this connection from now on.
    Subscribe,
    /// Holds a disk to other limits from now on; legal while the guest runs.
    SetThrottle {
        /// [`DiskConfig::serial`](crate::config::DiskConfig::serial).
        serial: String,
        /// All of them: those that aren't there hold no longer.
        limits: DiskLimits,
    },
    /// How a disk is; always legal.
    DiskStatus {
        /// [`DiskConfig::serial`](crate::config::DiskConfig::serial).
        serial: String,
    },
    /// How the network interfaces are, and what has passed them; [`Reply::NetStatus`]. Always legal.
    NetStatus,
    /// Turns this connection into the serial console.
    AttachConsole {
        /// First send what is still kept of the output so far.
        replay: bool,
    },
}

/// What a VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The VMM's version.
        version: u32,
        /// Whose VMM this is.
        instance_id: String,
        /// Its process id.
        pid: u32,
    },
    /// To [`Request::Status`].
    Status(VmStatus),
    /// To [`Request::SnapshotDisks`].
    Snapshots {
        /// How long the guest's requests had to wait, in nanoseconds.
        pause_ns: u64,
        /// In the order of the request.
        snapshots: Vec<SnapshotTaken>,
    },
    /// To [`Request::DiskStatus`].
    DiskStatus(DiskCredits),
    /// To [`Request::NetStatus`].
    NetStatus(NetStatus),
    /// To [`Request::ListDisks`].
    Disks {
        /// In the order of their places.
        disks: Vec<DiskStatus>,
    },
    /// Done; to everything else that worked.
    Done,
    /// The request was not understood or is not legal now.
    Error {
        /// For people.
        message: String,
    },
    /// Not an answer: something happened. Only after [`Request::Subscribe`].
    Event(Event),
}

/// A disk and the snapshot to take of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSnapshot {
    /// [`DiskConfig::serial`](crate::config::DiskConfig::serial).
    pub serial: String,
    /// The snapshot's id in the store.
    pub snapshot: String,
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTaken {
    /// The snapshot's id in the store.
    pub snapshot: String,
    /// Size of the virtual disk, in bytes.
    pub size_bytes: u64,
    /// What its own layer takes on the host's disk, in bytes.
    pub allocated_bytes: u64,
}

/// How a guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// Nanoseconds from the start of the VMM process to the guest's first instruction.
    pub start_to_guest_ns: u64,
}

/// The burst credits of a disk at an instant; `None` of what it has no burst of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCredits {
    /// [`DiskConfig::serial`](crate::config::DiskConfig::serial).
    pub serial: String,
    /// Operations.
    pub operations: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
    /// The instant: milliseconds since 1970.
    pub unix_ms: i64,
}

/// How the network interfaces are at an instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatus {
    /// What all of them together are held to.
    pub limits: NetLimits,
    /// Burst credits in bytes that the guest may receive; `None` without a burst.
    pub received_credits: Option<u64>,
    /// Burst credits in bytes that the guest may send; `None` without a burst.
    pub sent_credits: Option<u64>,
    /// In the order of [`VmConfig::nets`](crate::config::VmConfig::nets).
    pub interfaces: Vec<InterfaceStatus>,
}

/// A network interface, and what has passed it since the guest's start. "Received" and "sent" are
/// the guest's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// [`NetConfig::tap`](crate::config::NetConfig::tap).
    pub tap: String,
    /// The tap is there.
    pub link_up: bool,
    /// Pairs of queues that the interface has.
    pub queue_pairs: u16,
    /// How many of them the guest's driver has asked for: at least 1.
    pub queue_pairs_in_use: u16,
    /// From the tap to the guest. Frames that the tap itself dropped, since its queue was full, are
    /// in the interface's own statistics.
    pub received: Passed,
    /// From the guest to the tap.
    pub sent: Passed,
}

/// What has passed in one direction. Many segments that passed as one frame count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Ethernet frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that did not pass.
    pub dropped: u64,
}

/// A disk of a running guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// [`DiskConfig::serial`].
    pub serial: String,
    /// Whether it stays.
    pub phase: DiskPhase,
    /// A driver of the guest has found it.
    pub driver: bool,
}

/// Whether a disk stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskPhase {
    /// It stays.
    Attached,
    /// The guest was asked to let go of it, or has, and its volume is being closed.
    Detaching,
}

/// Where a guest is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Runs.
    Running,
    /// Has ended; the process is about to exit.
    Exiting,
}

/// What happens to a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The guest has ended; the process exits next.
    Exited(ExitReport),
    /// A disk refused a request of the guest, or the guest misused its queue.
    DiskError {
        /// [`DiskConfig::serial`].
        serial: String,
        /// For people.
        message: String,
    },
    /// A network interface lost its tap, or the guest misused its queues.
    NetError {
        /// [`NetConfig::tap`](crate::config::NetConfig::tap).
        tap: String,
        /// For people.
        message: String,
    },
}

/// Why a guest ended. Also the content of the file
/// [`EXIT_REPORT`](crate::config::run_files::EXIT_REPORT).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// The kind.
    pub reason: ExitReason,
    /// For people.
    pub message: String,
    /// What the disks have left of their burst credits.
    #[serde(default)]
    pub credits: Vec<DiskCredits>,
}

/// The kinds of end. The process's exit code is 0 for the first three, 1 for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset (also after a kernel panic with `panic=`).
    Reset,
    /// [`Request::Kill`], or SIGTERM.
    Killed,
    /// The guest did what no CPU can go on from (a triple fault, an emulation failure).
    GuestCrash,
    /// The configuration or the host did not allow the guest to start.
    StartFailed,
    /// The VMM itself failed.
    InternalError,
}
