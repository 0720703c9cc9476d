//! The two programs, started alike.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hearth_tests::programs;
use hearth_vmm::config::{
    BootConfig, BootProtocol, PROTOCOL_VERSION, PlatformChoice, VmConfig, run_files,
};

use crate::{memory::Memory, serial_file::SerialFile};

/// The guest's memory.
pub const MEMORY_MIB: u64 = 128;

/// QEMU's `-cpu`: the host's. Software KVM refuses to set the register of its capabilities (MSR
/// 0x10a), after which QEMU aborts.
pub const QEMU_CPU: &str = "host,arch-capabilities=off";

/// One run.
pub struct Measured {
    /// From before the process was made to the byte that the guest's first instructions write.
    pub start_to_guest: Duration,
    /// After that byte.
    pub memory: Memory,
}

/// One program.
pub struct Peer {
    pub name: &'static str,
    program: PathBuf,
    kernel: PathBuf,
    arguments: fn(&Peer, &Path, &SerialFile) -> Result<Vec<String>>,
}

impl Peer {
    pub fn hearth(kernel: &Path) -> Result<Self> {
        Ok(Self {
            name: "hearth-vmm",
            program: programs::built("hearth-vmm")?,
            kernel: kernel.to_owned(),
            arguments: hearth_arguments,
        })
    }

    pub fn qemu(kernel: &Path) -> Result<Self> {
        Ok(Self {
            name: "qemu-system-x86_64 -M microvm",
            program: "qemu-system-x86_64".into(),
            kernel: kernel.to_owned(),
            arguments: |peer, _, serial| Ok(qemu_arguments(peer, serial)),
        })
    }

    /// Runs the guest once, with its files in `run_dir`.
    pub fn measure(&self, run_dir: &Path) -> Result<Measured> {
        let serial = SerialFile::watch(run_dir, run_files::CONSOLE_LOG)?;
        let log = run_dir.join("log");
        let mut command = Command::new(&self.program);
        command
            .args((self.arguments)(self, run_dir, &serial)?)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?);
        let started = Instant::now();
        let running = Running(
            command
                .spawn()
                .with_context(|| format!("{:?}", self.program))?,
        );
        let first_byte = serial.first_byte().with_context(|| {
            format!(
                "{command:?} said:\n{}",
                fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        let memory = Memory::of(running.0.id(), MEMORY_MIB)?;
        Ok(Measured {
            start_to_guest: first_byte - started,
            memory,
        })
    }
}

/// A process that ends with the measurement.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hearth_arguments(peer: &Peer, run_dir: &Path, _: &SerialFile) -> Result<Vec<String>> {
    let config = VmConfig {
        version: PROTOCOL_VERSION,
        instance_id: "i-bench".to_owned(),
        vcpus: 1,
        memory_bytes: MEMORY_MIB << 20,
        boot: BootConfig {
            kernel: peer.kernel.clone(),
            initrd: None,
            kernel_args: String::new(),
            protocol: BootProtocol::Pvh,
        },
        disks: Vec::new(),
        disk_limits: Default::default(),
        nets: Vec::new(),
        net_limits: Default::default(),
        system: None,
        run_dir: run_dir.to_owned(),
        platform: PlatformChoice::Auto,
    };
    let path = run_dir.join("config.json");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(vec!["--config".to_owned(), path.display().to_string()])
}

/// The leanest machine that QEMU offers, without what this guest does not use.
fn qemu_arguments(peer: &Peer, serial: &SerialFile) -> Vec<String> {
    let kernel = peer.kernel.display().to_string();
    let serial = format!("file:{}", serial.path().display());
    let memory = format!("{MEMORY_MIB}M");
    [
        "-M",
        "microvm,pic=off,pit=off,rtc=off",
        "-accel",
        "kvm",
        "-cpu",
        QEMU_CPU,
        "-smp",
        "1",
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
        "-nographic",
        "-no-reboot",
        "-kernel",
        &kernel,
        "-serial",
        &serial,
    ]
    .map(str::to_owned)
    .to_vec()
}
