//! The agent dies (`kill -9`) at a step of a change of networks. What the next agent finds is the
//! state before or the state after, on the host as in the database, and trying again works.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AllocateAddressRequest, AssociateAddressRequest, CreateAddressPoolRequest,
    CreateNetworkRequest, CreatePortForwardRequest, DeleteNetworkRequest, DeletePortForwardRequest,
    DescribeAddressesRequest, DescribeNetworksRequest, DescribePortForwardsRequest,
    DescribeSecurityGroupsRequest, DisassociateAddressRequest, InstanceState, ModifyNetworkRequest,
    Network, RunInstancesRequest, StopInstancesRequest, TerminateInstancesRequest,
};
use hearth_tests::{
    Guest, Hearth, Netns, Probe, needs_kvm, needs_network,
    networks::{in_network, ipv4_address, nothing_left_on_the_host},
    processes, programs,
};

async fn networks(hearth: &Hearth) -> Result<Vec<Network>> {
    let all = DescribeNetworksRequest::default();
    let answer = hearth.networks().describe_networks(all).await?;
    Ok(answer.into_inner().networks)
}

async fn groups(hearth: &Hearth) -> Result<usize> {
    let all = DescribeSecurityGroupsRequest::default();
    let answer = hearth
        .security_groups()
        .describe_security_groups(all)
        .await?;
    Ok(answer.into_inner().security_groups.len())
}

/// The rules in force, in words of `nft`.
fn rules(netns: &Netns) -> Result<String> {
    programs::output_of(netns.command("nft").args(["list", "ruleset"]))
}

