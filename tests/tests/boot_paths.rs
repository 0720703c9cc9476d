//! The ways into a kernel, and several vCPUs.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{BootProtocol, InstanceState};
use hearth_tests::{GuestImage, Hearth, SMP_BOOT, needs_kvm, tiny};

/// Boots an image whose initrd says hello and powers off.
async fn says_hello_and_powers_off(image: &GuestImage) -> Result<()> {
    let hearth = Hearth::start().await?;
    let image_id = hearth.import(image).await?;
    let guest = hearth.run(&image_id, |_| {}).await?;
    let stopped = guest
        .wait_state(InstanceState::Stopped)
        .await
        .with_context(|| guest.logs())?;
    let reason = stopped.state_reason.context("no reason")?;
    ensure!(
        reason.code == "Client.InstanceInitiatedShutdown",
        "{reason:?}\n{}",
        guest.logs()
    );
    let request = hearth_proto::v1::GetConsoleOutputRequest {
        instance_id: guest.id.clone(),
    };
    let output = hearth
        .instances()
        .get_console_output(request)
        .await?
        .into_inner()
        .output;
    let output = String::from_utf8_lossy(&output).into_owned();
    ensure!(
        output.contains("hearth-initrd: hello from kernel"),
        "{output}"
    );
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bzimage_with_an_initrd_boots() -> Result<()> {
    needs_kvm!();
    says_hello_and_powers_off(&GuestImage::bzimage_and_initrd()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elf_kernel_with_an_initrd_boots() -> Result<()> {
    needs_kvm!();
    says_hello_and_powers_off(&GuestImage::elf_and_initrd()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elf_kernel_boots_through_its_pvh_entry() -> Result<()> {
    needs_kvm!();
    let mut image = GuestImage::elf_and_initrd()?;
    image.header.boot_protocol = BootProtocol::Pvh.into();
    says_hello_and_powers_off(&image).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bzimage_has_no_pvh_entry_and_the_instance_says_so() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut image = GuestImage::bzimage_and_initrd()?;
    image.header.boot_protocol = BootProtocol::Pvh.into();
    let image_id = hearth.import(&image).await?;
    let guest = hearth.run(&image_id, |_| {}).await?;
    let ended = guest.wait_state(InstanceState::Terminated).await?;
    let reason = ended.state_reason.context("no reason")?;
    ensure!(reason.message.contains("no PVH entry"), "{reason:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_with_a_pvh_note_that_is_not_linux_boots() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image_id = hearth
        .import(&GuestImage::kernel_only("tiny", tiny::echo()))
        .await?;
    let guest = hearth.run(&image_id, |_| {}).await?;
    let mut console = guest.console().await?;
    console.expect("tiny: ready").await?;
    // Both ways.
    console.send("ping").await?;
    console.expect("ping").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vcpus_come_up() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let guest = hearth.run(&image, |request| request.vcpus = 2).await?;
    let mut console = guest.ready_within(SMP_BOOT).await?;
    assert_eq!(guest.describe().await?.vcpus, 2);
    assert_eq!(console.shell("nproc").await?, "2");
    hearth.finish().await
}
