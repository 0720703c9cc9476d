//! Kernels found inside of disks that are laid out as distributions do it.

mod common;

use common::distributions::{ESP, LINUX, ROOT, Tree, XBOOTLDR, disk, filesystem, uuid};
use common::{Scratch, import_bytes};
use hearth_images::rootfs::{self, BootFiles, FileError, RootfsError};
use std::rc::Rc;

/// What was found, with the bytes of kernel and initrd.
struct Taken {
    files: BootFiles,
    kernel: String,
    initrd: Vec<u8>,
}

fn try_take(disk: Vec<u8>) -> Result<Taken, RootfsError> {
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    let files = rootfs::find(Rc::new(disk), &mut kernel, &mut initrd)?;
    Ok(Taken {
        files,
        kernel: String::from_utf8(kernel).expect("text"),
        initrd,
    })
}

fn take(disk: Vec<u8>) -> Taken {
    try_take(disk).unwrap_or_else(|error| panic!("{error}"))
}

fn error(disk: Vec<u8>) -> String {
    match try_take(disk) {
        Ok(taken) => panic!("found {:?}", taken.files),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_plain_file_system_without_a_table_gives_its_newest_kernel() {
    let tree = Tree::root()
        .with("boot/vmlinuz-6.1.0-9-amd64", "nine")
        .with("boot/vmlinuz-6.1.0-10-amd64", "ten")
        .with("boot/config-6.1.0-11-amd64", "no kernel")
        .with("etc/kernel/cmdline", "root=/dev/sda quiet\n");
    let taken = take(filesystem(&tree, 1, 8, &[]));
    assert_eq!(taken.kernel, "ten");
    assert!(taken.initrd.is_empty() && taken.files.initrds.is_empty());
    assert_eq!(
        taken.files.kernel,
        "/boot/vmlinuz-6.1.0-10-amd64 of the disk"
    );
    // No initrd: only a device's name mounts a file system that fills the disk.
    assert_eq!(taken.files.kernel_args, "root=/dev/vda quiet console=ttyS0");
}

#[test]
fn debian_a_gpt_disk_with_grub() {
    let config = "set default=\"0\"\n\
        menuentry 'Debian' --class debian {\n\
        \tlinux\t/boot/vmlinuz-6.1.0-25 root=PARTUUID=dead ro console=ttyS0,115200\n\
        \tinitrd\t/boot/initrd.img-6.1.0-25\n}\n";
    let tree = Tree::root()
        .with("boot/grub/grub.cfg", config)
        .with("boot/vmlinuz-6.1.0-25", "kernel 25")
        .with("boot/initrd.img-6.1.0-25", "initrd 25")
        .with("boot/vmlinuz-6.1.0-26", "not the default");
    let root = filesystem(&tree, 1, 8, &[]);
    let taken = take(disk("gpt", &[(ROOT, &root), (ESP, &[0; 512])]));
    assert_eq!(taken.kernel, "kernel 25");
    assert_eq!(taken.initrd, b"initrd 25");
    assert!(
        taken.files.named_by.contains("\"Debian\" of grub.cfg"),
        "{:?}",
        taken.files
    );
    // The entry's partition is not this one; an initrd finds the file system.
    let wanted = format!("root=UUID={} ro console=ttyS0,115200", uuid(1));
    assert_eq!(taken.files.kernel_args, wanted);
}

#[test]
fn ubuntu_arguments_from_default_grub_and_its_folder_without_a_grub_cfg() {
    let tree = Tree::root()
        .with(
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX=\"a\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
        )
        .with(
            "etc/default/grub.d/50-cloudimg.cfg",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"console=tty1 console=ttyS0\"\n",
        )
        .with("etc/default/grub.d/README", "GRUB_CMDLINE_LINUX=no")
        .with_link("boot/vmlinuz", "vmlinuz-6.8.0-1")
        .with("boot/vmlinuz-6.8.0-1", "kernel")
        .with("boot/initrd.img-6.8.0-1", "initrd");
    let root = filesystem(&tree, 1, 8, &[]);
    let taken = take(disk("gpt", &[(LINUX, &root)]));
    assert_eq!(taken.kernel, "kernel");
    let wanted = format!("root=UUID={} a console=tty1 console=ttyS0", uuid(1));
    assert_eq!(taken.files.kernel_args, wanted);
}

/// `/boot` in a partition of its own, whose entries have paths from that partition's root.
fn fedora(boot_type: &str, fstab: &str) -> Vec<u8> {
    let boot = Tree::new()
        .with(
            "loader/entries/m-0-rescue.conf",
            "linux /vmlinuz-0-rescue\ninitrd /initramfs-0-rescue.img\noptions root=UUID=x\n",
        )
        .with(
            "loader/entries/m-6.11.4.conf",
            "title Fedora\nversion 6.11.4\nlinux /vmlinuz-6.11.4\n\
             initrd /initramfs-6.11.4.img $tuned_initrd\noptions $kernelopts $tuned_params\n",
        )
        .with(
            "grub2/grubenv",
            "# GRUB Environment Block\nkernelopts=root=LABEL=fedora ro\n",
        )
        .with("vmlinuz-0-rescue", "rescue")
        .with("initramfs-0-rescue.img", "rescue")
        .with("vmlinuz-6.11.4", "fedora")
        .with("initramfs-6.11.4.img", "dracut");
    let root = Tree::root()
        .with("etc/fstab", fstab)
        // What was there before the partition was mounted over it.
        .with("boot/vmlinuz-9.9", "hidden below the mount");
    let boot = filesystem(&boot, 2, 8, &["-L", "boot"]);
    let root = filesystem(&root, 3, 8, &[]);
    disk(
        "gpt",
        &[(ESP, &[0; 512]), (boot_type, &boot), (LINUX, &root)],
    )
}

#[test]
fn fedora_a_boot_partition_with_boot_loader_entries() {
    for image in [
        fedora(XBOOTLDR, ""),
        fedora(
            LINUX,
            &format!("UUID={} /boot ext4 defaults 1 2\n", uuid(2)),
        ),
        fedora(LINUX, "# comment /boot\nLABEL=boot\t/boot\text4\n"),
        fedora(LINUX, &format!("PARTUUID={} /boot ext4\n", uuid(102))),
        fedora(LINUX, "/dev/sda2 /boot ext4\n"),
        fedora(LINUX, "/dev/nvme0n1p2 /boot ext4\n"),
    ] {
        let taken = take(image);
        assert_eq!(taken.kernel, "fedora");
        assert_eq!(taken.initrd, b"dracut");
        assert_eq!(taken.files.kernel, "/vmlinuz-6.11.4 of partition 2");
        assert_eq!(
            taken.files.kernel_args,
            "root=LABEL=fedora ro console=ttyS0"
        );
    }
    // Without any hint the root's own /boot is the better guess.
    assert_eq!(take(fedora(LINUX, "")).kernel, "hidden below the mount");
}

#[test]
fn a_root_that_can_not_be_read_is_left_to_the_initrd() {
    let boot = |options: &str| {
        let entry = format!("linux /vmlinuz-6\ninitrd /initrd-6\noptions {options}\n");
        let tree = Tree::new()
            .with("loader/entries/a.conf", &entry)
            .with("vmlinuz-6", "kernel")
            .with("initrd-6", "initrd");
        // The root is of a kind that nothing here reads.
        disk(
            "gpt",
            &[
                (XBOOTLDR, &filesystem(&tree, 1, 8, &[])),
                (ROOT, &[0xb7; 4096]),
            ],
        )
    };
    let taken = take(boot("root=UUID=btrfs rootflags=subvol=root console=ttyS0"));
    assert_eq!(
        taken.files.kernel_args,
        "root=UUID=btrfs rootflags=subvol=root console=ttyS0"
    );
    let message = error(boot("quiet"));
    assert!(message.contains("no root="), "{message}");
}

#[test]
fn an_mbr_disk_names_its_root_by_the_disks_signature() {
    let tree = Tree::root().with("boot/vmlinuz-virt", "alpine");
    let root = filesystem(&tree, 1, 8, &[]);
    let taken = take(disk("dos", &[("ef", &[0; 512]), ("83", &root)]));
    assert_eq!(taken.kernel, "alpine");
    // Nothing says what the arguments are; nothing but `rw` would make the root writable.
    assert_eq!(
        taken.files.kernel_args,
        "root=PARTUUID=1234abcd-02 rw console=ttyS0"
    );
}

#[test]
fn several_initrds_are_put_together_at_multiples_of_four() {
    let tree = Tree::root()
        .with(
            "boot/loader/entries/a.conf",
            "linux /boot/k\ninitrd /boot/ucode\ninitrd /boot/i\n",
        )
        .with("boot/k", "kernel")
        .with("boot/ucode", "12345")
        .with("boot/i", "abc");
    let taken = take(filesystem(&tree, 1, 8, &[]));
    assert_eq!(taken.initrd, b"12345\0\0\0abc");
    assert_eq!(taken.files.initrds.len(), 2);
}

#[test]
fn links_are_followed_inside_of_the_file_system_only() {
    let tree = Tree::root()
        // Absolute, through a folder that is a link, and up beyond the root.
        .with_link("boot/vmlinuz-1", "/srv/here/../kernels/kernel")
        .with_link("srv/here", "../../../../opt/kernels")
        .with("opt/kernels/kernel", "in the image")
        .with_link("boot/initrd.img-1", "/etc/hostname");
    let taken = take(filesystem(&tree, 1, 8, &[]));
    assert_eq!(taken.kernel, "in the image");
    assert_eq!(taken.files.kernel, "/opt/kernels/kernel of the disk");
    assert_eq!(taken.initrd, b"guest\n");

    // A link to a file of this machine, one that goes in circles, one to itself through a folder.
    let tree = Tree::root()
        .with_link("boot/vmlinuz-1", "/proc/self/exe")
        .with_link("boot/vmlinuz-2", "../../../../../../bin/sh");
    let message = error(filesystem(&tree, 1, 8, &[]));
    assert!(message.contains("which is not there"), "{message}");
    for (name, target) in [
        ("vmlinuz-1", "vmlinuz-1"),
        ("vmlinuz-2", "../boot/vmlinuz-2/x/y"),
    ] {
        let tree = Tree::root().with_link(&format!("boot/{name}"), target);
        let message = error(filesystem(&tree, 1, 8, &[]));
        assert!(message.contains("too many symbolic links"), "{message}");
    }
}

#[test]
fn every_kind_of_ext_file_system_is_read() {
    let tree = || {
        let mut tree = Tree::root().with("boot/vmlinuz-6", &"kernel ".repeat(100_000));
        for index in 0..2000 {
            tree = tree.with(&format!("etc/many/{index}"), "");
        }
        tree
    };
    for options in [
        &["-t", "ext2"][..],
        &["-t", "ext3"],
        &["-b", "1024"],
        &["-b", "4096", "-I", "512"],
        &["-O", "^metadata_csum"],
        &["-O", "^64bit,^extent,^flex_bg"],
        &["-O", "metadata_csum_seed"],
        &["-g", "1024"],
    ] {
        let taken = take(filesystem(&tree(), 1, 32, options));
        assert_eq!(taken.kernel, "kernel ".repeat(100_000), "{options:?}");
    }
    // What can't be read is said.
    for (options, word) in [
        (["-O", "inline_data"], "feature"),
        (["-I", "128"], "inode 2"),
    ] {
        let message = error(filesystem(&tree(), 1, 32, &options));
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_damaged_table_is_read_from_its_copy() {
    let tree = Tree::root().with("boot/vmlinuz-6", "kernel");
    let root = filesystem(&tree, 1, 8, &[]);
    let mut image = disk("gpt", &[(ROOT, &root)]);
    image[512..1024].fill(0xff);
    assert_eq!(take(image.clone()).kernel, "kernel");
    let length = image.len();
    image[length - 512..].fill(0);
    let message = error(image);
    assert!(
        message.contains("no ext2, ext3 or ext4 file system"),
        "{message}"
    );
}

#[test]
fn what_is_missing_is_told_with_what_was_looked_at() {
    let empty = filesystem(&Tree::root(), 1, 8, &[]);
    let entry = Tree::root().with("boot/loader/entries/a.conf", "linux /gone\n");
    let entry = filesystem(&entry, 1, 8, &[]);
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (
            vec![0; 1 << 20],
            &["no ext2", "neither a partition table nor a file system"],
        ),
        (Vec::new(), &["no ext2"]),
        (vec![0xff; 700], &["no ext2"]),
        (
            empty.clone(),
            &["no kernel", "vmlinuz", "no boot files in /boot of the disk"],
        ),
        (
            disk("gpt", &[(ESP, &[0; 512]), (ROOT, &empty)]),
            &[
                "GPT with 2 partitions",
                "partition 1 (EFI system partition) is not ext4",
            ],
        ),
        (
            entry,
            &["the boot loader entry a", "names /gone, which is not there"],
        ),
    ];
    for (image, words) in cases {
        let message = error(image);
        for word in words {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}

#[test]
fn a_kernel_beyond_the_limit_is_refused_before_it_is_read() {
    let tree = Tree::root().with("boot/vmlinuz-6", "");
    let kernel = std::fs::File::create(tree.dir.path().join("boot/vmlinuz-6")).expect("kernel");
    kernel.set_len(rootfs::MAX_BOOT_FILE + 1).expect("a hole");
    drop(kernel);
    let image = filesystem(&tree, 1, 16, &[]);
    match try_take(image) {
        Err(RootfsError::File {
            source: FileError::TooLarge { path, most, .. },
            ..
        }) => assert_eq!(
            (path.as_str(), most),
            ("/boot/vmlinuz-6", rootfs::MAX_BOOT_FILE)
        ),
        other => panic!("{:?}", other.map(|taken| taken.files)),
    }
}

#[test]
fn a_snapshot_of_the_store_is_read_in_place() {
    let scratch = Scratch::new();
    let tree = Tree::root().with("boot/vmlinuz-6", "kernel");
    let image = disk("gpt", &[(ROOT, &filesystem(&tree, 1, 8, &[]))]);
    let id = import_bytes(&scratch.store, "image", &image);
    let disk = Rc::new(scratch.store.open_snapshot(&id).expect("open"));
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    let files = rootfs::find(disk, &mut kernel, &mut initrd).expect("found");
    assert_eq!(kernel, b"kernel");
    let wanted = format!("root=PARTUUID={} rw console=ttyS0", uuid(101));
    assert_eq!(files.kernel_args, wanted);
}
