//! The agent dies between the database and the firewall, or the host does not take the rules: what
//! is in force is the old rules or the new ones, never neither and never both.

use std::{
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CreatePrefixListRequest, CreateSecurityGroupRequest, DeletePrefixListRequest,
    DeleteSecurityGroupRequest, DescribePrefixListsRequest, DescribeSecurityGroupsRequest,
    ModifyPrefixListRequest, Network, NetworkInterfaceSpecification, PrefixListEntry,
    RunInstancesRequest, SecurityGroup, security_group_permission::Peer,
};
use hearth_tests::{
    Hearth, eventually, needs_kvm, needs_network,
    networks::ipv4_address,
    processes, programs,
    security_groups::{block, udp},
};

/// Ends what waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection of the host that is open: datagrams from one socket.
fn passes(socket: &UdpSocket) -> Result<()> {
    socket.send(b"echo")?;
    socket.recv(&mut [0; 16]).context("no echo")?;
    Ok(())
}

/// A port that is open all the time, before, while and after the agent is away.
const CONTROL: u16 = 7;

/// Where a guest is, and from where the host talks to it.
#[derive(Clone, Copy)]
struct Guest {
    host: IpAddr,
    address: IpAddr,
}

impl Guest {
    fn socket(&self, hearth: &Hearth, port: u16) -> Result<UdpSocket> {
        let socket = hearth
            .netns()?
            .enter(|| Ok(UdpSocket::bind((self.host, 0))?))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(SocketAddr::new(self.address, port))?;
        Ok(socket)
    }

    fn opened(&self, hearth: &Hearth, port: u16) -> Result<()> {
        let socket = self.socket(hearth, port)?;
        socket.send(b"echo")?;
        let received = socket.recv(&mut [0; 16]);
        received.with_context(|| format!("port {port} is not open"))?;
        Ok(())
    }

    fn closed(&self, hearth: &Hearth, port: u16) -> Result<()> {
        let socket = self.socket(hearth, port)?;
        match socket.send(b"let me in") {
            // The host's own packet does not leave.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
            sent => sent?,
        };
        for _ in 0..2 {
            self.opened(hearth, CONTROL)?;
        }
        socket.set_nonblocking(true)?;
        match socket.recv(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            answer => anyhow::bail!("port {port} is open: {answer:?}"),
        }
    }

    /// Port 80 is open or not, as `open` says; the control port is open.
    fn is(&self, hearth: &Hearth, open: bool) -> Result<()> {
        self.opened(hearth, CONTROL)?;
        if open {
            self.opened(hearth, 80)
        } else {
            self.closed(hearth, 80)
        }
    }
}

/// A network, a group for the control port, one for port 80, and a guest in both.
async fn world() -> Result<(Hearth, Network, SecurityGroup, SecurityGroup, String, Guest)> {
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.20.0.0/16", |_| {}).await?;
    let host = host(&network);
    let control = hearth.group(&network, "control").await?;
    hearth.allow(&control, &[udp(CONTROL, host)]).await?;
    let web = hearth.group(&network, "web").await?;
    let interface = NetworkInterfaceSpecification {
        network_id: network.network_id.clone(),
        security_group_ids: vec![
            control.security_group_id.clone(),
            web.security_group_id.clone(),
        ],
        ..Default::default()
    };
    let ask = |request: &mut RunInstancesRequest| request.network_interfaces.push(interface);
    let mut probe = hearth.probe(ask).await?;
    let interface = probe.guest.interface().await?;
    let address = ipv4_address(&interface, &network);
    probe.expect_ok(&format!("network {address}")).await?;
    for port in [CONTROL, 80] {
        probe.expect_ok(&format!("udp_echo port={port}")).await?;
    }
    let guest = Guest {
        host: network.ipv4_gateway.parse()?,
        address: interface.private_ipv4.parse()?,
    };
    let id = interface.instance_id;
    drop(probe);
    Ok((hearth, network, control, web, id, guest))
}

fn host(network: &Network) -> Peer {
    block(&format!("{}/32", network.ipv4_gateway))
}

