//! Flow logs: what probes and the host send is in the records, packet for packet.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hearth_proto::v1::{
    CreateFlowLogsRequest, DeleteFlowLogsRequest, DescribeFlowLogsRequest, Filter, FlowLog,
    FlowLogRecord, FlowLogTrafficType, ReadFlowLogRequest, TerminateInstancesRequest,
};
use hearth_tests::{
    Expect, Hearth, eventually, needs_kvm, needs_network, programs,
    security_groups::{EVERYBODY, block, udp},
    traffic::{CONTROL, World},
};
use tonic::Code;

/// Headers of IPv4 and IPv6 with UDP's.
const V4: u64 = 28;
const V6: u64 = 48;

fn request(resource: &str, traffic: FlowLogTrafficType) -> CreateFlowLogsRequest {
    CreateFlowLogsRequest {
        resource_ids: vec![resource.to_owned()],
        traffic_type: traffic.into(),
        max_aggregation_interval: 10,
        ..Default::default()
    }
}

async fn create(hearth: &Hearth, of: &str, traffic: FlowLogTrafficType) -> Result<FlowLog> {
    let mut api = hearth.flow_logs();
    let answer = api.create_flow_logs(request(of, traffic)).await?;
    let logs = answer.into_inner().flow_logs;
    logs.into_iter().next().context("no flow log")
}

async fn records(hearth: &Hearth, log: &FlowLog) -> Result<Vec<FlowLogRecord>> {
    let request = ReadFlowLogRequest {
        flow_log_id: log.flow_log_id.clone(),
        ..Default::default()
    };
    let mut stream = hearth
        .flow_logs()
        .read_flow_log(request)
        .await?
        .into_inner();
    let mut all = Vec::new();
    while let Some(answer) = stream.message().await? {
        all.extend(answer.records);
    }
    Ok(all)
}

/// Interface, action, direction, addresses, the port that is none of the sender's own choice.
type Flow = (String, String, String, String, String, u32);

