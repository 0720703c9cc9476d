//! Disks that are broken, by chance or by design: found or refused, and never more than that.

mod common;

use common::Rng;
use common::distributions::{LINUX, Tree, disk, filesystem};
use hearth_images::rootfs::{self, RootfsError};
use std::rc::Rc;

/// Looks for a kernel; fails the test when the reader had to be caught.
fn look(disk: Vec<u8>, what: impl Fn() -> String) -> bool {
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    match rootfs::find(Rc::new(disk), &mut kernel, &mut initrd) {
        Err(RootfsError::Panicked(words)) => panic!("{}: {words}", what()),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
        Ok(_) => true,
    }
}

/// A small root with a kernel, an initrd, links, a directory of several blocks.
fn tree() -> Tree {
    let mut tree = Tree::root()
        .with("boot/vmlinuz-6", &"kernel ".repeat(10_000))
        .with("boot/initrd.img-6", &"initrd ".repeat(3_000))
        .with(
            "boot/grub/grub.cfg",
            "menuentry a {\nlinux /vmlinuz ro\ninitrd /initrd.img\n}\n",
        )
        .with_link("vmlinuz", "boot/vmlinuz-6")
        .with_link(
            "initrd.img",
            &format!("{}boot/initrd.img-6", "./".repeat(100)),
        );
    for index in 0..100 {
        tree = tree.with(&format!("boot/{}{index}", "long-name-".repeat(8)), "");
    }
    tree
}

/// Without checksums, so that broken metadata is believed.
const NO_CHECKSUMS: [&str; 4] = ["-b", "1024", "-O", "^metadata_csum,^64bit"];

#[test]
fn any_field_of_the_superblock_may_be_anything() {
    let good = filesystem(&tree(), 1, 4, &NO_CHECKSUMS);
    assert!(look(good.clone(), || "the unbroken disk".to_owned()));
    for offset in (1024..2048).step_by(2) {
        for value in [0u32, 1, 0x7fff, 0x8000_0000, 0xffff, 0xffff_ffff] {
            let mut bad = good.clone();
            let bytes = value.to_le_bytes();
            bad[offset..offset + 4].copy_from_slice(&bytes);
            look(bad, || format!("{value:#x} at {offset}"));
        }
    }
}

#[test]
fn any_byte_of_the_metadata_may_be_anything() {
    let options: [&[&str]; 3] = [
        &NO_CHECKSUMS,
        &["-b", "1024", "-O", "^metadata_csum,^extent,^64bit"],
        &["-b", "4096"],
    ];
    for options in options {
        let good = filesystem(&tree(), 1, 4, options);
        // Where there is anything but zeroes; the files' own text is of no interest.
        let places: Vec<usize> = (0..good.len())
            .filter(|at| good[*at] != 0 && !b"kernelinitrd ".contains(&good[*at]))
            .collect();
        let mut rng = Rng::new(7);
        for round in 0..1500 {
            let mut bad = good.clone();
            let mut changed = Vec::new();
            for _ in 0..=rng.below(3) {
                let at = places[rng.below(places.len() as u64) as usize];
                bad[at] = match rng.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => bad[at] ^ 1 << rng.below(8),
                    _ => rng.below(256) as u8,
                };
                changed.push((at, bad[at]));
            }
            look(bad, || format!("{options:?}, round {round}: {changed:?}"));
        }
    }
}

#[test]
fn a_disk_may_end_anywhere() {
    let good = disk("gpt", &[(LINUX, &filesystem(&tree(), 1, 4, &[]))]);
    assert!(look(good.clone(), || "the unbroken disk".to_owned()));
    let mut rng = Rng::new(3);
    for _ in 0..300 {
        let length = rng.below(good.len() as u64) as usize;
        look(good[..length].to_vec(), || format!("{length} bytes"));
    }
}

#[test]
fn any_byte_of_a_partition_table_may_be_anything() {
    let root = filesystem(&tree(), 1, 4, &[]);
    for table in ["gpt", "dos"] {
        let kind = if table == "gpt" { LINUX } else { "83" };
        let good = disk(table, &[(kind, &root)]);
        let mut rng = Rng::new(5);
        for round in 0..500 {
            let mut bad = good.clone();
            // The copy at the end must not help.
            let length = bad.len();
            bad[length - 512..].fill(0);
            for _ in 0..=rng.below(4) {
                bad[rng.below(2048) as usize] = rng.below(256) as u8;
            }
            look(bad, || format!("{table}, round {round}"));
        }
    }
}
