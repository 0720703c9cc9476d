//! Virtual networks: what is made of them on the host, and what instances reach within them.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    DeleteNetworkRequest, DescribeInstancesRequest, Filter, InstanceState, ModifyNetworkRequest,
    Network, NetworkInterfaceSpecification, RunInstancesRequest,
};
use hearth_tests::{
    Expect, Guest, Hearth, Probe, eventually, needs_kvm, needs_network,
    networks::{
        in_network, ipv4_address, ipv6_address, left_on_the_host, nothing_left_on_the_host,
    },
};
use tonic::Code;

async fn delete(hearth: &Hearth, network: &Network) -> Result<()> {
    let network_id = network.network_id.clone();
    let request = DeleteNetworkRequest { network_id };
    hearth.networks().delete_network(request).await?;
    Ok(())
}

/// A probe in a network, with its addresses set.
async fn addressed<'a>(hearth: &'a Hearth, network: &Network) -> Result<Probe<'a>> {
    let mut probe = hearth.probe(in_network(network)).await?;
    set_addresses(&mut probe, network).await?;
    Ok(probe)
}

async fn set_addresses(probe: &mut Probe<'_>, network: &Network) -> Result<()> {
    let interface = probe.guest.interface().await?;
    let ipv4 = ipv4_address(&interface, network);
    probe.expect_ok(&format!("network {ipv4}")).await?;
    if !interface.private_ipv6.is_empty() {
        let ipv6 = ipv6_address(&interface);
        probe.expect_ok(&format!("network {ipv6}")).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_reaches_its_gateway_and_its_neighbours() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let with_ipv6 = |request: &mut hearth_proto::v1::CreateNetworkRequest| {
        request.ipv6_range = "auto".to_owned();
    };
    let network = hearth.network("10.20.0.0/16", with_ipv6).await?;
    ensure!(network.ipv4_gateway == "10.20.0.1", "{network:?}");
    let mut first = addressed(&hearth, &network).await?;
    let second = addressed(&hearth, &network).await?;
    let one = first.guest.interface().await?;
    let two = second.guest.interface().await?;
    ensure!(one.private_ipv4 == "10.20.0.4", "{one:?}");
    ensure!(two.private_ipv4 == "10.20.0.5", "{two:?}");
    // The card has the interface's hardware address.
    let machine = first.expect_ok("identify").await?;
    let mac = &machine["nics"][0]["mac"];
    ensure!(*mac == one.mac_address, "{machine} {one:?}");
    for to in [
        &network.ipv4_gateway,
        &network.ipv6_gateway,
        &two.private_ipv4,
        &two.private_ipv6,
    ] {
        // Each asks an idle guest or the host for the first time, and has one try.
        let ping = format!("ping address={to} count=1 timeout=10");
        first.expect_ok(&ping).await?;
    }
    drop((first, second));

    // Another network is another world.
    let other = hearth.network("10.21.0.0/24", with_ipv6).await?;
    let mut stranger = addressed(&hearth, &other).await?;
    let own = format!("ping address={} timeout=10", other.ipv4_gateway);
    stranger.expect_ok(&own).await?;
    for to in [&one.private_ipv4, &one.private_ipv6] {
        let ping = format!("ping address={to} count=2 timeout=1");
        stranger.expect_error(&ping).await?;
    }
    drop(stranger);

    // Nobody goes while somebody is in it; nothing is left afterwards.
    let request = DeleteNetworkRequest {
        network_id: network.network_id.clone(),
    };
    let refused = Expect {
        code: Code::FailedPrecondition,
        reason: "DependencyViolation",
        field: "network_id",
    };
    let message = refused.check(hearth.networks().delete_network(request).await)?;
    ensure!(message.contains(&one.instance_id), "{message}");
    ensure!(!left_on_the_host(hearth.netns()?)?.is_empty());
    for instance in hearth.living_instances().await? {
        Guest::new(&hearth, instance.instance_id)
            .terminate()
            .await?;
    }
    delete(&hearth, &network).await?;
    delete(&hearth, &other).await?;
    nothing_left_on_the_host(hearth.netns()?).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_stay_over_stop_and_start_and_over_the_agents_end() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.22.0.0/24", |request| {
            request.ipv6_range = "fd00:22::/64".to_owned();
            request.is_default = true;
        })
        .await?;
    // By default it is in the default network.
    let mut probe = hearth.probe(|_| {}).await?;
    let id = probe.guest.id.clone();
    let before = probe.guest.interface().await?;
    ensure!(before.private_ipv6 == "fd00:22::4", "{before:?}");
    probe.guest.stop_by_force().await?;
    ensure!(probe.guest.interface().await? == before);
    let links = hearth.netns()?.ip("-o link")?;
    ensure!(!links.contains(&before.tap_name), "{links}");
    probe.start().await?;
    ensure!(probe.guest.interface().await? == before);
    set_addresses(&mut probe, &network).await?;
    let ping = format!("ping address={} count=2 timeout=10", network.ipv4_gateway);
    let ping_ipv6 = format!("ping address={} count=2 timeout=10", network.ipv6_gateway);
    probe.expect_ok(&ping).await?;
    drop(probe);

    // The network is there while the agent is not, and after somebody meddled with it.
    hearth.kill_agent()?;
    let netns = hearth.netns()?;
    netns.ip(&format!("route del {}", before.private_ipv4))?;
    netns.ip(&format!("-6 addr del fe80::1/64 dev {}", before.tap_name))?;
    netns.ip(&format!("addr add 10.22.0.77/32 dev {}", before.tap_name))?;
    // Of nobody's, with the form of ours; and somebody else's.
    netns.ip("tuntap add hth00000000dead mode tap")?;
    let alias = ["link", "set", "hth00000000dead", "alias"];
    let mut command = netns.command("ip");
    command.args(alias).arg("hearth eni-0000000000000dead");
    hearth_tests::programs::output_of(&mut command)?;
    netns.ip("tuntap add hthforeign mode tap")?;
    hearth.start_agent().await?;
    let links = hearth.netns()?.ip("-o link")?;
    ensure!(!links.contains("hth00000000dead"), "{links}");
    ensure!(links.contains("hthforeign"), "{links}");
    let addresses = hearth
        .netns()?
        .ip(&format!("addr show dev {}", before.tap_name))?;
    ensure!(!addresses.contains("10.22.0.77"), "{addresses}");
    let mut probe = Probe::attach(Guest::new(&hearth, id.clone())).await?;
    // The console begins with what was answered before.
    probe.send("echo text=again").await?;
    while probe.answer().await?["text"] != "again" {}
    set_addresses(&mut probe, &network).await?;
    probe.expect_ok(&ping).await?;
    probe.expect_ok(&ping_ipv6).await?;
    drop(probe);
    hearth.netns()?.ip("link del hthforeign")?;

    let filters = [
        ("network-id", network.network_id.as_str()),
        ("private-ipv4", before.private_ipv4.as_str()),
        ("group-id", before.security_group_ids[0].as_str()),
    ];
    for (name, value) in filters {
        let found = |value: &str| {
            let request = DescribeInstancesRequest {
                filters: vec![Filter {
                    name: name.to_owned(),
                    values: vec![value.to_owned()],
                }],
                ..Default::default()
            };
            let mut client = hearth.instances();
            async move { client.describe_instances(request).await }
        };
        let answer = found(value).await?.into_inner().instances;
        ensure!(answer.len() == 1, "{name}={value}: {answer:?}");
        let answer = found("nobody").await?.into_inner().instances;
        ensure!(answer.is_empty(), "{name}: {answer:?}");
    }
    Guest::new(&hearth, id).terminate().await?;
    ensure!(hearth.interfaces().await?.is_empty());
    delete(&hearth, &network).await?;
    nothing_left_on_the_host(hearth.netns()?).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_has_interfaces_in_several_networks() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let front = hearth.network("10.23.0.0/24", |_| {}).await?;
    let jumbo = |request: &mut hearth_proto::v1::CreateNetworkRequest| request.mtu = 9001;
    let back = hearth.network("10.24.0.0/24", jumbo).await?;
    let both = |request: &mut RunInstancesRequest| {
        in_network(&front)(request);
        request
            .network_interfaces
            .push(NetworkInterfaceSpecification {
                network_id: back.network_id.clone(),
                private_ipv4: "10.24.0.99".to_owned(),
                description: "behind".to_owned(),
                ..Default::default()
            });
    };
    let mut probe = hearth.probe(both).await?;
    let interfaces = probe.guest.describe().await?.network_interfaces;
    ensure!(interfaces.len() == 2, "{interfaces:#?}");
    ensure!(interfaces[1].private_ipv4 == "10.24.0.99");
    ensure!(interfaces[1].description == "behind");
    let machine = probe.expect_ok("identify").await?;
    for (interface, network) in interfaces.iter().zip([&front, &back]) {
        let index = interface.device_index as usize;
        let mac = &machine["nics"][index]["mac"];
        ensure!(*mac == interface.mac_address, "{machine} {interface:?}");
        let address = ipv4_address(interface, network);
        let ping = format!("ping address={} timeout=10 {address}", network.ipv4_gateway);
        probe.expect_ok(&ping).await?;
        let link = hearth
            .netns()?
            .ip(&format!("-o link show {}", interface.tap_name))?;
        ensure!(link.contains(&format!("mtu {}", network.mtu)), "{link}");
    }
    // Its second card answers the first that asks, while nothing else happens in the guest.
    let mut neighbour = addressed(&hearth, &back).await?;
    let ping = "ping address=10.24.0.99 count=1 timeout=5";
    neighbour.expect_ok(ping).await?;
    let address = neighbour.guest.interface().await?.private_ipv4;
    let ping = format!("ping nic=1 address={address} count=1 timeout=5");
    probe.expect_ok(&ping).await?;
    drop((probe, neighbour));

    // The address is taken; the network's range is what it is.
    let asked = |ipv4: &str| RunInstancesRequest {
        memory_mib: 32,
        network_interfaces: vec![NetworkInterfaceSpecification {
            network_id: back.network_id.clone(),
            private_ipv4: ipv4.to_owned(),
            ..Default::default()
        }],
        dry_run: true,
        ..Default::default()
    };
    let image = hearth.probe_image().await?.to_owned();
    let address = "network_interfaces[0].private_ipv4";
    for (ipv4, code, reason) in [
        (
            "10.24.0.99",
            Code::FailedPrecondition,
            "InvalidIPAddress.InUse",
        ),
        ("10.24.0.3", Code::InvalidArgument, "InvalidParameterValue"),
        ("10.24.1.9", Code::InvalidArgument, "InvalidParameterValue"),
        ("many", Code::InvalidArgument, "InvalidParameterValue"),
        ("10.24.0.98", Code::FailedPrecondition, "DryRunOperation"),
    ] {
        let request = RunInstancesRequest {
            image_id: image.clone(),
            ..asked(ipv4)
        };
        let expected = Expect {
            code,
            reason,
            field: if reason == "DryRunOperation" {
                ""
            } else {
                address
            },
        };
        let answer = hearth.instances().run_instances(request).await;
        expected.check(answer).with_context(|| ipv4.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_gives_out_each_address_once_and_no_more_than_it_has() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.25.0.0/28", |_| {}).await?;
    ensure!(network.available_addresses == 11, "{network:?}");
    let image = hearth.probe_image().await?.to_owned();
    let asked = |least: u32, most: u32| {
        let mut request = RunInstancesRequest {
            image_id: image.clone(),
            memory_mib: 32,
            min_count: least,
            max_count: most,
            ..Default::default()
        };
        in_network(&network)(&mut request);
        request
    };
    let exhausted = Expect {
        code: Code::ResourceExhausted,
        reason: "InsufficientFreeAddressesInSubnet",
        field: "network_interfaces[0]",
    };
    exhausted.check(hearth.instances().run_instances(asked(12, 12)).await)?;
    // As many as there is room for.
    let answer = hearth.instances().run_instances(asked(1, 12)).await?;
    let instances = answer.into_inner().instances;
    ensure!(instances.len() == 11, "{}", instances.len());
    let mut addresses: Vec<String> = instances
        .iter()
        .flat_map(|it| &it.network_interfaces)
        .map(|it| it.private_ipv4.clone())
        .collect();
    addresses.sort();
    addresses.dedup();
    ensure!(addresses.len() == 11, "{addresses:?}");
    exhausted.check(hearth.instances().run_instances(asked(1, 1)).await)?;
    for instance in &instances {
        let guest = Guest::new(&hearth, instance.instance_id.clone());
        guest.wait_state(InstanceState::Running).await?;
    }
    // One that ends makes room for another, with the same address.
    let gone = &instances[3];
    let guest = Guest::new(&hearth, gone.instance_id.clone());
    guest.terminate().await?;
    let next = addressed(&hearth, &network).await?;
    let address = next.guest.interface().await?.private_ipv4;
    ensure!(address == gone.network_interfaces[0].private_ipv4);
    drop(next);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_checked_and_belong_to_accounts() -> Result<()> {
    needs_network!();
    use hearth_proto::v1::{CreateNetworkRequest, DescribeNetworksRequest};
    use hearth_tests::as_account;
    let netns = hearth_tests::Netns::new()?;
    netns.tap("uplink", "10.9.0.1/24")?;
    let hearth = Hearth::start_in(Some(netns)).await?;
    let request = |range: &str| CreateNetworkRequest {
        ipv4_range: range.to_owned(),
        ..Default::default()
    };
    // An agent without networks leaves the host alone.
    let forwarding = || {
        let read = || Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?);
        hearth.netns()?.enter(read)
    };
    let before = forwarding()?;
    let conflict = Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidNetwork.Conflict",
        field: "ipv4_range",
    };
    // The host's own.
    let message = conflict.check(
        hearth
            .networks()
            .create_network(request("10.9.0.0/16"))
            .await,
    )?;
    ensure!(message.contains("uplink"), "{message}");
    let dry = CreateNetworkRequest {
        dry_run: true,
        ..request("10.30.0.0/24")
    };
    Expect {
        code: Code::FailedPrecondition,
        reason: "DryRunOperation",
        field: "",
    }
    .check(hearth.networks().create_network(dry).await)?;
    for (field, reason, bad) in [
        ("ipv4_range", "InvalidNetwork.Range", request("8.8.8.0/24")),
        ("ipv4_range", "InvalidNetwork.Range", request("10.0.0.0/8")),
        ("ipv4_range", "MissingParameter", request("")),
        (
            "ipv6_range",
            "InvalidNetwork.Range",
            CreateNetworkRequest {
                ipv6_range: "fd00::/48".to_owned(),
                ..request("10.30.0.0/24")
            },
        ),
        (
            "mtu",
            "InvalidParameterValue",
            CreateNetworkRequest {
                mtu: 9002,
                ..request("10.30.0.0/24")
            },
        ),
        (
            "dns_domain",
            "InvalidParameterValue",
            CreateNetworkRequest {
                dns_domain: "a..b".to_owned(),
                ..request("10.30.0.0/24")
            },
        ),
    ] {
        let answer = hearth.networks().create_network(bad).await;
        Expect::invalid(reason, field).check(answer)?;
    }
    ensure!(forwarding()? == before, "a refused call changed the host");

    let mut named = request("10.30.0.0/24");
    named.name = "prod".to_owned();
    named.client_token = "once".to_owned();
    named.is_default = true;
    let first = hearth.networks().create_network(named.clone()).await?;
    let first = first.into_inner().network.context("no network")?;
    ensure!(forwarding()?.trim() == "1");
    let again = hearth.networks().create_network(named).await?.into_inner();
    ensure!(again.network.context("no network")?.network_id == first.network_id);
    conflict.check(
        hearth
            .networks()
            .create_network(request("10.30.0.128/25"))
            .await,
    )?;
    let mut same_name = request("10.31.0.0/24");
    same_name.name = "prod".to_owned();
    let duplicate = Expect {
        code: Code::AlreadyExists,
        reason: "InvalidNetwork.Duplicate",
        field: "name",
    };
    duplicate.check(hearth.networks().create_network(same_name.clone()).await)?;
    // Another account may use the name, and sees only its own.
    let theirs = as_account("team-b", same_name);
    let theirs = hearth.networks().create_network(theirs).await?.into_inner();
    let theirs = theirs.network.context("no network")?;
    let all = as_account("team-b", DescribeNetworksRequest::default());
    let seen = hearth.networks().describe_networks(all).await?.into_inner();
    ensure!(seen.networks.len() == 1, "{seen:?}");
    ensure!(seen.networks[0].network_id == theirs.network_id);
    let not_theirs = as_account(
        "team-b",
        DeleteNetworkRequest {
            network_id: first.network_id.clone(),
        },
    );
    Expect {
        code: Code::NotFound,
        reason: "InvalidNetworkID.NotFound",
        field: "network_id",
    }
    .check(hearth.networks().delete_network(not_theirs).await)?;

    // The next default network takes its place.
    let mut second = request("10.32.0.0/24");
    second.is_default = true;
    let second = hearth.networks().create_network(second).await?.into_inner();
    let second = second.network.context("no network")?;
    let defaults = DescribeNetworksRequest {
        filters: vec![Filter {
            name: "is-default".to_owned(),
            values: vec!["true".to_owned()],
        }],
        ..Default::default()
    };
    let found = hearth
        .networks()
        .describe_networks(defaults.clone())
        .await?;
    let found = found.into_inner().networks;
    ensure!(found.len() == 1 && found[0].network_id == second.network_id);
    let modify = ModifyNetworkRequest {
        network_id: first.network_id.clone(),
        name: Some("old".to_owned()),
        nat: Some(false),
        is_default: Some(true),
        dns_domain: Some("Example.Internal".to_owned()),
    };
    let modified = hearth.networks().modify_network(modify).await?.into_inner();
    let modified = modified.network.context("no network")?;
    ensure!(modified.name == "old" && !modified.nat && modified.is_default);
    ensure!(modified.dns_domain == "example.internal", "{modified:?}");
    let found = hearth.networks().describe_networks(defaults).await?;
    ensure!(found.into_inner().networks.len() == 1);

    for (id, owner) in [
        (first.network_id, "local"),
        (second.network_id, "local"),
        (theirs.network_id, "team-b"),
    ] {
        let request = as_account(
            owner,
            DeleteNetworkRequest {
                network_id: id.clone(),
            },
        );
        hearth.networks().delete_network(request).await?;
        if owner == "local" {
            let gone = hearth.event(&id, |event| event.state == "deleted").await?;
            ensure!(gone.r#type == "network.state", "{gone:?}");
        }
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hearth_net_shows_who_has_which_address() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let cli = |arguments: &[&str]| {
        let mut command = std::process::Command::new(hearth_tests::programs::built("hearth")?);
        command.env("HEARTH_SOCKET", hearth.socket());
        hearth_tests::programs::output_of(command.args(arguments))
    };
    let made = cli(&[
        "network",
        "create",
        "10.26.0.0/24",
        "--name",
        "prod",
        "--ipv6",
        "auto",
    ])?;
    ensure!(made.contains("10.26.0.0/24"), "{made}");
    let image = hearth.probe_image().await?.to_owned();
    let run = [
        "run",
        &image,
        "--memory",
        "32",
        "--name",
        "web",
        "--network",
        "prod",
        "--ip",
        "10.26.0.9",
        "--wait",
    ];
    cli(&run)?;
    let table = cli(&["net"])?;
    let interface = hearth.interfaces().await?.remove(0);
    for said in [
        "web",
        "prod",
        "eth0",
        "10.26.0.9",
        &interface.private_ipv6,
        &interface.mac_address,
        &interface.tap_name,
        &interface.instance_id,
        &interface.security_group_ids[0],
    ] {
        ensure!(table.contains(said), "no {said} in\n{table}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&cli(&["net", "--output", "json", "--network", "prod"])?)?;
    ensure!(
        json["networkInterfaces"][0]["privateIpv4"] == "10.26.0.9",
        "{json}"
    );
    let shown = cli(&["instance", "show", "web"])?;
    ensure!(shown.contains("eth0 10.26.0.9"), "{shown}");
    let listed = cli(&["network", "list"])?;
    ensure!(
        listed.contains("prod") && listed.contains("250"),
        "{listed}"
    );
    let refused = cli(&["network", "delete", "prod"]);
    let refused = format!("{:?}", refused.err().context("it is in use")?);
    ensure!(refused.contains("DependencyViolation"), "{refused}");
    cli(&["instance", "terminate", "web", "--wait"])?;
    cli(&["network", "delete", "prod"])?;
    eventually(async || {
        let left = left_on_the_host(hearth.netns()?)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    hearth.finish().await
}
