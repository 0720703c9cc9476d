//! Security groups and prefix lists through the API, without a guest: what is taken, what is
//! refused and how, and who sees it.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreatePrefixListRequest, CreateSecurityGroupRequest,
    DeletePrefixListRequest, DeleteSecurityGroupRequest, DescribePrefixListsRequest,
    DescribeSecurityGroupRulesRequest, DescribeSecurityGroupsRequest, Direction, Filter,
    ModifyPrefixListRequest, Network, PrefixList, PrefixListEntry, RevokeSecurityGroupRequest,
    SecurityGroup, SecurityGroupPermission, security_group_permission::Peer,
};
use hearth_tests::{
    Expect, Hearth, as_account, needs_network,
    security_groups::{EVERYBODY, all_of, block, members, of, tcp, udp},
};
use tonic::Code;

async fn hearth_and_network() -> Result<(Hearth, Network)> {
    let hearth = Hearth::start_with_namespace().await?;
    let network = hearth
        .network("10.20.0.0/16", |request| {
            request.ipv6_range = "auto".to_owned();
            request.is_default = true;
        })
        .await?;
    Ok((hearth, network))
}

async fn described(hearth: &Hearth, group: &SecurityGroup) -> Result<SecurityGroup> {
    let request = DescribeSecurityGroupsRequest {
        security_group_ids: vec![group.security_group_id.clone()],
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    let answer = client.describe_security_groups(request).await;
    let group = answer?.into_inner().security_groups.pop();
    group.context("no group")
}

fn deletion(group: &SecurityGroup) -> DeleteSecurityGroupRequest {
    DeleteSecurityGroupRequest {
        security_group_id: group.security_group_id.clone(),
    }
}

async fn prefix_list(hearth: &Hearth, blocks: &[&str], max_entries: u32) -> Result<PrefixList> {
    let entries = blocks.iter().map(|block| PrefixListEntry {
        cidr: (*block).to_owned(),
        description: String::new(),
    });
    let request = CreatePrefixListRequest {
        name: "offices".to_owned(),
        entries: entries.collect(),
        max_entries,
        ..Default::default()
    };
    let answer = hearth.security_groups().create_prefix_list(request).await?;
    answer.into_inner().prefix_list.context("no list")
}

fn exactly(code: Code, reason: &'static str, field: &'static str) -> Expect {
    Expect {
        code,
        reason,
        field,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_group_allows_nothing_in_and_everything_out() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let default = hearth.group_called(&network, "default").await?;
    let own = default.rules.iter().find_map(|rule| {
        let inbound = rule.direction() == Direction::Ingress;
        inbound.then(|| rule.permission.clone()?.peer).flatten()
    });
    ensure!(own == Some(members(&default)), "{default:#?}");

    let web = hearth.group(&network, "web").await?;
    let said: Vec<_> = web
        .rules
        .iter()
        .map(|rule| {
            (
                rule.direction(),
                rule.permission.clone().unwrap_or_default(),
            )
        })
        .collect();
    let everything = |cidr| (Direction::Egress, all_of("-1", block(cidr)));
    assert_eq!(said, [everything(EVERYBODY), everything("::/0")]);

    // Its name is taken now, and `default` always was.
    let named = |name: &str| CreateSecurityGroupRequest {
        name: name.to_owned(),
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    exactly(Code::AlreadyExists, "InvalidGroup.Duplicate", "name")
        .check(client.create_security_group(named("web")).await)?;
    for bad in ["default", "sg-web", "", " web", &"x".repeat(256)] {
        let reason = match bad {
            "" => "MissingParameter",
            _ => "InvalidParameterValue",
        };
        Expect::invalid(reason, "name").check(client.create_security_group(named(bad)).await)?;
    }
    // Not in another network.
    let other = hearth.network("10.21.0.0/16", |_| {}).await?;
    let twin = hearth.group(&other, "web").await?;
    ensure!(twin.rules.len() == 1, "no IPv6 there: {twin:#?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_added_and_removed_all_or_none() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let web = hearth.group(&network, "web").await?;
    let https = tcp(443, block(EVERYBODY));
    let rules = hearth
        .allow(&web, &[https.clone(), all_of("icmp", block("10.0.0.0/8"))])
        .await?;
    ensure!(rules.len() == 2, "{rules:#?}");
    let before = described(&hearth, &web).await?;

    // The same in other words.
    let words = SecurityGroupPermission {
        description: "once more".to_owned(),
        ..of("6", 443, 443, block(EVERYBODY))
    };
    let twice = hearth
        .allow(&web, &[tcp(80, block(EVERYBODY)), words])
        .await;
    let error = exactly(
        Code::AlreadyExists,
        "InvalidPermission.Duplicate",
        "permissions[1]",
    )
    .check_status(&twice.expect_err("a twin"))?;
    ensure!(error.contains(&rules[0].rule_id), "{error}");
    let twin_in_call = [udp(53, block(EVERYBODY)), udp(53, block(EVERYBODY))];
    let error = hearth.allow(&web, &twin_in_call).await.expect_err("twins");
    exactly(
        Code::AlreadyExists,
        "InvalidPermission.Duplicate",
        "permissions[1]",
    )
    .check_status(&error)?;
    // One that is there, one that is not.
    let missing = [https.clone(), tcp(81, block(EVERYBODY))];
    let error = hearth.disallow(&web, &missing, false).await;
    exactly(
        Code::NotFound,
        "InvalidPermission.NotFound",
        "permissions[1]",
    )
    .check_status(&error.expect_err("no such rule"))?;
    // A dry run.
    let request = AuthorizeSecurityGroupRequest {
        security_group_id: web.security_group_id.clone(),
        direction: Direction::Ingress.into(),
        permissions: vec![tcp(82, block(EVERYBODY))],
        dry_run: true,
    };
    let mut client = hearth.security_groups();
    exactly(Code::FailedPrecondition, "DryRunOperation", "")
        .check(client.authorize_security_group(request).await)?;
    assert_eq!(described(&hearth, &web).await?, before, "nothing changed");

    // By its words, by its id.
    hearth.disallow(&web, &[https], false).await?;
    let by_id = RevokeSecurityGroupRequest {
        security_group_id: web.security_group_id.clone(),
        rule_ids: vec![rules[1].rule_id.clone()],
        ..Default::default()
    };
    client.revoke_security_group(by_id.clone()).await?;
    exactly(Code::NotFound, "InvalidPermission.NotFound", "rule_ids[0]")
        .check(client.revoke_security_group(by_id).await)?;
    assert_eq!(described(&hearth, &web).await?, web, "as it was made");

    // What goes with what.
    for (permission, field) in [
        (all_of("icmp", block("::/0")), "permissions[0].protocol"),
        (
            all_of("icmpv6", block(EVERYBODY)),
            "permissions[0].protocol",
        ),
        (of("47", 1, 2, block(EVERYBODY)), "permissions[0].from_port"),
    ] {
        let error = hearth
            .allow(&web, &[permission])
            .await
            .expect_err("refused");
        Expect::invalid("InvalidParameterCombination", field).check_status(&error)?;
    }
    let host_bits = tcp(22, block("10.1.2.3/8"));
    let error = hearth.allow(&web, &[host_bits]).await.expect_err("bits");
    let message = Expect::invalid("InvalidParameterValue", "permissions[0].cidr_ipv4")
        .check_status(&error)?;
    ensure!(message.contains("10.0.0.0/8"), "{message}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_named_or_the_default_is_not_deleted() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let (web, db) = (
        hearth.group(&network, "web").await?,
        hearth.group(&network, "db").await?,
    );
    let from_web = tcp(5432, members(&web));
    hearth.allow(&db, std::slice::from_ref(&from_web)).await?;
    hearth.allow(&web, &[all_of("-1", members(&web))]).await?;
    let mut client = hearth.security_groups();
    let message = exactly(Code::FailedPrecondition, "DependencyViolation", "")
        .check(client.delete_security_group(deletion(&web)).await)?;
    ensure!(message.contains(&db.security_group_id), "{message}");
    let default = hearth.group_called(&network, "default").await?;
    exactly(
        Code::FailedPrecondition,
        "CannotDelete",
        "security_group_id",
    )
    .check(client.delete_security_group(deletion(&default)).await)?;
    hearth.disallow(&db, &[from_web], false).await?;
    client.delete_security_group(deletion(&web)).await?;
    exactly(Code::NotFound, "InvalidGroup.NotFound", "security_group_id")
        .check(client.delete_security_group(deletion(&web)).await)?;

    // Groups of other networks are no peers.
    let other = hearth.network("10.21.0.0/16", |_| {}).await?;
    let far = hearth.group(&other, "far").await?;
    let error = hearth.allow(&db, &[tcp(1, members(&far))]).await;
    Expect::invalid("InvalidParameterValue", "permissions[0].security_group_id")
        .check_status(&error.expect_err("another network"))?;
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_has_at_most_sixty_rules_each_way_and_lists_count_whole() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let web = hearth.group(&network, "web").await?;
    let many: Vec<_> = (1..=50).map(|port| tcp(port, block(EVERYBODY))).collect();
    hearth.allow(&web, &many).await?;
    let list = prefix_list(&hearth, &["192.0.2.0/24"], 10).await?;
    let peer = Peer::PrefixListId(list.prefix_list_id.clone());
    hearth.allow(&web, &[tcp(99, peer.clone())]).await?;
    let limit = exactly(
        Code::ResourceExhausted,
        "RulesPerSecurityGroupLimitExceeded",
        "permissions",
    );
    let error = hearth.allow(&web, &[tcp(100, block(EVERYBODY))]).await;
    limit.check_status(&error.expect_err("the 61st"))?;
    // The other direction has room.
    let request = AuthorizeSecurityGroupRequest {
        security_group_id: web.security_group_id.clone(),
        direction: Direction::Egress.into(),
        permissions: vec![tcp(100, block("192.0.2.0/24"))],
        dry_run: false,
    };
    let mut client = hearth.security_groups();
    client.authorize_security_group(request).await?;
    let rules = hearth.rules(&web).await?;
    ensure!(rules.len() == 50 + 1 + 3, "{}", rules.len());
    let request = DescribeSecurityGroupRulesRequest {
        filters: [
            ("group-id", &*web.security_group_id),
            ("protocol", "6"),
            ("direction", "egress"),
        ]
        .map(|(name, value)| Filter {
            name: name.to_owned(),
            values: vec![value.to_owned()],
        })
        .to_vec(),
        ..Default::default()
    };
    let answer = client.describe_security_group_rules(request).await?;
    ensure!(answer.get_ref().rules.len() == 1, "{answer:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_list_is_changed_whole_and_stays_while_it_is_named() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let web = hearth.group(&network, "web").await?;
    let list = prefix_list(&hearth, &["192.0.2.0/24", "198.51.100.0/24"], 3).await?;
    ensure!(
        list.version == 1 && list.address_family == "IPv4",
        "{list:?}"
    );
    let id = &list.prefix_list_id;
    let named = tcp(22, Peer::PrefixListId(id.clone()));
    let rule = hearth.allow(&web, std::slice::from_ref(&named)).await?;
    let icmpv6 = all_of("icmpv6", Peer::PrefixListId(id.clone()));
    let error = hearth.allow(&web, &[icmpv6]).await.expect_err("family");
    Expect::invalid("InvalidParameterCombination", "permissions[0].protocol")
        .check_status(&error)?;

    let mut client = hearth.security_groups();
    let delete = DeletePrefixListRequest {
        prefix_list_id: id.clone(),
    };
    let message = exactly(Code::FailedPrecondition, "DependencyViolation", "")
        .check(client.delete_prefix_list(delete.clone()).await)?;
    ensure!(message.contains(&rule[0].rule_id), "{message}");

    let entry = |cidr: &str| PrefixListEntry {
        cidr: cidr.to_owned(),
        description: "new".to_owned(),
    };
    let change = |add: &[&str], remove: &[&str]| ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        add_entries: add.iter().map(|cidr| entry(cidr)).collect(),
        remove_cidrs: remove.iter().map(|cidr| (*cidr).to_owned()).collect(),
        ..Default::default()
    };
    for (bad, field) in [
        (
            change(&["203.0.113.0/24", "10.0.0.0/8"], &[]),
            "add_entries",
        ),
        (change(&["2001:db8::/32"], &[]), "add_entries[0].cidr"),
        (change(&["203.0.113.1/24"], &[]), "add_entries[0].cidr"),
        (change(&[], &["203.0.113.0/24"]), "remove_cidrs[0]"),
    ] {
        Expect::invalid("InvalidParameterValue", field)
            .check(client.modify_prefix_list(bad).await)?;
    }
    let changed = change(&["203.0.113.0/24", "192.0.2.0/24"], &["198.51.100.0/24"]);
    let answer = client.modify_prefix_list(changed.clone()).await?;
    let after = answer.into_inner().prefix_list.context("no list")?;
    let said: Vec<_> = after
        .entries
        .iter()
        .map(|entry| (&*entry.cidr, &*entry.description))
        .collect();
    assert_eq!(said, [("192.0.2.0/24", "new"), ("203.0.113.0/24", "new")]);
    assert_eq!(after.version, 2);
    let stale = ModifyPrefixListRequest {
        current_version: 1,
        ..change(&["10.0.0.0/8"], &[])
    };
    exactly(
        Code::FailedPrecondition,
        "PrefixListVersionMismatch",
        "current_version",
    )
    .check(client.modify_prefix_list(stale).await)?;

    hearth.disallow(&web, &[named], false).await?;
    client.delete_prefix_list(delete).await?;
    let all = DescribePrefixListsRequest::default();
    let left = client.describe_prefix_lists(all).await?.into_inner();
    ensure!(left.prefix_lists.is_empty(), "{left:?}");
    hearth.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_lists_are_their_accounts_alone() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let web = hearth.group(&network, "web").await?;
    let list = prefix_list(&hearth, &["192.0.2.0/24"], 1).await?;
    let mut client = hearth.security_groups();
    let stranger = |id: &str| as_account("stranger", deletion_of(id));
    exactly(Code::NotFound, "InvalidGroup.NotFound", "security_group_id").check(
        client
            .delete_security_group(stranger(&web.security_group_id))
            .await,
    )?;
    let all = as_account("stranger", DescribeSecurityGroupsRequest::default());
    let seen = client.describe_security_groups(all).await?.into_inner();
    ensure!(seen.security_groups.is_empty(), "{seen:?}");
    let rules = as_account("stranger", DescribeSecurityGroupRulesRequest::default());
    let seen = client.describe_security_group_rules(rules).await?;
    ensure!(seen.get_ref().rules.is_empty(), "{seen:?}");
    let change = ModifyPrefixListRequest {
        prefix_list_id: list.prefix_list_id.clone(),
        name: Some("mine".to_owned()),
        ..Default::default()
    };
    exactly(
        Code::NotFound,
        "InvalidPrefixListID.NotFound",
        "prefix_list_id",
    )
    .check(
        client
            .modify_prefix_list(as_account("stranger", change))
            .await,
    )?;
    // Nor in their network.
    let request = CreateSecurityGroupRequest {
        name: "theirs".to_owned(),
        network_id: network.network_id.clone(),
        ..Default::default()
    };
    exactly(Code::NotFound, "InvalidNetworkID.NotFound", "network_id").check(
        client
            .create_security_group(as_account("stranger", request))
            .await,
    )?;
    let request = CreateSecurityGroupRequest {
        name: "theirs".to_owned(),
        ..Default::default()
    };
    exactly(
        Code::FailedPrecondition,
        "NetworkNotSpecified",
        "network_id",
    )
    .check(
        client
            .create_security_group(as_account("stranger", request))
            .await,
    )?;
    hearth.finish().await
}

fn deletion_of(id: &str) -> DeleteSecurityGroupRequest {
    DeleteSecurityGroupRequest {
        security_group_id: id.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_makes_one_group_and_one_list() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let mut client = hearth.security_groups();
    let group = CreateSecurityGroupRequest {
        name: "web".to_owned(),
        network_id: network.network_id.clone(),
        client_token: "abc".to_owned(),
        ..Default::default()
    };
    let first = client
        .create_security_group(group.clone())
        .await?
        .into_inner();
    let again = client
        .create_security_group(group.clone())
        .await?
        .into_inner();
    assert_eq!(first, again);
    let other = CreateSecurityGroupRequest {
        name: "db".to_owned(),
        ..group
    };
    exactly(Code::FailedPrecondition, "IdempotentParameterMismatch", "")
        .check(client.create_security_group(other).await)?;
    let list = CreatePrefixListRequest {
        name: "offices".to_owned(),
        max_entries: 5,
        client_token: "abc".to_owned(),
        ..Default::default()
    };
    let first = client.create_prefix_list(list.clone()).await?.into_inner();
    let again = client.create_prefix_list(list).await?.into_inner();
    assert_eq!(first, again);
    hearth.finish().await
}

/// Whatever the order in which they come, what is in the database afterwards is what the firewall
/// enforces: the probe of this is in `security_group_traffic.rs`. Here: nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn changes_at_the_same_time_are_all_made() -> Result<()> {
    needs_network!();
    let (hearth, network) = hearth_and_network().await?;
    let web = hearth.group(&network, "web").await?;
    let calls = (1..=40).map(|port| {
        let (mut client, id) = (hearth.security_groups(), web.security_group_id.clone());
        tokio::spawn(async move {
            let permission = vec![tcp(port, block(EVERYBODY))];
            let authorize = AuthorizeSecurityGroupRequest {
                security_group_id: id.clone(),
                direction: Direction::Ingress.into(),
                permissions: permission.clone(),
                dry_run: false,
            };
            client.authorize_security_group(authorize).await?;
            if port % 2 == 0 {
                let revoke = RevokeSecurityGroupRequest {
                    security_group_id: id,
                    direction: Direction::Ingress.into(),
                    permissions: permission,
                    ..Default::default()
                };
                client.revoke_security_group(revoke).await?;
            }
            Ok::<_, tonic::Status>(())
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await??;
    }
    let mut ports: Vec<_> = described(&hearth, &web)
        .await?
        .rules
        .into_iter()
        .filter_map(|rule| rule.permission?.from_port)
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, (1..=40).step_by(2).collect::<Vec<_>>());
    hearth.finish().await
}
