//! `hearth address …`: public addresses, and the pools that they come from.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    Address, AddressPool, AllocateAddressRequest, AssociateAddressRequest,
    CreateAddressPoolRequest, DeleteAddressPoolRequest, DescribeAddressPoolsRequest,
    DescribeAddressPoolsResponse, DescribeAddressesRequest, DescribeAddressesResponse,
    DisassociateAddressRequest, Filter, ReleaseAddressRequest,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc, rpc_with_flags},
    filters::{filter, parse_filter},
    human,
    labels::LabelArgs,
    output::{self, Output},
    pages::{all_pages, delete_each},
    sg_names::one_of,
};

/// Public (elastic) addresses.
#[derive(Subcommand)]
pub enum AddressCommand {
    /// Take a public address; it is the account's until it is released.
    Allocate(AllocateArgs),
    /// List the account's public addresses.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Make an address an instance's.
    Associate(AssociateArgs),
    /// Take addresses away from their instances.
    Disassociate(AddressesArgs),
    /// Give addresses back.
    Release(AddressesArgs),
    /// The ranges that addresses come from; for the operator.
    #[command(subcommand)]
    Pool(PoolCommand),
}

#[derive(Subcommand)]
pub enum PoolCommand {
    /// Let the host give out every address of a range, such as 192.0.2.0/28.
    Create(PoolCreateArgs),
    /// List pools.
    #[command(visible_alias = "ls")]
    List,
    /// Delete pools that nobody holds an address of.
    #[command(visible_alias = "rm")]
    Delete(PoolIdsArgs),
}

#[derive(Args)]
pub struct AllocateArgs {
    /// Of this pool; any when nothing is said.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// This very address.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: allocation-id, public-ipv4, instance-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct AssociateArgs {
    /// The address itself, or its id.
    address: String,
    /// An instance (id or `Name`; its first interface), or an interface's id.
    #[arg(value_name = "INSTANCE|INTERFACE")]
    with: String,
    /// Take it away from where it is, and the other's own away.
    #[arg(long)]
    reassociate: bool,
}

#[derive(Args)]
pub struct AddressesArgs {
    /// The addresses themselves, or their ids.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
}

#[derive(Args)]
pub struct PoolCreateArgs {
    /// Every address of it is given out.
    range: String,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
}

#[derive(Args)]
pub struct PoolIdsArgs {
    /// The pools' ids.
    #[arg(required = true, value_name = "POOL")]
    pools: Vec<String>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: AddressCommand,
) -> Result<(), Failure> {
    match command {
        AddressCommand::Allocate(args) => allocate(client, output, args).await,
        AddressCommand::List(args) => list(client, output, args).await,
        AddressCommand::Associate(args) => associate(client, output, args).await,
        AddressCommand::Disassociate(args) => disassociate(client, args).await,
        AddressCommand::Release(args) => release(client, args).await,
        AddressCommand::Pool(PoolCommand::Create(args)) => create_pool(client, output, args).await,
        AddressCommand::Pool(PoolCommand::List) => list_pools(client, output).await,
        AddressCommand::Pool(PoolCommand::Delete(args)) => delete_pools(client, args).await,
    }
}

fn failed(status: Status) -> Failure {
    let flags = flags([
        ("pool_id", "POOL"),
        ("public_ipv4", "--address"),
        ("ipv4_range", "RANGE"),
        ("description", "--description"),
        ("tags", "--tag"),
        ("client_token", "--client-token"),
        ("allocation_id", "ADDRESS"),
        ("network_interface_id", "INTERFACE"),
        ("instance_id", "INSTANCE"),
    ]);
    rpc_with_flags(status, &flags)
}

