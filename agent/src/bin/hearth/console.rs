//! `hearth console`: the serial console, both ways.
//!
//! On a terminal, every key goes to the guest but `Ctrl-]`, which leaves. Without one, standard
//! input is sent as it is, and the output goes on until the guest ends, `--until` is met, or a
//! signal comes.

use std::{
    io::{self, IsTerminal, Read},
    thread,
};

use clap::Args;
use hearth_proto::v1::{ConsoleInput, ConsoleOpen, console_input::Input};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc::{self, Sender},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    output,
};

/// `Ctrl-]`.
const ESCAPE: u8 = 0x1d;

/// Connect to an instance's serial console.
#[derive(Args)]
pub struct ConsoleArgs {
    /// The instance's id or `Name`.
    instance: String,
    /// First print what is still kept of the output so far.
    #[arg(long)]
    replay: bool,
    /// Leave as soon as the guest has printed this text; fail when it ends without.
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
}

/// Why the session ended.
enum End {
    /// `Ctrl-]`.
    Escape,
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// The text of `--until` was there.
    Found,
    /// The guest has ended.
    Closed,
}

pub async fn console(client: &mut Client, args: ConsoleArgs) -> Result<(), Failure> {
    let instance_id = client.instance_id(&args.instance).await?;
    let failed = |status| rpc_with_flags(status, &flags([("instance_id", "INSTANCE")]));

    let (sender, receiver) = mpsc::channel(16);
    let open = ConsoleOpen {
        instance_id: instance_id.clone(),
        replay: args.replay,
    };
    let open = ConsoleInput {
        input: Some(Input::Open(open)),
    };
    sender
        .send(open)
        .await
        .map_err(|_| Failure::new("the console was closed"))?;
    let mut stream = client
        .instances
        .console(ReceiverStream::new(receiver))
        .await
        .map_err(failed)?
        .into_inner();

    let interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    if interactive {
        eprintln!("Connected to {instance_id}. Leave with Ctrl-].");
    }
    let raw = if interactive {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let mut escape = read_input(sender, interactive);
    let mut wanted = args.until.as_ref().map(|text| Search::new(text.as_bytes()));

    let mut watched = false;
    let ended = tokio::select! {
        ended = async {
            loop {
                match stream.message().await {
                    Ok(None) => return Ok(End::Closed),
                    // The guest has ended while we were watching.
                    Err(status) if watched && is_over(&status) => return Ok(End::Closed),
                    Err(status) => return Err(failed(status)),
                    Ok(Some(piece)) => {
                        watched = true;
                        output::bytes(&piece.data)?;
                        if wanted.as_mut().is_some_and(|wanted| wanted.feed(&piece.data)) {
                            return Ok(End::Found);
                        }
                    }
                }
            }
        } => ended,
        Some(()) = escape.recv() => Ok(End::Escape),
        ended = termination() => ended,
    };
    // The terminal first, so that what follows is printed as usual.
    drop(raw);
    match ended? {
        End::Found => {}
        End::Escape | End::Signal if interactive => {
            eprintln!("\nLeft the console of {instance_id}; it goes on.");
        }
        End::Escape | End::Signal => {}
        End::Closed if args.until.is_some() => {
            return Err(Failure::new(format!(
                "the console of {instance_id} ended without that text"
            ))
            .hint(format!("see why with `hearth instance show {instance_id}`")));
        }
        End::Closed if interactive => eprintln!("\n{instance_id} has ended."),
        End::Closed => {}
    }
    Ok(())
}

/// Does the instance have a console no longer?
fn is_over(status: &Status) -> bool {
    status
        .get_details_error_info()
        .is_some_and(|info| info.reason == "IncorrectInstanceState")
}

async fn termination() -> Result<End, Failure> {
    let on =
        |kind| signal(kind).map_err(|error| Failure::new(format!("no signal handler: {error}")));
    let (mut interrupt, mut terminate, mut hangup) = (
        on(SignalKind::interrupt())?,
        on(SignalKind::terminate())?,
        on(SignalKind::hangup())?,
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(End::Signal)
}

/// Sends what is typed, from a thread of its own: a blocked read must not keep the process.
/// The receiver gets a message when the escape character was typed.
fn read_input(sender: Sender<ConsoleInput>, interactive: bool) -> mpsc::Receiver<()> {
    let (escaped, escape) = mpsc::channel(1);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stdin.read(&mut buffer) {
            let typed = &buffer[..n];
            let end = match interactive {
                true => typed.iter().position(|byte| *byte == ESCAPE),
                false => None,
            };
            let data = typed[..end.unwrap_or(n)].to_vec();
            if !data.is_empty()
                && sender
                    .blocking_send(ConsoleInput {
                        input: Some(Input::Data(data)),
                    })
                    .is_err()
            {
                return;
            }
            if end.is_some() {
                // Nobody listening means that the session is over anyway.
                let _ = escaped.blocking_send(());
                return;
            }
        }
        // Input is over, output goes on: without this the agent would see the stream half
        // closed, and the session's end would depend on who was faster.
        let _open = (sender, escaped);
        loop {
            thread::park();
        }
    });
    escape
}

/// The terminal in raw mode; as it was before when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self, Failure> {
        let failed = |error| Failure::new(format!("the terminal's settings: {error}"));
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that went away.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Finds a text in a stream, also across pieces.
struct Search {
    wanted: Vec<u8>,
    tail: Vec<u8>,
}

impl Search {
    fn new(wanted: &[u8]) -> Self {
        Self {
            wanted: wanted.to_vec(),
            tail: Vec::new(),
        }
    }

    /// True once the text has been seen.
    fn feed(&mut self, piece: &[u8]) -> bool {
        if self.wanted.is_empty() {
            return true;
        }
        self.tail.extend_from_slice(piece);
        if self
            .tail
            .windows(self.wanted.len())
            .any(|window| window == self.wanted)
        {
            return true;
        }
        let keep = self.tail.len().min(self.wanted.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_across_pieces() {
        let mut search = Search::new(b"ready");
        assert!(!search.feed(b"hearth-guest: re"));
        assert!(!search.feed(b"a"));
        assert!(search.feed(b"dy\r\n"));
        assert!(!Search::new(b"ready").feed(b"read"));
    }
}
