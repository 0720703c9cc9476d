//! Virtual networks: what is made of them on the host, and what instances reach by them.

use anyhow::{Result, ensure};
use hearth_tests::{
    Hearth, needs_kvm, needs_network,
    networks::{in_network, ipv4_address, ipv6_address},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_reaches_its_gateway_and_its_neighbours() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.20.0.0/16", |request| {
            request.ipv6_range = "auto".to_owned();
        })
        .await?;
    ensure!(network.ipv4_gateway == "10.20.0.1", "{network:?}");
    let mut first = hearth.probe(in_network(&network)).await?;
    let mut second = hearth.probe(in_network(&network)).await?;
    let (one, two) = (
        first.guest.interface().await?,
        second.guest.interface().await?,
    );
    ensure!(one.private_ipv4 == "10.20.0.4", "{one:?}");
    ensure!(two.private_ipv4 == "10.20.0.5", "{two:?}");

    // The card has the interface's hardware address.
    let machine = first.expect_ok("identify").await?;
    ensure!(
        machine["nics"][0]["mac"] == one.mac_address,
        "{machine} {one:?}"
    );

    for (address, to) in [
        (ipv4_address(&one, &network), &network.ipv4_gateway),
        (ipv6_address(&one), &network.ipv6_gateway),
    ] {
        first
            .expect_ok(&format!("ping address={to} count=3 timeout=10 {address}"))
            .await?;
    }
    for address in [ipv4_address(&two, &network), ipv6_address(&two)] {
        second.expect_ok(&format!("network {address}")).await?;
    }
    for to in [&two.private_ipv4, &two.private_ipv6] {
        first
            .expect_ok(&format!("ping address={to} count=3 timeout=10"))
            .await?;
    }
    hearth.finish().await
}
