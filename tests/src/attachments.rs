//! Volumes that tests attach and detach.

use std::{fs, time::Instant};

use anyhow::{Context, Result, bail};
use hearth_proto::v1::{
    AttachVolumeRequest, AttachmentState, CreateVolumeRequest, DescribeVolumesRequest,
    DetachVolumeRequest, Volume, VolumeState,
};

use crate::{BOOT, Hearth};

/// Where a volume is: its attachment's state, or none.
pub fn attachment_state(volume: &Volume) -> Option<AttachmentState> {
    Some(volume.attachment.as_ref()?.state())
}

/// What a guest reads as the serial of a volume's disk.
pub fn serial_of(volume_id: &str) -> String {
    volume_id.replace('-', "")
}

/// Descriptors and threads of a process.
pub fn descriptors_and_threads(pid: u32) -> Result<(usize, usize)> {
    let count =
        |what: &str| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
    Ok((count("fd")?, count("task")?))
}

impl Hearth {
    /// An empty volume of so many GiB.
    pub async fn empty_volume(&self, size_gib: u64) -> Result<String> {
        let request = CreateVolumeRequest {
            size_gib,
            ..Default::default()
        };
        let answer = self.volumes().create_volume(request).await?.into_inner();
        Ok(answer.volume.context("no volume")?.volume_id)
    }

    /// Attaches a volume; fails unless it is attached then.
    pub async fn attach(&self, volume_id: &str, instance_id: &str) -> Result<Volume> {
        let request = attach_request(volume_id, instance_id);
        let answer = self.volumes().attach_volume(request).await?.into_inner();
        let volume = answer.volume.context("no volume")?;
        match attachment_state(&volume) {
            Some(AttachmentState::Attached) => Ok(volume),
            _ => bail!("not attached: {volume:?}"),
        }
    }

    /// Asks for a volume to be detached; gives it as it is then.
    pub async fn detach(&self, volume_id: &str, force: bool, seconds: u32) -> Result<Volume> {
        let request = detach_request(volume_id, force, seconds);
        let answer = self.volumes().detach_volume(request).await?.into_inner();
        answer.volume.context("no volume")
    }

    /// How the agent describes a volume.
    pub async fn volume(&self, volume_id: &str) -> Result<Volume> {
        let request = DescribeVolumesRequest {
            volume_ids: vec![volume_id.to_owned()],
            ..Default::default()
        };
        let answer = self.volumes().describe_volumes(request).await?.into_inner();
        answer.volumes.into_iter().next().context("no volume")
    }

    /// Waits until a volume's attachment is in this state, or until there is none.
    pub async fn attachment(&self, id: &str, wanted: Option<AttachmentState>) -> Result<Volume> {
        let deadline = Instant::now() + BOOT;
        loop {
            let volume = self.volume(id).await?;
            if attachment_state(&volume) == wanted {
                if wanted.is_none() && volume.state() != VolumeState::Available {
                    bail!("attached to nothing and not available: {volume:?}");
                }
                return Ok(volume);
            }
            if Instant::now() > deadline {
                bail!(
                    "never became {wanted:?}: {volume:?}\n{}",
                    self.agent_log_tail()
                );
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// Attaches, and lets the agent choose the device.
pub fn attach_request(volume_id: &str, instance_id: &str) -> AttachVolumeRequest {
    AttachVolumeRequest {
        volume_id: volume_id.to_owned(),
        instance_id: instance_id.to_owned(),
        ..Default::default()
    }
}

/// Detaches; the guest may take so many seconds.
pub fn detach_request(volume_id: &str, force: bool, timeout_seconds: u32) -> DetachVolumeRequest {
    DetachVolumeRequest {
        volume_id: volume_id.to_owned(),
        force,
        timeout_seconds,
    }
}
