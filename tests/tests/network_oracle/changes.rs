//! Random changes: made through the API, and in the model.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreatePrefixListRequest, CreateSecurityGroupRequest,
    DeleteSecurityGroupRequest, DescribeSecurityGroupsRequest, Direction,
    ModifyNetworkInterfaceRequest, ModifyPrefixListRequest, PrefixListEntry,
    ReplaceInstanceSecurityGroupsRequest, RevokeSecurityGroupRequest, SecurityGroup,
};
use hearth_tests::{Hearth, net::Random};
use ipnet::IpNet;

use crate::{
    model::{Group, Model, Peer, Rule},
    rules,
};

/// Rules of a group in one direction, at most; prefix lists count as several.
const RULES_MOST: usize = 10;
const LIST_ENTRIES_MOST: usize = 5;

/// What is said of a change that cuts no connection ends so.
pub const KEPT: &str = ", connections kept";

fn kept(said: String, keep: bool) -> String {
    said + if keep { KEPT } else { "" }
}

fn direction(ingress: bool) -> i32 {
    if ingress {
        Direction::Ingress.into()
    } else {
        Direction::Egress.into()
    }
}

fn entry(cidr: String) -> PrefixListEntry {
    PrefixListEntry {
        cidr,
        ..Default::default()
    }
}

/// Takes a group as the API describes it.
fn take_group(model: &mut Model, network: usize, group: &SecurityGroup) {
    let rules = group.rules.iter().filter_map(Rule::of).collect();
    let group_model = Group {
        network,
        rules,
        is_default: group.name == "default",
    };
    let id = group.security_group_id.clone();
    model.seen.push(id.clone());
    let rules = group.rules.iter().map(|it| it.rule_id.clone());
    model.seen.extend(rules);
    model.groups.insert(id, group_model);
}

/// The groups that came with the networks.
pub async fn take_groups(hearth: &Hearth, model: &mut Model, networks: &[String]) -> Result<()> {
    let request = DescribeSecurityGroupsRequest::default();
    let mut client = hearth.security_groups();
    let answer = client.describe_security_groups(request).await?;
    for group in answer.into_inner().security_groups {
        let network = networks.iter().position(|it| *it == group.network_id);
        take_group(model, network.context("whose network?")?, &group);
    }
    Ok(())
}

/// A new group, and some rules in it.
pub async fn new_group(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    network: usize,
    network_id: &str,
) -> Result<String> {
    let request = CreateSecurityGroupRequest {
        name: format!("group-{}", random.any()),
        description: "random".to_owned(),
        network_id: network_id.to_owned(),
        ..Default::default()
    };
    let mut client = hearth.security_groups();
    let made = client.create_security_group(request).await?;
    let group = made.into_inner().security_group;
    let group = group.context("no group")?;
    take_group(model, network, &group);
    let id = group.security_group_id;
    // Without the rule that allows everything outbound, egress has something to decide.
    if random.percent(60) {
        revoke_all_outbound(hearth, model, &id).await?;
    }
    for ingress in [true, true, false] {
        authorize(hearth, model, random, &id, ingress).await?;
    }
    Ok(id)
}

async fn revoke_all_outbound(hearth: &Hearth, model: &mut Model, id: &str) -> Result<()> {
    let rules = &model.groups[id].rules;
    let ids: Vec<_> = rules
        .iter()
        .filter(|(_, it)| !it.ingress)
        .map(|it| it.0.clone())
        .collect();
    revoke(hearth, model, id, (false, false), ids).await
}

/// A new prefix list with two random blocks of a family.
pub async fn new_list(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    ipv6: bool,
) -> Result<()> {
    let blocks: BTreeSet<String> = (0..2).map(|_| rules::cidr(random, model, ipv6)).collect();
    let request = CreatePrefixListRequest {
        name: format!("list-{}", random.any()),
        address_family: if ipv6 { "IPv6" } else { "IPv4" }.to_owned(),
        max_entries: u32::try_from(LIST_ENTRIES_MOST)?,
        entries: blocks.iter().cloned().map(entry).collect(),
        ..Default::default()
    };
    let made = hearth.security_groups().create_prefix_list(request).await?;
    let list = made.into_inner().prefix_list.context("no list")?;
    let blocks = blocks.iter().map(|it| it.parse());
    let blocks = blocks.collect::<Result<_, _>>()?;
    model.seen.push(list.prefix_list_id.clone());
    model.lists.insert(list.prefix_list_id, blocks);
    Ok(())
}

/// Adds a rule that the group does not have yet.
pub async fn authorize(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    id: &str,
    ingress: bool,
) -> Result<String> {
    let group = &model.groups[id];
    let permission = loop {
        let it = rules::permission(random, model, group.network);
        let rule = Rule::new(ingress, &it).context("a rule that the model does not know")?;
        if !group.rules.values().any(|it| *it == rule) {
            break it;
        }
    };
    let wanted = Rule::new(ingress, &permission);
    let request = AuthorizeSecurityGroupRequest {
        security_group_id: id.to_owned(),
        direction: direction(ingress),
        permissions: vec![permission.clone()],
        dry_run: false,
    };
    let mut client = hearth.security_groups();
    let answer = client.authorize_security_group(request).await;
    let answer = answer.with_context(|| format!("{permission:?}"))?;
    let rules = answer.into_inner().rules;
    let made: Vec<_> = rules.iter().filter_map(Rule::of).collect();
    let [(rule_id, rule)] = &made[..] else {
        anyhow::bail!("{permission:?} became {rules:?}");
    };
    ensure!(
        Some(rule) == wanted.as_ref(),
        "{permission:?} became {rules:?}"
    );
    let group = model.groups.get_mut(id).context("no such group")?;
    group.rules.insert(rule_id.clone(), rule.clone());
    model.seen.push(rule_id.clone());
    Ok(format!("authorize {id} {rule:?}"))
}

