//! The console's log file: appended to, and cut from the front before it grows too large.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The file is cut when it would grow beyond this, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// What is kept at a cut, in bytes.
const KEPT_BYTES: u64 = 256 << 10;

/// The log; a failure to write is told once and does not disturb the guest.
pub(super) struct ConsoleLog {
    file: File,
    path: PathBuf,
    length: u64,
    failed: bool,
}

impl ConsoleLog {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)?;
        let length = file.metadata()?.len();
        Ok(Self {
            file,
            path: path.into(),
            length,
            failed: false,
        })
    }

    pub fn append(&mut self, bytes: &[u8]) {
        let outcome = self.cut_if_needed(bytes.len() as u64).and_then(|()| {
            self.file.write_all(bytes)?;
            self.length += bytes.len() as u64;
            Ok(())
        });
        if let Err(error) = outcome {
            if !self.failed {
                tracing::warn!(%error, path = %self.path.display(), "console log");
            }
            self.failed = true;
        }
    }

    /// A reader sees the old file or the new one, never half of one: the cut is a rename.
    fn cut_if_needed(&mut self, more: u64) -> io::Result<()> {
        if self.length + more <= MAX_BYTES {
            return Ok(());
        }
        let mut kept = Vec::new();
        self.file
            .seek(SeekFrom::Start(self.length.saturating_sub(KEPT_BYTES)))?;
        self.file.read_to_end(&mut kept)?;
        let fresh_path = self.path.with_extension("log.new");
        let mut fresh = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(&fresh_path)?;
        fresh.write_all(&kept)?;
        std::fs::rename(&fresh_path, &self.path)?;
        self.file = OpenOptions::new()
            .append(true)
            .read(true)
            .open(&self.path)?;
        self.length = kept.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_bounded_and_keeps_the_newest_output() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let mut log = ConsoleLog::open(&path).unwrap();
        for round in 0..5000u32 {
            log.append(format!("{round:0>999}\n").as_bytes());
        }
        let content = std::fs::read_to_string(&path).unwrap();
        assert!(content.len() as u64 <= MAX_BYTES);
        assert!(content.len() >= 64 << 10);
        assert!(content.ends_with("4999\n"));
    }

    #[test]
    fn a_second_boot_appends_to_what_the_first_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        ConsoleLog::open(&path).unwrap().append(b"one");
        ConsoleLog::open(&path).unwrap().append(b"two");
        assert_eq!(std::fs::read(&path).unwrap(), b"onetwo");
    }
}
