//! One agent of the test's own.

use std::{
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{
    DescribeInstancesRequest, Filter, Instance, InstanceState, RunInstancesRequest,
    TerminateInstancesRequest, event_service_client::EventServiceClient,
    flow_log_service_client::FlowLogServiceClient, image_service_client::ImageServiceClient,
    instance_service_client::InstanceServiceClient, key_pair_service_client::KeyPairServiceClient,
    network_service_client::NetworkServiceClient,
    security_group_service_client::SecurityGroupServiceClient,
    snapshot_service_client::SnapshotServiceClient, store_service_client::StoreServiceClient,
    volume_service_client::VolumeServiceClient,
};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::OnceCell};
use tonic::transport::{Channel, Endpoint};

use crate::{Guest, GuestImage, Netns, image_stream, probe, processes, programs, store};

/// For everything that needs no guest to act.
const SOON: Duration = Duration::from_secs(60);

/// A running `hearthd`, its folder, and a connection to it.
pub struct Hearth {
    folder: TempDir,
    agent: Option<Child>,
    channel: Channel,
    netns: Option<Netns>,
    /// A small file system over the state directory.
    small: bool,
    probe_image: OnceCell<String>,
}

impl Hearth {
    /// Starts an agent with an empty state.
    pub async fn start() -> Result<Self> {
        Self::start_in(None).await
    }

    /// Starts an agent with an empty state in a network namespace.
    pub async fn start_in(netns: Option<Netns>) -> Result<Self> {
        let mut hearth = Self::prepare(netns)?;
        hearth.start_agent().await?;
        Ok(hearth)
    }

    /// Starts an agent whose state directory is a file system of so many MiB. Needs root.
    pub async fn start_small(mib: u32) -> Result<Self> {
        let mut hearth = Self::prepare(None)?;
        fs::create_dir(hearth.state_dir())?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700")]);
        programs::output_of(mount.arg("hearth-test").arg(hearth.state_dir()))?;
        hearth.small = true;
        hearth.start_agent().await?;
        Ok(hearth)
    }

    fn prepare(netns: Option<Netns>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hearth-test.").tempdir()?;
        let channel = channel_to(folder.path().join("hearthd.sock"));
        Ok(Self {
            folder,
            agent: None,
            channel,
            netns,
            small: false,
            probe_image: OnceCell::new(),
        })
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The volume store in it.
    pub fn store_dir(&self) -> PathBuf {
        self.state_dir().join("store")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("hearthd.sock")
    }

    /// A folder for the test's own files, away from the agent's.
    pub fn scratch(&self) -> Result<PathBuf> {
        let scratch = self.folder.path().join("scratch");
        fs::create_dir_all(&scratch)?;
        Ok(scratch)
    }

    /// A client of the instance service.
    pub fn instances(&self) -> InstanceServiceClient<Channel> {
        InstanceServiceClient::new(self.channel.clone())
    }

    /// A client of the volume service.
    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    /// A client of the snapshot service.
    pub fn snapshots(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone())
    }

    /// A client of the image service.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    /// A client of the network service.
    pub fn networks(&self) -> NetworkServiceClient<Channel> {
        NetworkServiceClient::new(self.channel.clone())
    }

    /// A client of the security group service.
    pub fn security_groups(&self) -> SecurityGroupServiceClient<Channel> {
        SecurityGroupServiceClient::new(self.channel.clone())
    }

    /// A client of the flow log service.
    pub fn flow_logs(&self) -> FlowLogServiceClient<Channel> {
        FlowLogServiceClient::new(self.channel.clone())
    }

    /// A client of the key pair service.
    pub fn keys(&self) -> KeyPairServiceClient<Channel> {
        KeyPairServiceClient::new(self.channel.clone())
    }

