//! Linux in a network: its address, name, keys and user data from the services of its interface,
//! as stock programs take them.

use anyhow::{Result, ensure};
use hearth_proto::v1::{ImportKeyPairRequest, RunInstancesRequest, Tag};
use hearth_tests::{Hearth, needs_kvm, needs_network, networks::in_network};

const PUBLIC_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJTFkrkdL4tPGBhZs3W0M9IcmoAWKwn4PCjdrDZ4NgMN me@home";

#[tokio::test(flavor = "multi_thread")]
async fn linux_takes_address_name_key_and_user_data_from_its_interface() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.20.0.0/16", |request| {
            request.ipv6_range = "auto".to_owned();
            request.mtu = 1400;
        })
        .await?;
    let request = ImportKeyPairRequest {
        key_name: "laptop".to_owned(),
        public_key: PUBLIC_KEY.to_owned(),
        ..Default::default()
    };
    hearth.keys().import_key_pair(request).await?;
    let image = hearth.base_image().await?;
    let in_network = in_network(&network);
    let launch = |request: &mut RunInstancesRequest| {
        in_network(request);
        request.key_name = "laptop".to_owned();
        request.user_data = "#!/bin/sh\nhostname >/root/from-user-data\n".to_owned();
        request.tags.push(Tag {
            key: "Name".to_owned(),
            value: "Web".to_owned(),
        });
    };
    let guest = hearth.run(&image, launch).await?;
    let interface = guest.interface().await?;
    let mut console = guest.ready().await?;
    let address = &interface.private_ipv4;
    console
        .expect(&format!("hearth-guest: network eth0 {address}"))
        .await?;
    console.expect("hearth-guest: user data ended 0").await?;
    console.send("\n").await?;

    let host_name = format!("ip-{}.hearth.internal", address.replace('.', "-"));
    assert_eq!(console.shell("cat /root/from-user-data").await?, host_name);
    let keys = console.shell("cat /root/.ssh/authorized_keys").await?;
    assert_eq!(keys, PUBLIC_KEY);
    let shown = console
        .shell("ip -o addr show dev eth0; ip -o link show eth0")
        .await?;
    for part in [
        format!("inet {address}/16"),
        format!("inet6 {}/128", interface.private_ipv6),
        "mtu 1400".to_owned(),
    ] {
        ensure!(shown.contains(&part), "{part}: {shown}");
    }
    let routes = console.shell("ip route; ip -6 route").await?;
    for part in [
        format!("default via {}", network.ipv4_gateway),
        "default via fe80::1".to_owned(),
    ] {
        ensure!(routes.contains(&part), "{part}: {routes}");
    }
    // By its name, as any instance of the network finds it.
    let found = console.shell("nslookup web.hearth.internal").await?;
    ensure!(found.contains(address.as_str()), "{found}");
    hearth.finish().await
}
