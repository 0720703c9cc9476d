//! The file systems of a disk: which one is the root, and where the boot files may be.

use super::arguments::RootNames;
use super::candidates::MAX_TEXT;
use super::error::{FileError, RootfsError};
use super::ext4::{FileSystem, Found};
use super::grub;
use super::partition::{self, Partition, Purpose, Table};
use super::read::{ReadAt, Window};
use std::io::Write;
use std::rc::Rc;

/// A file system and the partition that it is in.
struct Volume {
    fs: Rc<FileSystem>,
    /// `None`: the whole disk.
    partition: Option<Partition>,
}

impl Volume {
    fn name(&self) -> String {
        match &self.partition {
            Some(partition) => format!("partition {}", partition.number),
            None => "the disk".to_owned(),
        }
    }

    fn purpose(&self) -> Option<Purpose> {
        self.partition.as_ref().map(|partition| partition.purpose)
    }

    /// Whether a line of `fstab` means this file system.
    fn is(&self, source: &str) -> bool {
        let source = source.replace('"', "");
        match source.split_once('=') {
            Some(("UUID", uuid)) => self.fs.uuid().eq_ignore_ascii_case(uuid),
            Some(("LABEL", label)) => !label.is_empty() && self.fs.label() == label,
            Some(("PARTUUID", uuid)) => self
                .partition
                .as_ref()
                .is_some_and(|partition| partition.part_uuid.eq_ignore_ascii_case(uuid)),
            _ => {
                let by_uuid = source.strip_prefix("/dev/disk/by-uuid/");
                if let Some(uuid) = by_uuid {
                    return self.fs.uuid().eq_ignore_ascii_case(uuid);
                }
                // /dev/sda2, /dev/vda2, /dev/nvme0n1p2: the same disk on other machines.
                let number = source
                    .strip_prefix("/dev/")
                    .map(|device| device.trim_start_matches(|c: char| !c.is_ascii_digit()))
                    .map(|digits| digits.rsplit('p').next().unwrap_or(digits));
                self.partition
                    .as_ref()
                    .zip(number)
                    .is_some_and(|(partition, number)| number == partition.number.to_string())
            }
        }
    }
}

/// A folder where boot files may be.
pub(super) struct BootPlace {
    pub fs: Rc<FileSystem>,
    /// The partition, for people.
    pub partition: String,
    /// `/boot` on the root file system, nothing on one of its own.
    prefix: &'static str,
}

impl BootPlace {
    /// Where it is, for people.
    pub fn name(&self) -> String {
        match self.prefix {
            "" => self.partition.clone(),
            prefix => format!("{prefix} of {}", self.partition),
        }
    }

    /// Whether it is a folder of the root file system.
    pub fn is_root(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The path of a file in this folder.
    pub fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// A file that an entry names: from the root of its file system, as it should be, or from the
    /// root or `/boot` of the running system.
    pub fn file(&self, named: &str) -> Result<Option<Found>, FileError> {
        if let Some(found) = self.fs.file(named)? {
            return Ok(Some(found));
        }
        let elsewhere = match self.prefix {
            "" => named.strip_prefix("/boot/").map(|name| format!("/{name}")),
            prefix => Some(format!("{prefix}/{}", named.trim_start_matches('/'))),
        };
        match elsewhere {
            Some(path) => self.fs.file(&path),
            None => Ok(None),
        }
    }

    /// Copies a file; gives its length.
    pub fn copy(&self, found: &Found, most: u64, to: &mut dyn Write) -> Result<u64, FileError> {
        self.fs.copy(found, most, to)
    }
}

/// A disk that has a file system.
pub(super) struct Layout {
    volumes: Vec<Volume>,
    /// Index of the root.
    root: Option<usize>,
    places: Vec<BootPlace>,
    /// What was looked at, for the error.
    looked: Vec<String>,
}

impl Layout {
    /// Reads partition tables and file systems.
    pub fn read(disk: Rc<dyn ReadAt>) -> Result<Layout, RootfsError> {
        let disk = Window::whole(disk).map_err(RootfsError::Disk)?;
        let (volumes, looked) = volumes(&disk)?;
        if volumes.is_empty() {
            return Err(RootfsError::NoFileSystem {
                looked: looked.join("; "),
            });
        }
        let mut layout = Layout {
            volumes,
            root: None,
            places: Vec::new(),
            looked,
        };
        layout.find_root()?;
        layout.places = layout.find_places()?;
        Ok(layout)
    }

