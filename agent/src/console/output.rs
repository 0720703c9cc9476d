//! GetConsoleOutput: the end of the log that the VMM writes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use hearth_vmm::config::run_files;

use crate::{
    blocking::blocking,
    context::Context,
    error::{ApiError, ApiResult},
};

/// How much is given, in bytes.
const TAIL: u64 = 64 << 10;

/// The last 64 KiB of an instance's console; empty when it never wrote any.
pub async fn tail(context: &Context, instance_id: &str) -> ApiResult<Vec<u8>> {
    let path = context
        .settings
        .run_dir(instance_id)
        .join(run_files::CONSOLE_LOG);
    blocking("reading a console log", move || read_tail(&path))
        .await?
        .map_err(|error| ApiError::internal("reading a console log", error))
}

fn read_tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let start = file.metadata()?.len().saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_log_is_given() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("console.log");
        assert_eq!(read_tail(&path).expect("none"), b"");
        std::fs::write(&path, b"short").expect("write");
        assert_eq!(read_tail(&path).expect("short"), b"short");
        let long: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(&path, &long).expect("write");
        assert_eq!(read_tail(&path).expect("long"), &long[200_000 - 65_536..]);
    }
}
