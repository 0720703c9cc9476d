//! The host's own `pread` and `pwrite` on a raw file, in as many threads as there would be
//! requests in flight.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::disk::{Load, SIZE};

/// A raw file of [`SIZE`] bytes, all of them written.
pub fn make(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("disk.raw");
    let file = File::create(&path)?;
    let data = vec![0x5a; 1 << 20];
    for offset in (0..SIZE).step_by(data.len()) {
        file.write_all_at(&data, offset)?;
    }
    file.sync_all()?;
    Ok(path)
}

/// Requests per second.
pub fn iops(path: &Path, load: &Load) -> Result<f64> {
    let file = File::options().read(true).write(true).open(path)?;
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(load.seconds);
    let done = thread::scope(|scope| {
        let threads: Vec<_> = (0..load.depth)
            .map(|seed| {
                scope.spawn({
                    let file = &file;
                    move || run(file, load, seed, end)
                })
            })
            .collect();
        let mut done = 0;
        for thread in threads {
            done += thread.join().ok().context("a thread has panicked")??;
        }
        anyhow::Ok(done)
    })?;
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

fn run(file: &File, load: &Load, seed: u64, end: Instant) -> Result<u64> {
    let mut buffer = vec![0xa5; usize::try_from(load.size)?];
    let blocks = SIZE / load.size;
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut done = 0;
    loop {
        // The clock is not free.
        if done % 16 == 0 && Instant::now() >= end {
            return Ok(done);
        }
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let block = if load.sequential { done } else { state };
        let offset = block % blocks * load.size;
        match load.read {
            true => file.read_exact_at(&mut buffer, offset)?,
            false => file.write_all_at(&buffer, offset)?,
        }
        done += 1;
    }
}
