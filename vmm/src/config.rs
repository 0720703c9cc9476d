//! What one VMM process is told when it starts: one JSON document on a file descriptor.
//!
//! The agent writes it, the VMM reads it once. Nothing in it changes while the guest runs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Version of this document and of the control protocol; the VMM refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most vCPUs of one guest.
pub const MAX_VCPUS: u8 = 32;

/// Least memory of one guest, in bytes (32 MiB).
pub const MIN_MEMORY_BYTES: u64 = 32 << 20;

/// One micro-VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The instance's id; only for messages.
    pub instance_id: String,
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// In bytes; at least [`MIN_MEMORY_BYTES`], a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// What the guest boots.
    pub boot: BootConfig,
    /// In the order in which the guest sees them (`vda`, `vdb`, ...).
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// The directory of this process's own files; must exist. See [`run_files`].
    pub run_dir: PathBuf,
    /// Which kind of KVM to expect; `auto` but in tests.
    #[serde(default)]
    pub platform: PlatformChoice,
}

/// Kernel, initrd, arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// An uncompressed ELF kernel or a bzImage.
    pub kernel: PathBuf,
    /// An initial RAM file system.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's arguments, without those that the VMM adds itself.
    #[serde(default)]
    pub kernel_args: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: BootProtocol,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootProtocol {
    /// The 64-bit Linux boot protocol; PVH when an ELF file has a PVH note and is not a Linux.
    #[default]
    Auto,
    /// The 64-bit entry point of Documentation/arch/x86/boot.rst.
    Linux64,
    /// The PVH entry point of an ELF note `XEN_ELFNOTE_PHYS32_ENTRY`.
    Pvh,
}

/// One virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// What the guest reads as the device's id (serial): at most 20 bytes of ASCII.
    pub serial: String,
    /// The directory of the volume store.
    pub store: PathBuf,
    /// A volume of that store.
    pub volume: String,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Number of request queues: 1 to 16; 0 picks one for each vCPU, at most 4.
    #[serde(default)]
    pub queues: u16,
}

/// Which kind of KVM the VMM takes the host's for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlatformChoice {
    /// Look at the host.
    #[default]
    Auto,
    /// Intel VMX or AMD SVM.
    Hardware,
    /// `kvm_pvm`: see the module `software_kvm`.
    Software,
}

/// Names of the files in [`VmConfig::run_dir`].
pub mod run_files {
    /// Unix socket of the control protocol.
    pub const CONTROL_SOCKET: &str = "control.sock";
    /// What the guest wrote on its serial console, at most the last 1 MiB, at least the last
    /// 64 KiB.
    pub const CONSOLE_LOG: &str = "console.log";
    /// [`ExitReport`](crate::control::ExitReport) as JSON, written as the last thing.
    pub const EXIT_REPORT: &str = "exit.json";
    /// The VMM's own log.
    pub const VMM_LOG: &str = "vmm.log";
}