/// The taps there are.
fn taps(netns: &Netns) -> Result<Vec<String>> {
    let links = netns.ip("-o link")?;
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    let taps = names.filter(|name| name.starts_with("hth"));
    Ok(taps.map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_is_made_changed_and_deleted_or_not_at_all() -> Result<()> {
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    for step in ["network.row-made", "network.in-force"] {
        let request = CreateNetworkRequest {
            ipv4_range: "10.50.0.0/24".to_owned(),
            client_token: step.to_owned(),
            ..Default::default()
        };
        let mut client = hearth.networks();
        let call = client.create_network(request.clone());
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let again = hearth.networks().create_network(request).await?;
        let again = again.into_inner().network.context("no network")?;
        let found = networks(&hearth).await?;
        ensure!(found.len() == 1, "{step}: {found:#?}");
        ensure!(
            found[0].network_id == again.network_id,
            "{step}: {found:#?}"
        );
        ensure!(groups(&hearth).await? == 1, "{step}");
        ensure!(rules(hearth.netns()?)?.contains("inet hearth"), "{step}");

        let step = "network.row-modified";
        let mut client = hearth.networks();
        let call = client.modify_network(ModifyNetworkRequest {
            network_id: again.network_id.clone(),
            nat: Some(false),
            ..Default::default()
        });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        ensure!(!networks(&hearth).await?[0].nat, "{step}");

        let step = "network.row-removed";
        let mut client = hearth.networks();
        let call = client.delete_network(DeleteNetworkRequest {
            network_id: again.network_id,
        });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        ensure!(networks(&hearth).await?.is_empty(), "{step}");
        ensure!(groups(&hearth).await? == 0, "{step}");
        nothing_left_on_the_host(hearth.netns()?).await?;
    }
    hearth.finish().await
}

/// The only instance runs in the only VMM, on the only tap, and reaches its gateway.
async fn the_probe_is_reached(hearth: &Hearth, id: &str, network: &Network) -> Result<()> {
    let guest = Guest::new(hearth, id.to_owned());
    let instance = guest.wait_state(InstanceState::Running).await?;
    let vmms = processes::vmms_of(&hearth.state_dir());
    ensure!(vmms == [instance.vmm_pid], "{vmms:?}, {instance:?}");
    let interface = guest.interface().await?;
    let taps = taps(hearth.netns()?)?;
    ensure!(taps == [interface.tap_name.clone()], "{taps:?}");
    let mut probe = Probe::attach(guest).await?;
    let address = ipv4_address(&interface, network);
    let ping = format!("ping address={} timeout=10 {address}", network.ipv4_gateway);
    probe.expect_ok(&ping).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_comes_up_with_its_interface_and_goes_with_it() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.51.0.0/24", |_| {}).await?;
    let image = hearth.probe_image().await?.to_owned();
    for (step, end) in [
        ("launch.interfaces-in-force", "instance.taps-removed"),
        ("launch.tap-made", "terminate.interfaces-forgotten"),
        ("launch.tap-up", "instance.taps-removed"),
        ("launch.services-started", "terminate.interfaces-forgotten"),
        ("launch.vmm-spawned", "instance.vmm-ended"),
    ] {
        let mut request = RunInstancesRequest {
            image_id: image.clone(),
            memory_mib: 32,
            client_token: step.to_owned(),
            ..Default::default()
        };
        in_network(&network)(&mut request);
        let mut client = hearth.instances();
        // Most of it happens after the answer.
        let call = client.run_instances(request.clone());
        hearth.crash_at(step, call).await?.ok();
        let again = hearth.instances().run_instances(request).await?;
        let instances = again.into_inner().instances;
        ensure!(instances.len() == 1, "{step}: {instances:#?}");
        let id = &instances[0].instance_id;
        let address = &instances[0].network_interfaces[0].private_ipv4;
        // Those before have given it back.
        ensure!(address == "10.51.0.4", "{step}: {address}");
        let reached = the_probe_is_reached(&hearth, id, &network).await;
        reached.with_context(|| step.to_owned())?;

        let mut client = hearth.instances();
        let call = client.terminate_instances(TerminateInstancesRequest {
            instance_ids: vec![id.clone()],
        });
        hearth.crash_at(end, call).await?.ok();
        let guest = Guest::new(&hearth, id.clone());
        guest.wait_state(InstanceState::Terminated).await?;
        ensure!(hearth.interfaces().await?.is_empty(), "{end}");
        let nothing = nothing_left_on_the_host(hearth.netns()?).await;
        nothing.with_context(|| end.to_owned())?;
    }
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_takes_the_tap_away_and_a_start_brings_it_back() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.52.0.0/24", |_| {}).await?;
    let id = hearth.probe(in_network(&network)).await?.guest.id;
    let before = Guest::new(&hearth, id.clone()).interface().await?;
    let mut client = hearth.instances();
    let call = client.stop_instances(StopInstancesRequest {
        instance_ids: vec![id.clone()],
        force: true,
        timeout_seconds: 0,
    });
    hearth.crash_at("instance.taps-removed", call).await?.ok();
    let guest = Guest::new(&hearth, id.clone());
    guest.wait_state(InstanceState::Stopped).await?;
    ensure!(taps(hearth.netns()?)?.is_empty());
    guest.start().await?;
    the_probe_is_reached(&hearth, &id, &network).await?;
    ensure!(guest.interface().await? == before);
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn public_addresses_and_forwards_are_what_the_rows_say() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.53.0.0/24", |_| {}).await?;
    let id = hearth.probe(in_network(&network)).await?.guest.id;
    let pool = CreateAddressPoolRequest {
        ipv4_range: "198.51.100.0/30".to_owned(),
        description: String::new(),
    };
    hearth.networks().create_address_pool(pool).await?;
    let allocate = AllocateAddressRequest::default();
    let address = hearth.networks().allocate_address(allocate).await?;
    let address = address.into_inner().address.context("no address")?;
    let on_the_host = |hearth: &Hearth| {
        let addresses = hearth.netns()?.ip("addr show dev lo")?;
        Ok::<_, anyhow::Error>(addresses.contains(&address.public_ipv4))
    };
    for step in ["address.row-associated", "address.in-force"] {
        let mut client = hearth.networks();
        let call = client.associate_address(AssociateAddressRequest {
            allocation_id: address.allocation_id.clone(),
            instance_id: id.clone(),
            ..Default::default()
        });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let all = DescribeAddressesRequest::default();
        let all = hearth
            .networks()
            .describe_addresses(all)
            .await?
            .into_inner();
        ensure!(all.addresses.len() == 1, "{step}: {all:?}");
        ensure!(all.addresses[0].instance_id == id, "{step}: {all:?}");
        ensure!(on_the_host(&hearth)?, "{step}");
        let in_force = rules(hearth.netns()?)?.contains(&address.public_ipv4);
        ensure!(in_force, "{step}");

        let step = "address.row-disassociated";
        let mut client = hearth.networks();
        let call = client.disassociate_address(DisassociateAddressRequest {
            allocation_id: address.allocation_id.clone(),
        });
        ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
        let all = DescribeAddressesRequest::default();
        let all = hearth
            .networks()
            .describe_addresses(all)
            .await?
            .into_inner();
        ensure!(all.addresses[0].instance_id.is_empty(), "{step}: {all:?}");
        ensure!(!on_the_host(&hearth)?, "{step}");
        let in_force = rules(hearth.netns()?)?.contains(&address.public_ipv4);
        ensure!(!in_force, "{step}");
    }

    let step = "port-forward.row-made";
    let request = CreatePortForwardRequest {
        host_port: 8099,
        instance_id: id.clone(),
        instance_port: 80,
        client_token: step.to_owned(),
        ..Default::default()
    };
    let mut client = hearth.networks();
    let call = client.create_port_forward(request.clone());
    ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
    let again = hearth.networks().create_port_forward(request).await?;
    let again = again.into_inner().port_forward.context("no forward")?;
    ensure!(rules(hearth.netns()?)?.contains("8099"), "{step}");
    let step = "port-forward.row-removed";
    let mut client = hearth.networks();
    let call = client.delete_port_forward(DeletePortForwardRequest {
        port_forward_id: again.port_forward_id,
    });
    ensure!(hearth.crash_at(step, call).await?.is_err(), "{step}");
    let all = DescribePortForwardsRequest::default();
    let all = hearth.networks().describe_port_forwards(all).await?;
    ensure!(all.into_inner().port_forwards.is_empty(), "{step}");
    ensure!(!rules(hearth.netns()?)?.contains("8099"), "{step}");
    hearth.finish().await
}
