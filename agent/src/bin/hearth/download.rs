//! Exported images on their way from the agent into a file.
//!
//! The file has a temporary name in the folder of its final one until all of it is there and its
//! digest is right. Zeroes become holes.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use clap::Args;
use hearth_proto::v1::{DiskFormat, ExportHeader, ExportResponse, export_response::Message};
use indicatif::ProgressBar;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tonic::Streaming;

use crate::{
    failure::{Failure, rpc},
    human,
    image_files::parse_format,
    output::{self, Output},
    upload::progress_bar,
};

/// Pieces of this size are left out where they are zero.
const HOLE_BYTES: usize = 4096;

/// Where an export goes to.
#[derive(Args)]
pub struct TargetArgs {
    /// The file to be made.
    file: PathBuf,
    /// Its format.
    #[arg(long, value_name = "raw|qcow2", value_parser = parse_format, default_value = "qcow2")]
    format: DiskFormat,
    /// Take the place of a file that is there.
    #[arg(long)]
    force: bool,
}

/// A file that is being made; gone when dropped.
pub struct Target {
    path: PathBuf,
    format: DiskFormat,
    force: bool,
    file: NamedTempFile,
}

/// What was made.
pub struct Received {
    path: PathBuf,
    header: ExportHeader,
    sha256: String,
}

impl TargetArgs {
    /// Makes the temporary file, before anything is asked of the agent.
    pub fn open(self) -> Result<Target, Failure> {
        if !self.force && self.path_is_taken() {
            return Err(taken(&self.file));
        }
        let dir = match self.file.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".hearth-export.")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)
            .map_err(|error| Failure::new(format!("{}: {error}", dir.display())))?;
        Ok(Target {
            path: self.file,
            format: self.format,
            force: self.force,
            file,
        })
    }

    fn path_is_taken(&self) -> bool {
        self.file.symlink_metadata().is_ok()
    }
}

fn taken(path: &Path) -> Failure {
    Failure::new(format!("{} is there already", path.display()))
        .hint("choose another name, or take its place with --force")
}

fn incomplete() -> Failure {
    Failure::new("the agent's stream ended early").hint("hearthd's log has more")
}

impl Target {
    /// The format that was asked for.
    pub fn format(&self) -> DiskFormat {
        self.format
    }

    /// Writes everything that comes in, and gives the file its name at the end.
    pub async fn receive(
        self,
        mut answers: Streaming<ExportResponse>,
    ) -> Result<Received, Failure> {
        // Interrupted, the temporary file must go too.
        let received = tokio::select! {
            received = self.write(&mut answers) => received?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::new("interrupted")),
        };
        self.keep()?;
        Ok(received)
    }

    async fn write(&self, answers: &mut Streaming<ExportResponse>) -> Result<Received, Failure> {
        let first = answers.message().await.map_err(rpc)?;
        let Some(Message::Header(header)) = first.and_then(|answer| answer.message) else {
            return Err(incomplete());
        };
        let bar = progress_bar(header.length_bytes);
        bar.set_message(
            self.path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        );
        let result = self.write_body(answers, &header, &bar).await;
        bar.finish_and_clear();
        Ok(Received {
            path: self.path.clone(),
            header,
            sha256: result?,
        })
    }

    async fn write_body(
        &self,
        answers: &mut Streaming<ExportResponse>,
        header: &ExportHeader,
        bar: &ProgressBar,
    ) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::new(format!("{}: {error}", self.path.display()));
        let file = self.file.as_file();
        let mut digest = Sha256::new();
        let mut at = 0u64;
        loop {
            let answer = answers.message().await.map_err(rpc)?;
            let length = match answer.and_then(|answer| answer.message) {
                Some(Message::Data(data)) => {
                    digest.update(&data);
                    write_sparsely(file, &data, at).map_err(failed)?;
                    data.len() as u64
                }
                Some(Message::Zeroes(length)) => {
                    hearth_images::export::update_with_zeroes(&mut digest, length);
                    length
                }
                Some(Message::Trailer(trailer)) => {
                    let sha256 = hex(&digest.finalize());
                    if at != header.length_bytes || sha256 != trailer.sha256 {
                        return Err(Failure::new(
                            "what arrived is not what the agent sent: length or SHA-256 differ",
                        ));
                    }
                    file.set_len(at).map_err(failed)?;
                    file.sync_all().map_err(failed)?;
                    return Ok(sha256);
                }
                Some(Message::Header(_)) | None => return Err(incomplete()),
            };
            at += length;
            if at > header.length_bytes {
                return Err(Failure::new("the agent sends more than it said"));
            }
            bar.inc(length);
        }
    }

    fn keep(self) -> Result<(), Failure> {
        let kept = match self.force {
            true => self.file.persist(&self.path),
            false => self.file.persist_noclobber(&self.path),
        };
        kept.map(drop).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => taken(&self.path),
            _ => Failure::new(format!("{}: {}", self.path.display(), error.error)),
        })
    }
}

impl Received {
    /// Says what was made.
    pub fn print(self, output: Output) -> Result<(), Failure> {
        match output {
            Output::Json => {
                let made = serde_json::json!({
                    "file": self.path,
                    "lengthBytes": self.header.length_bytes.to_string(),
                    "sizeBytes": self.header.size_bytes.to_string(),
                    "sha256": self.sha256,
                });
                output::line(&format!("{made:#}"))
            }
            Output::Table => output::fields(vec![
                ("File", self.path.display().to_string()),
                ("Length", human::bytes(self.header.length_bytes)),
                ("Disk size", human::bytes(self.header.size_bytes)),
                ("SHA-256", self.sha256),
            ]),
        }
    }
}

fn write_sparsely(file: &File, data: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |piece: &[u8]| piece.iter().all(|byte| *byte == 0);
    let pieces: Vec<&[u8]> = data.chunks(HOLE_BYTES).collect();
    let mut offset = 0;
    for run in pieces.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|piece| piece.len()).sum();
        if !is_zero(run[0]) {
            file.write_all_at(&data[offset..offset + length], at + offset as u64)?;
        }
        offset += length;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
