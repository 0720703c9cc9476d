//! The base guest's root with its kernel inside, as a distribution's disk has it. Made without
//! mounts or loop devices.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{guest_folder, output_of};

const MIB: u64 = 1 << 20;

/// A disk to be put together in a folder of its own.
pub struct RootDisk {
    folder: TempDir,
    script: String,
    files: usize,
}

impl RootDisk {
    /// The base guest's root file system, without any kernel.
    pub fn base() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let root = guest_folder()?.join("root.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "qcow2", "-O", "raw"]);
        output_of(convert.arg(root).arg(folder.path().join("root.raw")))?;
        Ok(Self {
            folder,
            script: String::new(),
            files: 0,
        })
    }

    /// The base guest's kernel, at this path in the root.
    pub fn with_kernel(self, path: &str) -> Result<Self> {
        let kernel = guest_folder()?.join("vmlinux");
        Ok(self.with_file(path, &kernel))
    }

    /// A text file in the root.
    pub fn with_text(mut self, path: &str, text: &str) -> Result<Self> {
        let file = self.folder.path().join(self.files.to_string());
        self.files += 1;
        fs::write(&file, text)?;
        Ok(self.with_file(path, &file))
    }

    fn with_file(mut self, path: &str, file: &Path) -> Self {
        for (at, _) in path.match_indices('/').skip(1) {
            // One that is there already is no harm.
            self.script += &format!("mkdir {}\n", &path[..at]);
        }
        self.script += &format!("write {} {path}\n", file.display());
        self
    }

    /// The file system alone, without a partition table.
    pub fn plain(self) -> Result<(TempDir, PathBuf)> {
        let root = self.folder.path().join("root.raw");
        let script = self.folder.path().join("script");
        fs::write(&script, &self.script)?;
        output_of(
            Command::new("debugfs")
                .args(["-w", "-f"])
                .arg(&script)
                .arg(&root),
        )?;
        // debugfs has no exit code for what went wrong; the file system's checker does.
        output_of(Command::new("e2fsck").args(["-f", "-n"]).arg(&root))?;
        Ok((self.folder, root))
    }

    /// A GPT disk: a small EFI system partition, and the root as the second one.
    pub fn gpt(self) -> Result<(TempDir, PathBuf)> {
        let (folder, root) = self.plain()?;
        let path = folder.path().join("disk.raw");
        let length = fs::metadata(&root)?.len();
        let disk = File::create(&path)?;
        disk.set_len(length + 4 * MIB)?;
        let script = format!(
            "label: gpt\nstart=2048, size=2048, type=U\n\
             start=4096, size={}, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709\n",
            length / 512
        );
        let mut sfdisk = Command::new("sfdisk")
            .args(["-q", "--no-reread", "--no-tell-kernel"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .context("sfdisk")?;
        let mut stdin = sfdisk.stdin.take().context("sfdisk's input")?;
        stdin.write_all(script.as_bytes())?;
        drop(stdin);
        ensure!(sfdisk.wait()?.success(), "sfdisk refused {script}");
        let mut disk = disk;
        disk.seek(SeekFrom::Start(2 * MIB))?;
        std::io::copy(&mut File::open(root)?, &mut disk)?;
        Ok((folder, path))
    }
}

/// The base guest's kernel arguments, but for `root=`.
pub fn arguments_without_root() -> Result<String> {
    let description = fs::read(guest_folder()?.join("image.json"))?;
    let description: Value = serde_json::from_slice(&description)?;
    let arguments = description["kernel_args"].as_str().context("kernel_args")?;
    let words = arguments
        .split(' ')
        .filter(|word| !word.starts_with("root="));
    Ok(words.collect::<Vec<_>>().join(" "))
}
