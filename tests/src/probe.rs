//! The probe (`tests/probe`): a guest of our own that boots in milliseconds, does what it is told
//! on its serial console, and answers in JSON.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{DiskFormat, Instance, InstanceState, RunInstancesRequest};
use serde_json::Value;

use crate::{BOOT, Console, Guest, GuestImage, Hearth};

/// What probes get where a test asks for nothing else, in MiB: the least that the VMM gives.
const MEMORY_MIB: u64 = 32;

/// How the first line starts.
const READY: &str = "{\"probe\":\"ready\"";

/// What a probe writes for a seed; see `tests/probe/README.md`.
#[path = "../probe/src/pattern.rs"]
pub mod pattern;

/// The probe's ELF file: `HEARTH_PROBE`, or where cargo leaves it.
pub fn kernel() -> Result<Vec<u8>> {
    let path = match env::var_os("HEARTH_PROBE") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("probe/target/release/probe"),
    };
    fs::read(&path).with_context(|| {
        format!(
            "no probe at {}: cargo build --release --manifest-path tests/probe/Cargo.toml",
            path.display()
        )
    })
}

/// The probe as an image without a root.
pub fn image() -> Result<GuestImage> {
    Ok(GuestImage::kernel_only("probe", kernel()?))
}

/// The probe as an image with a root of so many bytes, which hold the pattern of this seed.
pub fn image_with_root(bytes: usize, seed: u64) -> Result<GuestImage> {
    let mut root = vec![0; bytes];
    pattern::fill(seed, 0, &mut root);
    Ok(image()?
        .named("probe with a root")
        .with_root(root, DiskFormat::Raw))
}

/// A running probe, and its console.
pub struct Probe<'a> {
    /// Its instance.
    pub guest: Guest<'a>,
    console: Console,
}

impl Hearth {
    /// Runs a probe without a root, after `change` had its way with the request, and waits for
    /// its first line.
    pub async fn probe(&self, change: impl FnOnce(&mut RunInstancesRequest)) -> Result<Probe<'_>> {
        let image = self.probe_image().await?.to_owned();
        self.probe_of(&image, change).await
    }

    /// [`Self::probe`] from another image.
    pub async fn probe_of(
        &self,
        image_id: &str,
        change: impl FnOnce(&mut RunInstancesRequest),
    ) -> Result<Probe<'_>> {
        let small = |request: &mut RunInstancesRequest| {
            request.memory_mib = MEMORY_MIB;
            change(request);
        };
        Probe::attach(self.run(image_id, small).await?).await
    }

    /// Runs so many probes with one call, and waits until each is ready.
    pub async fn probes(&self, count: u32) -> Result<Vec<Probe<'_>>> {
        let request = RunInstancesRequest {
            image_id: self.probe_image().await?.to_owned(),
            min_count: count,
            max_count: count,
            memory_mib: MEMORY_MIB,
            ..Default::default()
        };
        let answer = self.instances().run_instances(request).await?.into_inner();
        ensure!(answer.instances.len() == usize::try_from(count)?);
        let mut probes = Vec::new();
        for instance in answer.instances {
            probes.push(Probe::attach(Guest::new(self, instance.instance_id)).await?);
        }
        Ok(probes)
    }
}

impl<'a> Probe<'a> {
    /// Opens the console of an instance that boots, and waits for the probe's first line.
    pub async fn attach(guest: Guest<'a>) -> Result<Self> {
        let console = guest.console().await?;
        let mut probe = Self { guest, console };
        probe.booted().await?;
        Ok(probe)
    }

    /// Waits for the first line of the next boot.
    pub async fn booted(&mut self) -> Result<()> {
        let ready = self.console.expect(READY).await;
        ready.with_context(|| self.guest.logs())?;
        self.console.expect("\n").await?;
        Ok(())
    }

    /// Types a command.
    pub async fn send(&self, command: &str) -> Result<()> {
        self.console.send(&format!("{command}\n")).await
    }

    /// Waits for the next line.
    pub async fn answer(&mut self) -> Result<Value> {
        let line = self.console.expect_within("\n", BOOT).await;
        let line = line.with_context(|| self.guest.logs())?;
        serde_json::from_str(&line).with_context(|| format!("not JSON: `{line}`"))
    }

    /// Gives a command, and what it answers, whether it worked or not.
    pub async fn ask(&mut self, command: &str) -> Result<Value> {
        self.send(command).await?;
        let answer = self.answer().await;
        let answer = answer.with_context(|| format!("`{command}`"))?;
        let word = command.split(' ').next().unwrap_or_default();
        ensure!(
            answer["fault"].is_string() || answer["command"] == word,
            "`{command}` was answered with {answer}"
        );
        Ok(answer)
    }

    /// Gives a command that has to work.
    pub async fn expect_ok(&mut self, command: &str) -> Result<Value> {
        let answer = self.ask(command).await?;
        ensure!(
            answer["ok"] == true,
            "`{command}` was answered with {answer}"
        );
        Ok(answer)
    }

    /// Gives a command that has to fail; gives its error.
    pub async fn expect_error(&mut self, command: &str) -> Result<String> {
        let answer = self.ask(command).await?;
        ensure!(
            answer["ok"] == false,
            "`{command}` was answered with {answer}"
        );
        match answer["error"].as_str() {
            Some(error) => Ok(error.to_owned()),
            None => bail!("`{command}`: no error in {answer}"),
        }
    }

    /// Waits until the agent has hung up the console.
    pub async fn closed(&self) -> Result<()> {
        self.console.closed().await
    }

    /// Waits until the instance is stopped.
    pub async fn stopped(&self) -> Result<Instance> {
        self.guest.wait_state(InstanceState::Stopped).await
    }

    /// Starts the stopped instance, and waits until the probe is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.guest.start().await?;
        // The console of before has ended with the instance.
        self.console = self.guest.console().await?;
        self.booted().await
    }
}
