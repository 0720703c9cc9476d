//! What one VMM process is told when it starts: one JSON document on a file descriptor.
//!
//! The agent writes it, the VMM reads it once. What changes while the guest runs is told over the
//! control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::devices::virtio::block::throttle::limits::{DiskLimits, LimitsError, MachineLimits};
use crate::devices::virtio::net::limits::NetLimits;
use crate::devices::virtio::net::mac::{MacAddress, MacError};
use crate::devices::virtio::net::tap::QueuePairs;
use crate::smbios::{SystemConfig, TextError};

/// Version of this document and of the control protocol; the VMM refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;

/// Most vCPUs of one guest.
pub const MAX_VCPUS: u8 = 32;

/// Least memory of one guest, in bytes (32 MiB).
pub const MIN_MEMORY_BYTES: u64 = 32 << 20;

/// Memory comes in steps of this many bytes (2 MiB).
pub const MEMORY_STEP_BYTES: u64 = 2 << 20;

/// Most disks and network interfaces of one guest together: one interrupt line each, one is for
/// the random number device.
pub const MAX_DEVICES: usize = 15;

/// Most disks of one guest, if it has no network interface.
pub const MAX_DISKS: usize = MAX_DEVICES;

/// Most pairs of queues of one network interface.
pub const MAX_QUEUE_PAIRS: u16 = 8;

/// Least MTU that an interface may have (virtio 1.2, 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Most bytes of an interface's name (`IFNAMSIZ` without the zero at the end).
pub const MAX_TAP_NAME_BYTES: usize = 15;

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
    /// What all disks together may do in a second.
    #[serde(default)]
    pub disk_limits: MachineLimits,
    /// In the order in which the guest sees them (`eth0`, `eth1`, ...).
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// What all interfaces together may carry in a second, each direction by itself.
    #[serde(default)]
    pub net_limits: NetLimits,
    /// What the guest finds in SMBIOS of its machine; without it, no SMBIOS.
    #[serde(default)]
    pub system: Option<SystemConfig>,
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
    /// Too many devices.
    #[error("disks and nets: {0} of them, the most is {MAX_DEVICES}")]
    Devices(usize),
    /// A disk's queues.
    #[error("disks: {serial}: {queues} queues, the most is {MAX_QUEUES}")]
    Queues {
        /// The disk's serial.
        serial: String,
        /// How many were asked for.
        queues: u16,
    },
    /// A disk's limits.
    #[error("disks: {serial}: limits: {source}")]
    Limits {
        /// The disk's serial.
        serial: String,
        /// What is wrong with them.
        source: LimitsError,
    },
    /// The limits of all disks.
    #[error("disk_limits: {0}")]
    MachineLimits(LimitsError),
    /// A disk's serial.
    #[error("disks: the serial {0:?} is not 1 to {MAX_SERIAL_BYTES} bytes of printable ASCII")]
    Serial(String),
    /// The limits of all interfaces.
    #[error("net_limits: {0}")]
    NetLimits(LimitsError),
    /// What the machine says of itself.
    #[error("system: {0}")]
    System(#[from] TextError),
    /// An interface's tap.
    #[error(
        "nets: the tap {0:?} is not the name of an interface: 1 to {MAX_TAP_NAME_BYTES} bytes \
         without a slash, a colon, white space or control characters"
    )]
    Tap(String),
    /// Two interfaces on one tap.
    #[error("nets: the tap {0} is there twice")]
    TapTwice(String),
    /// An interface's address.
    #[error("nets: {tap}: mac: {mac:?} is {source}")]
    Mac {
        /// The interface's tap.
        tap: String,
        /// The text in its place.
        mac: String,
        /// What is wrong with it.
        source: MacError,
    },
    /// An interface's queues.
    #[error("nets: {tap}: {queue_pairs} pairs of queues, the most is {MAX_QUEUE_PAIRS}")]
    QueuePairs {
        /// The interface's tap.
        tap: String,
        /// How many were asked for.
        queue_pairs: u16,
    },
    /// An interface's MTU.
    #[error("nets: {tap}: the mtu {mtu} is less than {MIN_MTU}")]
    Mtu {
        /// The interface's tap.
        tap: String,
        /// What was asked for.
        mtu: u16,
    },
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
        let devices = self.disks.len() + self.nets.len();
        if devices > MAX_DEVICES {
            return Err(ConfigError::Devices(devices));
        }
        self.disks.iter().try_for_each(DiskConfig::validate)?;
        self.disk_limits
            .validate()
            .map_err(ConfigError::MachineLimits)?;
        self.net_limits.validate().map_err(ConfigError::NetLimits)?;
        if let Some(system) = &self.system {
            system.validate()?;
        }
        for (index, net) in self.nets.iter().enumerate() {
            net.validate()?;
            if self.nets[..index].iter().any(|other| other.tap == net.tap) {
                return Err(ConfigError::TapTwice(net.tap.clone()));
            }
        }
        Ok(())
    }
}

