//! `hearth network …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CreateNetworkRequest, DeleteNetworkRequest, DescribeNetworksRequest, DescribeNetworksResponse,
    Filter, ModifyNetworkRequest, Network,
};
use tonic::Status;
use tonic_types::StatusExt;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc, rpc_with_flags},
    filters::parse_filter,
    human,
    labels::LabelArgs,
    output::{self, Output},
    pages::{all_pages, delete_each},
};

/// Virtual networks: ranges of addresses, isolated from each other.
#[derive(Subcommand)]
pub enum NetworkCommand {
    /// Make a network, and in it the security group `default`.
    Create(CreateArgs),
    /// List networks.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about networks.
    Show(IdsArgs),
    /// Change name, NAT, DNS domain, or which network is the default one.
    Modify(ModifyArgs),
    /// Delete networks that no instance is in, with their security groups.
    #[command(visible_alias = "rm")]
    Delete(IdsArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  hearth network create 10.0.0.0/16 --name prod --ipv6 auto --default
  hearth network create 192.168.7.0/24 --name lab --no-nat")]
pub struct CreateArgs {
    /// A private IPv4 range of /16 to /28, such as 10.0.0.0/16. The first address is the
    /// gateway's.
    #[arg(value_name = "RANGE")]
    range: String,
    /// Unique among the account's networks.
    #[arg(long)]
    name: Option<String>,
    /// A /64 of IPv6, or `auto` for a private one.
    #[arg(long, value_name = "RANGE|auto")]
    ipv6: Option<String>,
    /// Bytes of an IP packet, 1280 to 9001.
    #[arg(long, value_name = "BYTES", default_value_t = 1500)]
    mtu: u32,
    /// Instances do not reach the outside with the host's address.
    #[arg(long)]
    no_nat: bool,
    /// Instances that ask for no network get an interface in this one.
    #[arg(long)]
    default: bool,
    /// Where instances find each other by name; `hearth.internal` if nothing is said.
    #[arg(long, value_name = "DOMAIN")]
    dns_domain: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Check the request, change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: network-id, name, ipv4-range, ipv6-range, is-default, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct IdsArgs {
    /// The networks, by id or name.
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Args)]
pub struct ModifyArgs {
    /// The network, by id or name.
    network: String,
    /// Another name.
    #[arg(long)]
    name: Option<String>,
    /// Whether instances reach the outside with the host's address.
    #[arg(long, value_name = "BOOL")]
    nat: Option<bool>,
    /// Whether it is the account's default network.
    #[arg(long, value_name = "BOOL")]
    default: Option<bool>,
    /// Where instances find each other by name.
    #[arg(long, value_name = "DOMAIN")]
    dns_domain: Option<String>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: NetworkCommand,
) -> Result<(), Failure> {
    match command {
        NetworkCommand::Create(args) => create(client, output, args).await,
        NetworkCommand::List(args) => list(client, output, args).await,
        NetworkCommand::Show(args) => show(client, output, args).await,
        NetworkCommand::Modify(args) => modify(client, output, args).await,
        NetworkCommand::Delete(args) => delete(client, args).await,
    }
}

fn failed(status: Status) -> Failure {
    let flags = flags([
        ("ipv4_range", "RANGE"),
        ("ipv6_range", "--ipv6"),
        ("name", "--name"),
        ("mtu", "--mtu"),
        ("dns_domain", "--dns-domain"),
        ("tags", "--tag"),
        ("client_token", "--client-token"),
        ("network_id", "NETWORK"),
    ]);
    rpc_with_flags(status, &flags)
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let request = CreateNetworkRequest {
        ipv4_range: args.range,
        ipv6_range: args.ipv6.unwrap_or_default(),
        name: args.name.unwrap_or_default(),
        mtu: args.mtu,
        nat: Some(!args.no_nat),
        is_default: args.default,
        dns_domain: args.dns_domain.unwrap_or_default(),
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
        dry_run: args.dry_run,
    };
    let answer = match client.networks.create_network(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            let info = status.get_details_error_info();
            if args.dry_run && info.is_some_and(|info| info.reason == "DryRunOperation") {
                return output::line("The request would have worked (--dry-run).");
            }
            return Err(failed(status));
        }
    };
    match output {
        Output::Json => output::json("CreateNetworkResponse", &answer),
        Output::Table => print_networks(answer.network.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let networks = client.describe_networks(&[], &args.filter).await?;
    print(output, networks, |networks| {
        if networks.is_empty() {
            eprintln!("No networks. Make one with `hearth network create RANGE`.");
            return Ok(());
        }
        print_networks(networks)
    })
}

async fn show(client: &mut Client, output: Output, args: IdsArgs) -> Result<(), Failure> {
    let ids = client.network_ids(&args.networks).await?;
    let networks = client.describe_networks(&ids, &[]).await?;
    print(output, networks, |networks| {
        for (index, network) in networks.iter().enumerate() {
            if index > 0 {
                output::line("")?;
            }
            print_one(network)?;
        }
        Ok(())
    })
}

fn print(
    output: Output,
    networks: Vec<Network>,
    table: impl FnOnce(&[Network]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match output {
        Output::Table => table(&networks),
        Output::Json => output::json(
            "DescribeNetworksResponse",
            &DescribeNetworksResponse {
                networks,
                next_token: String::new(),
            },
        ),
    }
}

async fn modify(client: &mut Client, output: Output, args: ModifyArgs) -> Result<(), Failure> {
    let request = ModifyNetworkRequest {
        network_id: client.given_network_id(Some(&args.network)).await?,
        name: args.name,
        nat: args.nat,
        is_default: args.default,
        dns_domain: args.dns_domain,
    };
    let answer = client.networks.modify_network(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("ModifyNetworkResponse", &answer),
        Output::Table => print_networks(answer.network.as_slice()),
    }
}

async fn delete(client: &mut Client, args: IdsArgs) -> Result<(), Failure> {
    let network_ids = client.network_ids(&args.networks).await?;
    delete_each(network_ids, async |network_id| {
        let request = DeleteNetworkRequest { network_id };
        let answer = client.networks.delete_network(request).await;
        answer.map_err(failed)?;
        Ok(())
    })
    .await
}

impl Client {
    /// All networks with these ids (all there are when empty) that match the filters.
    pub async fn describe_networks(
        &mut self,
        ids: &[String],
        filters: &[Filter],
    ) -> Result<Vec<Network>, Failure> {
        all_pages(async |page| {
            let request = DescribeNetworksRequest {
                network_ids: ids.to_vec(),
                filters: filters.to_vec(),
                page,
            };
            let answer = self.networks.describe_networks(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.networks, answer.next_token))
        })
        .await
    }

    /// The ids of networks that are named by ids or names.
    pub async fn network_ids(&mut self, ids_or_names: &[String]) -> Result<Vec<String>, Failure> {
        let mut ids = Vec::with_capacity(ids_or_names.len());
        for id_or_name in ids_or_names {
            ids.push(self.given_network_id(Some(id_or_name)).await?);
        }
        Ok(ids)
    }
}

fn print_networks(networks: &[Network]) -> Result<(), Failure> {
    let row = |network: &Network| {
        vec![
            network.network_id.clone(),
            network.name.clone(),
            network.ipv4_range.clone(),
            network.ipv6_range.clone(),
            yes(network.nat),
            yes(network.is_default),
            network.available_addresses.to_string(),
            human::age(network.create_time.as_ref()),
        ]
    };
    let header = [
        "NETWORK", "NAME", "IPV4", "IPV6", "NAT", "DEFAULT", "FREE", "AGE",
    ];
    output::table(&header, &[6, 7], networks.iter().map(row).collect())
}

fn yes(it: bool) -> String {
    if it { "yes" } else { "" }.to_owned()
}

fn print_one(network: &Network) -> Result<(), Failure> {
    let with_gateway = |range: &str, gateway: &str| match range {
        "" => String::new(),
        range => format!("{range}, gateway {gateway}"),
    };
    let tags = network.tags.iter();
    let tags: Vec<String> = tags.map(|it| format!("{}={}", it.key, it.value)).collect();
    output::fields(vec![
        ("Network", network.network_id.clone()),
        ("Name", network.name.clone()),
        (
            "IPv4",
            with_gateway(&network.ipv4_range, &network.ipv4_gateway),
        ),
        (
            "IPv6",
            with_gateway(&network.ipv6_range, &network.ipv6_gateway),
        ),
        ("Free addresses", network.available_addresses.to_string()),
        ("MTU", network.mtu.to_string()),
        ("NAT", if network.nat { "yes" } else { "no" }.to_owned()),
        ("Default", yes(network.is_default)),
        ("DNS domain", network.dns_domain.clone()),
        ("Created", human::time_and_age(network.create_time.as_ref())),
        ("Tags", tags.join("\n")),
        ("Owner", network.owner_id.clone()),
    ])
}
