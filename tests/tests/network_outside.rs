//! Networks and the outside: address translation, elastic addresses, port forwards.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{
    AllocateAddressRequest, AssociateAddressRequest, AuthorizeSecurityGroupRequest,
    CreateAddressPoolRequest, CreatePortForwardRequest, DeleteAddressPoolRequest,
    DeletePortForwardRequest, DescribePortForwardsRequest, Direction, DisassociateAddressRequest,
    Network, NetworkInterface, ReleaseAddressRequest,
};
use hearth_tests::{
    Expect, Guest, Hearth, Netns, Probe, needs_kvm, needs_network,
    netns::LinkEnd,
    networks::{in_network, ipv4_address, nothing_left_on_the_host},
    security_groups::{EVERYBODY, all_of, block},
};
use tonic::Code;

/// Ends a peer that waits in vain.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long something is tried that must not work.
const REFUSED: Duration = Duration::from_millis(700);

const HOST: &str = "203.0.113.1";
const PEER: &str = "203.0.113.2";

/// An agent in a namespace with an uplink to another one, which knows no way to guests.
async fn hearth_with_outside() -> Result<(Hearth, Netns)> {
    let (netns, outside) = (Netns::new()?, Netns::new()?);
    netns.connect(
        &LinkEnd::new("uplink", "203.0.113.1/24"),
        &outside,
        &LinkEnd::new("eth0", "203.0.113.2/24"),
    )?;
    Ok((Hearth::start_in(Some(netns)).await?, outside))
}

async fn addressed<'a>(
    hearth: &'a Hearth,
    network: &Network,
) -> Result<(Probe<'a>, NetworkInterface)> {
    let mut probe = hearth.probe(in_network(network)).await?;
    let interface = probe.guest.interface().await?;
    let address = ipv4_address(&interface, network);
    probe.expect_ok(&format!("network {address}")).await?;
    Ok((probe, interface))
}

/// Lets everybody open TCP connections to the members of a group.
async fn let_tcp_in(hearth: &Hearth, group: &str) -> Result<()> {
    let request = AuthorizeSecurityGroupRequest {
        security_group_id: group.to_owned(),
        direction: Direction::Ingress.into(),
        permissions: vec![all_of("tcp", block(EVERYBODY))],
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    client.authorize_security_group(request).await?;
    Ok(())
}

/// Connects from a namespace, says something, and gets it back. Fails within the time.
fn echo(from: &Netns, to: &str, within: Duration) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    let deadline = Instant::now() + within;
    let mut stream = loop {
        match from.enter(|| Ok(TcpStream::connect_timeout(&to, within)?)) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"is there anybody")?;
    let mut answer = [0; 16];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"is there anybody", "{answer:?}");
    Ok(())
}

/// Who connects to a port of the outside, once.
fn visitor(outside: &Netns, port: u16) -> Result<thread::JoinHandle<Result<String>>> {
    let listener = outside.enter(|| Ok(TcpListener::bind((PEER, port))?))?;
    Ok(thread::spawn(move || {
        let (mut stream, from) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
        Ok(from.ip().to_string())
    }))
}

fn joined(visit: thread::JoinHandle<Result<String>>) -> Result<String> {
    match visit.join() {
        Ok(from) => from,
        Err(_) => bail!("the outside panicked"),
    }
}