/// Packets and bytes of each flow, over all records.
fn sums(records: &[FlowLogRecord], ports: &[u32]) -> BTreeMap<Flow, (u64, u64)> {
    let mut sums = BTreeMap::<Flow, (u64, u64)>::new();
    for it in records.iter().filter(|it| it.log_status == "OK") {
        let port = [it.source_port, it.destination_port];
        let port = port.into_iter().find(|port| ports.contains(port));
        let flow = (
            it.network_interface_id.clone(),
            it.action.clone(),
            it.flow_direction.clone(),
            it.source_address.clone(),
            it.destination_address.clone(),
            port.unwrap_or_default(),
        );
        let sum = sums.entry(flow).or_default();
        *sum = (sum.0 + it.packets, sum.1 + it.bytes);
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_and_refused_flows_are_recorded_exactly() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let open = [udp(9, block(EVERYBODY)), udp(9, block("::/0"))];
    hearth.allow(&web, &open).await?;
    let server = world.member(&[&web], &[9, 10]).await?;
    let mut client = world.member(&[&web], &[]).await?;
    let (own, peer) = (server.interface.clone(), client.interface.clone());
    let network = &world.network.network_id;
    let all = create(hearth, network, FlowLogTrafficType::All).await?;
    let rejected = create(
        hearth,
        &own.network_interface_id,
        FlowLogTrafficType::Reject,
    )
    .await?;
    let accepted = create(
        hearth,
        &peer.network_interface_id,
        FlowLogTrafficType::Accept,
    )
    .await?;
    let mut expected = BTreeMap::new();
    let mut expect = |eni: &str, action: &str, direction: &str, from: &str, to: &str, port, sum| {
        let words = [eni, action, direction, from, to].map(str::to_owned);
        let [eni, action, direction, from, to] = words;
        expected.insert((eni, action, direction, from, to, port), sum);
    };
    let (server_eni, client_eni) = (&own.network_interface_id, &peer.network_interface_id);
    for (from, to, at, shut, header) in [
        (
            &peer.private_ipv4,
            &own.private_ipv4,
            server.at(9)?,
            server.at(10)?,
            V4,
        ),
        (
            &peer.private_ipv6,
            &own.private_ipv6,
            server.ipv6_at(9)?,
            server.ipv6_at(10)?,
            V6,
        ),
    ] {
        for _ in 0..3 {
            client.reaches(at).await?;
        }
        client.does_not_reach(shut).await?;
        let three = (3, 3 * (header + 1));
        let one = (1, header + 1);
        expect(client_eni, "ACCEPT", "egress", from, to, 9, three);
        expect(server_eni, "ACCEPT", "ingress", from, to, 9, three);
        expect(server_eni, "ACCEPT", "egress", to, from, 9, three);
        expect(client_eni, "ACCEPT", "ingress", to, from, 9, three);
        // Its own groups let it out.
        expect(client_eni, "ACCEPT", "egress", from, to, 10, one);
        expect(server_eni, "REJECT", "ingress", from, to, 10, one);
    }
    // Who is gone has its last records, too.
    let terminate = TerminateInstancesRequest {
        instance_ids: vec![peer.instance_id.clone()],
    };
    hearth.instances().terminate_instances(terminate).await?;
    drop(client);
    let ports = [9, 10];
    eventually(async || {
        let found = sums(&records(hearth, &all).await?, &ports);
        ensure!(found == expected, "{found:#?} is not {expected:#?}");
        Ok(())
    })
    .await?;
    let of = |eni: &str, action: &str| -> BTreeMap<_, _> {
        let these = expected.iter();
        let these = these.filter(|(flow, _)| flow.0 == eni && flow.1 == action);
        these.map(|(flow, sum)| (flow.clone(), *sum)).collect()
    };
    let found = sums(&records(hearth, &rejected).await?, &ports);
    ensure!(found == of(server_eni, "REJECT"), "{found:#?}");
    let found = sums(&records(hearth, &accepted).await?, &ports);
    ensure!(found == of(client_eni, "ACCEPT"), "{found:#?}");
    // Silence is recorded for those that run.
    eventually(async || {
        let records = records(hearth, &all).await?;
        let silent = |it: &&FlowLogRecord| it.log_status == "NODATA";
        let last = records.iter().rfind(silent).context("no silence")?;
        ensure!(last.network_interface_id == *server_eni, "{last:?}");
        ensure!(last.account_id == "local" && last.version == 2, "{last:?}");
        ensure!(last.start < last.end && last.packets == 0, "{last:?}");
        Ok(())
    })
    .await?;
    drop(server);
    world.hearth.finish().await
}

/// Datagrams of the host to a guest that echoes them.
fn echoes(socket: &UdpSocket, count: usize) -> Result<()> {
    for _ in 0..count {
        socket.send(b"echo")?;
        let received = socket.recv(&mut [0; 16]).context("no echo")?;
        ensure!(received == 4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_loses_and_doubles_nothing() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut world = World::new().await?;
    let member = world.member(&[&world.control], &[CONTROL]).await?;
    let address = member.at(CONTROL)?;
    let eni = member.interface.network_interface_id.clone();
    drop(member);
    let gateway: IpAddr = world.network.ipv4_gateway.parse()?;
    let netns = world.hearth.netns()?;
    let socket = netns.enter(|| Ok(UdpSocket::bind((gateway, 0))?))?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    socket.connect(address)?;
    let hearth = &mut world.hearth;
    let log = create(hearth, &eni, FlowLogTrafficType::All).await?;
    echoes(&socket, 5)?;
    hearth.kill_agent()?;
    echoes(&socket, 7)?;
    let mut count = 12;
    // After the counts were retired; after they were written, and before they were given up.
    for step in ["flows.turned", "flows.written", "flows.written"] {
        // It may come there before it serves.
        let _ = hearth.start_agent_to_crash_at(step).await;
        while hearth.living_instances().await.is_ok() {
            echoes(&socket, 1)?;
            count += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hearth.kill_agent()?;
        echoes(&socket, 3)?;
        count += 3;
    }
    hearth.start_agent().await?;
    echoes(&socket, 2)?;
    count += 2;
    let whole = |sum: &(u64, u64)| *sum == (count, count * (V4 + 4));
    let hearth = &world.hearth;
    let settled = eventually(async || {
        let records = records(hearth, &log).await?;
        let sums = sums(&records, &[CONTROL.into()]);
        ensure!(sums.len() == 2, "{sums:#?}");
        ensure!(sums.values().all(whole), "{sums:#?}, {count} were sent");
        // And silence behind it.
        let last = records.last().context("no records")?;
        ensure!(last.log_status == "NODATA", "{last:?}");
        Ok(records)
    })
    .await?;
    // No two records are about the same time.
    let mut spans: Vec<(i64, i64)> = settled.iter().map(|it| (it.start, it.end)).collect();
    spans.dedup();
    ensure!(spans.is_sorted(), "{spans:?}");
    for pair in spans.windows(2) {
        ensure!(pair[0].1 <= pair[1].0, "{spans:?}");
    }
    // The kernel has nothing left but the present window's sets.
    eventually(async || {
        let mut nft = netns_nft(hearth)?;
        nft.sort();
        nft.dedup();
        ensure!(nft.len() == 1, "windows {nft:?}");
        Ok(())
    })
    .await?;
    world.hearth.finish().await
}

/// The windows that the kernel has sets of.
fn netns_nft(hearth: &Hearth) -> Result<Vec<String>> {
    let mut command = hearth.netns()?.command("nft");
    let listed = programs::output_of(command.args(["list", "sets", "table", "inet", "hearth"]))?;
    let sets = listed
        .lines()
        .filter_map(|line| line.trim().strip_prefix("set flows-"));
    let windows = sets.filter_map(|set| set.trim_end_matches(" {").rsplit_once('-'));
    Ok(windows.map(|(_, window)| window.to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn flow_logs_are_made_found_followed_and_deleted() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let member = world.member(&[&world.control], &[CONTROL]).await?;
    let eni = &member.interface.network_interface_id;
    let network = &world.network.network_id;
    let mut api = hearth.flow_logs();
    let mut both = request(eni, FlowLogTrafficType::All);
    both.resource_ids.push(network.clone());
    both.client_token = "once".to_owned();
    let made = api.create_flow_logs(both.clone()).await?.into_inner();
    let again = api.create_flow_logs(both).await?.into_inner();
    ensure!(made == again && made.flow_logs.len() == 2, "{made:?}");
    let ids: Vec<String> = made
        .flow_logs
        .iter()
        .map(|it| it.flow_log_id.clone())
        .collect();
    let by_resource = DescribeFlowLogsRequest {
        filters: vec![Filter {
            name: "resource-id".to_owned(),
            values: vec![eni.clone()],
        }],
        ..Default::default()
    };
    let found = api.describe_flow_logs(by_resource).await?.into_inner();
    ensure!(found.flow_logs == made.flow_logs[..1], "{found:?}");

    // What can't be.
    let refused = |reason, field| Expect::invalid(reason, field);
    let bad = CreateFlowLogsRequest::default();
    let answer = api.create_flow_logs(bad).await;
    refused("MissingParameter", "traffic_type").check(answer)?;
    let mut bad = request(eni, FlowLogTrafficType::Accept);
    bad.resource_ids.clear();
    refused("MissingParameter", "resource_ids").check(api.create_flow_logs(bad).await)?;
    let bad = request("i-0123456789abcdef0", FlowLogTrafficType::Accept);
    let answer = api.create_flow_logs(bad).await;
    refused("InvalidParameterValue", "resource_ids[0]").check(answer)?;
    let mut bad = request(eni, FlowLogTrafficType::Accept);
    bad.max_aggregation_interval = 61;
    let answer = api.create_flow_logs(bad).await;
    refused("InvalidParameterValue", "max_aggregation_interval").check(answer)?;
    let missing = Expect {
        code: Code::NotFound,
        reason: "InvalidNetworkInterfaceID.NotFound",
        field: "resource_ids[1]",
    };
    let mut bad = request(eni, FlowLogTrafficType::Accept);
    bad.resource_ids.push("eni-0123456789abcdef0".to_owned());
    missing.check(api.create_flow_logs(bad).await)?;
    let exists = Expect {
        code: Code::AlreadyExists,
        reason: "FlowLogAlreadyExists",
        field: "resource_ids[0]",
    };
    let answer = api.create_flow_logs(request(eni, FlowLogTrafficType::All));
    exists.check(answer.await)?;
    let nobodys = ReadFlowLogRequest {
        flow_log_id: "fl-0123456789abcdef0".to_owned(),
        ..Default::default()
    };
    let gone = Expect {
        code: Code::NotFound,
        reason: "InvalidFlowLogId.NotFound",
        field: "flow_log_id",
    };
    match api.read_flow_log(nobodys).await {
        Ok(_) => bail!("read"),
        Err(status) => gone.check_status(&status)?,
    };
    let malformed = DeleteFlowLogsRequest {
        flow_log_ids: vec![ids[0].clone(), "fl-1".to_owned()],
    };
    let answer = api.delete_flow_logs(malformed).await;
    refused("InvalidFlowLogId.Malformed", "flow_log_ids[1]").check(answer)?;
    let found = api
        .describe_flow_logs(DescribeFlowLogsRequest::default())
        .await?;
    ensure!(found.into_inner().flow_logs == made.flow_logs);

    // Who follows sees records come, and the end.
    let follow = ReadFlowLogRequest {
        flow_log_id: ids[0].clone(),
        follow: true,
        ..Default::default()
    };
    let mut stream = api.read_flow_log(follow).await?.into_inner();
    member.opened(&world, CONTROL)?;
    let answer = stream.message().await?.context("the end")?;
    ensure!(!answer.records.is_empty());
    let path = hearth.state_dir().join("flow-logs").join(&ids[0]);
    let file = fs::read_dir(&path)?.next().context("no file")??;
    ensure!(file.metadata()?.permissions().mode() & 0o777 == 0o600);
    let all = DeleteFlowLogsRequest { flow_log_ids: ids };
    api.delete_flow_logs(all).await?;
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => bail!("ended without a reason"),
            Err(status) => break status,
        }
    };
    gone.check_status(&status)?;
    ensure!(!path.exists(), "records are left");
    ensure!(netns_nft(hearth)?.is_empty(), "counting goes on");
    let mut command = hearth.netns()?.command("nft");
    let listed = programs::output_of(command.args(["list", "table", "inet", "hearth"]))?;
    ensure!(!listed.contains("flows-"), "{listed}");
    drop(member);
    world.hearth.finish().await
}

fn hearth(agent: &Hearth, words: &str, code: i32) -> Result<String> {
    let output = Command::new(programs::built("hearth")?)
        .env("HEARTH_SOCKET", agent.socket())
        .args(words.split(' '))
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    let ended = output.status.code();
    ensure!(ended == Some(code), "`{words}`: {ended:?} {text}");
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_makes_shows_and_deletes_them() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let agent = &world.hearth;
    let member = world.member(&[&world.control], &[CONTROL]).await?;
    let id = member.id();
    let eni = &member.interface.network_interface_id;
    let table = hearth(agent, &format!("flow-log create {id} --interval 10"), 0)?;
    ensure!(table.contains(eni) && table.contains("10 s"), "{table}");
    let table = hearth(agent, "flow-log list --filter traffic-type=ALL", 0)?;
    ensure!(table.lines().count() == 2, "{table}");
    let twice = hearth(agent, &format!("flow-log create {eni}"), 1)?;
    ensure!(twice.contains("hearth flow-log list"), "{twice}");
    member.opened(&world, CONTROL)?;
    let shown = eventually(async || {
        let shown = hearth(agent, &format!("flow-log show {eni} --since 1h"), 0)?;
        ensure!(shown.contains(" OK "), "{shown}");
        Ok(shown)
    })
    .await?;
    let line = shown.lines().find(|it| it.ends_with(" ACCEPT OK ingress"));
    let line = line.with_context(|| shown.clone())?;
    let fields: Vec<&str> = line.split(' ').collect();
    ensure!(
        fields.len() == 15 && fields[..3] == ["2", "local", eni],
        "{line}"
    );
    let (host, guest) = (&world.network.ipv4_gateway, &member.interface.private_ipv4);
    ensure!(fields[3] == host && fields[4] == guest, "{line}");
    ensure!(fields[6..10] == ["7", "17", "1", "32"], "{line}");
    let json = hearth(agent, &format!("--output json flow-log show {eni}"), 0)?;
    let first: serde_json::Value = serde_json::from_str(json.lines().next().context("none")?)?;
    ensure!(first["networkInterfaceId"] == **eni, "{first}");
    let logs = hearth(agent, "--output json flow-log list", 0)?;
    let logs: serde_json::Value = serde_json::from_str(&logs)?;
    let log = logs["flowLogs"][0]["flowLogId"].as_str().context("no id")?;
    hearth(agent, &format!("flow-log delete {log}"), 0)?;
    let none = hearth(agent, "flow-log list", 0)?;
    ensure!(none.starts_with("No flow logs"), "{none}");
    drop(member);
    world.hearth.finish().await
}