impl DiskConfig {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), ConfigError> {
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
        self.limits
            .validate()
            .map_err(|source| ConfigError::Limits {
                serial: self.serial.clone(),
                source,
            })
    }
}

impl NetConfig {
    /// Checks every figure.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let tap = || self.tap.clone();
        // As the kernel's dev_valid_name, but for "%", of which it makes a number.
        let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        let name = self.tap.as_str();
        if name.is_empty()
            || name.len() > MAX_TAP_NAME_BYTES
            || matches!(name, "." | "..")
            || name.contains(bad)
        {
            return Err(ConfigError::Tap(tap()));
        }
        self.mac_address()?;
        if self.queue_pairs > MAX_QUEUE_PAIRS {
            let queue_pairs = self.queue_pairs;
            return Err(ConfigError::QueuePairs {
                tap: tap(),
                queue_pairs,
            });
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU => Err(ConfigError::Mtu { tap: tap(), mtu }),
            _ => Ok(()),
        }
    }

    /// How many pairs of queues a machine of `vcpus` asks of the tap.
    pub fn pairs(&self, vcpus: u8) -> QueuePairs {
        match self.queue_pairs {
            0 => QueuePairs::UpTo(u16::from(vcpus).clamp(1, MAX_QUEUE_PAIRS)),
            count => QueuePairs::Exactly(count),
        }
    }

    /// The address in [`mac`](Self::mac).
    pub fn mac_address(&self) -> Result<MacAddress, ConfigError> {
        self.mac.parse().map_err(|source| ConfigError::Mac {
            tap: self.tap.clone(),
            mac: self.mac.clone(),
            source,
        })
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
    /// What it may do in a second.
    #[serde(default)]
    pub limits: DiskLimits,
}

/// One virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of a tap in the network namespace of the VMM: it must be there, and nobody else may be
    /// attached to it. The VMM neither makes it nor brings it up. With `multi_queue` it can have
    /// several pairs of queues, without it has one.
    pub tap: String,
    /// The guest's address on it, such as `02:00:00:00:00:01`; unicast.
    pub mac: String,
    /// Number of pairs of queues: 1 to [`MAX_QUEUE_PAIRS`], and more than 1 only of a tap that was
    /// made with `multi_queue`. 0 picks one for each vCPU, at most [`MAX_QUEUE_PAIRS`], or one if
    /// the tap can have no more.
    #[serde(default)]
    pub queue_pairs: u16,
    /// Largest IP packet in bytes that the guest may send and gets, but for those that are still
    /// to be segmented; the tap's own MTU should be the same. Without it the guest isn't told,
    /// and takes 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
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
    use crate::devices::virtio::block::throttle::limits::Limit;

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
                limits: DiskLimits::default(),
            }],
            disk_limits: MachineLimits::default(),
            nets: vec![NetConfig {
                tap: "tap0".into(),
                mac: "02:00:00:00:00:01".into(),
                queue_pairs: 0,
                mtu: Some(1500),
            }],
            net_limits: NetLimits::default(),
            system: None,
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
        let cases: [(Change, &str); 20] = [
            (|c| c.version = 9, "version"),
            (|c| c.vcpus = 0, "vcpus"),
            (|c| c.vcpus = 33, "vcpus"),
            (|c| c.memory_bytes += 4096, "memory_bytes"),
            (|c| c.memory_bytes = 0, "memory_bytes"),
            (|c| c.disks = vec![c.disks[0].clone(); 16], "disks"),
            (
                |c| c.disks = vec![c.disks[0].clone(); 15],
                "disks and nets: 16",
            ),
            (|c| c.disks[0].serial = "x".repeat(21), "serial"),
            (
                |c| {
                    c.disks[0].limits.bytes = Some(Limit {
                        per_second: 0,
                        burst: None,
                    });
                },
                "vol-1: limits: per_second: 0",
            ),
            (
                |c| c.disk_limits.bytes_per_second = Some(u64::MAX),
                "disk_limits: bytes_per_second",
            ),
            (|c| c.nets[0].tap = String::new(), "tap \"\""),
            (|c| c.nets[0].tap = "x".repeat(16), "tap"),
            (|c| c.nets[0].tap = "../tap".into(), "tap"),
            (|c| c.nets[0].tap = "tap 0".into(), "tap"),
            (|c| c.nets[0].tap = "tap%d".into(), "tap"),
            (|c| c.nets.push(c.nets[0].clone()), "tap0 is there twice"),
            (|c| c.nets[0].mac = "ff:ff:ff:ff:ff:ff".into(), "unicast"),
            (|c| c.nets[0].queue_pairs = 9, "9 pairs"),
            (
                |c| c.net_limits.sent = Some(Limit::steady(0)),
                "net_limits: per_second: 0",
            ),
            (|c| c.nets[0].mtu = Some(67), "mtu 67"),
        ];
        for (change, word) in cases {
            let mut config = valid();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