async fn revoke(
    hearth: &Hearth,
    model: &mut Model,
    id: &str,
    (ingress, keep): (bool, bool),
    rule_ids: Vec<String>,
) -> Result<()> {
    let request = RevokeSecurityGroupRequest {
        security_group_id: id.to_owned(),
        direction: direction(ingress),
        rule_ids: rule_ids.clone(),
        keep_connections: keep,
        ..Default::default()
    };
    hearth
        .security_groups()
        .revoke_security_group(request)
        .await?;
    let group = model.groups.get_mut(id).context("no such group")?;
    group.rules.retain(|it, _| !rule_ids.contains(it));
    Ok(())
}

/// Puts a guest into some groups of its network.
pub async fn replace_groups(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    guest: usize,
    keep: bool,
) -> Result<String> {
    let network = model.guests[guest].network;
    let of = |it: &&String| model.groups[*it].network == network;
    let all = model.in_order(model.groups.keys().filter(of));
    let count = 1 + random.below(3);
    let groups: BTreeSet<String> = (0..count).map(|_| random.pick(&all).clone()).collect();
    let security_group_ids = groups.iter().cloned().collect();
    // The one call is for instances with one interface.
    if model.guests[guest].sibling.is_none() && random.percent(50) {
        let request = ReplaceInstanceSecurityGroupsRequest {
            instance_id: model.guests[guest].instance.clone(),
            security_group_ids,
            keep_connections: keep,
        };
        let mut client = hearth.security_groups();
        client.replace_instance_security_groups(request).await?;
    } else {
        let request = ModifyNetworkInterfaceRequest {
            network_interface_id: model.guests[guest].interface.clone(),
            description: None,
            security_group_ids,
            keep_connections: keep,
        };
        hearth.networks().modify_network_interface(request).await?;
    }
    let said = format!("guest {guest} into {groups:?}");
    model.guests[guest].groups = groups;
    Ok(kept(said, keep))
}

/// Adds an entry to a list, or takes one out.
async fn modify_list(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    keep: bool,
) -> Result<String> {
    let ids = model.in_order(model.lists.keys());
    let id = random.pick(&ids).clone();
    let blocks = model.lists[&id].clone();
    let ipv6 = matches!(blocks.first(), Some(IpNet::V6(_)));
    let mut request = ModifyPrefixListRequest {
        prefix_list_id: id.clone(),
        keep_connections: keep,
        ..Default::default()
    };
    let mut after = blocks.clone();
    // Never empty, so that its family can be told.
    if blocks.len() > 1 && random.percent(50) || blocks.len() == LIST_ENTRIES_MOST {
        let blocks: Vec<_> = blocks.iter().collect();
        let block = **random.pick(&blocks);
        request.remove_cidrs.push(block.to_string());
        after.remove(&block);
    } else {
        let block: IpNet = rules::cidr(random, model, ipv6).parse()?;
        if !after.insert(block) {
            return Ok("nothing".to_owned());
        }
        request.add_entries.push(entry(block.to_string()));
    }
    hearth.security_groups().modify_prefix_list(request).await?;
    let said = format!("{id} is {after:?}");
    model.lists.insert(id, after);
    Ok(kept(said, keep))
}

/// Deletes a group that nobody is in and no other group names, if there is one.
async fn delete_group(hearth: &Hearth, model: &mut Model) -> Result<String> {
    let is_free = |id: &str| {
        !model.groups[id].is_default
            && !model.guests.iter().any(|it| it.groups.contains(id))
            && !model.groups.iter().any(|(other, group)| {
                let mut rules = group.rules.values();
                other != id && rules.any(|it| it.peer == Peer::Group(id.to_owned()))
            })
    };
    let ids = model.in_order(model.groups.keys());
    let Some(id) = ids.into_iter().find(|it| is_free(it)) else {
        return Ok("nothing".to_owned());
    };
    let request = DeleteSecurityGroupRequest {
        security_group_id: id.clone(),
    };
    hearth
        .security_groups()
        .delete_security_group(request)
        .await?;
    model.groups.remove(&id);
    Ok(format!("delete {id}"))
}

/// Makes some change; says which, and with [`KEPT`] that connections were kept.
pub async fn change(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    network_ids: &[String],
    keep: bool,
) -> Result<String> {
    let ids = model.in_order(model.groups.keys());
    let id = random.pick(&ids).clone();
    let ingress = random.percent(60);
    let of = model.groups[&id].rules.iter();
    let rules = model.in_order(of.filter(|(_, it)| it.ingress == ingress).map(|it| it.0));
    match random.below(100) {
        0..35 if rules.len() < RULES_MOST => authorize(hearth, model, random, &id, ingress).await,
        0..55 if !rules.is_empty() => {
            let rule = random.pick(&rules).clone();
            let said = format!("revoke {id} {:?}", model.groups[&id].rules[&rule]);
            revoke(hearth, model, &id, (ingress, keep), vec![rule]).await?;
            Ok(kept(said, keep))
        }
        0..80 => {
            let guest = random.below(model.guests.len());
            replace_groups(hearth, model, random, guest, keep).await
        }
        80..92 => modify_list(hearth, model, random, keep).await,
        92..97 => {
            let network = random.below(network_ids.len());
            let id = new_group(hearth, model, random, network, &network_ids[network]).await?;
            Ok(format!("new {id} {:?}", model.groups[&id].rules))
        }
        _ => delete_group(hearth, model).await,
    }
}
