//! How guests live and end: told by the guest itself, seen in states, reasons and events.

use std::fs;

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{BootProtocol, Event, InstanceState, StopInstancesRequest};
use hearth_tests::{Hearth, needs_kvm, probe, processes, programs, store};

/// The event that an instance is stopped.
fn is_stop(event: &Event) -> bool {
    event.r#type == "instance.state" && event.state == "stopped"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_tells_what_machine_it_runs_on() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let with_arguments = |request: &mut hearth_proto::v1::RunInstancesRequest| {
        request.memory_mib = 64;
        request.extra_kernel_args = "probe=told".to_owned();
    };
    let mut probe = hearth.probe(with_arguments).await?;
    let machine = probe.expect_ok("identify").await?;
    let arguments = machine["kernel_arguments"].as_str().unwrap_or_default();
    ensure!(
        arguments.split(' ').any(|word| word == "probe=told"),
        "{machine}"
    );
    let memory = machine["memory_bytes"].as_u64().unwrap_or_default();
    ensure!((60 << 20..=64 << 20).contains(&memory), "{machine}");
    ensure!(machine["random_devices"] == 1, "{machine}");
    ensure!(machine["nics"] == serde_json::json!([]), "{machine}");

    let echoed = probe.expect_ok("echo text=\"two words\"").await?;
    ensure!(echoed["text"] == "two words", "{echoed}");
    probe.expect_ok("time").await?;
    probe.expect_ok("help").await?;
    let written = probe.expect_ok("memory bytes=1M pattern=7").await?;
    ensure!(written["bytes"] == 1 << 20, "{written}");
    let first = probe.expect_ok("random bytes=32").await?;
    let second = probe.expect_ok("random bytes=32").await?;
    ensure!(first["hex"].as_str().map(str::len) == Some(64), "{first}");
    ensure!(first["hex"] != second["hex"], "{first}");
    probe.expect_error("no-such-command").await?;
    hearth.finish().await
}

