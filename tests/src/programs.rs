//! Where the programs under test are, and what the host has.

use std::{
    env,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail, ensure};

/// The path of a program that was built along with this test.
pub fn built(name: &str) -> Result<PathBuf> {
    // target/release/deps/TEST-HASH, or target/release/BENCH.
    let me = env::current_exe().context("this test's own path")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not beside {}: cargo build --release",
                me.display()
            )
        })
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// May we make virtual machines here?
pub fn kvm() -> bool {
    static KVM: OnceLock<bool> = OnceLock::new();
    *KVM.get_or_init(|| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
    })
}

/// Runs a program to its end and gives its standard output; fails with both outputs.
pub fn output_of(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{command:?} ended with {status}:\n{stdout}{stderr}");
    }
    Ok(stdout)
}

/// The folder with the base guest: `HEARTH_GUEST_DIR`, or what `images/guest/build` made before
/// or makes now.
pub fn guest_folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("HEARTH_GUEST_DIR") {
        return Ok(folder.into());
    }
    // Found in the cache in a moment, once it has been built.
    let printed = output_of(&mut Command::new(repository().join("images/guest/build")))?;
    let folder = PathBuf::from(printed.lines().last().unwrap_or_default());
    ensure!(
        folder.join("image.json").is_file(),
        "images/guest/build printed {folder:?}"
    );
    Ok(folder)
}
