//! `hearth net`: who has which address.

use std::collections::HashMap;

use clap::Args;
use hearth_proto::v1::{
    DescribeNetworkInterfacesRequest, DescribeNetworkInterfacesResponse, Filter, NetworkInterface,
};

use crate::{
    client::Client,
    failure::{Failure, rpc},
    filters::{filter, name_of, parse_filter},
    output::{self, Output},
    pages::all_pages,
};

/// Who has which address.
#[derive(Args)]
pub struct NetArgs {
    /// Only in this network (id or name).
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Only of this instance (id or `Name`).
    #[arg(long, value_name = "INSTANCE")]
    instance: Option<String>,
    /// Only what matches: network-interface-id, private-ipv4, public-ipv4, mac-address,
    /// group-id, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

pub async fn net(client: &mut Client, output: Output, args: NetArgs) -> Result<(), Failure> {
    let mut filters = args.filter;
    if let Some(network) = &args.network {
        let id = client.given_network_id(Some(network)).await?;
        filters.push(filter("network-id", &id));
    }
    if let Some(instance) = &args.instance {
        let id = client.instance_id(instance).await?;
        filters.push(filter("instance-id", &id));
    }
    let interfaces = client.describe_network_interfaces(&filters).await?;
    if output == Output::Json {
        let answer = DescribeNetworkInterfacesResponse {
            network_interfaces: interfaces,
            next_token: String::new(),
        };
        return output::json("DescribeNetworkInterfacesResponse", &answer);
    }
    if interfaces.is_empty() {
        eprintln!("No interfaces. Make a network with `hearth network create RANGE`.");
        return Ok(());
    }
    let names: HashMap<String, String> = client
        .describe_instances(&[], &[])
        .await?
        .into_iter()
        .map(|it| (it.instance_id, name_of(&it.tags).to_owned()))
        .collect();
    let networks: HashMap<String, String> = client
        .describe_networks(&[], &[])
        .await?
        .into_iter()
        .map(|it| (it.network_id, it.name))
        .collect();
    let row = |it: &NetworkInterface| {
        let network = networks.get(&it.network_id).filter(|name| !name.is_empty());
        vec![
            it.instance_id.clone(),
            names.get(&it.instance_id).cloned().unwrap_or_default(),
            format!("eth{}", it.device_index),
            network.unwrap_or(&it.network_id).clone(),
            it.private_ipv4.clone(),
            it.public_ipv4.clone(),
            it.private_ipv6.clone(),
            it.mac_address.clone(),
            it.security_group_ids.join(","),
            it.tap_name.clone(),
        ]
    };
    let header = [
        "INSTANCE", "NAME", "DEVICE", "NETWORK", "PRIVATE", "PUBLIC", "IPV6", "MAC", "GROUPS",
        "TAP",
    ];
    output::table(&header, &[], interfaces.iter().map(row).collect())
}

impl Client {
    /// All network interfaces that match the filters.
    pub async fn describe_network_interfaces(
        &mut self,
        filters: &[Filter],
    ) -> Result<Vec<NetworkInterface>, Failure> {
        all_pages(async |page| {
            let request = DescribeNetworkInterfacesRequest {
                filters: filters.to_vec(),
                page,
                ..Default::default()
            };
            let answer = self.networks.describe_network_interfaces(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.network_interfaces, answer.next_token))
        })
        .await
    }
}
