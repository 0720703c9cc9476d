//! Disk files that a store must refuse, made with QEMU's tool and then damaged.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::programs::output_of;

/// Size of the disks made here, in bytes.
const SIZE: u64 = 8 << 20;

/// Byte offset of `l1_table_offset` in a qcow2 header.
const L1_TABLE_OFFSET: usize = 40;

/// A qcow2 file whose first 4 MiB hold data.
pub fn whole(folder: &Path) -> Result<Vec<u8>> {
    let raw = folder.join("whole.raw");
    let mut bytes = vec![0; usize::try_from(SIZE)?];
    for (index, byte) in bytes[..4 << 20].iter_mut().enumerate() {
        // Any bytes but zeroes, so that clusters are allocated.
        *byte = (index % 251) as u8 + 1;
    }
    fs::write(&raw, bytes)?;
    let qcow2 = folder.join("whole.qcow2");
    let mut command = Command::new("qemu-img");
    output_of(
        command
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .arg(&raw)
            .arg(&qcow2),
    )?;
    Ok(fs::read(qcow2)?)
}

/// Ends in the middle of its data.
pub fn truncated(folder: &Path) -> Result<Vec<u8>> {
    let mut bytes = whole(folder)?;
    bytes.truncate(bytes.len() / 2);
    Ok(bytes)
}

/// Its L1 table names itself as an L2 table, so that what is mapped leads back to the mapping.
pub fn looping(folder: &Path) -> Result<Vec<u8>> {
    let mut bytes = whole(folder)?;
    let field = bytes
        .get(L1_TABLE_OFFSET..L1_TABLE_OFFSET + 8)
        .context("no qcow2 header")?;
    let l1 = u64::from_be_bytes(field.try_into()?);
    let at = usize::try_from(l1)?;
    // With QCOW_OFLAG_COPIED, as an entry of a table in use has it.
    let entry = (l1 | 1 << 63).to_be_bytes();
    bytes
        .get_mut(at..at + 8)
        .context("no L1 table")?
        .copy_from_slice(&entry);
    Ok(bytes)
}

/// Names a backing file: any path, whether it is there or not.
pub fn backed_by(folder: &Path, backing: &str) -> Result<Vec<u8>> {
    create(folder, "backed.qcow2", &["-u", "-F", "raw", "-b", backing])
}

/// Keeps its data in another file.
pub fn with_data_file(folder: &Path) -> Result<Vec<u8>> {
    let options = format!(
        "data_file={},data_file_raw=on",
        folder.join("elsewhere").display()
    );
    create(folder, "outside.qcow2", &["-o", &options])
}

fn create(folder: &Path, name: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let path: PathBuf = folder.join(name);
    let mut command = Command::new("qemu-img");
    command
        .args(["create", "-q", "-f", "qcow2"])
        .args(arguments)
        .arg(&path)
        .arg(SIZE.to_string());
    output_of(&mut command)?;
    Ok(fs::read(path)?)
}
