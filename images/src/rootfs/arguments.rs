//! Kernel arguments that boot the root file system as the first virtio disk.

/// Longest kernel arguments, in bytes: x86's COMMAND_LINE_SIZE without the final NUL.
const MAX_ARGUMENTS: usize = 2047;

/// The root file system, by the names that a kernel or an initrd knows it.
#[derive(Clone, Debug)]
pub(super) struct RootNames {
    /// UUID of the file system.
    pub uuid: String,
    /// UUID of the partition; `None` when the whole disk is the file system.
    pub part_uuid: Option<String>,
    /// `/dev/vda`, `/dev/vda1`.
    pub device: String,
}

impl RootNames {
    /// The value of `root=`. Only an initrd finds a file system's UUID; a partition's the kernel
    /// finds itself.
    fn value(&self, has_initrd: bool) -> String {
        match (&self.part_uuid, has_initrd) {
            (_, true) => format!("UUID={}", self.uuid),
            (Some(part_uuid), false) => format!("PARTUUID={part_uuid}"),
            (None, false) => self.device.clone(),
        }
    }
}

/// Makes arguments of those found: `root=` such that it mounts here, a console on the serial port
/// if there is none on any, and nothing that was meant for a boot loader.
///
/// # Errors
/// What is wrong, to be put after the name of their source: too long, not printable ASCII, or no
/// root at all.
pub(super) fn arguments(
    found: &str,
    root: Option<&RootNames>,
    has_initrd: bool,
) -> Result<String, String> {
    let words = split(found);
    let mut result: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| !word.starts_with("BOOT_IMAGE=") && !word.starts_with("initrd="))
        .collect();
    // The last one counts, for the kernel as well.
    let of_disk = result
        .iter()
        .rev()
        .find_map(|word| word.strip_prefix("root="));
    let replacement = match (of_disk, root) {
        (Some(value), Some(root)) if !mounts(value, root, has_initrd) => {
            Some(format!("root={}", root.value(has_initrd)))
        }
        (Some(_), _) => None,
        (None, Some(root)) => Some(format!("root={}", root.value(has_initrd))),
        (None, None) => {
            return Err(
                "name no root=, and no partition has a root file system (ext4 with /etc)".into(),
            );
        }
    };
    if let Some(replacement) = &replacement {
        result.retain(|word| !word.starts_with("root="));
        result.insert(0, replacement);
    }
    if !result.iter().any(|word| word.starts_with("console=")) {
        result.push("console=ttyS0");
    }
    let text = result.join(" ");
    if text.len() > MAX_ARGUMENTS {
        return Err(format!("are longer than {MAX_ARGUMENTS} bytes"));
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("are not printable ASCII".into());
    }
    Ok(text)
}

/// Whether `root=` with this value finds the root when its disk is the first virtio disk.
fn mounts(value: &str, root: &RootNames, has_initrd: bool) -> bool {
    if let Some(part_uuid) = value.strip_prefix("PARTUUID=") {
        return root
            .part_uuid
            .as_ref()
            .is_some_and(|own| own.eq_ignore_ascii_case(part_uuid));
    }
    if value.starts_with("/dev/vda") {
        return value == root.device;
    }
    // UUID=, LABEL=, /dev/disk/by-…, /dev/mapper/…: an initrd's affair. Names of other kinds of
    // disk (/dev/sda1, /dev/xvda1, /dev/nvme0n1p1) are nothing here.
    let symbolic = [
        "UUID=",
        "LABEL=",
        "PARTLABEL=",
        "/dev/disk/",
        "/dev/mapper/",
    ];
    has_initrd && symbolic.iter().any(|prefix| value.starts_with(prefix))
}

/// Splits at white space outside of double quotes, as the kernel does.
fn split(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        !quoted && c.is_whitespace()
    })
    .filter(|word| !word.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition() -> RootNames {
        RootNames {
            uuid: "f5".to_owned(),
            part_uuid: Some("aB".to_owned()),
            device: "/dev/vda1".to_owned(),
        }
    }

    fn whole() -> RootNames {
        RootNames {
            part_uuid: None,
            device: "/dev/vda".to_owned(),
            ..partition()
        }
    }

    #[test]
    fn root_is_kept_when_it_mounts_and_replaced_when_it_does_not() {
        let cases = [
            // found, with an initrd, without one
            ("root=UUID=f5", "root=UUID=f5", "root=PARTUUID=aB"),
            ("root=LABEL=x", "root=LABEL=x", "root=PARTUUID=aB"),
            ("root=PARTUUID=Ab", "root=PARTUUID=Ab", "root=PARTUUID=Ab"),
            ("root=PARTUUID=cc", "root=UUID=f5", "root=PARTUUID=aB"),
            ("root=/dev/vda1", "root=/dev/vda1", "root=/dev/vda1"),
            ("root=/dev/vda3", "root=UUID=f5", "root=PARTUUID=aB"),
            ("root=/dev/sda1", "root=UUID=f5", "root=PARTUUID=aB"),
            (
                "root=UUID=1 root=/dev/xvda",
                "root=UUID=f5",
                "root=PARTUUID=aB",
            ),
            ("", "root=UUID=f5", "root=PARTUUID=aB"),
        ];
        for (found, with, without) in cases {
            for (has_initrd, wanted) in [(true, with), (false, without)] {
                let text = arguments(found, Some(&partition()), has_initrd).expect("good");
                assert_eq!(text, format!("{wanted} console=ttyS0"), "{found:?}");
            }
        }
        assert_eq!(
            arguments("root=/dev/sda", Some(&whole()), false).expect("good"),
            "root=/dev/vda console=ttyS0"
        );
    }

    #[test]
    fn what_was_meant_for_others_goes_and_the_rest_stays() {
        let found = "BOOT_IMAGE=(hd0)/vmlinuz initrd=/x ro  x=\"a  b\" console=tty0 -- 3";
        assert_eq!(
            arguments(found, Some(&whole()), false).expect("good"),
            "root=/dev/vda ro x=\"a  b\" console=tty0 -- 3"
        );
    }

    #[test]
    fn arguments_that_can_not_be_used_say_why() {
        let root = partition();
        let long = "x".repeat(3000);
        for (found, root, words) in [
            (long.as_str(), Some(&root), "longer"),
            ("a\u{7f}", Some(&root), "ASCII"),
            ("\u{e9}", Some(&root), "ASCII"),
            ("ro", None, "no root="),
        ] {
            let error = arguments(found, root, true).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        // With a root of its own, a disk needs none that we can read.
        arguments("root=UUID=btrfs", None, true).expect("an initrd finds it");
    }
}