/// What cloud-init's `ds-identify` takes for a machine of EC2's kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_finds_in_smbios_which_instance_it_is_and_stays_the_same() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let typed = |request: &mut hearth_proto::v1::RunInstancesRequest| {
        request.instance_type = "t.nano".to_owned();
        request.memory_mib = 0;
    };
    let mut probe = hearth.probe(typed).await?;
    let system = probe.expect_ok("identify").await?["system"].clone();
    let uuid = system["uuid"].as_str().unwrap_or_default();
    ensure!(uuid.starts_with("ec2") && uuid.len() == 36, "{system}");
    ensure!(system["serial"] == uuid, "{system}");
    ensure!(system["manufacturer"] == "Hearth", "{system}");
    ensure!(system["product"] == "t.nano", "{system}");
    ensure!(system["asset_tag"] == probe.guest.id.as_str(), "{system}");

    probe.send("poweroff").await?;
    probe.stopped().await?;
    probe.start().await?;
    let again = probe.expect_ok("identify").await?["system"].clone();
    assert_eq!(again, system);

    let mut image = probe::image()?.named("by pvh");
    image.header.boot_protocol = BootProtocol::Pvh.into();
    let image = hearth.import(&image).await?;
    let mut other = hearth.probe_of(&image, |_| {}).await?;
    let others = other.expect_ok("identify").await?["system"].clone();
    ensure!(others["asset_tag"] == other.guest.id.as_str(), "{others}");
    ensure!(others["uuid"] != uuid, "{others}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_entered_by_the_protocol_that_its_image_names() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut told = Vec::new();
    for (name, protocol) in [
        ("by linux64", BootProtocol::Linux64),
        ("by pvh", BootProtocol::Pvh),
    ] {
        let mut image = probe::image()?.named(name);
        image.header.boot_protocol = protocol.into();
        let image = hearth.import(&image).await?;
        let mut probe = hearth.probe_of(&image, |_| {}).await?;
        let machine = probe.expect_ok("identify").await?;
        told.push(machine["boot_protocol"].as_str().map(str::to_owned));
    }
    ensure!(told[1].as_deref() == Some("pvh"), "{told:?}");
    ensure!(told[0].is_some() && told[0] != told[1], "{told:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_itself_off_is_stopped_and_starts_again() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    probe.send("poweroff").await?;
    let stopped = probe.stopped().await?;
    assert_eq!(
        stopped.state_reason.unwrap_or_default().code,
        "Client.InstanceInitiatedShutdown"
    );
    assert_eq!(stopped.vmm_pid, 0);
    // Nobody is kept on the line with a guest that is gone.
    probe.closed().await?;
    let event = hearth.event(&probe.guest.id, is_stop).await?;
    assert_eq!(event.reason_code, "Client.InstanceInitiatedShutdown");
    probe.start().await?;
    probe.expect_ok("identify").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_resets_itself_stays_running_and_boots_again() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    for method in ["i8042", "acpi"] {
        let before = probe.guest.describe().await?.vmm_pid;
        probe.send(&format!("reset method={method}")).await?;
        probe.booted().await?;
        probe.expect_ok("echo text=again").await?;
        let instance = probe.guest.describe().await?;
        assert_eq!(instance.state(), InstanceState::Running, "{method}");
        assert_ne!(instance.vmm_pid, before, "{method}");
    }
    let reboot = |event: &Event| event.r#type == "instance.reboot";
    hearth.event(&probe.guest.id, reboot).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_a_triple_fault_is_stopped_and_events_say_why() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    for command in ["triple_fault", "reset method=triple_fault"] {
        let mut probe = hearth.probe(|_| {}).await?;
        probe.send(command).await?;
        let reason = probe.stopped().await?.state_reason.unwrap_or_default();
        ensure!(reason.message.contains("triple fault"), "{reason:?}");
        let event = hearth.event(&probe.guest.id, is_stop).await?;
        ensure!(event.message.contains("triple fault"), "{event:?}");
        ensure!(event.reason_code.starts_with("Server."), "{event:?}");
        probe.start().await?;
        probe.expect_ok("identify").await?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_faults_can_still_say_so_and_power_off() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    for (kind, words) in [
        ("page", "exception 14"),
        ("opcode", "exception 6"),
        ("privilege", "exception 13"),
        ("panic", "panicked"),
    ] {
        let mut probe = hearth.probe(|_| {}).await?;
        let answer = probe.ask(&format!("fault kind={kind}")).await?;
        let fault = answer["fault"].as_str().unwrap_or_default();
        ensure!(fault.contains(words), "{kind}: {answer}");
        let reason = probe.stopped().await?.state_reason.unwrap_or_default();
        assert_eq!(reason.code, "Client.InstanceInitiatedShutdown");
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_spins_and_is_deaf_to_the_power_button_is_stopped_by_force() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let turns = probe.expect_ok("spin seconds=0.05").await?;
    ensure!(turns["turns"].as_u64() > Some(0), "{turns}");

    probe.send("spin").await?;
    let pid = probe.guest.describe().await?.vmm_pid;
    let request = StopInstancesRequest {
        instance_ids: vec![probe.guest.id.clone()],
        force: false,
        timeout_seconds: 1,
    };
    hearth.instances().stop_instances(request).await?;
    let reason = probe.stopped().await?.state_reason.unwrap_or_default();
    assert_eq!(reason.code, "Client.UserInitiatedShutdown");
    assert!(processes::wait_gone(pid), "the VMM outlived its guest");

    probe.start().await?;
    probe.send("spin").await?;
    probe.guest.stop_by_force().await?;
    probe.start().await?;
    probe.expect_ok("identify").await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_spins_comes_back_from_a_reboot_when_its_vmm_is_killed() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let pid = probe.guest.describe().await?.vmm_pid;
    probe.send("spin").await?;
    // It would be ended by force after four minutes; a kill is nothing else.
    probe.guest.reboot().await?;
    processes::kill_9(pid);
    probe.booted().await?;
    probe.expect_ok("echo text=again").await?;
    let instance = probe.guest.describe().await?;
    assert_eq!(instance.state(), InstanceState::Running);
    assert_ne!(instance.vmm_pid, pid);
    hearth.finish().await
}

/// The whole of the Rust files in this crate's folder of tests.
fn tests() -> Result<String> {
    let mut text = String::new();
    // What several of them share is beside them; the benchmarks are no tests.
    let folder = programs::repository().join("tests");
    for part in ["tests", "src"] {
        for file in store::files_below(&folder.join(part))?.keys() {
            if !file.starts_with(folder.join("src/bin")) {
                text += &fs::read_to_string(file)?;
            }
        }
    }
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_of_the_probe_is_documented_and_used_by_a_test() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probe = hearth.probe(|_| {}).await?;
    let help = probe.expect_ok("help").await?;
    let commands = help.as_object().context("help is no object")?;
    let commands: Vec<&String> = commands
        .keys()
        .filter(|key| !["ok", "command"].contains(&key.as_str()))
        .collect();
    ensure!(commands.len() > 30, "{commands:?}");
    let readme = programs::repository().join("tests/probe/README.md");
    let (readme, tests) = (fs::read_to_string(readme)?, tests()?);
    for command in commands {
        ensure!(readme.contains(&format!("`{command}`")), "{command}");
        // At the start of what a test types, whatever follows.
        let typed = [' ', '"'].map(|after| format!("\"{command}{after}"));
        let used = typed.iter().any(|typed| tests.contains(typed));
        ensure!(used, "no test uses {command}");
    }
    hearth.finish().await
}
