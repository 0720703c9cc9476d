//! Linux: the base guest, its TCP with checksum and segmentation offloads. What is measured is
//! seen from the host. Where KVM is emulated the guest's kernel is what takes the time.

use std::{
    fs,
    net::{Shutdown, TcpListener},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use hearth_images::{ImportOptions, ImportSource, Store, VolumeId};
use hearth_tests::{Netns, netns, programs};
use hearth_vmm::{
    config::PlatformChoice,
    software_kvm::{self, Platform},
};

use super::{drain, mac, make_tap, pour};
use crate::{
    Bench,
    machine::{Boot, Machine, Nic},
    table::{Row, Section, quantile},
};

const ROUNDS: usize = 3;

/// Of one stream, in MiB.
const STREAM_MIB: u64 = 2;

const MEMORY_MIB: u64 = 128;

/// A machine, and the number of its link.
struct Side<'a> {
    machine: Machine,
    netns: &'a Netns,
    number: u8,
}

pub async fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if let Some(missing) = netns::missing() {
        println!("\nnet-linux: skipped: {missing}");
        return Ok(Vec::new());
    }
    let netns = &Netns::new()?;
    let guest = programs::guest_folder()?;
    let folder = tempfile::tempdir_in(bench.folder())?;
    let (store, copy) = make_disks(&guest, folder.path())?;
    let kernel = guest.join("vmlinux");
    let arguments = "console=ttyS0 root=/dev/vda rw rootfstype=ext4 quiet";
    let boot = Boot {
        kernel: &kernel,
        arguments,
        memory_mib: MEMORY_MIB,
    };
    // Our VMM adds them itself.
    let with_more = match software_kvm::detect(PlatformChoice::Auto) {
        Platform::Software => format!("{arguments} {}", software_kvm::kernel_args()),
        Platform::Hardware => arguments.to_owned(),
    };
    let qemu_boot = Boot {
        arguments: &with_more,
        ..boot
    };
    let mut ours = Side::new(netns, 2, |nic| {
        Machine::hearth_with(&boot, folder.path(), Some((&store, "vol")), Some(nic))
    })
    .context("hearth-vmm")?;
    let mut qemu = Side::new(netns, 3, |nic| {
        Machine::qemu_with(&qemu_boot, Some(&copy), None, Some(nic))
    })
    .context("QEMU")?;
    let mut rows = Vec::new();
    for (name, sends) in [
        ("TCP guest to host, MiB/s", true),
        ("TCP host to guest, MiB/s", false),
    ] {
        let (mut our_figures, mut their_figures) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            our_figures.push(ours.stream(sends).context("hearth-vmm").context(name)?);
            their_figures.push(qemu.stream(sends).context("QEMU").context(name)?);
        }
        let median = |figures: &[f64]| quantile(figures, 0.5);
        rows.push(Row::beside(
            name,
            median(&our_figures),
            median(&their_figures),
        ));
    }
    let title = format!("Network of Linux, medians of {ROUNDS}");
    Ok(vec![Section::new(title, rows)])
}

/// A store whose volume `vol` is the guest's root, and a copy of the same for QEMU.
fn make_disks(guest: &Path, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (root, copy) = (folder.join("store"), folder.join("root.qcow2"));
    fs::copy(guest.join("root.qcow2"), &copy)?;
    let store = Store::open(&root)?;
    let id = VolumeId::new("vol")?;
    store.import_volume(&id, ImportSource::File(&copy), ImportOptions::default())?;
    Ok((root, copy))
}

impl<'a> Side<'a> {
    fn new(
        netns: &'a Netns,
        number: u8,
        start: impl FnOnce(Nic<'_>) -> Result<Machine>,
    ) -> Result<Self> {
        make_tap(netns, number)?;
        let (tap, mac) = (format!("tap{number}"), mac(number));
        let nic = Nic {
            netns,
            tap: &tap,
            mac: &mac,
        };
        let mut machine = start(nic)?;
        machine.wait_for("hearth-guest: ready")?;
        machine.type_line(&format!(
            "killall udhcpc; ip addr add 10.9.{number}.2/24 dev eth0; ping -c 1 10.9.{number}.1"
        ))?;
        machine.wait_for(" 0% packet loss")?;
        Ok(Self {
            machine,
            netns,
            number,
        })
    }

    /// One stream, in MiB/s as the host sees it. The guest's program has the socket itself as its
    /// standard input or output, and moves a MiB with each call.
    fn stream(&mut self, sends: bool) -> Result<f64> {
        let host = format!("10.9.{}.1", self.number);
        let listener = self
            .netns
            .enter(|| Ok(TcpListener::bind((host.as_str(), 9))?))?;
        let program = match sends {
            true => format!("dd if=/dev/zero bs=1M count={STREAM_MIB}"),
            false => "dd of=/dev/null bs=1M".to_owned(),
        };
        self.machine
            .type_line(&format!("nc {host} 9 -e {program}"))?;
        let (stream, _) = listener.accept()?;
        let start = Instant::now();
        if sends {
            let bytes = drain(stream)?;
            ensure!(bytes == STREAM_MIB << 20, "{bytes} bytes came");
        } else {
            pour(stream.try_clone()?, STREAM_MIB << 20)?;
            stream.shutdown(Shutdown::Write)?;
            // The guest closes when it has read all.
            drain(stream)?;
        }
        Ok(STREAM_MIB as f64 / start.elapsed().as_secs_f64())
    }
}
