//! Volumes that come to a running instance, and go from it.
//!
//! The rows say what is wanted (`attaching`, `detaching`); this looks at them whenever they have
//! changed and whenever a VMM is up, has the VMM do it beside the queue, and commits what came of
//! it. So an agent that starts in the middle goes on by the same way. When a guest ends, what it
//! was asked for has happened: what was detaching is free, and what was attaching will be there
//! at the next start ([`settle`]).

use std::collections::{HashMap, HashSet};

use hearth_images::crash_point;
use tokio::sync::oneshot;

use super::{Driver, Input};
use crate::{
    db::{self, DbError, Tx},
    error::{ApiError, ApiResult, Reason},
    instances::{
        start,
        vmm::disks::{self, Plugged},
    },
    volumes::model::AttachmentState,
};

/// What enters the queue.
#[derive(Debug)]
pub enum PlugInput {
    /// Rows of the instance's volumes have changed.
    Changed {
        /// Who wants to know what comes of plugging in a volume.
        waits: Option<(String, oneshot::Sender<ApiResult<()>>)>,
    },
    /// The VMM has plugged a volume in or out, or has not.
    Done {
        generation: u64,
        volume_id: String,
        plugged: Plugged,
    },
}

/// What is under way.
#[derive(Debug, Default)]
pub struct Plugs {
    /// Volumes that the VMM is asked for, and whether by force.
    asked: HashSet<(String, bool)>,
    waiting: HashMap<String, oneshot::Sender<ApiResult<()>>>,
}

impl Driver {
    pub(super) async fn plug(&mut self, input: PlugInput) {
        match input {
            PlugInput::Changed { waits } => {
                self.plugs.waiting.extend(waits);
                self.plug_all().await;
            }
            PlugInput::Done {
                generation,
                volume_id,
                plugged,
            } if generation == self.generation && self.vmm.is_some() => {
                self.plugs.asked.retain(|(id, _)| *id != volume_id);
                if plugged != Plugged::Ended {
                    self.plugged(volume_id, plugged).await;
                }
                // It may have been asked for something else meanwhile.
                self.plug_all().await;
            }
            PlugInput::Done { .. } => {}
        }
    }

    /// Has the VMM do what the rows say.
    pub(super) async fn plug_all(&mut self) {
        let Some(process) = self.vmm.clone() else {
            // A start reads the rows, and an end settles them.
            self.plugs = Plugs::default();
            return;
        };
        let id = self.row.id.clone();
        let rows = self
            .context
            .db
            .read(move |c| db::volumes::of_instance(c, &id));
        let volumes = match rows.await {
            Ok(volumes) => volumes,
            Err(error) => {
                tracing::error!(instance = self.row.id, %error, "reading volumes");
                return;
            }
        };
        for volume in volumes {
            let Some(attachment) = &volume.attachment else {
                continue;
            };
            let (state, deadline) = (attachment.state, attachment.detach_deadline);
            let forced = state == AttachmentState::Detaching && deadline.is_none();
            if state == AttachmentState::Attached
                || !self.plugs.asked.insert((volume.id.clone(), forced))
            {
                continue;
            }
            let (generation, back) = (self.generation, self.back.clone());
            let (process, context) = (process.clone(), self.context.clone());
            tokio::spawn(async move {
                let plugged = match state {
                    AttachmentState::Detaching => {
                        disks::detach(&process, &volume.serial(), deadline).await
                    }
                    _ => disks::attach(&process, start::disk_config(&context, &volume)).await,
                };
                crash_point("attachment.plugged");
                let _ = back.send(Input::Plug(PlugInput::Done {
                    generation,
                    volume_id: volume.id,
                    plugged,
                }));
            });
        }
    }

    /// The VMM is gone: nobody asks it for anything any more.
    pub(super) fn forget_plugs(&mut self) {
        self.plugs = Plugs::default();
    }

    /// Commits what came of it, and tells who waits.
    async fn plugged(&mut self, volume_id: String, plugged: Plugged) {
        let (instance_id, id) = (self.row.id.clone(), volume_id.clone());
        let outcome = plugged.clone();
        self.surely(move |tx| after_plugging(tx, &instance_id, &id, &outcome))
            .await;
        let Some(reply) = self.plugs.waiting.remove(&volume_id) else {
            return;
        };
        // The caller may have gone.
        let _ = reply.send(match plugged {
            Plugged::Out(why) if !why.is_empty() => Err(ApiError::field(
                Reason::IncorrectState,
                "volume_id",
                format!("{volume_id} could not be plugged in: {why}"),
            )
            .with("resource_id", volume_id)),
            _ => Ok(()),
        });
    }
}

/// The row of a volume after the VMM has answered; it may have changed since the VMM was asked.
fn after_plugging(
    tx: &mut Tx<'_>,
    instance_id: &str,
    volume_id: &str,
    plugged: &Plugged,
) -> Result<(), DbError> {
    let Some(volume) = db::volumes::get(tx, volume_id)? else {
        return Ok(());
    };
    let Some(attachment) = volume.attachment.as_ref() else {
        return Ok(());
    };
    if attachment.instance_id != instance_id {
        return Ok(());
    }
    let attached = || volume.with_attachment_state(AttachmentState::Attached, None);
    let (after, why) = match (attachment.state, plugged) {
        (AttachmentState::Attaching, Plugged::In) => (attached(), "plugged in"),
        (AttachmentState::Attaching, Plugged::Out(why)) => (volume.detached(), why.as_str()),
        (AttachmentState::Detaching, Plugged::Out(_)) => (volume.detached(), "plugged out"),
        // Unless it is to go by force meanwhile, or was given more time.
        (AttachmentState::Detaching, Plugged::In)
            if (attachment.detach_deadline).is_some_and(|when| when.remaining().is_zero()) =>
        {
            (attached(), "the guest did not let go of the disk in time")
        }
        _ => return Ok(()),
    };
    db::volumes::update_attachment(tx, &volume, &after, why)
}

/// No VMM runs: what was asked of it has happened, or happens at the next start.
pub(super) fn settle(tx: &mut Tx<'_>, instance_id: &str) -> Result<(), DbError> {
    for volume in db::volumes::of_instance(tx, instance_id)? {
        let after = match volume.attachment.as_ref().map(|a| a.state) {
            Some(AttachmentState::Attaching) => {
                volume.with_attachment_state(AttachmentState::Attached, None)
            }
            Some(AttachmentState::Detaching) => volume.detached(),
            _ => continue,
        };
        db::volumes::update_attachment(tx, &volume, &after, "the guest has ended")?;
    }
    Ok(())
}
