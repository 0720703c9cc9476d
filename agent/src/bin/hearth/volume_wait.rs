//! `hearth volume attach --wait` and `detach --wait`: follow the agent's events until the volume
//! is where it was to be.

use hearth_proto::v1::{AttachmentState, Volume, WatchRequest};

use crate::{
    client::Client,
    failure::{Failure, rpc},
    volume::describe,
    wait::spinner,
};

/// Whether the volume is there, may still come there, or can't any more.
enum Seen {
    There,
    NotYet,
    Never(Failure),
}

/// Waits until the instance has the volume; gives it as it is then.
pub async fn attached(client: &mut Client, volume: Volume) -> Result<Volume, Failure> {
    until(client, volume, "attached", |volume| {
        match volume.attachment.as_ref().map(|a| a.state()) {
            Some(AttachmentState::Attaching) => Seen::NotYet,
            Some(_) => Seen::There,
            None => Seen::Never(Failure::new(format!(
                "{} could not be attached",
                volume.volume_id
            ))),
        }
    })
    .await
}

/// Waits until the volume is available; gives it as it is then.
pub async fn detached(client: &mut Client, volume: Volume) -> Result<Volume, Failure> {
    until(client, volume, "available", |volume| {
        match volume.attachment.as_ref().map(|a| a.state()) {
            None => Seen::There,
            Some(AttachmentState::Detaching) => Seen::NotYet,
            Some(_) => Seen::Never(
                Failure::new(format!(
                    "the guest did not let go of {} in time; it is attached",
                    volume.volume_id
                ))
                .hint("unmount it in the guest, or take it away with --force"),
            ),
        }
    })
    .await
}

async fn until(
    client: &mut Client,
    volume: Volume,
    wanted: &str,
    judge: impl Fn(&Volume) -> Seen,
) -> Result<Volume, Failure> {
    let id = volume.volume_id;
    let spinner = spinner(&format!("waiting for {id} to be {wanted}"));
    // First the stream, then the look: what happens in between is in the stream.
    let mut events = client
        .events
        .watch(WatchRequest {
            after_sequence: None,
            resource_ids: vec![id.clone()],
            types: vec![],
        })
        .await
        .map_err(rpc)?
        .into_inner();
    loop {
        let mut volumes = describe(client, vec![id.clone()], vec![]).await?;
        let Some(volume) = volumes.pop() else {
            return Err(Failure::new(format!("{id} is gone")));
        };
        match judge(&volume) {
            Seen::There => {
                spinner.finish_and_clear();
                return Ok(volume);
            }
            Seen::Never(failure) => {
                spinner.finish_and_clear();
                return Err(failure);
            }
            Seen::NotYet => {}
        }
        if events.message().await.map_err(rpc)?.is_none() {
            return Err(Failure::new("the agent ended the stream of events")
                .hint("check that hearthd is running, then `hearth volume list`"));
        }
    }
}
