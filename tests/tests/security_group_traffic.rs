//! What security groups let pass: probes in networks, and the host as somebody from outside.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    CreatePrefixListRequest, DeleteSecurityGroupRequest, Direction, ExplainTrafficRequest,
    ModifyPrefixListRequest, PrefixListEntry, RevokeSecurityGroupRequest,
    security_group_permission::Peer,
};
use hearth_tests::{
    Expect, needs_kvm, needs_network,
    networks::ipv4_address,
    security_groups::{EVERYBODY, all_of, block, members, of, tcp, udp},
    traffic::{CONTROL, World, echoes, is_cut},
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_refuses_everything_inbound_and_may_send_anything() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let shut = hearth.group(&world.network, "shut").await?;
    let open = hearth.group(&world.network, "open").await?;
    hearth
        .allow(
            &open,
            &[all_of("-1", block(EVERYBODY)), all_of("-1", block("::/0"))],
        )
        .await?;
    let mut first = world.member(&[&shut], &[9]).await?;
    let mut second = world.member(&[&open], &[9]).await?;
    // Out, and the replies in: UDP, ping, TCP.
    first.reaches(second.at(9)?).await?;
    first.reaches(second.ipv6_at(9)?).await?;
    let (ipv4, ipv6) = (
        &second.interface.private_ipv4,
        &second.interface.private_ipv6,
    );
    for to in [ipv4, ipv6] {
        let ping = format!("ping address={to} count=3 timeout=10");
        first.probe.expect_ok(&ping).await?;
    }
    second.probe.expect_ok("tcp_echo port=80").await?;
    let tcp = format!(
        "tcp_connect to={} text=hello receive=5 timeout=30",
        second.at(80)?
    );
    let answer = first.probe.expect_ok(&tcp).await?;
    ensure!(answer["received"] == "hello", "{answer}");
    // In: nothing, not even from where it has just been.
    first.probe.expect_ok("tcp_echo port=80").await?;
    second.does_not_reach(first.at(9)?).await?;
    second.does_not_reach(first.ipv6_at(9)?).await?;
    let (ipv4, ipv6) = (&first.interface.private_ipv4, &first.interface.private_ipv6);
    for to in [ipv4, ipv6] {
        let ping = format!("ping address={to} timeout=0.5");
        second.probe.expect_error(&ping).await?;
    }
    let tcp = format!("tcp_connect to={} timeout=0.5", first.at(80)?);
    second.probe.expect_error(&tcp).await?;
    drop((first, second));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_opens_one_port_while_connections_are_tried() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let mut member = world.member(&[&world.control, &web], &[CONTROL]).await?;
    for port in [80, 81] {
        let listen = format!("tcp_echo port={port}");
        member.probe.expect_ok(&listen).await?;
    }
    let (ended, tries) = (AtomicBool::new(false), AtomicU32::new(0));
    let opened = [AtomicU32::new(0), AtomicU32::new(0)];
    let (open, shut) = (member.at(80)?, member.at(81)?);
    let netns = hearth.netns()?;
    let tried = |address: SocketAddr, count: &AtomicU32| {
        while !ended.load(Ordering::Relaxed) {
            let short = Duration::from_millis(100);
            let connected = netns.enter(|| Ok(TcpStream::connect_timeout(&address, short)?));
            tries.fetch_add(1, Ordering::Relaxed);
            count.fetch_add(connected.is_ok().into(), Ordering::Relaxed);
        }
    };
    let runtime = tokio::runtime::Handle::current();
    let result = std::thread::scope(|scope| {
        scope.spawn(|| tried(open, &opened[0]));
        scope.spawn(|| tried(shut, &opened[1]));
        let tell = async {
            while tries.load(Ordering::Relaxed) < 6 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let before = opened[0].load(Ordering::Relaxed);
            ensure!(before == 0, "open before it was allowed");
            hearth.allow(&web, &[tcp(80, world.host())]).await?;
            hearth_tests::eventually(async || {
                ensure!(opened[0].load(Ordering::Relaxed) > 2, "not open");
                Ok(())
            })
            .await
        };
        let result = tokio::task::block_in_place(|| runtime.block_on(tell));
        ended.store(true, Ordering::Relaxed);
        result
    });
    result?;
    let wrong = opened[1].load(Ordering::Relaxed);
    ensure!(wrong == 0, "the other port was open {wrong} times");
    // What the rule let pass is counted.
    let rules = hearth.rules(&web).await?;
    let rule = rules.iter().find(|it| it.direction() == Direction::Ingress);
    let rule = rule.context("no rule")?;
    ensure!(rule.packets > 0 && rule.bytes > 0, "{rule:?}");
    drop(member);
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_force_when_the_call_returns() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let ports = [CONTROL, 80, 81];
    let member = world.member(&[&world.control, &web], &ports).await?;
    let rule = [udp(80, world.host())];
    for _ in 0..10 {
        member.closed(&world, 80)?;
        hearth.allow(&web, &rule).await?;
        member.opened(&world, 80)?;
        member.closed(&world, 81)?;
        hearth.disallow(&web, &rule, false).await?;
    }
    member.closed(&world, 80)?;
    // Others than the host are meant.
    hearth
        .allow(&web, &[udp(80, block("10.20.128.0/17"))])
        .await?;
    member.closed(&world, 80)?;
    drop(member);
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_rule_ends_its_connections_unless_they_are_kept() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let mut member = world.member(&[&world.control, &web], &[CONTROL]).await?;
    member.probe.expect_ok("tcp_echo port=80").await?;
    member.probe.expect_ok("tcp_echo port=81").await?;
    let rule = |port| tcp(port, world.host());
    hearth.allow(&web, &[rule(80), rule(81)]).await?;
    let mut cut = member.connect(&world, 80)?;
    let mut other = member.connect(&world, 81)?;
    echoes(&mut cut)?;
    let count = hearth.disallow(&web, &[rule(80)], false).await?;
    ensure!(count == 1, "{count} connections were cut");
    is_cut(&world, &member, &mut cut)?;
    echoes(&mut other)?;
    // Allowed again, it is not taken up again from the middle; a new one is.
    let count = hearth.disallow(&web, &[rule(81)], true).await?;
    ensure!(count == 0, "{count} connections were cut");
    echoes(&mut other)?;
    hearth.allow(&web, &[rule(80)]).await?;
    let mut new = member.connect(&world, 80)?;
    echoes(&mut new)?;
    // Two rules admit it: it lives for as long as one does.
    hearth.allow(&web, &[all_of("tcp", world.host())]).await?;
    let count = hearth.disallow(&web, &[rule(80)], false).await?;
    ensure!(count == 0, "{count} connections were cut");
    echoes(&mut new)?;
    drop((cut, other, new, member));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_names_a_group_follows_its_members() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let (web, db) = (
        hearth.group(&world.network, "web").await?,
        hearth.group(&world.network, "db").await?,
    );
    let other = hearth.group(&world.network, "other").await?;
    hearth.allow(&db, &[udp(9, members(&web))]).await?;
    let server = world.member(&[&db], &[9, 10]).await?;
    let mut client = world.member(&[&web], &[]).await?;
    for to in [server.at(9)?, server.ipv6_at(9)?] {
        client.reaches(to).await?;
    }
    client.does_not_reach(server.at(10)?).await?;
    hearth.put_into(client.id(), &[&other]).await?;
    for to in [server.at(9)?, server.ipv6_at(9)?] {
        client.does_not_reach(to).await?;
    }
    hearth.put_into(client.id(), &[&other, &web]).await?;
    client.reaches(server.at(9)?).await?;
    let seen = client.probe.guest.interface().await?;
    ensure!(seen.security_group_ids.len() == 2, "{seen:?}");
    // One that joins later, and one that leaves by its end.
    let mut late = world.member(&[&web], &[]).await?;
    late.reaches(server.at(9)?).await?;

    // Its members keep the group from being deleted; they are named.
    let request = DeleteSecurityGroupRequest {
        security_group_id: other.security_group_id.clone(),
    };
    let refused = Expect {
        code: Code::FailedPrecondition,
        reason: "DependencyViolation",
        field: "",
    };
    let mut api = hearth.security_groups();
    let message = refused.check(api.delete_security_group(request).await)?;
    let id = &client.interface.network_interface_id;
    ensure!(
        message.contains(id) && message.contains(client.id()),
        "{message}"
    );
    drop((server, client, late));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn icmp_rules_are_of_types_and_both_families_have_their_own() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let group = hearth.group(&world.network, "pinged").await?;
    let pinged = world.member(&[&group], &[]).await?;
    let mut pinger = world.member(&[&world.control], &[]).await?;
    let (ipv4, ipv6) = (
        pinged.interface.private_ipv4.clone(),
        pinged.interface.private_ipv6.clone(),
    );
    let mut ping = async |to: &str, works: bool| {
        if works {
            // The first answer of a card that does not know its neighbours yet is lost.
            let ping = format!("ping address={to} count=3 timeout=10");
            pinger.probe.expect_ok(&ping).await.map(drop)
        } else {
            let ping = format!("ping address={to} timeout=0.5");
            pinger.probe.expect_error(&ping).await.map(drop)
        }
    };
    let everybody = || block(EVERYBODY);
    // A timestamp request is no echo request, and code 1 is not 0.
    let others = [
        of("icmp", 13, -1, everybody()),
        of("icmp", 8, 1, everybody()),
    ];
    hearth.allow(&group, &others).await?;
    ping(&ipv4, false).await?;
    hearth
        .allow(&group, &[of("icmp", 8, 0, everybody())])
        .await?;
    ping(&ipv4, true).await?;
    ping(&ipv6, false).await?;
    let echo = of("icmpv6", 128, -1, block("::/0"));
    hearth.allow(&group, std::slice::from_ref(&echo)).await?;
    ping(&ipv6, true).await?;
    hearth.disallow(&group, &[echo], false).await?;
    ping(&ipv6, false).await?;
    ping(&ipv4, true).await?;
    drop((pinged, pinger));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_ipv6_are_apart_from_those_for_ipv4() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let group = hearth.group(&world.network, "both").await?;
    let server = world.member(&[&group], &[9]).await?;
    let mut client = world.member(&[&world.control], &[]).await?;
    let (ipv4, ipv6) = (server.at(9)?, server.ipv6_at(9)?);
    let own = block(&format!("{}/128", client.interface.private_ipv6));
    hearth.allow(&group, &[udp(9, own.clone())]).await?;
    client.reaches(ipv6).await?;
    client.does_not_reach(ipv4).await?;
    hearth.disallow(&group, &[udp(9, own)], false).await?;
    hearth.allow(&group, &[udp(9, block(EVERYBODY))]).await?;
    client.reaches(ipv4).await?;
    client.does_not_reach(ipv6).await?;
    // A neighbour's address is not the client's.
    let neighbour = block(&format!("{}/128", server.interface.private_ipv6));
    hearth.allow(&group, &[udp(9, neighbour)]).await?;
    client.does_not_reach(ipv6).await?;
    drop((server, client));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_prefix_list_gains_and_loses_counts_at_once() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let mut api = hearth.security_groups();
    let request = CreatePrefixListRequest {
        name: "friends".to_owned(),
        max_entries: 3,
        ..Default::default()
    };
    let list = api.create_prefix_list(request).await?.into_inner();
    let id = list.prefix_list.context("no list")?.prefix_list_id;
    let rules = [
        udp(80, Peer::PrefixListId(id.clone())),
        tcp(80, Peer::PrefixListId(id.clone())),
    ];
    hearth.allow(&web, &rules).await?;
    let ports = [CONTROL, 80];
    let mut member = world.member(&[&world.control, &web], &ports).await?;
    member.probe.expect_ok("tcp_echo port=80").await?;
    member.closed(&world, 80)?;
    let host = format!("{}/32", world.network.ipv4_gateway);
    // Blocks may overlap.
    let entry = |cidr: &str| PrefixListEntry {
        cidr: cidr.to_owned(),
        description: String::new(),
    };
    let add = ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        add_entries: vec![entry(&host), entry("10.20.0.0/30"), entry("192.0.2.0/24")],
        ..Default::default()
    };
    api.modify_prefix_list(add).await?;
    member.opened(&world, 80)?;
    let mut stream = member.connect(&world, 80)?;
    echoes(&mut stream)?;
    let remove = |cidr: &str| ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        remove_cidrs: vec![cidr.to_owned()],
        ..Default::default()
    };
    api.modify_prefix_list(remove(&host)).await?;
    echoes(&mut stream)?;
    member.opened(&world, 80)?;
    api.modify_prefix_list(remove("10.20.0.0/30")).await?;
    member.closed(&world, 80)?;
    is_cut(&world, &member, &mut stream)?;
    drop((stream, member));
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_set_of_groups_on_an_instance_cuts_what_it_does_not_allow() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let (web, mail) = (
        hearth.group(&world.network, "web").await?,
        hearth.group(&world.network, "mail").await?,
    );
    hearth
        .allow(&web, &[tcp(80, world.host()), udp(80, world.host())])
        .await?;
    hearth.allow(&mail, &[udp(25, world.host())]).await?;
    let ports = [CONTROL, 80, 25];
    let mut member = world.member(&[&world.control, &web], &ports).await?;
    member.probe.expect_ok("tcp_echo port=80").await?;
    member.opened(&world, 80)?;
    member.closed(&world, 25)?;
    let mut stream = member.connect(&world, 80)?;
    echoes(&mut stream)?;
    let cut = hearth
        .put_into(member.id(), &[&world.control, &mail])
        .await?;
    ensure!(cut >= 1, "{cut} connections were cut");
    is_cut(&world, &member, &mut stream)?;
    member.closed(&world, 80)?;
    member.opened(&world, 25)?;
    // None, too many, or a stranger's: refused, and nothing changes.
    let none = hearth.put_into(member.id(), &[]).await.expect_err("none");
    Expect::invalid("MissingParameter", "security_group_ids").check_status(&none)?;
    let mut six = Vec::new();
    for n in 0..6 {
        six.push(hearth.group(&world.network, &format!("group {n}")).await?);
    }
    let many: Vec<_> = six.iter().collect();
    let many = hearth.put_into(member.id(), &many).await.expect_err("six");
    let limit = Expect {
        code: Code::ResourceExhausted,
        reason: "SecurityGroupsPerInterfaceLimitExceeded",
        field: "security_group_ids",
    };
    limit.check_status(&many)?;
    let elsewhere = hearth.network("10.21.0.0/16", |_| {}).await?;
    let far = hearth.group(&elsewhere, "far").await?;
    let error = hearth
        .put_into(member.id(), &[&far])
        .await
        .expect_err("far");
    Expect::invalid("InvalidParameterCombination", "security_group_ids").check_status(&error)?;
    member.opened(&world, 25)?;
    // It is the same after a stop and a start.
    member.probe.guest.stop_by_force().await?;
    member.probe.start().await?;
    let address = ipv4_address(&member.interface, &world.network);
    member
        .probe
        .expect_ok(&format!("network {address}"))
        .await?;
    for port in ports {
        member
            .probe
            .expect_ok(&format!("udp_echo port={port}"))
            .await?;
    }
    member.opened(&world, 25)?;
    member.closed(&world, 80)?;
    drop((stream, member));
    world.hearth.finish().await
}

