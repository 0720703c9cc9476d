//! A client that knows nothing of Hearth but what the server tells about itself.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use hearth_tests::{
    Hearth, needs_kvm,
    programs::{output_of, repository},
};

/// Python with a gRPC client: `HEARTH_PYTHON`, or what `scripts/python-env` made before or makes
/// now.
fn python() -> Result<PathBuf> {
    if let Some(python) = env::var_os("HEARTH_PYTHON") {
        return Ok(python.into());
    }
    let printed = output_of(&mut Command::new(repository().join("scripts/python-env")))?;
    Ok(printed.trim_end().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn python_drives_an_instance_by_reflection_alone() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let image = hearth.base_image().await?;
    let mut command = Command::new(python()?);
    command
        .arg(repository().join("tests/python/reflect.py"))
        .arg(hearth.socket())
        .arg(image);
    let said = tokio::task::spawn_blocking(move || output_of(&mut command))
        .await?
        .context("tests/python/reflect.py")?;
    for line in [
        "services: ",
        "hearth.v1.InstanceService",
        "grpc.health.v1.Health",
    ] {
        ensure!(said.contains(line), "`{line}` is missing in:\n{said}");
    }
    ensure!(said.trim_end().ends_with("terminate: done"), "{said}");
    hearth.finish().await
}
