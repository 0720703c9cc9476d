//! Linux in a network: its address, name, keys and user data from the services of its interface,
//! as stock programs take them, and its owner's way in.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{CreateKeyPairRequest, RunInstancesRequest, Tag};
use hearth_tests::{Hearth, needs_kvm, needs_network, networks::in_network, programs};

#[tokio::test(flavor = "multi_thread")]
async fn linux_takes_address_name_key_and_user_data_from_its_interface() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.20.0.0/16", |request| {
            request.ipv6_range = "auto".to_owned();
            request.mtu = 9001;
        })
        .await?;
    let request = CreateKeyPairRequest {
        key_name: "laptop".to_owned(),
        ..Default::default()
    };
    let made = hearth.keys().create_key_pair(request).await?.into_inner();
    let public_key = made.key_pair.context("no key pair")?.public_key;
    let key_file = hearth.scratch()?.join("laptop");
    fs::write(&key_file, made.private_key)?;
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600))?;
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
    assert_eq!(keys, public_key);
    let shown = console
        .shell("ip -o addr show dev eth0; ip -o link show eth0")
        .await?;
    for part in [
        format!("inet {address}/16"),
        format!("inet6 {}/128", interface.private_ipv6),
        "mtu 9001".to_owned(),
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

    // Large packets go whole: 28 bytes of headers, and no fragments.
    let ping = format!("ping -c 1 -W 60 -s 8973 {}", network.ipv4_gateway);
    let said = console.shell(&ping).await?;
    ensure!(said.contains(" 0% packet loss"), "{said}");
    let count = "awk '/^Ip:/ && !/Forwarding/ { print $15, $20 }' /proc/net/snmp";
    let reassembled_and_made = console.shell(count).await?;
    ensure!(reassembled_and_made == "0 0", "{reassembled_and_made}");

    // No rule lets anybody in; the agent does, for who has the key.
    let known_hosts = hearth.scratch()?.join("known_hosts");
    let said = programs::output_of(
        Command::new(programs::built("hearth")?)
            .env("HEARTH_SOCKET", hearth.socket())
            .args(["ssh", "Web", "--ssh-option", "BatchMode=yes"])
            .arg("--ssh-option")
            .arg(format!("UserKnownHostsFile={}", known_hosts.display()))
            .arg("--identity")
            .arg(&key_file)
            .args(["--", "hostname; id -un"]),
    )?;
    assert_eq!(said, format!("{host_name}\nroot\n"));
    hearth.finish().await
}