    /// A client of the store service.
    pub fn store(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.channel.clone())
    }

    /// A client of the event service.
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    /// Imports an image; gives its id.
    pub async fn import(&self, image: &GuestImage) -> Result<String> {
        let stream = tokio_stream::iter(image_stream(image));
        let answer = self.images().import_image(stream).await?.into_inner();
        Ok(answer.image.context("the answer has no image")?.image_id)
    }

    /// Imports the base guest; gives its id.
    pub async fn base_image(&self) -> Result<String> {
        self.import(&GuestImage::base()?).await
    }

    /// The id of the probe's image, which is imported when it is first asked for.
    pub async fn probe_image(&self) -> Result<&str> {
        let import = || async { self.import(&probe::image()?).await };
        Ok(self.probe_image.get_or_try_init(import).await?)
    }

    /// The network namespace that the agent was started in.
    pub fn netns(&self) -> Result<&Netns> {
        self.netns.as_ref().context("the agent has no namespace")
    }

    /// Runs one instance, after `change` had its way with the request. It has little memory:
    /// where KVM is emulated, a boot takes longer with every MiB.
    pub async fn run(
        &self,
        image_id: &str,
        change: impl FnOnce(&mut RunInstancesRequest),
    ) -> Result<Guest<'_>> {
        let mut request = RunInstancesRequest {
            image_id: image_id.to_owned(),
            ..Default::default()
        };
        change(&mut request);
        let answer = self.instances().run_instances(request).await?.into_inner();
        let [instance] = &answer.instances[..] else {
            bail!("{} instances instead of one", answer.instances.len())
        };
        Ok(Guest::new(self, instance.instance_id.clone()))
    }

    /// The instances there are, terminated ones left out.
    pub async fn living_instances(&self) -> Result<Vec<Instance>> {
        let living = ["pending", "running", "stopping", "stopped", "shutting-down"];
        let filter = Filter {
            name: "instance-state-name".to_owned(),
            values: living.map(str::to_owned).to_vec(),
        };
        let request = DescribeInstancesRequest {
            filters: vec![filter],
            ..Default::default()
        };
        Ok(self
            .instances()
            .describe_instances(request)
            .await?
            .into_inner()
            .instances)
    }

    /// Ends the agent at once, as a crash would. Guests go on.
    pub fn kill_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the agent does not run")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Asks the agent to end and waits for it. Guests go on.
    pub fn stop_agent(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the agent does not run")?;
        let pid = i32::try_from(agent.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the agent's process id")?, Signal::TERM)?;
        let deadline = Instant::now() + SOON;
        while agent.try_wait()?.is_none() {
            if Instant::now() > deadline {
                agent.kill()?;
                agent.wait()?;
                bail!("the agent did not end after SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Starts an agent over the same state directory, after [`Self::kill_agent`] or
    /// [`Self::stop_agent`].
    pub async fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(None).await
    }

    /// Starts an agent that ends at the named step, or whose next VMM does: as `kill -9` would
    /// end it, see [`hearth_images::crash_point`].
    pub async fn start_agent_to_crash_at(&mut self, step: &str) -> Result<()> {
        self.start_agent_with(Some(step)).await
    }

    /// Has the agent crash at the named step while `call` is made, and starts the next one. Gives
    /// what the call came to.
    pub async fn crash_at<T>(&mut self, step: &str, call: impl Future<Output = T>) -> Result<T> {
        let answer = self.crash_at_and_stay_down(step, call).await?;
        self.start_agent().await?;
        Ok(answer)
    }

    /// [`Self::crash_at`] without the next agent.
    pub async fn crash_at_and_stay_down<T>(
        &mut self,
        step: &str,
        call: impl Future<Output = T>,
    ) -> Result<T> {
        self.stop_agent()?;
        self.start_agent_to_crash_at(step).await?;
        let answer = call.await;
        let mut agent = self.agent.take().context("the agent does not run")?;
        let deadline = Instant::now() + SOON;
        let status = loop {
            if let Some(status) = agent.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                self.agent = Some(agent);
                bail!("it never came to {step}:\n{}", self.agent_log_tail());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        ensure!(killed, "at {step}: {status}\n{}", self.agent_log_tail());
        Ok(answer)
    }

    async fn start_agent_with(&mut self, crash_at: Option<&str>) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.agent_log())?;
        let hearthd = programs::built("hearthd")?;
        let mut command = match &self.netns {
            Some(netns) => netns.command(hearthd),
            None => Command::new(hearthd),
        };
        let agent = command
            .envs(crash_at.map(|step| (hearth_images::CRASH_AT, step)))
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--socket")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.agent = Some(agent);
        let deadline = Instant::now() + SOON;
        // A socket file may be left from an agent that was killed: only an answer counts.
        while self.living_instances().await.is_err() {
            let ended = self
                .agent
                .as_mut()
                .and_then(|agent| agent.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "hearthd does not serve ({ended:?}):\n{}",
                    self.agent_log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The agent's process id; 0 when it does not run.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().map_or(0, Child::id)
    }

    /// Ends a test: terminates the instances, waits until they are gone, and judges the store.
    /// Fails also when a VMM is left over, or the agent has died.
    pub async fn finish(mut self) -> Result<()> {
        let ended = self
            .agent
            .as_mut()
            .map(Child::try_wait)
            .transpose()?
            .flatten();
        ensure!(
            ended.is_none(),
            "hearthd has died ({ended:?}):\n{}",
            self.agent_log_tail()
        );
        let ids: Vec<_> = self
            .living_instances()
            .await?
            .into_iter()
            .map(|i| i.instance_id)
            .collect();
        if !ids.is_empty() {
            let request = TerminateInstancesRequest {
                instance_ids: ids.clone(),
            };
            self.instances().terminate_instances(request).await?;
        }
        for id in ids {
            Guest::new(&self, id)
                .wait_state(InstanceState::Terminated)
                .await?;
        }
        let left = processes::vmms_of(self.folder.path());
        let gone = left.iter().all(|pid| processes::wait_gone(*pid));
        ensure!(gone, "VMMs without an instance: {left:?}");
        self.stop_agent()?;
        store::check(&self.store_dir())?;
        Ok(())
    }

    fn agent_log(&self) -> PathBuf {
        self.folder.path().join("hearthd.out")
    }

    /// The end of what the agent has said.
    pub fn agent_log_tail(&self) -> String {
        tail(&self.agent_log(), 4000)
    }
}

impl Drop for Hearth {
    /// Whatever happened: no process and no file stays.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("hearthd said, at the end:\n{}", self.agent_log_tail());
        }
        if let Some(mut agent) = self.agent.take() {
            // First the agent, so that it starts nothing more.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        for pid in processes::vmms_of(self.folder.path()) {
            processes::kill_9(pid);
            processes::wait_gone(pid);
        }
        if self.small {
            let mut unmount = Command::new("umount");
            let _ = programs::output_of(unmount.arg("-l").arg(self.state_dir()));
        }
    }
}

/// A connection that is made when it is first used, and again after the agent has restarted.
fn channel_to(socket: PathBuf) -> Channel {
    // The address is never used: the connector goes to the socket.
    Endpoint::from_static("http://hearthd").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

/// The last `n` bytes of a text file.
pub(crate) fn tail(path: &Path, n: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(n)..]).into_owned()
}
