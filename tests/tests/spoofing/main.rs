//! A guest that is root in its own machine sends what it likes. Nothing of what it is not arrives
//! anywhere, and its honest packets do.

mod addresses;
mod fragmented;
mod headers;
mod host;
mod link;
mod neighbours;
mod scene;

use anyhow::Result;
use hearth_tests::{needs_kvm, needs_network};

use scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_guest_is_not_ever_arrives() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut scene = Scene::new().await?;
    scene.honest_packets_pass()?;
    let before = scene.host_state()?;

    scene.never_arrives(addresses::ethernet)?;
    scene.never_arrives(addresses::ipv4)?;
    scene.never_arrives(addresses::ipv6)?;
    scene.never_arrives(neighbours::arp)?;
    scene.never_arrives(neighbours::discovery)?;
    scene.never_arrives(headers::servers)?;
    scene.never_arrives(headers::routes)?;
    scene.never_arrives(headers::hop_by_hop)?;
    scene.never_arrives(link::tagged)?;
    scene.never_arrives(link::other_protocols)?;
    scene.never_arrives(fragmented::overlapping)?;
    fragmented::another_guests_datagram(&mut scene)?;
    let listeners = host::Listeners::new(&scene)?;
    scene.never_arrives(host::own_addresses)?;
    scene.never_arrives(host::everybody)?;
    listeners.saw_nothing()?;

    let after = scene.host_state()?;
    anyhow::ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    scene.honest_packets_pass()?;
    scene.finish().await
}
