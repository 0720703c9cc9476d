//! Foreign images for the import tests.

use super::{Rng, Scratch};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A raw disk with data, holes and stored zeroes, that does not end at a cluster.
pub fn raw_disk(scratch: &Scratch, name: &str, size: u64) -> PathBuf {
    let path = scratch.path(name);
    let file = File::create(&path).expect("raw");
    file.set_len(size).expect("size");
    let mut rng = Rng::new(size);
    let mut data = vec![0; 100_000];
    for at in (0..size).step_by(300_000) {
        match rng.below(3) {
            0 => rng.fill(&mut data),
            1 => data.fill(0),
            _ => continue,
        }
        let length = (data.len() as u64).min(size - at) as usize;
        file.write_all_at(&data[..length], at).expect("raw");
    }
    path
}

pub fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(fs::read(path).expect("image"));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Gives out a few bytes at a time, as a network does, and optionally breaks.
pub struct Trickle<R> {
    pub inner: R,
    pub error_at_end: Option<io::ErrorKind>,
}

impl<R: Read> Read for Trickle<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(7777);
        match self.inner.read(&mut buffer[..length]) {
            Ok(0) => self.error_at_end.map_or(Ok(0), |kind| Err(kind.into())),
            other => other,
        }
    }
}
