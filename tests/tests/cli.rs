//! The program `hearth` against a real agent.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use hearth_tests::{Hearth, needs_kvm, programs, tiny};
use serde_json::Value;

/// What a run of the program came to.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// Standard output of a run that worked.
    fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {}: {}", self.code, self.stderr);
        Ok(self.stdout)
    }

    /// Standard error of a run that failed, which is one line and perhaps a hint.
    fn failed(self) -> Result<String> {
        ensure!(
            self.code == 1,
            "exit code {}: {}{}",
            self.code,
            self.stdout,
            self.stderr
        );
        ensure!(self.stdout.is_empty(), "printed {}", self.stdout);
        ensure!(self.stderr.starts_with("hearth: "), "{}", self.stderr);
        ensure!(self.stderr.lines().count() <= 2, "{}", self.stderr);
        Ok(self.stderr)
    }
}

fn command(socket: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(programs::built("hearth")?);
    command
        .env("HEARTH_SOCKET", socket)
        .args(arguments)
        .stdin(Stdio::null());
    Ok(command)
}

fn hearth(agent: &Hearth, arguments: &[&str]) -> Result<Ran> {
    run(&mut command(&agent.socket(), arguments)?)
}

fn run(command: &mut Command) -> Result<Ran> {
    let output = command.output()?;
    Ok(Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

fn json(agent: &Hearth, arguments: &[&str]) -> Result<Value> {
    let mut all = vec!["--output", "json"];
    all.extend(arguments);
    let text = hearth(agent, &all)?.ok()?;
    serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The first column of the line after a table's header.
fn first_id(table: &str) -> Result<&str> {
    let line = table
        .lines()
        .nth(1)
        .with_context(|| format!("no row in {table}"))?;
    line.split_whitespace().next().context("an empty row")
}

/// A directory as `hearth image import` takes it, with the kernel that echoes.
fn tiny_image_folder(agent: &Hearth) -> Result<std::path::PathBuf> {
    let folder = agent.scratch()?.join("tiny");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("kernel"), tiny::echo())?;
    let description = r#"{"name": "tiny", "architecture": "x86_64", "kernel": "kernel"}"#;
    std::fs::write(folder.join("image.json"), description)?;
    Ok(folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_made_listed_grown_and_deleted() -> Result<()> {
    let agent = Hearth::start().await?;
    let list = hearth(&agent, &["volume", "list"])?;
    assert_eq!(list.stdout, "");
    assert!(
        list.stderr.contains("hearth volume create"),
        "{}",
        list.stderr
    );

    let made = hearth(
        &agent,
        &["volume", "create", "--size", "2G", "--tag", "Name=data"],
    )?
    .ok()?;
    let id = first_id(&made)?;
    let list = hearth(&agent, &["volume", "list"])?.ok()?;
    let row = list.lines().nth(1).context("no row")?;
    for word in [id, "data", "available", "2 GiB"] {
        assert!(row.contains(word), "`{word}` is missing in\n{list}");
    }
    hearth(&agent, &["volume", "grow", id, "3"])?.ok()?;
    let shown = json(&agent, &["volume", "show", id])?;
    // proto3 JSON: 64-bit numbers are strings, enums are their names.
    assert_eq!(
        text(&shown, "/volumes/0/sizeBytes"),
        (3u64 << 30).to_string()
    );
    assert_eq!(text(&shown, "/volumes/0/state"), "VOLUME_STATE_AVAILABLE");

    let file = agent.scratch()?.join("disk.raw");
    std::fs::write(&file, vec![1; 1 << 20])?;
    let file = file.to_str().context("the path")?;
    hearth(&agent, &["volume", "import", file])?.ok()?;
    let all = json(&agent, &["volume", "list"])?;
    assert_eq!(all["volumes"].as_array().map(Vec::len), Some(2));

    hearth(&agent, &["volume", "delete", id])?.ok()?;
    let events = hearth(&agent, &["--output", "json", "events", id])?.ok()?;
    for line in events.lines() {
        let event: Value = serde_json::from_str(line)?;
        assert_eq!(text(&event, "/resourceId"), id);
    }
    assert!(events.lines().count() >= 2, "{events}");
    agent.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_have_classes_that_are_listed_chosen_and_modified() -> Result<()> {
    let agent = Hearth::start().await?;
    let classes = hearth(&agent, &["volume", "classes"])?.ok()?;
    for words in [
        "gp3",
        "3000 included",
        "st1",
        "40 per TiB",
        "burst 250 per TiB",
    ] {
        assert!(
            classes.contains(words),
            "`{words}` is missing in\n{classes}"
        );
    }
    let create = ["volume", "create", "--size", "10", "--class"];
    let made = hearth(&agent, &[&create[..], &["io2", "--iops", "500"]].concat())?.ok()?;
    let id = first_id(&made)?;
    assert!(made.contains("io2"), "{made}");
    hearth(
        &agent,
        &["volume", "modify", id, "--size", "12", "--iops", "600"],
    )?
    .ok()?;
    let shown = hearth(&agent, &["volume", "show", id])?.ok()?;
    for words in ["12 GiB", "600 IOPS, 4000 MiB/s", "completed"] {
        assert!(shown.contains(words), "`{words}` is missing in\n{shown}");
    }
    let json = json(&agent, &["volume", "show", id])?;
    assert_eq!(text(&json, "/volumes/0/volumeClass"), "io2");
    let small = hearth(&agent, &[&create[..], &["st1"]].concat())?.failed()?;
    assert!(small.contains("--size") && small.contains("125"), "{small}");
    let many = hearth(&agent, &["volume", "modify", id, "--iops", "12001"])?.failed()?;
    assert!(
        many.contains("--iops") && many.contains("100 to 12000"),
        "{many}"
    );
    agent.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_directory_is_imported_and_named_by_name_or_id() -> Result<()> {
    let agent = Hearth::start().await?;
    let folder = tiny_image_folder(&agent)?;
    let folder = folder.to_str().context("the path")?;
    let made = json(&agent, &["image", "import", folder, "--tag", "from=cli"])?;
    let id = text(&made, "/image/imageId").to_owned();
    for name in ["tiny", &id] {
        let shown = hearth(&agent, &["image", "show", name])?.ok()?;
        assert!(shown.contains(&id) && shown.contains("from=cli"), "{shown}");
    }
    let twice = hearth(&agent, &["image", "import", folder])?.failed()?;
    assert!(twice.contains("InvalidAMIName.Duplicate"), "{twice}");
    hearth(&agent, &["image", "deregister", "tiny"])?.ok()?;
    let gone = hearth(&agent, &["image", "show", "tiny"])?.failed()?;
    assert!(
        gone.contains("hint: see what there is with `hearth image list`"),
        "{gone}"
    );
    agent.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_run_talked_to_and_terminated() -> Result<()> {
    needs_kvm!();
    let agent = Hearth::start().await?;
    let folder = tiny_image_folder(&agent)?;
    hearth(
        &agent,
        &["image", "import", folder.to_str().context("the path")?],
    )?
    .ok()?;
    let made = hearth(
        &agent,
        &["run", "tiny", "--name", "web", "--memory", "64M", "--wait"],
    )?;
    let made = made.ok()?;
    let id = first_id(&made)?;
    let row = made.lines().nth(1).context("no row")?;
    for word in ["web", "running", "64 MiB"] {
        assert!(row.contains(word), "`{word}` is missing in\n{made}");
    }
    let shown = json(&agent, &["instance", "show", "web"])?;
    assert_eq!(text(&shown, "/instances/0/instanceId"), id);

    // Through pipes: what is typed comes back.
    let mut command = command(&agent.socket(), &["console", "web", "--until", "answer"])?;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut console = command.spawn()?;
    console
        .stdin
        .take()
        .context("no pipe")?
        .write_all(b"my answer\n")?;
    let output = console.wait_with_output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(String::from_utf8(output.stdout)?.contains("my answer"));
    let said = hearth(&agent, &["instance", "console-output", id])?.ok()?;
    assert!(said.contains("tiny: ready"), "{said}");

    let stopped = hearth(&agent, &["instance", "stop", "web", "--force", "--wait"])?.ok()?;
    assert!(stopped.contains("stopped"), "{stopped}");
    // A stopped instance has no console to connect to, and the message says what to do.
    let refused = hearth(&agent, &["console", "web"])?.failed()?;
    assert!(
        refused.contains("IncorrectInstanceState") && refused.contains("hint: "),
        "{refused}"
    );
    hearth(&agent, &["instance", "terminate", "web", "--wait"])?.ok()?;
    assert_eq!(hearth(&agent, &["instance", "list"])?.ok()?, "");
    assert!(
        hearth(&agent, &["instance", "list", "--all"])?
            .ok()?
            .contains("terminated")
    );
    agent.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_say_what_to_do_next_and_name_the_flag() -> Result<()> {
    let agent = Hearth::start().await?;
    let nowhere = agent.scratch()?.join("nobody.sock");
    let said = run(&mut command(&nowhere, &["instance", "list"])?)?.failed()?;
    assert!(
        said.contains("hint: start it with `hearthd --socket "),
        "{said}"
    );

    let said = hearth(&agent, &["instance", "show", "i-0123456789abcdef0"])?.failed()?;
    assert!(
        said.contains("hint: see what there is with `hearth instance list`"),
        "{said}"
    );
    let said = hearth(&agent, &["volume", "create", "--size", "99999"])?.failed()?;
    assert!(said.starts_with("hearth: --size: "), "{said}");
    let said = hearth(&agent, &["run", "nothing"])?.failed()?;
    assert!(said.contains("no image is called `nothing`"), "{said}");

    let folder = tiny_image_folder(&agent)?;
    hearth(
        &agent,
        &["image", "import", folder.to_str().context("the path")?],
    )?
    .ok()?;
    let said = hearth(&agent, &["run", "tiny", "--memory", "1T"])?.failed()?;
    assert!(
        said.contains("hint: ask for less (--type, --memory, --count)"),
        "{said}"
    );
    let said = hearth(&agent, &["run", "tiny", "--memory", "1M"])?.failed()?;
    assert!(said.starts_with("hearth: --memory: "), "{said}");
    let said = hearth(&agent, &["run", "tiny", "--disk", "1", "--disk", "99999"])?.failed()?;
    assert!(said.starts_with("hearth: --disk: "), "{said}");
    let said = hearth(&agent, &["run", "tiny", "--dry-run"])?.ok()?;
    assert!(said.contains("would have worked"), "{said}");

    // Usage errors are the caller's, with another exit code, and need no agent.
    for wrong in [
        &["run"][..],
        &["volume", "create", "--size", "big"],
        &["fly"],
    ] {
        assert_eq!(run(&mut command(&nowhere, wrong)?)?.code, 2, "{wrong:?}");
    }
    agent.finish().await
}

#[test]
fn completion_and_version_need_no_agent() -> Result<()> {
    let nowhere = Path::new("/nonexistent.sock");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut command(nowhere, &["completion", shell])?)?.ok()?;
        assert!(script.contains("console-output"), "{shell}: {script}");
    }
    let version = run(&mut command(nowhere, &["version"])?)?.ok()?;
    assert_eq!(version, format!("hearth {}\n", env!("CARGO_PKG_VERSION")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_taken_compared_shared_and_deleted() -> Result<()> {
    let agent = Hearth::start().await?;
    let made = json(&agent, &["volume", "create", "--size", "1"])?;
    let volume = text(&made, "/volume/volumeId").to_owned();
    let taken = json(
        &agent,
        &["snapshot", "create", &volume, "--description", "first one"],
    )?;
    let first = text(&taken, "/snapshots/0/snapshotId").to_owned();
    let table = hearth(&agent, &["snapshot", "create", &volume])?.ok()?;
    let second = first_id(&table)?.to_owned();
    let listed = hearth(&agent, &["snapshot", "list"])?.ok()?;
    ensure!(
        listed.contains(&first) && listed.contains(&second),
        "{listed}"
    );
    let shown = hearth(&agent, &["snapshot", "show", &first])?.ok()?;
    ensure!(shown.contains("first one"), "{shown}");
    ensure!(hearth(&agent, &["snapshot", "blocks", &first])?.ok()? == "");
    ensure!(hearth(&agent, &["snapshot", "diff", &first, &second])?.ok()? == "");

    let share = ["snapshot", "share", &first, "--with", "bob"];
    let shared = hearth(&agent, &share)?.ok()?;
    ensure!(shared.contains("bob"), "{shared}");
    let by_bob = ["--account", "bob", "snapshot", "delete", &first];
    let refused = hearth(&agent, &by_bob)?.failed()?;
    ensure!(refused.contains("UnauthorizedOperation"), "{refused}");
    ensure!(refused.contains("hint: make your own"), "{refused}");
    let by_bob = ["--account", "bob", "volume", "create", "--snapshot", &first];
    let clone = hearth(&agent, &by_bob)?.ok()?;
    ensure!(first_id(&clone)?.starts_with("vol-"), "{clone}");
    let by_bob = ["--account", "bob", "snapshot", "copy", &first];
    let copy = hearth(&agent, &by_bob)?.ok()?;
    ensure!(first_id(&copy)?.starts_with("snap-"), "{copy}");
    let unshare = ["snapshot", "unshare", &first, "--with", "bob"];
    let unshared = hearth(&agent, &unshare)?.ok()?;
    ensure!(!unshared.contains("bob"), "{unshared}");

    hearth(&agent, &["snapshot", "delete", &first, &second])?.ok()?;
    let gone = hearth(&agent, &["snapshot", "show", &first])?.failed()?;
    ensure!(gone.contains("hearth snapshot list"), "{gone}");
    agent.finish().await
}
