//! Files on their way to the agent: in pieces, with a progress bar on a terminal.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    fs::File,
    io::AsyncReadExt,
    sync::mpsc::{self, Sender},
};
use tokio_stream::wrappers::ReceiverStream;

use crate::failure::Failure;

/// The API takes at most 1 MiB in one message.
const PIECE_BYTES: usize = 1 << 20;

/// Files opened and measured, to be sent one after the other.
pub struct Upload {
    files: Vec<(PathBuf, File, u64)>,
}

impl Upload {
    pub fn new() -> Self {
        Self { files: Vec::new() }
    }

    /// Adds a file; gives its length in bytes.
    pub async fn add(&mut self, path: PathBuf) -> Result<u64, Failure> {
        let failed = |error: io::Error| Failure::new(format!("{}: {error}", path.display()));
        let file = File::open(&path).await.map_err(failed)?;
        let metadata = file.metadata().await.map_err(failed)?;
        if !metadata.is_file() {
            return Err(Failure::new(format!(
                "{} is not a regular file",
                path.display()
            )));
        }
        let length = metadata.len();
        self.files.push((path, file, length));
        Ok(length)
    }

    /// Starts sending: `header` first, then every file's bytes, each piece made a message by
    /// `data`. A file that can't be read ends the stream early, which the agent refuses; the
    /// reason is then in the receiver.
    pub fn send<M: Send + 'static>(
        self,
        header: M,
        data: fn(Vec<u8>) -> M,
    ) -> (
        ReceiverStream<M>,
        tokio::task::JoinHandle<Result<(), Failure>>,
    ) {
        // Few in flight: the agent's disk sets the pace, and the bar shows what it took.
        let (sender, receiver) = mpsc::channel(4);
        let task = tokio::spawn(async move {
            let total = self.files.iter().map(|(_, _, length)| length).sum();
            let bar = progress_bar(total);
            if sender.send(header).await.is_ok() {
                for (path, file, length) in self.files {
                    if !send_file(&sender, &path, file, length, data, &bar).await? {
                        break;
                    }
                }
            }
            bar.finish_and_clear();
            Ok(())
        });
        (ReceiverStream::new(receiver), task)
    }
}

/// False when the agent has stopped listening: its answer says why.
async fn send_file<M>(
    sender: &Sender<M>,
    path: &std::path::Path,
    mut file: File,
    length: u64,
    data: fn(Vec<u8>) -> M,
    bar: &ProgressBar,
) -> Result<bool, Failure> {
    bar.set_message(
        path.file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default(),
    );
    let mut left = length;
    while left > 0 {
        let mut piece = vec![
            0;
            usize::try_from(left)
                .unwrap_or(PIECE_BYTES)
                .min(PIECE_BYTES)
        ];
        file.read_exact(&mut piece)
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Failure::new(format!(
                    "{} became shorter while it was sent",
                    path.display()
                )),
                _ => Failure::new(format!("{}: {error}", path.display())),
            })?;
        let n = piece.len() as u64;
        if sender.send(data(piece)).await.is_err() {
            return Ok(false);
        }
        left -= n;
        bar.inc(n);
    }
    Ok(true)
}

/// A bar on a terminal, nothing elsewhere.
pub fn progress_bar(total: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{msg:16} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    );
    let bar = ProgressBar::new(total);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// What an import came to: a file that could not be read is the better reason of the two.
pub async fn outcome<T>(
    answer: Result<T, Failure>,
    sending: tokio::task::JoinHandle<Result<(), Failure>>,
) -> Result<T, Failure> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(refused) => match sending.await {
            Ok(Err(unreadable)) => Err(unreadable),
            _ => Err(refused),
        },
    }
}
