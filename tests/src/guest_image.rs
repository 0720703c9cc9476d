//! The base guest as files, as `images/guest/build` leaves them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use hearth_proto::v1::{DiskFormat, ImageFile, ImportImageHeader};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::programs;

/// A kernel, perhaps an initrd, perhaps a root: what an import sends.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// The header that belongs to the files.
    pub header: ImportImageHeader,
    /// The files' bytes, in the order of the stream.
    pub files: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct Description {
    kernel: String,
    kernel_args: String,
    root: Option<String>,
    sha256: BTreeMap<String, String>,
}

impl GuestImage {
    /// The base guest: ELF kernel and root volume.
    pub fn base() -> Result<Self> {
        let folder = programs::guest_folder()?;
        let description: Description =
            serde_json::from_slice(&read(&folder, "image.json")?).context("image.json")?;
        let digest = |name: &str| description.sha256.get(name).cloned().unwrap_or_default();
        let mut image = Self::kernel_only("base", read(&folder, &description.kernel)?);
        image.header.kernel_args = description.kernel_args;
        if let Some(kernel) = image.header.kernel.as_mut() {
            kernel.sha256 = digest(&description.kernel);
        }
        if let Some(root) = description.root {
            image = image.with_root(read(&folder, &root)?, DiskFormat::Qcow2);
        }
        Ok(image)
    }

    /// The base guest's bzImage and initrd, without a root: it says hello and powers off.
    pub fn bzimage_and_initrd() -> Result<Self> {
        let folder = programs::guest_folder()?;
        let image = Self::kernel_only("bzimage", read(&folder, "bzImage")?);
        let mut image = image.with_initrd(read(&folder, "initrd.cpio")?);
        image.header.kernel_args = "console=ttyS0 quiet".to_owned();
        Ok(image)
    }

    /// The base guest's ELF kernel with its initrd, without a root.
    pub fn elf_and_initrd() -> Result<Self> {
        let folder = programs::guest_folder()?;
        let image = Self::kernel_only("elf", read(&folder, "vmlinux")?);
        let mut image = image.with_initrd(read(&folder, "initrd.cpio")?);
        image.header.kernel_args = "console=ttyS0 quiet".to_owned();
        Ok(image)
    }

    /// An image that is these bytes as its kernel, whatever they are.
    pub fn kernel_only(name: &str, kernel: Vec<u8>) -> Self {
        let header = ImportImageHeader {
            name: name.to_owned(),
            kernel: Some(file(&kernel, DiskFormat::Unspecified)),
            ..Default::default()
        };
        Self {
            header,
            files: vec![kernel],
        }
    }

    /// The same under another name.
    pub fn named(mut self, name: &str) -> Self {
        self.header.name = name.to_owned();
        self
    }

    /// Adds an initrd; before the root.
    pub fn with_initrd(mut self, bytes: Vec<u8>) -> Self {
        self.header.initrd = Some(file(&bytes, DiskFormat::Unspecified));
        self.files.push(bytes);
        self
    }

    /// Adds a root.
    pub fn with_root(mut self, bytes: Vec<u8>, format: DiskFormat) -> Self {
        self.header.root = Some(file(&bytes, format));
        self.files.push(bytes);
        self
    }
}

fn file(bytes: &[u8], format: DiskFormat) -> ImageFile {
    ImageFile {
        length_bytes: bytes.len() as u64,
        sha256: sha256_hex(bytes),
        format: format.into(),
    }
}

/// The SHA-256 of these bytes, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn read(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path: PathBuf = folder.join(name);
    fs::read(&path).with_context(|| path.display().to_string())
}
