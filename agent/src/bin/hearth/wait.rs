//! `--wait`: follows the agent's events until instances are in the state that was asked for.

use std::{collections::BTreeSet, io::IsTerminal, time::Duration};

use hearth_proto::v1::{Instance, InstanceState, WatchRequest};
use indicatif::ProgressBar;

use crate::{
    client::Client,
    failure::{Failure, rpc},
    human::enum_word,
};

/// The word for a state: `running`, `shutting-down`.
pub fn state_word(state: InstanceState) -> String {
    enum_word(state.as_str_name(), "INSTANCE_STATE_")
}

/// Waits until all these instances are in the state; gives them as they are then.
///
/// Fails when one of them ends up where it can't get there from by itself.
pub async fn until(
    client: &mut Client,
    ids: &[String],
    wanted: InstanceState,
) -> Result<Vec<Instance>, Failure> {
    let spinner = spinner(&format!(
        "waiting for {} to be {}",
        ids.join(", "),
        state_word(wanted)
    ));
    // First the stream, then the look: what happens in between is in the stream.
    let mut events = client
        .events
        .watch(WatchRequest {
            after_sequence: None,
            resource_ids: ids.to_vec(),
            types: vec![],
        })
        .await
        .map_err(rpc)?
        .into_inner();
    loop {
        let instances = client.describe_instances(ids, &[]).await?;
        let mut missing: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        for instance in &instances {
            if instance.state() == wanted {
                missing.remove(instance.instance_id.as_str());
            } else {
                can_still_become(instance, wanted)?;
            }
        }
        if missing.is_empty() {
            spinner.finish_and_clear();
            return Ok(instances);
        }
        if events.message().await.map_err(rpc)?.is_none() {
            return Err(Failure::new("the agent ended the stream of events")
                .hint("check that hearthd is running, then `hearth instance list`"));
        }
    }
}

fn can_still_become(instance: &Instance, wanted: InstanceState) -> Result<(), Failure> {
    use InstanceState::{Running, ShuttingDown, Stopped, Stopping, Terminated};
    let state = instance.state();
    let dead_end = match wanted {
        Running => matches!(state, Stopping | Stopped | ShuttingDown | Terminated),
        Stopped => matches!(state, ShuttingDown | Terminated),
        _ => false,
    };
    if !dead_end {
        return Ok(());
    }
    let why = instance
        .state_reason
        .as_ref()
        .filter(|reason| !reason.code.is_empty())
        .map(|reason| format!(": {} ({})", reason.message, reason.code))
        .unwrap_or_default();
    let id = &instance.instance_id;
    Err(Failure::new(format!(
        "{id} is {}, not {}{why}",
        state_word(state),
        state_word(wanted)
    ))
    .hint(format!(
        "see what it printed with `hearth instance console-output {id}`"
    )))
}

/// A line that shows that something is being waited for; only on a terminal.
pub fn spinner(text: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(text.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::StateReason;

    use super::*;

    #[test]
    fn waiting_for_running_ends_when_the_instance_has_stopped_and_says_why() {
        let instance = Instance {
            instance_id: "i-1".into(),
            state: InstanceState::Stopped.into(),
            state_reason: Some(StateReason {
                code: "Server.InternalError".into(),
                message: "not a kernel".into(),
            }),
            ..Default::default()
        };
        let text = can_still_become(&instance, InstanceState::Running)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("i-1 is stopped, not running: not a kernel"),
            "{text}"
        );
        assert!(can_still_become(&instance, InstanceState::Terminated).is_ok());
    }
}