fn call(port: u16) -> String {
    format!("tcp_connect to={PEER}:{port} text=hello receive=5 timeout=20")
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_reach_the_outside_with_the_hosts_address_if_their_network_says_so() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let (hearth, outside) = hearth_with_outside().await?;
    let network = hearth.network("10.40.0.0/24", |_| {}).await?;
    let (mut probe, _) = addressed(&hearth, &network).await?;
    let visit = visitor(&outside, 5001)?;
    probe.expect_ok(&call(5001)).await?;
    ensure!(joined(visit)? == HOST);
    let ping = format!("ping address={PEER} count=2 timeout=10");
    probe.expect_ok(&ping).await?;

    // Without, the outside would have to know the way back.
    let apart = |request: &mut hearth_proto::v1::CreateNetworkRequest| request.nat = Some(false);
    let closed = hearth.network("10.41.0.0/24", apart).await?;
    let (mut other, _) = addressed(&hearth, &closed).await?;
    let ping = format!("ping address={PEER} timeout=1");
    other.expect_error(&ping).await?;
    drop((probe, other));
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_address_is_an_instances_in_both_directions() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let (mut hearth, outside) = hearth_with_outside().await?;
    let network = hearth.network("10.42.0.0/24", |_| {}).await?;
    let pool = hearth
        .networks()
        .create_address_pool(CreateAddressPoolRequest {
            ipv4_range: "203.0.113.16/30".to_owned(),
            description: "of the uplink".to_owned(),
        })
        .await?
        .into_inner()
        .pool
        .context("no pool")?;
    ensure!(pool.available_addresses == 4, "{pool:?}");
    Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidAddressPool.Conflict",
        field: "ipv4_range",
    }
    .check(
        hearth
            .networks()
            .create_address_pool(CreateAddressPoolRequest {
                // The host's own address is in it.
                ipv4_range: "203.0.113.0/29".to_owned(),
                description: String::new(),
            })
            .await,
    )?;
    let allocate = AllocateAddressRequest {
        client_token: "one".to_owned(),
        ..Default::default()
    };
    let address = hearth.networks().allocate_address(allocate.clone()).await?;
    let address = address.into_inner().address.context("no address")?;
    ensure!(address.public_ipv4 == "203.0.113.16", "{address:?}");
    let again = hearth.networks().allocate_address(allocate).await?;
    let again = again.into_inner().address.context("no address")?;
    ensure!(again.allocation_id == address.allocation_id);

    let (mut probe, interface) = addressed(&hearth, &network).await?;
    let_tcp_in(&hearth, &interface.security_group_ids[0]).await?;
    probe.expect_ok("tcp_echo port=7").await?;
    let public = format!("{}:7", address.public_ipv4);
    ensure!(echo(&outside, &public, REFUSED).is_err(), "not yet its own");
    let associate = AssociateAddressRequest {
        allocation_id: address.allocation_id.clone(),
        instance_id: probe.guest.id.clone(),
        ..Default::default()
    };
    let associated = hearth.networks().associate_address(associate).await?;
    let associated = associated.into_inner().address.context("no address")?;
    ensure!(
        associated.private_ipv4 == interface.private_ipv4,
        "{associated:?}"
    );
    let described = probe.guest.interface().await?;
    ensure!(
        described.public_ipv4 == address.public_ipv4,
        "{described:?}"
    );
    echo(&outside, &public, PATIENCE)?;
    // What it sends outside comes from there.
    let visit = visitor(&outside, 5002)?;
    probe.expect_ok(&call(5002)).await?;
    ensure!(joined(visit)? == address.public_ipv4);

    // Held twice? Not without being asked to.
    let (mut second, its) = addressed(&hearth, &network).await?;
    second.expect_ok("tcp_echo port=7").await?;
    let mut take_over = AssociateAddressRequest {
        allocation_id: address.allocation_id.clone(),
        network_interface_id: its.network_interface_id.clone(),
        ..Default::default()
    };
    Expect {
        code: Code::FailedPrecondition,
        reason: "Resource.AlreadyAssociated",
        field: "allocation_id",
    }
    .check(hearth.networks().associate_address(take_over.clone()).await)?;
    Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidIPAddress.InUse",
        field: "allocation_id",
    }
    .check(
        hearth
            .networks()
            .release_address(ReleaseAddressRequest {
                allocation_id: address.allocation_id.clone(),
            })
            .await,
    )?;
    take_over.allow_reassociation = true;
    hearth.networks().associate_address(take_over).await?;
    ensure!(probe.guest.interface().await?.public_ipv4.is_empty());
    echo(&outside, &public, PATIENCE)?;
    let counted = second.expect_ok("network").await?;
    ensure!(
        counted["services"][0]["bytes"].as_u64() > Some(0),
        "{counted}"
    );
    drop((probe, second));

    // It is there after the agent's death, too.
    hearth.kill_agent()?;
    echo(&outside, &public, PATIENCE)?;
    hearth.netns()?.ip("addr del 203.0.113.16/32 dev lo")?;
    hearth.start_agent().await?;
    echo(&outside, &public, PATIENCE)?;

    let disassociate = DisassociateAddressRequest {
        allocation_id: address.allocation_id.clone(),
    };
    hearth.networks().disassociate_address(disassociate).await?;
    ensure!(echo(&outside, &public, REFUSED).is_err(), "nobody's now");
    let associate = AssociateAddressRequest {
        allocation_id: address.allocation_id.clone(),
        network_interface_id: its.network_interface_id.clone(),
        ..Default::default()
    };
    hearth.networks().associate_address(associate).await?;
    let delete = DeleteAddressPoolRequest {
        pool_id: pool.pool_id.clone(),
    };
    Expect {
        code: Code::FailedPrecondition,
        reason: "DependencyViolation",
        field: "pool_id",
    }
    .check(hearth.networks().delete_address_pool(delete.clone()).await)?;
    // An instance that ends lets it go.
    for instance in hearth.living_instances().await? {
        Guest::new(&hearth, instance.instance_id)
            .terminate()
            .await?;
    }
    let lost = |event: &hearth_proto::v1::Event| event.message.contains("is gone");
    hearth.event(&address.allocation_id, lost).await?;
    let release = ReleaseAddressRequest {
        allocation_id: address.allocation_id,
    };
    hearth.networks().release_address(release).await?;
    hearth.networks().delete_address_pool(delete).await?;
    nothing_left_on_the_host(hearth.netns()?).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_host_is_an_instances() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let (hearth, outside) = hearth_with_outside().await?;
    let network = hearth.network("10.43.0.0/24", |_| {}).await?;
    let (mut probe, interface) = addressed(&hearth, &network).await?;
    probe.expect_ok("tcp_echo port=7").await?;
    let forward = |host_port: u32| CreatePortForwardRequest {
        host_port,
        instance_id: probe.guest.id.clone(),
        instance_port: 7,
        ..Default::default()
    };
    let taken = hearth
        .netns()?
        .enter(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    let in_use = Expect {
        code: Code::FailedPrecondition,
        reason: "InvalidPort.InUse",
        field: "host_port",
    };
    in_use.check(hearth.networks().create_port_forward(forward(8080)).await)?;
    drop(taken);
    let made = hearth.networks().create_port_forward(forward(8080)).await?;
    let made = made.into_inner().port_forward.context("no forward")?;
    in_use.check(hearth.networks().create_port_forward(forward(8080)).await)?;
    let picked = hearth.networks().create_port_forward(forward(0)).await?;
    let picked = picked.into_inner().port_forward.context("no forward")?;
    ensure!((30000..=32767).contains(&picked.host_port), "{picked:?}");

    // Security groups decide as ever.
    let (first, second) = (
        format!("{HOST}:8080"),
        format!("{HOST}:{}", picked.host_port),
    );
    ensure!(echo(&outside, &first, REFUSED).is_err(), "nobody let it in");
    let_tcp_in(&hearth, &interface.security_group_ids[0]).await?;
    echo(&outside, &first, PATIENCE)?;
    echo(&outside, &second, PATIENCE)?;
    let delete = DeletePortForwardRequest {
        port_forward_id: made.port_forward_id,
    };
    hearth.networks().delete_port_forward(delete).await?;
    ensure!(echo(&outside, &first, REFUSED).is_err(), "taken back");
    echo(&outside, &second, PATIENCE)?;
    let all = DescribePortForwardsRequest::default();
    let all = hearth.networks().describe_port_forwards(all).await?;
    ensure!(all.into_inner().port_forwards == std::slice::from_ref(&picked));
    probe.guest.terminate().await?;
    drop(probe);
    // With its instance, a forward is gone.
    let all = DescribePortForwardsRequest::default();
    let all = hearth.networks().describe_port_forwards(all).await?;
    ensure!(all.into_inner().port_forwards.is_empty());
    hearth
        .event(&picked.port_forward_id, |event| event.state == "deleted")
        .await?;
    nothing_left_on_the_host(hearth.netns()?).await?;
    hearth.finish().await
}
