//! Disks that come to a running Linux guest, and go from it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_tests::{
    BOOT, Console, Hearth,
    attachments::{descriptors_and_threads, serial_of},
    needs_kvm,
};

/// How often a disk comes and goes in a row.
const ROUNDS: u32 = 20;

/// Waits until the guest has a disk with this serial; gives its name (`vdb`).
async fn appeared(console: &mut Console, serial: &str) -> Result<String> {
    let look =
        format!("until grep -lx {serial} /sys/block/vd*/serial 2>/dev/null; do sleep 0.2; done");
    let path = console.shell(&look).await?;
    let name = path.strip_prefix("/sys/block/");
    let name = name.and_then(|rest| rest.strip_suffix("/serial"));
    Ok(name
        .with_context(|| format!("not a disk: {path}"))?
        .to_owned())
}

/// The line of a disk in the guest's list of disks, if it is there: its size in KiB.
async fn listed(console: &mut Console, name: &str) -> Result<Option<u64>> {
    let partitions = console.shell("cat /proc/partitions").await?;
    let found = partitions
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|words| words.last() == Some(&name));
    found.map(|words| Ok(words[2].parse()?)).transpose()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_comes_goes_and_comes_back_with_its_data_and_nothing_leaks() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let guest = hearth.run(&image, |_| {}).await?;
    let mut console = guest.ready().await?;
    let volume = hearth.empty_volume(2).await?;
    let serial = serial_of(&volume);

    hearth.attach(&volume, &guest.id).await?;
    let disk = appeared(&mut console, &serial).await?;
    ensure!(
        listed(&mut console, &disk).await? == Some(2 << 20),
        "{disk}"
    );
    let written = "the tide is full, the moon lies fair";
    console
        .shell(&format!("echo '{written}' > /dev/{disk} && sync"))
        .await?;
    hearth.detach(&volume, false, 0).await?;
    hearth.attachment(&volume, None).await?;
    ensure!(
        listed(&mut console, &disk).await?.is_none(),
        "{disk} is still there"
    );

    hearth.attach(&volume, &guest.id).await?;
    let disk = appeared(&mut console, &serial).await?;
    let read = console.shell(&format!("head -n 1 /dev/{disk}")).await?;
    assert_eq!(read, written);
    hearth.detach(&volume, false, 0).await?;
    hearth.attachment(&volume, None).await?;

    let pid = guest.describe().await?.vmm_pid;
    let before = descriptors_and_threads(pid)?;
    for _ in 0..ROUNDS {
        hearth.attach(&volume, &guest.id).await?;
        appeared(&mut console, &serial).await?;
        hearth.detach(&volume, false, 0).await?;
        hearth.attachment(&volume, None).await?;
    }
    // The threads of connections that have ended may need a moment.
    let deadline = Instant::now() + BOOT;
    loop {
        let after = descriptors_and_threads(pid)?;
        if after.0 <= before.0 && after.1 <= before.1 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "descriptors, threads: {before:?} -> {after:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(listed(&mut console, "vda").await?.is_some());
    hearth.finish().await
}