/// Has the agent die at a step of `call`. Port 80 is open or not, as `before` says, until the
/// next agent has started, and then as `after` says.
async fn dies_at<T>(
    hearth: &mut Hearth,
    guest: Guest,
    step: &str,
    call: impl Future<Output = T>,
    before: bool,
    after: bool,
) -> Result<()> {
    guest.is(hearth, before)?;
    hearth.stop_agent()?;
    guest.is(hearth, before)?;
    hearth.start_agent_to_crash_at(step).await?;
    let agent = hearth.agent_pid();
    call.await;
    ensure!(processes::wait_gone(agent), "it never came to {step}");
    let log = hearth.agent_log_tail();
    ensure!(log.contains(&format!(": {step}")), "not at {step}:\n{log}");
    guest.is(hearth, before).context("while it is dead")?;
    hearth.kill_agent()?;
    hearth.start_agent().await?;
    guest.is(hearth, after).context("after the restart")
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_were_committed_are_in_force_after_a_crash_and_the_old_ones_until_then()
-> Result<()> {
    needs_kvm!();
    needs_network!();
    let (mut hearth, network, control, web, id, guest) = world().await?;
    let rule = vec![udp(80, host(&network))];
    let with = |hearth: &Hearth| hearth.security_groups();

    let (mut api, group, permissions) = (with(&hearth), web.clone(), rule.clone());
    let call = async move {
        api.authorize_security_group(hearth_proto::v1::AuthorizeSecurityGroupRequest {
            security_group_id: group.security_group_id,
            direction: hearth_proto::v1::Direction::Ingress.into(),
            permissions,
            dry_run: false,
        })
        .await
    };
    let step = "security-group.rules-added";
    dies_at(&mut hearth, guest, step, call, false, true).await?;

    let (mut api, group, permissions) = (with(&hearth), web.clone(), rule.clone());
    let call = async move {
        api.revoke_security_group(hearth_proto::v1::RevokeSecurityGroupRequest {
            security_group_id: group.security_group_id,
            direction: hearth_proto::v1::Direction::Ingress.into(),
            permissions,
            ..Default::default()
        })
        .await
    };
    // A connection that lives through it all is cut by the next agent.
    let socket = guest.socket(&hearth, 80)?;
    passes(&socket)?;
    let step = "security-group.rules-removed";
    dies_at(&mut hearth, guest, step, call, true, false).await?;
    if socket.send(b"cut").is_ok() {
        for _ in 0..2 {
            guest.opened(&hearth, CONTROL)?;
        }
        socket.set_nonblocking(true)?;
        let heard = socket.recv(&mut [0; 16]);
        ensure!(heard.is_err(), "the connection lives on");
    }

    // Out of the group that opens the port.
    hearth.allow(&web, &rule).await?;
    let (mut api, control_id) = (with(&hearth), control.security_group_id.clone());
    let call = async move {
        api.replace_instance_security_groups(
            hearth_proto::v1::ReplaceInstanceSecurityGroupsRequest {
                instance_id: id,
                security_group_ids: vec![control_id],
                keep_connections: false,
            },
        )
        .await
    };
    let step = "interface.groups-replaced";
    dies_at(&mut hearth, guest, step, call, true, false).await?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_list_is_the_old_or_the_new_one_after_a_crash() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let (mut hearth, network, _, web, _, guest) = world().await?;
    let mut api = hearth.security_groups();
    let request = CreatePrefixListRequest {
        name: "friends".to_owned(),
        max_entries: 3,
        ..Default::default()
    };
    let list = api.create_prefix_list(request).await?.into_inner();
    let id = list.prefix_list.context("no list")?.prefix_list_id;
    hearth
        .allow(&web, &[udp(80, Peer::PrefixListId(id.clone()))])
        .await?;
    let cidr = format!("{}/32", network.ipv4_gateway);
    let step = "prefix-list.row-modified";
    let add = ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        add_entries: vec![PrefixListEntry {
            cidr: cidr.clone(),
            description: String::new(),
        }],
        ..Default::default()
    };
    let mut api = hearth.security_groups();
    let call = async move { api.modify_prefix_list(add).await };
    dies_at(&mut hearth, guest, step, call, false, true).await?;
    let remove = ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        remove_cidrs: vec![cidr],
        ..Default::default()
    };
    let mut api = hearth.security_groups();
    let call = async move { api.modify_prefix_list(remove).await };
    dies_at(&mut hearth, guest, step, call, true, false).await?;
    hearth.finish().await
}

