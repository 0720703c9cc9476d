//! The console of a machine: what is typed on it, and what its guest says. No wait is without an
//! end, and one that was in vain tells what the guest has said instead.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// How much of what a guest has said is kept for errors, in bytes.
const TOLD: usize = 1500;

/// Both directions of a console.
pub struct Console {
    output: BufReader<File>,
    input: File,
    /// The last that the guest has said.
    said: Vec<u8>,
}

impl Console {
    /// The two may be the same socket.
    pub fn new(output: OwnedFd, input: OwnedFd) -> Self {
        Self {
            output: BufReader::new(output.into()),
            input: input.into(),
            said: Vec::new(),
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.input.write_all(line.as_bytes())?;
        Ok(self.input.write_all(b"\n")?)
    }

    /// Reads until the guest has said this.
    pub fn wait_for(&mut self, words: &str, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut seen = Vec::new();
        while !seen.ends_with(words.as_bytes()) {
            match self.byte(deadline)? {
                Some(byte) => seen.push(byte),
                None => bail!("no `{words}` for {patience:?}: {}", self.told()),
            }
        }
        Ok(())
    }

    /// Reads the rest of a line, without its end.
    pub fn line(&mut self, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut line = Vec::new();
        loop {
            match self.byte(deadline)? {
                Some(b'\n') => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
                Some(byte) => line.push(byte),
                None => bail!("no line for {patience:?}: {}", self.told()),
            }
        }
    }

    /// The next byte; none by the deadline.
    fn byte(&mut self, deadline: Instant) -> Result<Option<u8>> {
        if self.output.buffer().is_empty() {
            if !self.is_readable(deadline)? {
                return Ok(None);
            }
            let new = self.output.fill_buf()?;
            ensure!(!new.is_empty(), "the machine has ended: {}", self.told());
            self.said.extend_from_slice(new);
            let old = self.said.len().saturating_sub(TOLD);
            self.said.drain(..old);
        }
        let byte = self.output.buffer()[0];
        self.output.consume(1);
        Ok(Some(byte))
    }

    fn is_readable(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut output = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
            match poll(&mut output, Some(&Timespec::try_from(left)?)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// For errors.
    fn told(&self) -> String {
        match String::from_utf8_lossy(&self.said).trim() {
            "" => "it has said nothing".to_owned(),
            said => format!("the last that it said is\n{said}\n"),
        }
    }
}
