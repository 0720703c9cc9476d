//! `hearth events`.

use clap::Args;
use hearth_proto::v1::{Event, WatchRequest};
use prost_types::Timestamp;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    output::{self, Output},
};

/// How long the stream may be silent before kept events count as all read, without `--follow`.
const SILENCE: std::time::Duration = std::time::Duration::from_millis(500);

/// What happened, and what happens.
#[derive(Args)]
pub struct EventsArgs {
    /// Only events after this sequence number; 0 for all that are kept, which is also the
    /// default without --follow.
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// Go on with new events as they come; without --after, only new ones.
    #[arg(long, short)]
    follow: bool,
    /// Only these types (instance.state, volume.state, …); may be repeated.
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only events of these objects.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

pub async fn events(client: &mut Client, output: Output, args: EventsArgs) -> Result<(), Failure> {
    let after_sequence = if args.follow {
        args.after
    } else {
        Some(args.after.unwrap_or(0))
    };
    let failed = |status| {
        rpc_with_flags(
            status,
            &flags([("after_sequence", "--after"), ("types", "--type")]),
        )
    };
    let mut stream = client
        .events
        .watch(WatchRequest {
            after_sequence,
            resource_ids: args.ids,
            types: args.types,
        })
        .await
        .map_err(failed)?
        .into_inner();
    loop {
        let next = if args.follow {
            stream.message().await
        } else {
            // The API has no mark between kept and new events.
            match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(next) => next,
                Err(_) => return Ok(()),
            }
        };
        match next.map_err(failed)? {
            None => return Ok(()),
            Some(event) if output == Output::Json => output::json_line("Event", &event)?,
            Some(event) => output::line(&line(&event))?,
        }
    }
}

fn line(event: &Event) -> String {
    let time = event
        .time
        .map(|time| Timestamp { nanos: 0, ..time }.to_string());
    let mut line = format!(
        "{:>6}  {}  {}  {}",
        event.sequence,
        time.unwrap_or_default(),
        event.r#type,
        event.resource_id
    );
    match (event.previous_state.as_str(), event.state.as_str()) {
        ("", "") => {}
        ("", state) => line.push_str(&format!("  {state}")),
        (previous, state) => line.push_str(&format!("  {previous} -> {state}")),
    }
    for words in [&event.reason_code, &event.message] {
        if !words.is_empty() {
            line.push_str("  ");
            line.push_str(words);
        }
    }
    line
}
