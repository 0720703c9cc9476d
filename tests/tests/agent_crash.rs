//! kill -9 of the agent.

use anyhow::Result;
use hearth_proto::v1::{
    DescribeImagesRequest, DescribeVolumesRequest, DiskFormat, ImportVolumeHeader, InstanceState,
};
use hearth_tests::{GuestImage, Hearth, needs_kvm, processes, store, volume_stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test(flavor = "multi_thread")]
async fn guests_run_on_and_the_new_agent_adopts_them() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let id = hearth.run(&image, |_| {}).await?.id;
    let pid = {
        let guest = hearth_tests::Guest::new(&hearth, id.clone());
        let mut console = guest.ready().await?;
        console.shell("echo kept > /tmp/memory").await?;
        guest.describe().await?.vmm_pid
    };

    hearth.kill_agent()?;
    assert!(processes::is_alive(pid), "the guest died with the agent");
    hearth.start_agent().await?;

    let guest = hearth_tests::Guest::new(&hearth, id);
    let instance = guest.wait_state(InstanceState::Running).await?;
    assert_eq!(instance.vmm_pid, pid);
    // The very same boot: /tmp is in the guest's memory.
    let mut console = guest.console().await?;
    assert_eq!(console.shell("cat /tmp/memory").await?, "kept");
    // The new agent can stop what the old one started.
    guest.stop().await?;
    assert!(processes::wait_gone(pid), "the VMM outlived its guest");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_while_no_agent_runs_is_found_stopped() -> Result<()> {
    needs_kvm!();
    let mut hearth = Hearth::start().await?;
    let kernel = hearth_tests::tiny::echo();
    let image = hearth
        .import(&GuestImage::kernel_only("tiny", kernel))
        .await?;
    let id = hearth.run(&image, |_| {}).await?.id;
    let pid = {
        let guest = hearth_tests::Guest::new(&hearth, id.clone());
        guest.console().await?.expect("tiny: ready").await?;
        guest.describe().await?.vmm_pid
    };
    hearth.kill_agent()?;
    processes::kill_9(pid);
    assert!(processes::wait_gone(pid));
    hearth.start_agent().await?;
    let guest = hearth_tests::Guest::new(&hearth, id);
    let stopped = guest.wait_state(InstanceState::Stopped).await?;
    let code = stopped.state_reason.unwrap_or_default().code;
    assert!(code.starts_with("Server."), "{code}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_cut_short_by_a_crash_leaves_nothing() -> Result<()> {
    let mut hearth = Hearth::start().await?;
    let before = store::files_below(&hearth.store_dir())?;

    // A volume and an image, each with most of its bytes sent, and kept open.
    let bytes = vec![0x5a; 8 << 20];
    let header = ImportVolumeHeader {
        format: DiskFormat::Raw.into(),
        length_bytes: bytes.len() as u64,
        ..Default::default()
    };
    let mut messages = volume_stream(header, &bytes);
    messages.pop();
    let (volume_sender, receiver) = mpsc::channel(messages.len());
    for message in messages {
        volume_sender.send(message).await?;
    }
    let mut volumes = hearth.volumes();
    let volume =
        tokio::spawn(async move { volumes.import_volume(ReceiverStream::new(receiver)).await });

    let image = GuestImage::kernel_only("tiny", hearth_tests::tiny::one_byte())
        .with_root(bytes, DiskFormat::Raw);
    let mut messages = hearth_tests::image_stream(&image);
    messages.pop();
    let (image_sender, receiver) = mpsc::channel(messages.len());
    for message in messages {
        image_sender.send(message).await?;
    }
    let mut images = hearth.images();
    let image =
        tokio::spawn(async move { images.import_image(ReceiverStream::new(receiver)).await });

    // Until the agent has taken all of it, so that there is something to leave behind.
    while volume_sender.capacity() < volume_sender.max_capacity()
        || image_sender.capacity() < image_sender.max_capacity()
    {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    hearth.kill_agent()?;
    assert!(volume.await?.is_err());
    assert!(image.await?.is_err());

    hearth.start_agent().await?;
    let volumes = hearth
        .volumes()
        .describe_volumes(DescribeVolumesRequest::default())
        .await?;
    assert_eq!(volumes.into_inner().volumes, []);
    let images = hearth
        .images()
        .describe_images(DescribeImagesRequest::default())
        .await?;
    assert_eq!(images.into_inner().images, []);
    assert_eq!(store::files_below(&hearth.store_dir())?, before);
    hearth.finish().await
}