    /// What was looked at.
    pub fn looked(&self) -> Vec<String> {
        let mut looked = self.looked.clone();
        if self.root.is_none() {
            looked.push("no root file system (with /etc) among them".to_owned());
        }
        looked
    }

    /// Where boot files may be, best first.
    pub fn boot_places(&self) -> &[BootPlace] {
        &self.places
    }

    /// The root's names; `None` if it is on no file system that can be read.
    pub fn root_names(&self) -> Option<RootNames> {
        let root = &self.volumes[self.root?];
        Some(RootNames {
            uuid: root.fs.uuid(),
            part_uuid: root
                .partition
                .as_ref()
                .map(|partition| partition.part_uuid.clone()),
            device: match &root.partition {
                Some(partition) => format!("/dev/vda{}", partition.number),
                None => "/dev/vda".to_owned(),
            },
        })
    }

    /// Kernel arguments from the root's settings, and which; `rw` if it has none: nothing would
    /// make the root writable later.
    pub fn configured_arguments(&self) -> Result<(String, String), RootfsError> {
        const CMDLINE: &str = "/etc/kernel/cmdline";
        const GRUB: &str = "/etc/default/grub";
        let Some(index) = self.root else {
            return Ok((String::new(), "the disk".to_owned()));
        };
        let root = &self.volumes[index];
        let of_root = |error: FileError| error.of(&root.name());
        let text = |path: &str| root.fs.text(path, MAX_TEXT).map_err(of_root);
        if let Some(text) = text(CMDLINE)? {
            let lines: Vec<_> = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.starts_with('#'))
                .collect();
            return Ok((lines.join(" "), CMDLINE.to_owned()));
        }
        let mut files = vec![GRUB.to_owned()];
        let folder = "/etc/default/grub.d";
        let names = root.fs.names(folder).map_err(of_root)?;
        files.extend(
            names
                .iter()
                .filter(|name| name.ends_with(".cfg"))
                .map(|name| format!("{folder}/{name}")),
        );
        let (mut always, mut usually, mut any) = (String::new(), String::new(), false);
        for file in &files {
            if let Some(text) = text(file)? {
                any = true;
                always = grub::assigned(&text, "GRUB_CMDLINE_LINUX", &always);
                usually = grub::assigned(&text, "GRUB_CMDLINE_LINUX_DEFAULT", &usually);
            }
        }
        if any {
            return Ok((format!("{always} {usually}"), GRUB.to_owned()));
        }
        Ok(("rw".to_owned(), root.name()))
    }

