//! Disks that bring their own kernel, as those of distributions do.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{DescribeImagesRequest, DiskFormat, Image};
use hearth_tests::{
    Expect, GuestImage, Hearth, image_stream, needs_kvm, programs,
    root_disk::{RootDisk, arguments_without_root},
};
use tonic::Code;
use tonic_types::StatusExt;

/// An import that sends nothing but a root.
fn root_only(name: &str, disk: &Path) -> Result<GuestImage> {
    let mut image = GuestImage::kernel_only(name, Vec::new());
    image.header.kernel = None;
    image.files.clear();
    Ok(image.with_root(fs::read(disk)?, DiskFormat::Raw))
}

async fn images(hearth: &Hearth) -> Result<Vec<Image>> {
    let request = DescribeImagesRequest::default();
    let answer = hearth.images().describe_images(request).await?;
    Ok(answer.into_inner().images)
}

/// Boots an image, and gives the kernel's own command line and what is mounted as `/`.
async fn booted(hearth: &Hearth, image_id: &str) -> Result<(String, String)> {
    let guest = hearth.run(image_id, |_| {}).await?;
    let mut console = guest.ready().await?;
    let command_line = console.shell("cat /proc/cmdline").await?;
    let root = console.shell("cat /proc/partitions; stat -c %d /").await?;
    Ok((command_line, root))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpt_disk_boots_with_the_kernel_in_its_own_root_partition() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let arguments = arguments_without_root()?;
    let entry = format!("title Base\nlinux /boot/vmlinuz-6.12\noptions {arguments} from-entry\n");
    let (_folder, disk) = RootDisk::base()?
        .with_kernel("/boot/vmlinuz-6.12")?
        .with_text("/boot/loader/entries/base.conf", &entry)?
        .gpt()?;
    let image_id = hearth.import(&root_only("gpt", &disk)?).await?;

    let image = images(&hearth).await?.pop().context("an image")?;
    ensure!(image.has_root && !image.has_initrd, "{image:?}");
    ensure!(image.kernel_args.starts_with("root=PARTUUID="), "{image:?}");
    ensure!(image.kernel_args.ends_with("from-entry"), "{image:?}");
    ensure!(
        image.root_size_bytes == fs::metadata(&disk)?.len(),
        "{image:?}"
    );

    let (command_line, root) = booted(&hearth, &image_id).await?;
    ensure!(command_line.contains(&image.kernel_args), "{command_line}");
    // Major 254, minor 2: the second partition.
    ensure!(root.contains("vda2"), "{root}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_without_a_table_boots_as_the_program_hearth_imported_it() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let defaults = format!("GRUB_CMDLINE_LINUX=\"{}\"\n", arguments_without_root()?);
    let (folder, disk) = RootDisk::base()?
        .with_kernel("/boot/vmlinuz-6.12")?
        .with_text("/etc/default/grub", &defaults)?
        .plain()?;
    let qcow2 = folder.path().join("debian.qcow2");
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-f", "raw", "-O", "qcow2"]);
    programs::output_of(convert.arg(&disk).arg(&qcow2))?;

    let mut import = Command::new(programs::built("hearth")?);
    import.env("HEARTH_SOCKET", hearth.socket());
    programs::output_of(import.args(["image", "import"]).arg(&qcow2))?;
    let image = images(&hearth).await?.pop().context("an image")?;
    assert_eq!(image.name, "debian");
    let (command_line, _) = booted(&hearth, &image.image_id).await?;
    ensure!(command_line.contains("root=/dev/vda "), "{command_line}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn given_arguments_replace_those_found_but_for_the_root() -> Result<()> {
    let hearth = Hearth::start().await?;
    let (_folder, disk) = RootDisk::base()?
        .with_kernel("/boot/vmlinuz-6.12")?
        .with_text("/etc/kernel/cmdline", "quiet root=UUID=1")?
        .plain()?;
    let mut image = root_only("given", &disk)?;
    image.header.kernel_args = "console=ttyS0 rw".to_owned();
    hearth.import(&image).await?;
    let image = images(&hearth).await?.pop().context("an image")?;
    assert_eq!(image.kernel_args, "root=/dev/vda console=ttyS0 rw");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_without_a_kernel_is_refused_and_nothing_stays() -> Result<()> {
    let hearth = Hearth::start().await?;
    let (_folder, none) = RootDisk::base()?.plain()?;
    let text = RootDisk::base()?.with_text("/boot/vmlinuz-1", "#!/bin/sh\n")?;
    let (_folder, text) = text.plain()?;
    let scratch = hearth.scratch()?;
    let empty = scratch.join("empty.raw");
    fs::write(&empty, vec![0; 1 << 20])?;
    for (disk, kind, words) in [
        (&none, "NoKernel", "boot/vmlinuz-*"),
        (&text, "NotAKernel", "/boot/vmlinuz-1 of the disk"),
        (
            &empty,
            "NoFileSystem",
            "neither a partition table nor a file system",
        ),
    ] {
        let stream = tokio_stream::iter(image_stream(&root_only("refused", disk)?));
        let status = match hearth.images().import_image(stream).await {
            Ok(answer) => anyhow::bail!("worked: {answer:?}"),
            Err(status) => status,
        };
        let expected = Expect {
            code: Code::InvalidArgument,
            reason: "InvalidParameterValue",
            field: "header.root",
        };
        let message = expected.check_status(&status)?;
        ensure!(message.contains(words), "{message}");
        let details = status.get_error_details();
        let info = details.error_info().context("error info")?;
        assert_eq!(info.metadata.get("kind").map(String::as_str), Some(kind));

        ensure!(images(&hearth).await?.is_empty(), "an image stayed");
        for folder in ["tmp", "kernels", "store/layers", "store/snapshots"] {
            let left = fs::read_dir(hearth.state_dir().join(folder))?.count();
            ensure!(left == 0, "{left} files stayed in {folder}");
        }
    }

    // An initrd without its kernel, and nothing to find a kernel in.
    let mut image = GuestImage::kernel_only("lonely", Vec::new());
    image.header.kernel = None;
    image.files.clear();
    let answer = |image: GuestImage| {
        let mut client = hearth.images();
        async move {
            client
                .import_image(tokio_stream::iter(image_stream(&image)))
                .await
        }
    };
    let missing = Expect::invalid("MissingParameter", "header.kernel");
    missing.check(answer(image.clone()).await)?;
    let combination = Expect::invalid("InvalidParameterCombination", "header.initrd");
    let both = image
        .with_initrd(vec![1])
        .with_root(vec![0; 512], DiskFormat::Raw);
    combination.check(answer(both).await)?;
    hearth.finish().await
}
