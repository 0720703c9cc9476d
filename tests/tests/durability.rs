//! What the guest was told is on the disk stays there.

use anyhow::Result;
use hearth_proto::v1::InstanceState;
use hearth_tests::{Hearth, needs_kvm, processes, store};

#[tokio::test(flavor = "multi_thread")]
async fn flushed_data_survives_kill_9_of_the_vmm() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let guest = hearth.run(&image, |_| {}).await?;
    let mut console = guest.ready().await?;
    console
        .shell("dd if=/dev/urandom of=/root/noise bs=64k count=64 2>/dev/null && sync")
        .await?;
    let digest = console.shell("sha256sum /root/noise").await?;
    // In flight while the VMM dies; what becomes of it is nobody's business.
    console
        .send("dd if=/dev/zero of=/root/zeroes bs=64k count=256; sync\n")
        .await?;

    let pid = guest.describe().await?.vmm_pid;
    processes::kill_9(pid);
    let stopped = guest.wait_state(InstanceState::Stopped).await?;
    let code = stopped.state_reason.unwrap_or_default().code;
    assert!(
        code.starts_with("Server."),
        "the guest did not ask for this: {code}"
    );

    guest.start().await?;
    let mut console = guest.ready().await?;
    assert_eq!(console.shell("sha256sum /root/noise").await?, digest);
    guest.stop().await?;
    store::check(&hearth.store_dir())?;
    hearth.finish().await
}
