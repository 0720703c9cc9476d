//! A guest in a machine that is started directly, ours or QEMU's, with at most one disk and one
//! network card; mostly a probe.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_tests::{Netns, programs};
use hearth_vmm::{
    config::{
        BootConfig, BootProtocol, DiskConfig, NetConfig, PROTOCOL_VERSION, PlatformChoice,
        VmConfig, run_files,
    },
    control::Request,
};
use serde_json::Value;

use crate::{console::Console, peers::QEMU_CPU};

/// The memory of each probe.
pub const MEMORY_MIB: u64 = 32;

/// A machine that does not serve its console by then never will.
const SOON: Duration = Duration::from_secs(30);

/// No command of a probe takes longer; each that waits for something has a time of its own.
const ANSWER: Duration = Duration::from_secs(120);

/// Limits of a QEMU disk, in a second.
#[derive(Clone, Copy, Debug)]
pub struct Throttling {
    pub iops: u64,
    pub bytes: u64,
}

/// What a machine boots.
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub arguments: &'a str,
    pub memory_mib: u64,
}

impl<'a> Boot<'a> {
    fn probe(kernel: &'a Path) -> Self {
        Self {
            kernel,
            arguments: "",
            memory_mib: MEMORY_MIB,
        }
    }
}

/// A network card of a machine.
#[derive(Clone, Copy)]
pub struct Nic<'a> {
    /// Where the machine runs.
    pub netns: &'a Netns,
    /// A tap in there.
    pub tap: &'a str,
    pub mac: &'a str,
}

impl Nic<'_> {
    /// What QEMU is told; its driver has a queue in each direction, as ours for one vCPU.
    pub fn qemu_arguments(&self) -> Vec<String> {
        let (tap, mac) = (self.tap, self.mac);
        vec![
            "-netdev".to_owned(),
            format!("tap,id=n,ifname={tap},script=no,downscript=no,vhost=off"),
            "-device".to_owned(),
            format!("virtio-net-device,netdev=n,mac={mac}"),
        ]
    }

    /// What our VMM is told.
    pub fn config(&self) -> NetConfig {
        NetConfig {
            tap: self.tap.to_owned(),
            mac: self.mac.to_owned(),
            queue_pairs: 0,
            mtu: None,
        }
    }
}

/// A running machine; it ends with this value.
pub struct Machine {
    process: Process,
    console: Console,
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Ours, with its files in `run_dir`, and perhaps a volume of the store in this folder.
    pub fn hearth(kernel: &Path, run_dir: &Path, volume: Option<(&Path, &str)>) -> Result<Self> {
        Self::hearth_with(&Boot::probe(kernel), run_dir, volume, None)?.ready()
    }

    /// Ours with a network card.
    pub fn hearth_on(kernel: &Path, run_dir: &Path, nic: Nic<'_>) -> Result<Self> {
        Self::hearth_with(&Boot::probe(kernel), run_dir, None, Some(nic))?.ready()
    }

    /// Ours, with any guest; it has not said anything yet.
    pub fn hearth_with(
        boot: &Boot<'_>,
        run_dir: &Path,
        volume: Option<(&Path, &str)>,
        nic: Option<Nic<'_>>,
    ) -> Result<Self> {
        let disk = volume.map(|(store, volume)| DiskConfig {
            serial: "bench".to_owned(),
            store: store.to_owned(),
            volume: volume.to_owned(),
            read_only: false,
            queues: 0,
            limits: Default::default(),
        });
        let config = VmConfig {
            version: PROTOCOL_VERSION,
            instance_id: "i-bench".to_owned(),
            vcpus: 1,
            memory_bytes: boot.memory_mib << 20,
            boot: BootConfig {
                kernel: boot.kernel.to_owned(),
                initrd: None,
                kernel_args: boot.arguments.to_owned(),
                protocol: BootProtocol::Auto,
            },
            disks: disk.into_iter().collect(),
            disk_limits: Default::default(),
            nets: nic.iter().map(Nic::config).collect(),
            net_limits: Default::default(),
            system: None,
            run_dir: run_dir.to_owned(),
            platform: PlatformChoice::Auto,
        };
        let path = run_dir.join("config.json");
        fs::write(&path, serde_json::to_vec(&config)?)?;
        let mut command = command_in(nic, programs::built("hearth-vmm")?);
        command.arg("--config").arg(path).stdin(Stdio::null());
        let log = File::create(run_dir.join("log"))?;
        let process = Process(command.stdout(log.try_clone()?).stderr(log).spawn()?);
        let control = connect(&run_dir.join(run_files::CONTROL_SOCKET))?;
        let mut console = Console::new(control.try_clone()?.into(), control.into());
        let version = PROTOCOL_VERSION;
        for request in [
            Request::Hello { version },
            Request::AttachConsole { replay: true },
        ] {
            console.type_line(&serde_json::to_string(&request)?)?;
            let reply = console.line(SOON)?;
            ensure!(!reply.contains("\"error\""), "{request:?}: {reply}");
        }
        Ok(Self { process, console })
    }