async fn allocate(client: &mut Client, output: Output, args: AllocateArgs) -> Result<(), Failure> {
    let request = AllocateAddressRequest {
        pool_id: args.pool.unwrap_or_default(),
        public_ipv4: args.address.unwrap_or_default(),
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
    };
    let answer = client.networks.allocate_address(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("AllocateAddressResponse", &answer),
        Output::Table => print_addresses(answer.address.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let addresses = client.describe_addresses(&args.filter).await?;
    if output == Output::Json {
        let answer = DescribeAddressesResponse {
            addresses,
            next_token: String::new(),
        };
        return output::json("DescribeAddressesResponse", &answer);
    }
    if addresses.is_empty() {
        eprintln!("No public addresses. Take one with `hearth address allocate`.");
        return Ok(());
    }
    print_addresses(&addresses)
}

async fn associate(
    client: &mut Client,
    output: Output,
    args: AssociateArgs,
) -> Result<(), Failure> {
    let mut request = AssociateAddressRequest {
        allocation_id: client.allocation_id(&args.address).await?,
        allow_reassociation: args.reassociate,
        ..Default::default()
    };
    if args.with.starts_with("eni-") {
        request.network_interface_id = args.with;
    } else {
        request.instance_id = client.instance_id(&args.with).await?;
    }
    let answer = client.networks.associate_address(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("AssociateAddressResponse", &answer),
        Output::Table => print_addresses(answer.address.as_slice()),
    }
}

async fn disassociate(client: &mut Client, args: AddressesArgs) -> Result<(), Failure> {
    for address in args.addresses {
        let allocation_id = client.allocation_id(&address).await?;
        let request = DisassociateAddressRequest { allocation_id };
        let answer = client.networks.disassociate_address(request).await;
        answer.map_err(failed)?;
        output::line(&format!("{address}: disassociated"))?;
    }
    Ok(())
}

async fn release(client: &mut Client, args: AddressesArgs) -> Result<(), Failure> {
    for address in args.addresses {
        let allocation_id = client.allocation_id(&address).await?;
        let request = ReleaseAddressRequest { allocation_id };
        let answer = client.networks.release_address(request).await;
        answer.map_err(failed)?;
        output::line(&format!("{address}: released"))?;
    }
    Ok(())
}

async fn create_pool(
    client: &mut Client,
    output: Output,
    args: PoolCreateArgs,
) -> Result<(), Failure> {
    let request = CreateAddressPoolRequest {
        ipv4_range: args.range,
        description: args.description.unwrap_or_default(),
    };
    let answer = client.networks.create_address_pool(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CreateAddressPoolResponse", &answer),
        Output::Table => print_pools(answer.pool.as_slice()),
    }
}

async fn list_pools(client: &mut Client, output: Output) -> Result<(), Failure> {
    let pools = all_pages(async |page| {
        let request = DescribeAddressPoolsRequest {
            page,
            ..Default::default()
        };
        let answer = client.networks.describe_address_pools(request).await;
        let answer = answer.map_err(rpc)?.into_inner();
        Ok((answer.pools, answer.next_token))
    })
    .await?;
    if output == Output::Json {
        let answer = DescribeAddressPoolsResponse {
            pools,
            next_token: String::new(),
        };
        return output::json("DescribeAddressPoolsResponse", &answer);
    }
    if pools.is_empty() {
        eprintln!("No pools. Make one with `hearth address pool create RANGE`.");
        return Ok(());
    }
    print_pools(&pools)
}

async fn delete_pools(client: &mut Client, args: PoolIdsArgs) -> Result<(), Failure> {
    delete_each(args.pools, async |pool_id| {
        let request = DeleteAddressPoolRequest { pool_id };
        let answer = client.networks.delete_address_pool(request).await;
        answer.map_err(failed)?;
        Ok(())
    })
    .await
}

impl Client {
    /// All public addresses that match the filters.
    async fn describe_addresses(&mut self, filters: &[Filter]) -> Result<Vec<Address>, Failure> {
        all_pages(async |page| {
            let request = DescribeAddressesRequest {
                filters: filters.to_vec(),
                page,
                ..Default::default()
            };
            let answer = self.networks.describe_addresses(request).await;
            let answer = answer.map_err(rpc)?.into_inner();
            Ok((answer.addresses, answer.next_token))
        })
        .await
    }

    /// The id of an address that is named by its id or by itself.
    async fn allocation_id(&mut self, id_or_address: &str) -> Result<String, Failure> {
        if id_or_address.starts_with("eipalloc-") {
            return Ok(id_or_address.to_owned());
        }
        let filters = [filter("public-ipv4", id_or_address)];
        let mut found = self.describe_addresses(&filters).await?;
        found.retain(|it| it.public_ipv4 == id_or_address);
        let ids = found.into_iter().map(|it| it.allocation_id);
        one_of("public address", id_or_address, ids.collect())
            .map_err(|failure| failure.hint_if_none("see what there is with `hearth address list`"))
    }
}

fn print_addresses(addresses: &[Address]) -> Result<(), Failure> {
    let row = |it: &Address| {
        vec![
            it.public_ipv4.clone(),
            it.allocation_id.clone(),
            it.pool_id.clone(),
            it.instance_id.clone(),
            it.network_interface_id.clone(),
            it.private_ipv4.clone(),
        ]
    };
    let header = [
        "ADDRESS",
        "ALLOCATION",
        "POOL",
        "INSTANCE",
        "INTERFACE",
        "PRIVATE",
    ];
    output::table(&header, &[], addresses.iter().map(row).collect())
}

fn print_pools(pools: &[AddressPool]) -> Result<(), Failure> {
    let row = |it: &AddressPool| {
        vec![
            it.pool_id.clone(),
            it.ipv4_range.clone(),
            it.available_addresses.to_string(),
            it.description.clone(),
            human::age(it.create_time.as_ref()),
        ]
    };
    let header = ["POOL", "RANGE", "FREE", "DESCRIPTION", "AGE"];
    output::table(&header, &[2, 4], pools.iter().map(row).collect())
}
