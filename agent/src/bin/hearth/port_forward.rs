//! `hearth port-forward …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CreatePortForwardRequest, DeletePortForwardRequest, DescribePortForwardsRequest,
    DescribePortForwardsResponse, Filter, PortForward,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::parse_filter,
    output::{self, Output},
    pages::{all_pages, delete_each},
};

/// Ports of the host that are instances'.
#[derive(Subcommand)]
pub enum PortForwardCommand {
    /// Give a port of the host to an instance. Its security groups decide who gets in.
    Create(CreateArgs),
    /// List port forwards.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Take ports back.
    #[command(visible_alias = "rm")]
    Delete(IdsArgs),
}

#[derive(Args)]
#[command(after_help = "\
Example: hearth port-forward create web 80 --host-port 8080")]
pub struct CreateArgs {
    /// An instance (id or `Name`; its first interface), or an interface's id.
    #[arg(value_name = "INSTANCE|INTERFACE")]
    to: String,
    /// The port in the instance.
    port: u32,
    /// The port of the host; one from 30000 on is picked when nothing is said.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 0,
        hide_default_value = true
    )]
    host_port: u32,
    /// UDP instead of TCP.
    #[arg(long)]
    udp: bool,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    /// A call repeated with the same token returns the first call's result.
    #[arg(long, value_name = "TOKEN")]
    client_token: Option<String>,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: port-forward-id, instance-id, host-port, protocol, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct IdsArgs {
    /// Their ids.
    #[arg(required = true, value_name = "FORWARD")]
    ids: Vec<String>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: PortForwardCommand,
) -> Result<(), Failure> {
    match command {
        PortForwardCommand::Create(args) => create(client, output, args).await,
        PortForwardCommand::List(args) => list(client, output, args).await,
        PortForwardCommand::Delete(args) => delete(client, args).await,
    }
}

fn failed(status: Status) -> Failure {
    let flags = flags([
        ("host_port", "--host-port"),
        ("instance_port", "PORT"),
        ("instance_id", "INSTANCE"),
        ("network_interface_id", "INTERFACE"),
        ("description", "--description"),
        ("client_token", "--client-token"),
        ("port_forward_id", "FORWARD"),
    ]);
    rpc_with_flags(status, &flags)
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let mut request = CreatePortForwardRequest {
        protocol: if args.udp { "udp" } else { "tcp" }.to_owned(),
        host_port: args.host_port,
        instance_port: args.port,
        description: args.description.unwrap_or_default(),
        client_token: args.client_token.unwrap_or_default(),
        ..Default::default()
    };
    if args.to.starts_with("eni-") {
        request.network_interface_id = args.to;
    } else {
        request.instance_id = client.instance_id(&args.to).await?;
    }
    let answer = client.networks.create_port_forward(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CreatePortForwardResponse", &answer),
        Output::Table => print_forwards(answer.port_forward.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let port_forwards = all_pages(async |page| {
        let request = DescribePortForwardsRequest {
            filters: args.filter.clone(),
            page,
            ..Default::default()
        };
        let answer = client.networks.describe_port_forwards(request).await;
        let answer = answer.map_err(failed)?.into_inner();
        Ok((answer.port_forwards, answer.next_token))
    })
    .await?;
    if output == Output::Json {
        let answer = DescribePortForwardsResponse {
            port_forwards,
            next_token: String::new(),
        };
        return output::json("DescribePortForwardsResponse", &answer);
    }
    if port_forwards.is_empty() {
        eprintln!("No port forwards. Make one with `hearth port-forward create INSTANCE PORT`.");
        return Ok(());
    }
    print_forwards(&port_forwards)
}

async fn delete(client: &mut Client, args: IdsArgs) -> Result<(), Failure> {
    delete_each(args.ids, async |port_forward_id| {
        let request = DeletePortForwardRequest { port_forward_id };
        let answer = client.networks.delete_port_forward(request).await;
        answer.map_err(failed)?;
        Ok(())
    })
    .await
}

fn print_forwards(forwards: &[PortForward]) -> Result<(), Failure> {
    let row = |it: &PortForward| {
        vec![
            it.port_forward_id.clone(),
            format!("{}/{}", it.host_port, it.protocol),
            it.instance_id.clone(),
            it.instance_port.to_string(),
            it.network_interface_id.clone(),
            it.description.clone(),
        ]
    };
    let header = [
        "FORWARD",
        "HOST PORT",
        "INSTANCE",
        "PORT",
        "INTERFACE",
        "DESCRIPTION",
    ];
    output::table(&header, &[3], forwards.iter().map(row).collect())
}
