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

/// Memory comes in steps of this many bytes (2 MiB).
pub const MEMORY_STEP_BYTES: u64 = 2 << 20;

/// Most disks of one guest: one interrupt line each, one is for the random number device.
pub const MAX_DISKS: usize = 15;

/// Most queues of one disk.
pub const MAX_QUEUES: u16 = 16;

/// Most bytes of a disk's serial (virtio 1.2, 5.2.6, `VIRTIO_BLK_T_GET_ID`).
pub const MAX_SERIAL_BYTES: usize = 20;

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

/// What a configuration asks for that can't be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Another version of this document.
    #[error("this is version {PROTOCOL_VERSION} of the VMM, the configuration is of {0}")]
    Version(u32),
    /// vCPUs.
    #[error("vcpus: {0} is not in 1 to {MAX_VCPUS}")]
    Vcpus(u8),
    /// Memory.
    #[error("memory_bytes: {0} is less than 32 MiB or not a multiple of 2 MiB")]
    Memory(u64),
    /// Too many disks.
    #[error("disks: {0} of them, the most is {MAX_DISKS}")]
    Disks(usize),
    /// A disk's queues.
    #[error("disks: {serial}: {queues} queues, the most is {MAX_QUEUES}")]
    Queues {
        /// The disk's serial.
        serial: String,
        /// How many were asked for.
        queues: u16,
    },
    /// A disk's serial.
    #[error("disks: the serial {0:?} is not 1 to {MAX_SERIAL_BYTES} bytes of printable ASCII")]
    Serial(String),
}

impl VmConfig {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.version != PROTOCOL_VERSION {
            return Err(ConfigError::Version(self.version));
        }
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        let memory = self.memory_bytes;
        if memory < MIN_MEMORY_BYTES || !memory.is_multiple_of(MEMORY_STEP_BYTES) {
            return Err(ConfigError::Memory(memory));
        }
        if self.disks.len() > MAX_DISKS {
            return Err(ConfigError::Disks(self.disks.len()));
        }
        self.disks.iter().try_for_each(DiskConfig::validate)
    }
}

impl DiskConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let serial = self.serial.as_bytes();
        if serial.is_empty()
            || serial.len() > MAX_SERIAL_BYTES
            || !serial.iter().all(u8::is_ascii_graphic)
        {
            return Err(ConfigError::Serial(self.serial.clone()));
        }
        if self.queues > MAX_QUEUES {
            return Err(ConfigError::Queues {
                serial: self.serial.clone(),
                queues: self.queues,
            });
        }
        Ok(())
    }
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
    /// The 64-bit Linux boot protocol.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> VmConfig {
        VmConfig {
            version: PROTOCOL_VERSION,
            instance_id: "i-1".into(),
            vcpus: 1,
            memory_bytes: MIN_MEMORY_BYTES,
            boot: BootConfig {
                kernel: "vmlinux".into(),
                initrd: None,
                kernel_args: String::new(),
                protocol: BootProtocol::Auto,
            },
            disks: vec![DiskConfig {
                serial: "vol-1".into(),
                store: "store".into(),
                volume: "vol-1".into(),
                read_only: false,
                queues: 0,
            }],
            run_dir: "run".into(),
            platform: PlatformChoice::Auto,
        }
    }

    #[test]
    fn a_configuration_survives_json_and_an_unknown_field_does_not() {
        let json = serde_json::to_string(&valid()).unwrap();
        assert_eq!(serde_json::from_str::<VmConfig>(&json).unwrap(), valid());
        let more = json.replacen('{', "{\"colour\":1,", 1);
        assert!(serde_json::from_str::<VmConfig>(&more).is_err());
    }

    #[test]
    fn figures_out_of_range_are_named() {
        assert_eq!(valid().validate(), Ok(()));
        type Change = fn(&mut VmConfig);
        let cases: [(Change, &str); 7] = [
            (|c| c.version = 9, "version"),
            (|c| c.vcpus = 0, "vcpus"),
            (|c| c.vcpus = 33, "vcpus"),
            (|c| c.memory_bytes += 4096, "memory_bytes"),
            (|c| c.memory_bytes = 0, "memory_bytes"),
            (|c| c.disks = vec![c.disks[0].clone(); 16], "disks"),
            (|c| c.disks[0].serial = "x".repeat(21), "serial"),
        ];
        for (change, word) in cases {
            let mut config = valid();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