/// Groups and lists that nobody uses come and go whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_or_a_list_is_there_or_not_after_a_crash() -> Result<()> {
    needs_network!();
    let mut hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.20.0.0/16", |_| {}).await?;
    let mut api = hearth.security_groups();
    let create = CreateSecurityGroupRequest {
        name: "web".to_owned(),
        network_id: network.network_id.clone(),
        client_token: "once".to_owned(),
        ..Default::default()
    };
    let request = create.clone();
    let call = async { api.create_security_group(request).await };
    let crashed = hearth.crash_at("security-group.row-created", call).await?;
    ensure!(crashed.is_err(), "{crashed:?}");
    // The same call once more gives the one that was made.
    let mut api = hearth.security_groups();
    let group = api.create_security_group(create).await?.into_inner();
    let id = group.security_group.context("no group")?.security_group_id;
    let all = DescribeSecurityGroupsRequest::default();
    let found = api
        .describe_security_groups(all.clone())
        .await?
        .into_inner();
    ensure!(found.security_groups.len() == 2, "{found:#?}");
    let request = DeleteSecurityGroupRequest {
        security_group_id: id,
    };
    let call = async { api.delete_security_group(request).await };
    let crashed = hearth.crash_at("security-group.row-deleted", call).await?;
    ensure!(crashed.is_err(), "{crashed:?}");
    let mut api = hearth.security_groups();
    let found = api.describe_security_groups(all).await?.into_inner();
    ensure!(found.security_groups.len() == 1, "{found:#?}");

    let request = CreatePrefixListRequest {
        name: "friends".to_owned(),
        max_entries: 3,
        ..Default::default()
    };
    let call = async { api.create_prefix_list(request).await };
    let crashed = hearth.crash_at("prefix-list.row-created", call).await?;
    ensure!(crashed.is_err(), "{crashed:?}");
    let mut api = hearth.security_groups();
    let all = DescribePrefixListsRequest::default();
    let found = api.describe_prefix_lists(all.clone()).await?.into_inner();
    let [list] = &found.prefix_lists[..] else {
        anyhow::bail!("{found:#?}");
    };
    let request = DeletePrefixListRequest {
        prefix_list_id: list.prefix_list_id.clone(),
    };
    let call = async { api.delete_prefix_list(request).await };
    let crashed = hearth.crash_at("prefix-list.row-deleted", call).await?;
    ensure!(crashed.is_err(), "{crashed:?}");
    let mut api = hearth.security_groups();
    let found = api.describe_prefix_lists(all).await?.into_inner();
    ensure!(found.prefix_lists.is_empty(), "{found:#?}");
    hearth.finish().await
}

/// Somebody who has our table for himself: the kernel lets nobody else change it. It is gone with
/// him.
struct Usurper(Child);

impl Usurper {
    fn new(hearth: &Hearth) -> Result<Self> {
        let mut nft = hearth.netns()?.command("nft");
        let nft = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut usurper = Self(nft.spawn()?);
        let stdin = usurper.0.stdin.as_mut().context("no pipe")?;
        // One line is one transaction.
        writeln!(
            stdin,
            "delete table inet hearth; add table inet hearth {{ flags owner; }}"
        )?;
        Ok(usurper)
    }

    fn has_it(hearth: &Hearth) -> Result<bool> {
        let mut list = hearth.netns()?.command("nft");
        let tables = programs::output_of(list.args(["list", "tables"]))?;
        let ours = tables.lines().any(|line| line == "table inet hearth");
        let mut list = hearth.netns()?.command("nft");
        let rules = programs::output_of(list.args(["list", "ruleset"]))?;
        Ok(ours && rules.contains("flags owner"))
    }
}

impl Drop for Usurper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_the_host_does_not_take_change_nothing() -> Result<()> {
    needs_network!();
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth.network("10.20.0.0/16", |_| {}).await?;
    let web = hearth.group(&network, "web").await?;
    let rule = [udp(80, host(&network))];
    hearth.allow(&web, &rule).await?;
    let mut api = hearth.security_groups();
    let all = DescribeSecurityGroupsRequest::default();
    let before = api
        .describe_security_groups(all.clone())
        .await?
        .into_inner();
    let usurper = Usurper::new(&hearth)?;
    eventually(async || {
        ensure!(Usurper::has_it(&hearth)?, "the table is still ours");
        Ok(())
    })
    .await?;

    let more = [udp(81, host(&network))];
    let refused = hearth.allow(&web, &more).await.expect_err("not taken");
    ensure!(
        refused.message().contains("nothing was changed"),
        "{refused:?}"
    );
    hearth
        .disallow(&web, &rule, false)
        .await
        .expect_err("not taken");
    let request = CreateSecurityGroupRequest {
        name: "new".to_owned(),
        network_id: network.network_id.clone(),
        client_token: "once".to_owned(),
        ..Default::default()
    };
    let created = api.create_security_group(request.clone()).await;
    created.expect_err("not taken");
    let request_deletion = DeleteSecurityGroupRequest {
        security_group_id: web.security_group_id.clone(),
    };
    let deleted = api.delete_security_group(request_deletion).await;
    deleted.expect_err("not taken");
    let after = api.describe_security_groups(all).await?.into_inner();
    assert_eq!(after, before);

    drop(usurper);
    // Neither the name nor the token is taken.
    eventually(async || {
        let mut api = hearth.security_groups();
        api.create_security_group(request.clone()).await?;
        Ok(())
    })
    .await?;
    hearth.disallow(&web, &rule, false).await?;
    hearth.allow(&web, &more).await?;
    hearth.finish().await
}
