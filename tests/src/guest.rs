//! One instance, as a test sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hearth_proto::v1::{
    DescribeInstancesRequest, Instance, InstanceState, RebootInstancesRequest,
    StartInstancesRequest, StopInstancesRequest, TerminateInstancesRequest,
};

use crate::{BOOT, Console, Hearth, hearth::tail};

/// One instance.
pub struct Guest<'a> {
    hearth: &'a Hearth,
    /// `i-…`.
    pub id: String,
}

impl<'a> Guest<'a> {
    /// The instance with this id.
    pub fn new(hearth: &'a Hearth, id: String) -> Self {
        Self { hearth, id }
    }

    fn ids(&self) -> Vec<String> {
        vec![self.id.clone()]
    }

    /// How the agent describes it.
    pub async fn describe(&self) -> Result<Instance> {
        let request = DescribeInstancesRequest {
            instance_ids: self.ids(),
            ..Default::default()
        };
        let answer = self
            .hearth
            .instances()
            .describe_instances(request)
            .await?
            .into_inner();
        answer
            .instances
            .into_iter()
            .next()
            .with_context(|| format!("{} is not there", self.id))
    }

    /// Waits until it is in this state.
    pub async fn wait_state(&self, wanted: InstanceState) -> Result<Instance> {
        let deadline = Instant::now() + BOOT;
        loop {
            let instance = self.describe().await?;
            if instance.state() == wanted {
                return Ok(instance);
            }
            if Instant::now() > deadline {
                bail!("never became {wanted:?}: {instance:?}\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Connects to its serial console, from the first byte that is still kept.
    pub async fn console(&self) -> Result<Console> {
        Console::open(self.hearth.instances(), &self.id).await
    }

    /// Waits until the base guest has booted, and gives its console, with a shell on it.
    pub async fn ready(&self) -> Result<Console> {
        self.ready_within(BOOT).await
    }

    /// [`Self::ready`] with another deadline.
    pub async fn ready_within(&self, deadline: Duration) -> Result<Console> {
        self.wait_state(InstanceState::Running).await?;
        // What a new session is shown first is this boot, and none before it.
        let mut console = self.console().await?;
        let ready = console.expect_within("hearth-guest: ready", deadline).await;
        ready.with_context(|| self.logs())?;
        Ok(console)
    }

    /// Starts it.
    pub async fn start(&self) -> Result<()> {
        let request = StartInstancesRequest {
            instance_ids: self.ids(),
        };
        self.hearth.instances().start_instances(request).await?;
        Ok(())
    }

    /// Presses its power button; the guest shuts itself down or has failed the test.
    pub async fn stop(&self) -> Result<Instance> {
        let request = StopInstancesRequest {
            instance_ids: self.ids(),
            force: false,
            timeout_seconds: u32::try_from(BOOT.as_secs())?,
        };
        self.hearth.instances().stop_instances(request).await?;
        self.wait_state(InstanceState::Stopped).await
    }

    /// Stops it at once.
    pub async fn stop_by_force(&self) -> Result<Instance> {
        let request = StopInstancesRequest {
            instance_ids: self.ids(),
            force: true,
            timeout_seconds: 0,
        };
        self.hearth.instances().stop_instances(request).await?;
        self.wait_state(InstanceState::Stopped).await
    }

    /// Reboots it.
    pub async fn reboot(&self) -> Result<()> {
        let request = RebootInstancesRequest {
            instance_ids: self.ids(),
        };
        self.hearth.instances().reboot_instances(request).await?;
        Ok(())
    }

    /// Terminates it and waits until it is.
    pub async fn terminate(&self) -> Result<()> {
        let request = TerminateInstancesRequest {
            instance_ids: self.ids(),
        };
        self.hearth.instances().terminate_instances(request).await?;
        self.wait_state(InstanceState::Terminated).await?;
        Ok(())
    }

    /// For messages: the ends of what the VMM and the agent said.
    pub fn logs(&self) -> String {
        let run_dir = self.hearth.state_dir().join("instances").join(&self.id);
        format!(
            "--- console\n{}\n--- VMM\n{}\n--- agent\n{}",
            tail(&run_dir.join("console.log"), 2000),
            tail(&run_dir.join("vmm.log"), 2000),
            self.hearth.agent_log_tail()
        )
    }
}
