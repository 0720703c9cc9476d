//! Many guests at a time.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use hearth_proto::v1::{InstanceState, TerminateInstancesRequest};
use hearth_tests::{Hearth, needs_kvm, processes};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_guests_are_up_at_once_and_each_answers() -> Result<()> {
    needs_kvm!();
    let hearth = Hearth::start().await?;
    let mut probes = hearth.probes(50).await?;
    let running = hearth.living_instances().await?;
    assert_eq!(running.len(), 50);
    let pids: BTreeSet<u32> = running.iter().map(|instance| instance.vmm_pid).collect();
    assert_eq!(pids.len(), 50, "not one VMM for each: {running:?}");
    for instance in &running {
        assert_eq!(instance.state(), InstanceState::Running, "{instance:?}");
        assert!(processes::is_alive(instance.vmm_pid), "{instance:?}");
    }

    // All of them work at the same time, and none gets what another is told.
    for probe in &probes {
        probe.send(&format!("echo text={}", probe.guest.id)).await?;
    }
    for probe in &mut probes {
        let answer = probe.answer().await?;
        ensure!(answer["text"] == probe.guest.id, "{answer}");
    }

    let request = TerminateInstancesRequest {
        instance_ids: probes.iter().map(|probe| probe.guest.id.clone()).collect(),
    };
    hearth.instances().terminate_instances(request).await?;
    for probe in &probes {
        probe.guest.wait_state(InstanceState::Terminated).await?;
    }
    for pid in pids {
        assert!(processes::wait_gone(pid), "VMM {pid} is left over");
    }
    drop(probes);
    hearth.finish().await
}