/// Calls about one group that come at the same time end with rows and rules that agree.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_database_is_in_force_after_changes_at_the_same_time() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let web = hearth.group(&world.network, "web").await?;
    let ports: Vec<u16> = (40..46).collect();
    let mut all = vec![CONTROL];
    all.extend(&ports);
    let member = world.member(&[&world.control, &web], &all).await?;
    for round in 0..5u16 {
        let calls = ports.iter().map(async |port| {
            let rule = [udp(*port, world.host())];
            hearth.allow(&web, &rule).await?;
            if (port + round) % 2 == 0 {
                hearth.disallow(&web, &rule, false).await?;
            }
            Ok::<_, tonic::Status>(*port)
        });
        for done in futures_util::future::join_all(calls).await {
            done?;
        }
        for port in &ports {
            if (port + round) % 2 == 0 {
                member.closed(&world, *port)?;
            } else {
                member.opened(&world, *port)?;
                hearth
                    .disallow(&web, &[udp(*port, world.host())], false)
                    .await?;
            }
        }
    }
    drop(member);
    world.hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_says_what_happens() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let world = World::new().await?;
    let hearth = &world.hearth;
    let (web, db) = (
        hearth.group(&world.network, "web").await?,
        hearth.group(&world.network, "db").await?,
    );
    let rule = hearth.allow(&db, &[udp(9, members(&web))]).await?.remove(0);
    let server = world.member(&[&db], &[9]).await?;
    let mut client = world.member(&[&web], &[]).await?;
    let ask = |port: u32| ExplainTrafficRequest {
        from: client.id().to_owned(),
        to: server.interface.network_interface_id.clone(),
        protocol: "udp".to_owned(),
        port,
        ..Default::default()
    };
    let (open, shut) = (ask(9), ask(10));
    client.reaches(server.at(9)?).await?;
    let answer = world.explain(open.clone()).await?;
    ensure!(answer.allowed, "{answer:#?}");
    let admitting: Vec<_> = answer
        .steps
        .iter()
        .filter_map(|it| it.rule.as_ref())
        .collect();
    let directions: Vec<_> = admitting.iter().map(|it| it.direction()).collect();
    assert_eq!(directions, [Direction::Egress, Direction::Ingress]);
    assert_eq!(admitting[1].rule_id, rule.rule_id);
    client.does_not_reach(server.at(10)?).await?;
    let answer = world.explain(shut).await?;
    ensure!(!answer.allowed, "{answer:#?}");
    let stop = answer.steps.iter().find(|step| !step.passes);
    let stop = stop.context("no step stops it")?;
    ensure!(stop.point.starts_with("ingress of "), "{stop:?}");

    // Without its egress rules the client sends nothing.
    let egress = hearth.rules(&web).await?;
    let revoke = RevokeSecurityGroupRequest {
        security_group_id: web.security_group_id.clone(),
        rule_ids: egress.into_iter().map(|rule| rule.rule_id).collect(),
        ..Default::default()
    };
    hearth
        .security_groups()
        .revoke_security_group(revoke)
        .await?;
    client.does_not_reach(server.at(9)?).await?;
    let answer = world.explain(open.clone()).await?;
    ensure!(!answer.allowed && !answer.steps[0].passes, "{answer:#?}");

    // From outside, by addresses; and what makes no sense.
    let outside = ExplainTrafficRequest {
        from: "198.51.100.7".to_owned(),
        to: server.interface.private_ipv4.clone(),
        port: 22,
        ..Default::default()
    };
    let answer = world.explain(outside.clone()).await?;
    ensure!(!answer.allowed, "{answer:#?}");
    let mut api = hearth.security_groups();
    for (bad, field) in [
        (
            ExplainTrafficRequest {
                from: "web".to_owned(),
                ..outside.clone()
            },
            "from",
        ),
        (
            ExplainTrafficRequest {
                protocol: "-1".to_owned(),
                ..outside.clone()
            },
            "protocol",
        ),
        (
            ExplainTrafficRequest {
                port: 65_536,
                ..outside.clone()
            },
            "port",
        ),
    ] {
        Expect::invalid("InvalidParameterValue", field).check(api.explain_traffic(bad).await)?;
    }
    // A stranger is told nothing.
    let stranger = hearth_tests::as_account("stranger", outside);
    Expect::invalid("InvalidParameterValue", "to").check(api.explain_traffic(stranger).await)?;
    let stranger = hearth_tests::as_account("stranger", open);
    let not_found = Expect {
        code: Code::NotFound,
        reason: "InvalidInstanceID.NotFound",
        field: "from",
    };
    not_found.check(api.explain_traffic(stranger).await)?;
    drop((server, client));
    world.hearth.finish().await
}
