//! Judges the files of an agent's volume store, with QEMU's tool and with a plain listing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::programs::output_of;

/// Every file below a folder, with its length in bytes. Lock files are left out: they are empty,
/// made when they are first needed, and stay. So are checksums, which come in the background.
pub fn files_below(folder: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            if !name.ends_with(b"lock") && !name.ends_with(b".sum") {
                found.insert(entry.path(), entry.metadata()?.len());
            }
        }
    }
    Ok(found)
}

/// All qcow2 files below a folder.
pub fn qcow2_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = files_below(folder)?.into_keys();
    Ok(files
        .filter(|path| path.extension().is_some_and(|ext| ext == "qcow2"))
        .collect())
}

/// `qemu-img check` over every qcow2 file below a folder; fails when it reports anything.
/// Gives how many there were.
pub fn check(folder: &Path) -> Result<usize> {
    let files = qcow2_files(folder)?;
    for file in &files {
        let mut command = Command::new("qemu-img");
        command.args(["check", "-f", "qcow2"]).arg(file);
        // 0 means neither corruptions nor leaks.
        let said = output_of(&mut command).context("qemu-img check")?;
        ensure!(
            said.contains("No errors were found"),
            "{}: {said}",
            file.display()
        );
    }
    Ok(files.len())
}
