//! Kernels by their names in a `/boot` folder, when nothing describes them.

use super::version;

/// What kernels are called, up to their version.
const KERNELS: [&str; 4] = ["vmlinuz", "vmlinux", "bzImage", "kernel"];

/// A kernel of a folder, and its initrd if there is one that fits its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub file: String,
    pub initrd: Option<String>,
}

/// The kernels among a folder's names: those with a version first, the newest before the others,
/// rescue kernels and copies of old ones last.
pub(super) fn kernels(names: &[String]) -> Vec<Kernel> {
    let mut found: Vec<(&str, &str)> = names
        .iter()
        .filter_map(|name| Some((name.as_str(), version_of(name)?)))
        .collect();
    found.sort_by(|(_, a), (_, b)| {
        is_spare(a)
            .cmp(&is_spare(b))
            .then_with(|| version::compare(b, a))
            .then_with(|| a.cmp(b))
    });
    let kernel = |(name, version): (&str, &str)| Kernel {
        file: name.to_owned(),
        initrd: initrd_of(names, version),
    };
    found.into_iter().map(kernel).collect()
}

/// The version in a kernel's name, empty if it has none; `None` for other names.
fn version_of(name: &str) -> Option<&str> {
    KERNELS.iter().find_map(|kind| {
        let rest = name.strip_prefix(kind)?;
        if rest.is_empty() {
            return Some(rest);
        }
        rest.strip_prefix('-').filter(|version| !version.is_empty())
    })
}

fn is_spare(version: &str) -> bool {
    version.contains("rescue") || version.ends_with(".old") || version.ends_with(".bak")
}

/// Debian, Fedora, openSUSE, Arch and Alpine name initrds in these ways.
fn initrd_of(names: &[String], version: &str) -> Option<String> {
    let candidates = if version.is_empty() {
        ["initrd.img", "initrd", "initramfs.img", "initramfs"].map(str::to_owned)
    } else {
        [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
            format!("initramfs-{version}"),
        ]
    };
    candidates.into_iter().find(|name| names.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(names: &[&str]) -> Vec<(String, Option<String>)> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        kernels(&names)
            .into_iter()
            .map(|kernel| (kernel.file, kernel.initrd))
            .collect()
    }

    #[test]
    fn the_newest_kernel_comes_first_with_its_own_initrd() {
        let names = [
            "System.map-6.1.0-10",
            "config-6.1.0-10",
            "initrd.img-6.1.0-10",
            "initrd.img-6.1.0-9",
            "vmlinuz-6.1.0-9",
            "vmlinuz-6.1.0-10",
            "vmlinuz-0-rescue-abc",
            "vmlinuz-9.9.old",
            "vmlinuz",
            "vmlinuzfoo",
        ];
        let kernels = found(&names);
        let files: Vec<_> = kernels.iter().map(|(file, _)| file.as_str()).collect();
        let wanted = [
            "vmlinuz-6.1.0-10",
            "vmlinuz-6.1.0-9",
            "vmlinuz",
            "vmlinuz-9.9.old",
            "vmlinuz-0-rescue-abc",
        ];
        assert_eq!(files, wanted);
        assert_eq!(kernels[0].1.as_deref(), Some("initrd.img-6.1.0-10"));
        assert_eq!(kernels[2].1, None);
    }

    #[test]
    fn every_distribution_names_its_initrd_differently() {
        for (kernel, initrd) in [
            ("vmlinuz-6.1", "initrd.img-6.1"),
            ("vmlinuz-6.1", "initramfs-6.1.img"),
            ("vmlinuz-6.1", "initrd-6.1"),
            ("vmlinuz-linux", "initramfs-linux.img"),
            ("vmlinuz-virt", "initramfs-virt"),
            ("vmlinuz", "initrd.img"),
            ("bzImage", "initrd"),
        ] {
            let kernels = found(&[kernel, initrd]);
            assert_eq!(kernels, [(kernel.to_owned(), Some(initrd.to_owned()))]);
        }
    }
}