    /// QEMU's `microvm`, and perhaps a qcow2 file as its disk.
    pub fn qemu(kernel: &Path, disk: Option<&Path>) -> Result<Self> {
        Self::qemu_throttled(kernel, disk, None)
    }

    /// [`Self::qemu`], whose disk is held to these limits.
    pub fn qemu_throttled(
        kernel: &Path,
        disk: Option<&Path>,
        throttling: Option<Throttling>,
    ) -> Result<Self> {
        Self::qemu_with(&Boot::probe(kernel), disk, throttling, None)?.ready()
    }

    /// QEMU's `microvm` with a network card.
    pub fn qemu_on(kernel: &Path, nic: Nic<'_>) -> Result<Self> {
        Self::qemu_with(&Boot::probe(kernel), None, None, Some(nic))?.ready()
    }

    /// QEMU's `microvm` with any guest; it has not said anything yet.
    pub fn qemu_with(
        boot: &Boot<'_>,
        disk: Option<&Path>,
        throttling: Option<Throttling>,
        nic: Option<Nic<'_>>,
    ) -> Result<Self> {
        let mut command = command_in(nic, "qemu-system-x86_64");
        command
            .args(["-M", "microvm,pic=off,pit=off,rtc=off,ioapic2=off"])
            .args(["-accel", "kvm", "-cpu", QEMU_CPU, "-smp", "1", "-m"])
            .arg(format!("{}M", boot.memory_mib))
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-serial", "stdio", "-kernel"])
            .arg(boot.kernel)
            .args(["-append", boot.arguments])
            .args(["-global", "virtio-mmio.force-legacy=false"]);
        if let Some(disk) = disk {
            let limits = throttling.map_or_else(String::new, |limits| {
                format!(
                    "throttling.iops-total={},throttling.bps-total={},",
                    limits.iops, limits.bytes
                )
            });
            command
                .arg("-drive")
                .arg(format!(
                    "if=none,id=d,format=qcow2,cache=writeback,discard=unmap,{limits}file={}",
                    disk.display()
                ))
                .args(["-device", "virtio-blk-device,drive=d"]);
        }
        if let Some(nic) = nic {
            command.args(nic.qemu_arguments());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().context("qemu-system-x86_64")?);
        let output = process.0.stdout.take().context("its output")?;
        let input = process.0.stdin.take().context("its input")?;
        let console = Console::new(output.into(), input.into());
        Ok(Self { process, console })
    }

    /// Waits for the first line of a probe.
    fn ready(mut self) -> Result<Self> {
        let first = self.line()?;
        ensure!(first["probe"] == "ready", "{first}");
        Ok(self)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Gives a command that has to work; gives its answer.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        self.console.type_line(command)?;
        let answer = self.line()?;
        ensure!(answer["ok"] == true, "`{command}`: {answer}");
        Ok(answer)
    }

    /// What a guest that is no probe is talked to through.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    fn line(&mut self) -> Result<Value> {
        let line = self.console.line(ANSWER)?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: {line:?}"))
    }
}

/// A program that runs where the card is.
fn command_in(nic: Option<Nic<'_>>, program: impl AsRef<OsStr>) -> Command {
    match nic {
        Some(nic) => nic.netns.command(program),
        None => Command::new(program),
    }
}

fn connect(socket: &PathBuf) -> Result<UnixStream> {
    let deadline = Instant::now() + SOON;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => bail!("{}: {error}", socket.display()),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
