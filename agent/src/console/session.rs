//! The serial console, both ways: a bridge between one caller and the VMM's console.
//!
//! Any number of callers may look on and type at once. A session outlives a reboot: it moves on
//! to the new VMM. It ends when the instance is no longer running.

use std::{path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{mpsc, watch},
};

use crate::{
    error::{ApiError, ApiResult, Reason},
    instances::{
        driver::Live,
        state::InstanceState,
        vmm::control::{ANSWER, Control},
    },
};

/// Largest piece of output, in bytes.
const PIECE: usize = 16 << 10;

/// How often a console that is not there yet is tried again, and how long in between.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// One caller at one instance's console.
pub struct Session {
    pub instance_id: String,
    pub run_dir: PathBuf,
    pub live: watch::Receiver<Live>,
    /// What the caller types; closed when the caller has no more to type.
    pub typed: mpsc::Receiver<Vec<u8>>,
    /// What the guest writes; closed when the caller is gone.
    pub written: mpsc::Sender<Vec<u8>>,
}

/// How one connection to a VMM's console came to its end.
enum Over {
    /// The VMM closed it.
    Vmm,
    /// The caller is gone.
    Caller,
}

impl Session {
    /// Bridges until the caller goes (`Ok`) or the instance ends (an error that says so).
    pub async fn run(mut self, mut replay: bool) -> ApiResult<()> {
        let written = self.written.clone();
        loop {
            let generation = tokio::select! {
                generation = self.next_vmm() => generation?,
                () = written.closed() => return Ok(()),
            };
            let console = self.attach(generation, replay).await?;
            if let Some(console) = console
                && let Over::Caller = self.bridge(console).await
            {
                return Ok(());
            }
            // The next VMM's output is new from its first byte.
            replay = true;
            let mut live = self.live.clone();
            tokio::select! {
                _ = live.wait_for(|live| live.vmm != Some(generation)) => {}
                () = self.written.closed() => return Ok(()),
            }
        }
    }

    /// Waits until a VMM is up.
    async fn next_vmm(&mut self) -> ApiResult<u64> {
        let over = |live: &Live| {
            !matches!(
                live.state,
                InstanceState::Pending | InstanceState::Running | InstanceState::Stopping
            )
        };
        let found = self
            .live
            .wait_for(|live| live.vmm.is_some() || over(live))
            .await;
        let live = found.map(|live| *live).unwrap_or(Live {
            state: InstanceState::Terminated,
            vmm: None,
        });
        match live.vmm {
            Some(generation) if !over(&live) => Ok(generation),
            _ => Err(ApiError::new(
                Reason::IncorrectInstanceState,
                format!(
                    "{} is {}: it has no console",
                    self.instance_id,
                    live.state.word()
                ),
            )
            .with("resource_id", &self.instance_id)
            .with("state", live.state.word())),
        }
    }

    /// Attaches; `None` when the VMM went away meanwhile.
    async fn attach(
        &self,
        generation: u64,
        replay: bool,
    ) -> ApiResult<Option<BufReader<UnixStream>>> {
        let mut failure = None;
        for _ in 0..TRIES {
            if self.live.borrow().vmm != Some(generation) {
                return Ok(None);
            }
            let attached = async {
                Control::connect(&self.run_dir, &self.instance_id, ANSWER)
                    .await?
                    .attach_console(replay)
                    .await
            };
            match attached.await {
                Ok(console) => return Ok(Some(console)),
                Err(error) => failure = Some(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
        let cause = failure.map(|error| error.to_string()).unwrap_or_default();
        Err(ApiError::internal("attaching to a console", cause))
    }

    async fn bridge(&mut self, console: BufReader<UnixStream>) -> Over {
        // The reader keeps what it has read already.
        let (mut from_guest, mut to_guest) = tokio::io::split(console);
        let mut buffer = vec![0u8; PIECE];
        let mut typing = true;
        loop {
            tokio::select! {
                read = from_guest.read(&mut buffer) => match read {
                    Ok(count @ 1..) => {
                        if self.written.send(buffer[..count].to_vec()).await.is_err() {
                            return Over::Caller;
                        }
                    }
                    Ok(0) | Err(_) => return Over::Vmm,
                },
                data = self.typed.recv(), if typing => match data {
                    Some(data) => {
                        if to_guest.write_all(&data).await.is_err() {
                            return Over::Vmm;
                        }
                    }
                    // Nothing more to type; still looking on.
                    None => typing = false,
                },
                () = self.written.closed() => return Over::Caller,
            }
        }
    }
}
