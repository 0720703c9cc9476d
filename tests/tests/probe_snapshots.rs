//! Snapshots of a running guest's disk, and the merging of layers below it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_images::{Access, Disk, MERGED_CHAIN_LENGTH, SnapshotId, Store, VolumeId};
use hearth_proto::v1::{BlockDeviceMapping, RunInstancesRequest};
use hearth_tests::{
    Guest, Hearth, Probe, needs_kvm,
    probe::pattern,
    processes,
    store::{check, qcow2_files},
};
use hearth_vmm::{
    config::{PROTOCOL_VERSION, run_files},
    control::{DiskSnapshot, Reply, Request},
};

const SNAPSHOTS: u64 = 30;

/// The guest writes one of these at a time; they end inside of clusters.
const SLOTS: u64 = 8;
const SLOT: u64 = (300 << 10) + 512;

/// Merging copies what a few small layers hold; the agent looks twice a minute.
const MERGED: Duration = Duration::from_secs(180);

fn with_a_disk(request: &mut RunInstancesRequest) {
    request.block_devices.push(BlockDeviceMapping {
        size_gib: 1,
        delete_on_termination: Some(false),
        ..Default::default()
    });
}

/// A connection to a VMM's control socket.
struct Control {
    replies: BufReader<UnixStream>,
    requests: UnixStream,
}

impl Control {
    fn connect(hearth: &Hearth, instance_id: &str) -> Result<Self> {
        let run_dir = hearth.state_dir().join("instances").join(instance_id);
        let requests = UnixStream::connect(run_dir.join(run_files::CONTROL_SOCKET))?;
        let replies = BufReader::new(requests.try_clone()?);
        let mut control = Self { replies, requests };
        let version = PROTOCOL_VERSION;
        control.ask(&Request::Hello { version })?;
        Ok(control)
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.requests.write_all(&line)?;
        let mut reply = String::new();
        self.replies.read_line(&mut reply)?;
        match serde_json::from_str(&reply)? {
            Reply::Error { message } => bail!("{request:?}: {message}"),
            reply => Ok(reply),
        }
    }

    /// Takes a snapshot; gives how long the guest's requests had to wait.
    fn snapshot(&mut self, serial: &str, name: &str) -> Result<Duration> {
        let disks = vec![DiskSnapshot {
            serial: serial.to_owned(),
            snapshot: name.to_owned(),
        }];
        match self.ask(&Request::SnapshotDisks { disks })? {
            Reply::Snapshots { pause_ns, .. } => Ok(Duration::from_nanos(pause_ns)),
            other => bail!("{other:?}"),
        }
    }
}

/// The seed of each slot's pattern; 0 for zeroes.
type Slots = [u64; SLOTS as usize];

fn assert_slots(disk: &Disk, slots: &Slots, what: &str) -> Result<()> {
    for (slot, seed) in (0..).zip(*slots) {
        let mut found = vec![0; SLOT as usize];
        disk.read(&mut found, slot * SLOT)?;
        let same = match seed {
            0 => found.iter().all(|byte| *byte == 0),
            seed => pattern::first_mismatch(seed, slot * SLOT, &found).is_none(),
        };
        ensure!(same, "{what}: slot {slot} does not hold pattern {seed}");
    }
    Ok(())
}

async fn verify_slots(probe: &mut Probe<'_>, slots: &Slots) -> Result<()> {
    for (slot, seed) in (0..).zip(*slots) {
        let range = format!("offset={} length={SLOT}", slot * SLOT);
        let pattern = match seed {
            0 => "zeroes".to_owned(),
            seed => seed.to_string(),
        };
        let command = format!("verify {range} pattern={pattern} request=64k");
        probe.expect_ok(&command).await?;
    }
    Ok(())
}

/// Files of the store that a process has open though nobody can find them any more.
fn deleted_files_of(pid: u32) -> Result<Vec<String>> {
    let mut deleted = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        if let Ok(target) = fs::read_link(entry?.path()) {
            let target = target.to_string_lossy().into_owned();
            if target.contains("/layers/") && target.ends_with("(deleted)") {
                deleted.push(target);
            }
        }
    }
    Ok(deleted)
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_snapshots_under_load_are_right_and_the_chain_gets_short_under_the_guest()
-> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(with_a_disk).await?;
    let instance = probe.guest.describe().await?;
    let device = instance.block_devices.first().context("no disk")?;
    let volume = VolumeId::new(device.volume_id.as_str())?;
    let mut serial = device.volume_id.replace('-', "");
    serial.truncate(20);
    let mut control = Control::connect(&hearth, &instance.instance_id)?;
    let store = Store::open(hearth.store_dir())?;
    const LOAD: &str = "load size=4k depth=8 read_percent=30 offset=512M region=32M seconds=0.2";

    let mut slots: Slots = [0; SLOTS as usize];
    let mut states = Vec::new();
    let mut pauses = Vec::new();
    for number in 0..SNAPSHOTS {
        let slot = number * 5 % SLOTS;
        let range = format!("offset={} length={SLOT}", slot * SLOT);
        let seed = if number % 4 == 3 { 0 } else { number + 1 };
        match seed {
            0 => probe.expect_ok(&format!("discard {range}")).await?,
            seed => {
                let command = format!("write {range} pattern={seed} request=20k");
                probe.expect_ok(&command).await?
            }
        };
        slots[slot as usize] = seed;
        if number % 3 == 0 {
            probe.expect_ok("flush").await?;
        }
        // The snapshot falls into the load, which writes elsewhere.
        probe.send(&format!("{LOAD} seed={number}")).await?;
        pauses.push(control.snapshot(&serial, &format!("test-{number}"))?);
        states.push(slots);
        let load = probe.answer().await?;
        ensure!(load["ok"] == true && load["errors"] == 0, "{load}");
    }
    pauses.sort_unstable();
    println!(
        "pauses of {SNAPSHOTS} snapshots: median {:?}, longest {:?}",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1]
    );

    let deadline = Instant::now() + MERGED;
    while store.volume(&volume)?.chain_length > MERGED_CHAIN_LENGTH {
        ensure!(Instant::now() < deadline, "{}", hearth.agent_log_tail());
        let load = probe.expect_ok(LOAD).await?;
        ensure!(load["errors"] == 0, "{load}");
        verify_slots(&mut probe, &slots).await?;
    }
    let [vmm] = processes::vmms_of(&hearth.state_dir())[..] else {
        bail!("not one VMM");
    };
    while !deleted_files_of(vmm)?.is_empty() {
        ensure!(Instant::now() < deadline, "{:?}", deleted_files_of(vmm)?);
        verify_slots(&mut probe, &slots).await?;
    }
    verify_slots(&mut probe, &slots).await?;
    probe.expect_ok("flush").await?;
    drop(control);

    Guest::new(&hearth, instance.instance_id.clone())
        .stop_by_force()
        .await?;
    let files = check(&hearth.store_dir())?;
    ensure!(files == qcow2_files(&hearth.store_dir())?.len() && files > 7);
    let disk = store.open_volume(&volume, Access::ReadOnly)?;
    assert_slots(&disk, &slots, "the volume")?;
    drop(disk);
    for (number, state) in states.iter().enumerate() {
        let name = format!("test-{number}");
        let snapshot = store.open_snapshot(&SnapshotId::new(name.as_str())?)?;
        assert_slots(&snapshot, state, &name)?;
    }
    // What the guest finds after its next start.
    probe.start().await?;
    verify_slots(&mut probe, &slots).await?;
    hearth.finish().await
}
