//! Security groups, prefix lists and networks by their names, and all of them page by page.

use hearth_proto::v1::{
    DescribeNetworksRequest, DescribePrefixListsRequest, DescribeSecurityGroupRulesRequest,
    DescribeSecurityGroupsRequest, Filter, PrefixList, SecurityGroup, SecurityGroupRule,
};

use crate::{
    client::Client,
    failure::{Failure, rpc},
    filters::filter,
    pages::all_pages,
};

/// A name for a filter, in which `*`, `?` and `\` stand for themselves.
fn literal(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if matches!(character, '*' | '?' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

impl Client {
    /// All groups with these ids (all there are when empty) that match the filters.
    pub async fn describe_security_groups(
        &mut self,
        ids: &[String],
        filters: &[Filter],
    ) -> Result<Vec<SecurityGroup>, Failure> {
        all_pages(async |page| {
            let request = DescribeSecurityGroupsRequest {
                security_group_ids: ids.to_vec(),
                filters: filters.to_vec(),
                page,
            };
            let answer = self.security_groups.describe_security_groups(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.security_groups, answer.next_token))
        })
        .await
    }

    /// All rules that match the filters.
    pub async fn describe_rules(
        &mut self,
        filters: &[Filter],
    ) -> Result<Vec<SecurityGroupRule>, Failure> {
        all_pages(async |page| {
            let request = DescribeSecurityGroupRulesRequest {
                filters: filters.to_vec(),
                page,
                ..Default::default()
            };
            let answer = self.security_groups.describe_security_group_rules(request);
            let answer = answer.await.map_err(rpc)?.into_inner();
            Ok((answer.rules, answer.next_token))
        })
        .await
    }

    /// All prefix lists with these ids (all there are when empty) that match the filters.
    pub async fn describe_prefix_lists(
        &mut self,
        ids: &[String],
        filters: &[Filter],
    ) -> Result<Vec<PrefixList>, Failure> {
        all_pages(async |page| {
            let request = DescribePrefixListsRequest {
                prefix_list_ids: ids.to_vec(),
                filters: filters.to_vec(),
                page,
            };
            let answer = self.security_groups.describe_prefix_lists(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.prefix_lists, answer.next_token))
        })
        .await
    }

    /// The id of a network that is named by its id or name; empty when none is named.
    pub async fn given_network_id(&mut self, id_or_name: Option<&str>) -> Result<String, Failure> {
        let name = match id_or_name {
            None => return Ok(String::new()),
            Some(id) if id.starts_with("net-") => return Ok(id.to_owned()),
            Some(name) => name,
        };
        let request = DescribeNetworksRequest {
            filters: vec![filter("name", &literal(name))],
            ..Default::default()
        };
        let answer = self.networks.describe_networks(request).await;
        let found = answer.map_err(rpc)?.into_inner().networks;
        let ids = found.into_iter().map(|network| network.network_id);
        one_of("network", name, ids.collect())
            .map_err(|failure| failure.hint_if_none("see what there is with `hearth network list`"))
    }

    /// The id of a group that is named by its id, or by its name in this network (in any when
    /// empty).
    pub async fn security_group_id(
        &mut self,
        id_or_name: &str,
        network_id: &str,
    ) -> Result<String, Failure> {
        if id_or_name.starts_with("sg-") {
            return Ok(id_or_name.to_owned());
        }
        let ids = self.groups_called(id_or_name, network_id).await?;
        if ids.len() > 1 {
            return Err(Failure::new(format!(
                "{} security groups are called `{id_or_name}`",
                ids.len()
            ))
            .hint(format!(
                "say in which --network, or use one of their ids: {}",
                ids.join(", ")
            )));
        }
        one_of("security group", id_or_name, ids)
            .map_err(|failure| failure.hint_if_none("see what there is with `hearth sg list`"))
    }

    /// The ids of the groups of this name.
    pub async fn groups_called(
        &mut self,
        name: &str,
        network_id: &str,
    ) -> Result<Vec<String>, Failure> {
        let mut filters = vec![filter("group-name", &literal(name))];
        if !network_id.is_empty() {
            filters.push(filter("network-id", network_id));
        }
        let found = self.describe_security_groups(&[], &filters).await?;
        Ok(found
            .into_iter()
            .map(|group| group.security_group_id)
            .collect())
    }

    /// The ids of the prefix lists of this name.
    pub async fn prefix_lists_called(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        let filters = [filter("name", &literal(name))];
        let found = self.describe_prefix_lists(&[], &filters).await?;
        Ok(found.into_iter().map(|list| list.prefix_list_id).collect())
    }

    /// The id of a prefix list that is named by its id or name.
    pub async fn prefix_list_id(&mut self, id_or_name: &str) -> Result<String, Failure> {
        if id_or_name.starts_with("pl-") {
            return Ok(id_or_name.to_owned());
        }
        let ids = self.prefix_lists_called(id_or_name).await?;
        one_of("prefix list", id_or_name, ids).map_err(|failure| {
            failure.hint_if_none("see what there is with `hearth prefix-list list`")
        })
    }
}

/// The one of these ids, or why it is not one.
pub fn one_of(noun: &str, name: &str, mut ids: Vec<String>) -> Result<String, Failure> {
    match ids.len() {
        0 => Err(Failure::new(format!("no {noun} is called `{name}`"))),
        1 => Ok(ids.remove(0)),
        n => Err(Failure::new(format!("{n} {noun}s are called `{name}`"))
            .hint(format!("use one of their ids: {}", ids.join(", ")))),
    }
}