    /// The partition that says it is the root, else the first one with `/etc`. Leaves out file
    /// systems whose root directory can't be read.
    fn find_root(&mut self) -> Result<(), RootfsError> {
        let mut with_etc = Vec::new();
        let mut readable = Vec::new();
        for volume in self.volumes.drain(..) {
            match volume
                .fs
                .is_directory("/etc")
                .map_err(|error| error.of(&volume.name()))
            {
                Ok(has_etc) => {
                    if has_etc {
                        with_etc.push(readable.len());
                    }
                    readable.push(volume);
                }
                Err(error @ RootfsError::File { .. }) => self.looked.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        self.volumes = readable;
        let declared = with_etc
            .iter()
            .find(|index| self.volumes[**index].purpose() == Some(Purpose::Root));
        self.root = declared.or(with_etc.first()).copied();
        Ok(())
    }

    fn find_places(&self) -> Result<Vec<BootPlace>, RootfsError> {
        let own = self.boot_of_fstab()?;
        let mut order: Vec<usize> = Vec::new();
        let declared = |index: &usize| self.volumes[*index].purpose() == Some(Purpose::Boot);
        order.extend((0..self.volumes.len()).filter(declared));
        order.extend(own);
        order.extend(self.root);
        order.extend(0..self.volumes.len());
        let mut places: Vec<BootPlace> = Vec::new();
        for index in order {
            let volume = &self.volumes[index];
            if places
                .iter()
                .all(|place| !Rc::ptr_eq(&place.fs, &volume.fs))
            {
                places.push(BootPlace {
                    fs: volume.fs.clone(),
                    partition: volume.name(),
                    prefix: if Some(index) == self.root {
                        "/boot"
                    } else {
                        ""
                    },
                });
            }
        }
        Ok(places)
    }

    /// The file system that the root mounts at `/boot`.
    fn boot_of_fstab(&self) -> Result<Option<usize>, RootfsError> {
        let Some(root) = self.root.map(|index| &self.volumes[index]) else {
            return Ok(None);
        };
        let fstab = root.fs.text("/etc/fstab", MAX_TEXT);
        let fstab = fstab
            .map_err(|error| error.of(&root.name()))?
            .unwrap_or_default();
        let source = fstab
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields.len() >= 2 && !fields[0].starts_with('#') && fields[1] == "/boot")
            .map(|fields| fields[0].to_owned());
        Ok(source.and_then(|source| self.volumes.iter().position(|volume| volume.is(&source))))
    }
}

/// The file systems of a disk, and what was looked at besides.
fn volumes(disk: &Window) -> Result<(Vec<Volume>, Vec<String>), RootfsError> {
    let mut looked = Vec::new();
    let table = match partition::gpt(disk).map_err(RootfsError::Disk)? {
        Some(partitions) => Table::Gpt(partitions),
        // A file system leaves its first sector to a boot loader, which may look like a table.
        None => match FileSystem::open(disk) {
            Ok(Some(fs)) => {
                let volume = Volume {
                    fs: Rc::new(fs),
                    partition: None,
                };
                return Ok((vec![volume], vec!["the disk is one file system".to_owned()]));
            }
            Ok(None) => match partition::mbr(disk).map_err(RootfsError::Disk)? {
                Some(partitions) => Table::Mbr(partitions),
                None => Table::None,
            },
            Err(error) => return Err(error.of("the disk")),
        },
    };
    let (kind, partitions) = match table {
        Table::Gpt(partitions) => ("GPT", partitions),
        Table::Mbr(partitions) => ("MBR", partitions),
        Table::None => {
            looked.push("the disk has neither a partition table nor a file system".to_owned());
            return Ok((Vec::new(), looked));
        }
    };
    looked.push(format!("{kind} with {} partitions", partitions.len()));
    let mut volumes = Vec::new();
    for partition in partitions {
        let name = format!(
            "partition {} ({})",
            partition.number,
            partition.purpose.words()
        );
        let opened = match &partition.window {
            Some(window) => FileSystem::open(window),
            None => {
                looked.push(format!("{name} is outside of the disk"));
                continue;
            }
        };
        match opened {
            Ok(Some(fs)) => {
                looked.push(format!("{name} is ext4"));
                volumes.push(Volume {
                    fs: Rc::new(fs),
                    partition: Some(partition),
                });
            }
            Ok(None) => looked.push(format!("{name} is not ext4")),
            // One that is broken does not hide the others.
            Err(FileError::Disk(error)) => return Err(RootfsError::Disk(error)),
            Err(error) => looked.push(format!("{name} can't be read: {error}")),
        }
    }
    Ok((volumes, looked))
}
