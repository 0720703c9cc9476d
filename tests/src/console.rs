//! A guest's serial console: wait for words, type lines, run commands in its shell.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hearth_proto::v1::{
    ConsoleInput, ConsoleOpen, console_input::Input, instance_service_client::InstanceServiceClient,
};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, Sender},
    },
    task::JoinHandle,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::BOOT;

/// How many commands were run in guests' shells.
static COMMANDS: AtomicU32 = AtomicU32::new(1);

/// An open console.
pub struct Console {
    typed: Sender<ConsoleInput>,
    seen: Arc<Seen>,
    /// How much of what was seen has been passed by [`Self::expect`].
    at: usize,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    text: Mutex<Text>,
    more: Notify,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// How the stream ended, once it has.
    end: Option<String>,
}

impl Seen {
    fn change(&self, change: impl FnOnce(&mut Text)) {
        change(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
        self.more.notify_waiters();
    }
}

impl Console {
    /// Connects, and asks for what is still kept.
    pub async fn open(
        mut instances: InstanceServiceClient<Channel>,
        instance_id: &str,
    ) -> Result<Self> {
        let (typed, receiver) = mpsc::channel(64);
        let open = ConsoleOpen {
            instance_id: instance_id.to_owned(),
            replay: true,
        };
        typed
            .send(ConsoleInput {
                input: Some(Input::Open(open)),
            })
            .await?;
        let mut stream = instances
            .console(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let seen = Arc::new(Seen::default());
        let writer = Arc::clone(&seen);
        let reader = tokio::spawn(async move {
            loop {
                match stream.message().await {
                    Ok(Some(piece)) => writer.change(|text| text.bytes.extend(piece.data)),
                    Ok(None) => return writer.change(|text| text.end = Some("closed".to_owned())),
                    Err(status) => {
                        return writer.change(|text| text.end = Some(status.to_string()));
                    }
                }
            }
        });
        Ok(Self {
            typed,
            seen,
            at: 0,
            reader,
        })
    }

    /// Types.
    pub async fn send(&self, text: &str) -> Result<()> {
        let input = Input::Data(text.as_bytes().to_vec());
        self.typed
            .send(ConsoleInput { input: Some(input) })
            .await
            .with_context(|| format!("the console is closed; it ended with\n{}", self.tail()))
    }

    /// Waits until the guest has printed this, after what was waited for before. Gives what came
    /// before it.
    pub async fn expect(&mut self, wanted: &str) -> Result<String> {
        self.expect_within(wanted, BOOT).await
    }

    /// [`Self::expect`] with another deadline.
    pub async fn expect_within(&mut self, wanted: &str, deadline: Duration) -> Result<String> {
        let deadline = Instant::now() + deadline;
        loop {
            let more = self.seen.more.notified();
            tokio::pin!(more);
            // From here on no news is missed.
            more.as_mut().enable();
            let ended = {
                let text = self
                    .seen
                    .text
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let new = &text.bytes[self.at..];
                if let Some(found) = find(new, wanted.as_bytes()) {
                    let before = String::from_utf8_lossy(&new[..found]).into_owned();
                    self.at += found + wanted.len();
                    return Ok(before);
                }
                text.end.clone()
            };
            if let Some(end) = ended {
                bail!("console {end} before `{wanted}`:\n{}", self.tail());
            }
            if tokio::time::timeout_at(deadline, more).await.is_err() {
                bail!("the guest never printed `{wanted}`:\n{}", self.tail());
            }
        }
    }

    /// Runs a command in the guest's shell; gives what it printed, without the white space
    /// around it. Fails when the command fails.
    pub async fn shell(&mut self, command: &str) -> Result<String> {
        // Never the same twice, also for a console that is shown what an earlier one typed.
        let n = COMMANDS.fetch_add(1, Ordering::Relaxed);
        // The quotes keep the marks out of the echo of what is typed.
        self.send(&format!(
            "echo '<''<{n}>'; {command}; echo \"<\"\"$?:{n}>\"\n"
        ))
        .await?;
        self.expect(&format!("<<{n}>")).await?;
        let before = self.expect(&format!(":{n}>")).await?;
        let (output, code) = before
            .rsplit_once('<')
            .with_context(|| format!("no exit code in what `{command}` printed: {before}"))?;
        let output = output.replace('\r', "").trim().to_owned();
        if code != "0" {
            bail!("`{command}` ended with {code} in the guest: {output}");
        }
        Ok(output)
    }

    /// Waits until the agent has hung up.
    pub async fn closed(&self) -> Result<()> {
        let closed = tokio::time::timeout(BOOT, self.typed.closed()).await;
        closed.context("the agent still listens")
    }

    /// Everything seen so far.
    pub fn text(&self) -> String {
        let text = self
            .seen
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text.bytes).into_owned()
    }

    fn tail(&self) -> String {
        let text = self.text();
        let skip = text.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
        text[skip..].to_owned()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
