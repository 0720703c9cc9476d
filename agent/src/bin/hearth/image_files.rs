//! What `hearth image import` sends: from a directory with an `image.json`, from a disk image that
//! has its kernel inside, or from flags.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path, PathBuf},
};

use hearth_proto::v1::{BootProtocol, DiskFormat};
use serde::Deserialize;

use crate::failure::Failure;

/// The name of the description in an image's directory.
pub const DESCRIPTION: &str = "image.json";

/// `image.json`. Unknown names are left alone: a builder may note more for itself.
#[derive(Debug, Deserialize)]
struct Description {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    architecture: String,
    kernel: Option<String>,
    initrd: Option<String>,
    #[serde(default)]
    kernel_args: String,
    root: Option<String>,
    /// Hexadecimal SHA-256 of each file, by its name.
    #[serde(default)]
    sha256: BTreeMap<String, String>,
}

/// One file of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct FileToSend {
    pub path: PathBuf,
    /// Hexadecimal; empty when it is not known.
    pub sha256: String,
}

/// An image on this side of the connection.
#[derive(Debug, Default)]
pub struct ImageFiles {
    pub name: String,
    pub description: String,
    pub architecture: String,
    pub kernel_args: String,
    /// None: the agent finds it in the root.
    pub kernel: Option<FileToSend>,
    pub initrd: Option<FileToSend>,
    pub root: Option<FileToSend>,
}

impl ImageFiles {
    /// Takes a disk image as a root, or reads a directory's `image.json`. The files that this
    /// names must be in the directory itself.
    pub fn read(directory: &Path) -> Result<Self, Failure> {
        if directory.is_file() {
            let stem = directory.file_stem().unwrap_or_default();
            return Ok(Self {
                name: stem.to_string_lossy().into_owned(),
                root: Some(FileToSend {
                    path: directory.to_owned(),
                    sha256: String::new(),
                }),
                ..Self::default()
            });
        }
        let path = directory.join(DESCRIPTION);
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::new(format!("{}: {error}", path.display())).hint(
                "give a disk image, a directory with an image.json, or --name with --root or --kernel",
            )
        })?;
        let bad = |what: String| Failure::new(format!("{}: {what}", path.display()));
        let description: Description =
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let file = |name: &String| {
            let mut components = Path::new(name).components();
            match (components.next(), components.next()) {
                (Some(Component::Normal(_)), None) => Ok(FileToSend {
                    path: directory.join(name),
                    sha256: description.sha256.get(name).cloned().unwrap_or_default(),
                }),
                _ => Err(bad(format!("`{name}` is not the name of a file beside it"))),
            }
        };
        Ok(Self {
            kernel: description.kernel.as_ref().map(file).transpose()?,
            initrd: description.initrd.as_ref().map(file).transpose()?,
            root: description.root.as_ref().map(file).transpose()?,
            name: description.name,
            description: description.description,
            architecture: description.architecture,
            kernel_args: description.kernel_args,
        })
    }
}

/// The format of a disk file, by its name. Never by its content: what a stranger's raw file
/// starts with could make it a qcow2 file that names files of this machine.
pub fn format_by_name(path: &Path) -> Option<DiskFormat> {
    match path.extension()?.to_str()? {
        "qcow2" => Some(DiskFormat::Qcow2),
        "raw" => Some(DiskFormat::Raw),
        _ => None,
    }
}

/// Reads `raw` or `qcow2`.
pub fn parse_format(text: &str) -> Result<DiskFormat, String> {
    match text {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err("expected raw or qcow2".to_owned()),
    }
}

/// Reads `linux64` or `pvh`.
pub fn parse_boot_protocol(text: &str) -> Result<BootProtocol, String> {
    match text {
        "linux64" => Ok(BootProtocol::Linux64),
        "pvh" => Ok(BootProtocol::Pvh),
        _ => Err("expected linux64 or pvh".to_owned()),
    }
}

/// The format that was said, else the one in the name.
pub fn format_of(path: &Path, said: Option<DiskFormat>) -> Result<DiskFormat, Failure> {
    said.or_else(|| format_by_name(path)).ok_or_else(|| {
        Failure::new(format!("{}: neither .raw nor .qcow2", path.display()))
            .hint("say what it is with --format raw or --format qcow2")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_directory_is_read_with_its_digests() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"{"name": "base", "architecture": "x86_64", "kernel": "vmlinux",
            "kernel_args": "quiet", "root": "root.qcow2", "sha256": {"vmlinux": "ab"}}"#;
        fs::write(directory.path().join(DESCRIPTION), text).unwrap();
        let image = ImageFiles::read(directory.path()).unwrap();
        assert_eq!(image.kernel.unwrap().sha256, "ab");
        assert_eq!(
            image.root.unwrap().path,
            directory.path().join("root.qcow2")
        );
        assert_eq!(image.initrd, None);
    }

    #[test]
    fn a_disk_image_is_a_root_with_the_name_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("debian-13.qcow2");
        fs::write(&path, "").unwrap();
        let image = ImageFiles::read(&path).unwrap();
        assert_eq!(image.name, "debian-13");
        assert_eq!(image.root.unwrap().path, path);
        assert_eq!(image.kernel, None);
    }

    #[test]
    fn an_image_directory_may_not_name_files_elsewhere() {
        for name in ["../vmlinux", "/boot/vmlinuz", "a/b", "..", ""] {
            let directory = tempfile::tempdir().unwrap();
            let text = format!(r#"{{"name": "base", "kernel": "{name}"}}"#);
            fs::write(directory.path().join(DESCRIPTION), text).unwrap();
            let text = ImageFiles::read(directory.path()).unwrap_err().to_string();
            assert!(
                text.contains("is not the name of a file beside it"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_format_comes_from_the_name_or_is_asked_for() {
        assert_eq!(
            format_of(Path::new("a.qcow2"), None).unwrap(),
            DiskFormat::Qcow2
        );
        assert_eq!(
            format_of(Path::new("a.img"), Some(DiskFormat::Raw)).unwrap(),
            DiskFormat::Raw
        );
        assert!(format_of(Path::new("a.img"), None).is_err());
    }
}
