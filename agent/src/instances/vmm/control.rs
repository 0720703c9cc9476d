//! The agent's end of the control socket (`hearth_vmm::control`).

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use hearth_vmm::{
    config::{PROTOCOL_VERSION, run_files},
    control::{Event, Reply, Request},
};
use thiserror::Error;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// How long a VMM may take to answer.
pub const ANSWER: Duration = Duration::from_secs(5);

/// Longest line of a VMM, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// Why a VMM could not be talked to.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket, or the connection.
    #[error("the control socket: {0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("the VMM did not answer in time")]
    Timeout,
    /// The VMM closed the connection.
    #[error("the VMM closed the control connection")]
    Closed,
    /// Not the protocol.
    #[error("the VMM sent what is not the protocol: {0}")]
    Malformed(String),
    /// It said no.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// Another instance's VMM, another version, another process.
    #[error("the VMM is not the expected one: {0}")]
    Stranger(String),
}

/// A connection to a VMM that has said who it is.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
    /// The VMM's process id, as it and the kernel say.
    pub pid: u32,
}

impl Control {
    /// Connects, and checks that it is the VMM of this instance.
    pub async fn connect(
        run_dir: &Path,
        instance_id: &str,
        patience: Duration,
    ) -> Result<Self, ControlError> {
        let stream = connect_below(run_dir).await?;
        // The kernel's word for who listens.
        let listener = stream.peer_cred()?.pid();
        let mut control = Self {
            stream: BufReader::new(stream),
            pid: 0,
        };
        let hello = Request::Hello {
            version: PROTOCOL_VERSION,
        };
        match control.ask(&hello, patience).await? {
            Reply::Hello {
                version,
                instance_id: whose,
                pid,
            } => {
                let stranger = |what: String| Err(ControlError::Stranger(what));
                if version != PROTOCOL_VERSION {
                    return stranger(format!("it speaks version {version}"));
                }
                if whose != instance_id {
                    return stranger(format!("it runs {whose}"));
                }
                if listener.is_none_or(|listener| u32::try_from(listener) != Ok(pid)) {
                    return stranger(format!("it says pid {pid}, the kernel says {listener:?}"));
                }
                control.pid = pid;
                Ok(control)
            }
            other => Err(ControlError::Malformed(format!("{other:?}"))),
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn ask(
        &mut self,
        request: &Request,
        patience: Duration,
    ) -> Result<Reply, ControlError> {
        let mut line = serde_json::to_vec(request)
            .map_err(|error| ControlError::Malformed(error.to_string()))?;
        line.push(b'\n');
        let exchange = async {
            self.stream.write_all(&line).await?;
            self.read().await
        };
        match timeout(patience, exchange).await {
            Err(_) => Err(ControlError::Timeout),
            Ok(Ok(Reply::Error { message })) => Err(ControlError::Refused(message)),
            Ok(reply) => reply,
        }
    }

    /// Sends a request that is answered with [`Reply::Done`].
    pub async fn tell(&mut self, request: &Request) -> Result<(), ControlError> {
        match self.ask(request, ANSWER).await? {
            Reply::Done => Ok(()),
            other => Err(ControlError::Malformed(format!("{other:?}"))),
        }
    }

    /// The next event; only after [`Request::Subscribe`].
    pub async fn event(&mut self) -> Result<Event, ControlError> {
        match self.read().await? {
            Reply::Event(event) => Ok(event),
            other => Err(ControlError::Malformed(format!("{other:?}"))),
        }
    }

    /// Turns the connection into the serial console. What was read already stays in the
    /// buffer of what is returned.
    pub async fn attach_console(
        mut self,
        replay: bool,
    ) -> Result<BufReader<UnixStream>, ControlError> {
        self.tell(&Request::AttachConsole { replay }).await?;
        Ok(self.stream)
    }

    async fn read(&mut self) -> Result<Reply, ControlError> {
        let mut line = Vec::new();
        (&mut self.stream)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await?;
        if line.is_empty() {
            return Err(ControlError::Closed);
        }
        serde_json::from_slice(&line).map_err(|error| ControlError::Malformed(error.to_string()))
    }
}

/// Connects through an open directory: a socket's path may only have 108 bytes.
async fn connect_below(run_dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(run_dir)?;
    let path = PathBuf::from("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(run_files::CONTROL_SOCKET);
    UnixStream::connect(path).await
}
