//! `hearth sg …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    AuthorizeSecurityGroupRequest, CreateSecurityGroupRequest, DeleteSecurityGroupRequest,
    DescribeSecurityGroupRulesResponse, DescribeSecurityGroupsResponse, Direction, Filter,
    ReplaceInstanceSecurityGroupsRequest, RevokeSecurityGroupRequest, SecurityGroup,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::{filter, parse_filter},
    human,
    labels::LabelArgs,
    output::{self, Output},
    sg_explain::{self, ExplainArgs},
    sg_rules::{self, RuleArgs},
};

/// Security groups: who may talk to an instance, and to whom it may talk.
#[derive(Subcommand)]
pub enum SgCommand {
    /// Make a group that lets nothing in and everything out.
    Create(CreateArgs),
    /// List groups.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about groups, with their rules.
    Show(GroupsArgs),
    /// List rules, with the packets and bytes of connections that each one let begin.
    Rules(RulesArgs),
    /// Allow traffic; in force when the command ends.
    Authorize(AuthorizeArgs),
    /// Take rules back; in force when the command ends, and ends connections that nothing allows
    /// any more.
    Revoke(RevokeArgs),
    /// Put an instance into exactly these groups.
    Replace(ReplaceArgs),
    /// Delete groups that no interface is in and no other group's rule names.
    #[command(visible_alias = "rm")]
    Delete(GroupsArgs),
    /// Say which rules let a packet pass, or that none does. Ends with 1 if it does not pass.
    Explain(ExplainArgs),
}

#[derive(Args)]
pub struct NetworkArgs {
    /// The network (id or name) in which groups are looked for by name.
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
}

#[derive(Args)]
pub struct CreateArgs {
    /// 1 to 255 characters, unique in the network.
    name: String,
    /// The network, by id or name; by default the account's default network.
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// Words for people.
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: group-id, group-name, network-id, owner-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Args)]
pub struct GroupsArgs {
    /// The groups, by id or name.
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Args)]
pub struct RulesArgs {
    /// Only of these groups, by id or name.
    #[arg(value_name = "GROUP")]
    groups: Vec<String>,
    /// Only what matches: rule-id, group-id, direction, protocol.
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  hearth sg authorize web --tcp 80,443 --from 0.0.0.0/0
  hearth sg authorize db --tcp 5432 --from web
  hearth sg authorize web --icmp 8 --from any --description ping
  hearth sg authorize web --udp 53 --to 192.0.2.53")]
pub struct AuthorizeArgs {
    /// The group, by id or name.
    #[arg(value_name = "GROUP")]
    group: String,
    #[command(flatten)]
    rules: RuleArgs,
    /// Words for people, of each of the rules.
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  hearth sg revoke web --tcp 80 --from 0.0.0.0/0
  hearth sg revoke web --rule sgr-0123456789abcdef0")]
pub struct RevokeArgs {
    /// The group, by id or name.
    #[arg(value_name = "GROUP")]
    group: String,
    /// A rule's id; may be repeated.
    #[arg(
        long = "rule",
        value_name = "RULE",
        conflicts_with_all = ["tcp", "udp", "icmp", "icmpv6", "protocol", "all", "from", "to"]
    )]
    ids: Vec<String>,
    #[command(flatten)]
    rules: RuleArgs,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

#[derive(Args)]
pub struct KeepArgs {
    /// Let connections live on that are no longer allowed.
    #[arg(long)]
    pub keep_connections: bool,
}

#[derive(Args)]
pub struct ReplaceArgs {
    /// The instance, by id or name.
    #[arg(value_name = "INSTANCE")]
    instance: String,
    /// The groups, by id or name: all that its interfaces in the groups' network will be in.
    #[arg(required = true, value_name = "GROUP")]
    groups: Vec<String>,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    network: NetworkArgs,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: SgCommand,
) -> Result<(), Failure> {
    match command {
        SgCommand::Create(args) => create(client, output, args).await,
        SgCommand::List(args) => list(client, output, args).await,
        SgCommand::Show(args) => show(client, output, args).await,
        SgCommand::Rules(args) => rules(client, output, args).await,
        SgCommand::Authorize(args) => authorize(client, output, args).await,
        SgCommand::Revoke(args) => revoke(client, output, args).await,
        SgCommand::Replace(args) => replace(client, output, args).await,
        SgCommand::Delete(args) => delete(client, args).await,
        SgCommand::Explain(args) => sg_explain::explain(client, output, args).await,
    }
}

fn failed(status: Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("security_group_ids", "GROUP"),
            ("security_group_id", "GROUP"),
            ("instance_id", "INSTANCE"),
            ("network_id", "--network"),
            ("name", "NAME"),
            ("rule_ids", "--rule"),
            ("description", "--description"),
            ("tags", "--tag"),
            ("client_token", "--client-token"),
        ]),
    )
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let request = CreateSecurityGroupRequest {
        name: args.name,
        description: args.description.unwrap_or_default(),
        network_id: client.given_network_id(args.network.as_deref()).await?,
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
        dry_run: false,
    };
    let answer = client.security_groups.create_security_group(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CreateSecurityGroupResponse", &answer),
        Output::Table => print_groups(answer.security_group.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let mut filters = args.filter;
    if let Some(network) = args.network.network.as_deref() {
        let id = client.given_network_id(Some(network)).await?;
        filters.push(filter("network-id", &id));
    }
    let security_groups = client.describe_security_groups(&[], &filters).await?;
    match output {
        Output::Json => print_json(security_groups),
        Output::Table if security_groups.is_empty() => {
            eprintln!("No security groups. Make one with `hearth sg create NAME`.");
            Ok(())
        }
        Output::Table => print_groups(&security_groups),
    }
}

async fn show(client: &mut Client, output: Output, args: GroupsArgs) -> Result<(), Failure> {
    let ids = group_ids(client, &args.groups, &args.network).await?;
    let security_groups = client.describe_security_groups(&ids, &[]).await?;
    if output == Output::Json {
        return print_json(security_groups);
    }
    let names = sg_rules::peer_names(client).await?;
    for (index, group) in security_groups.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        print_one(group)?;
        // The counters come with the rules only.
        let of_group = [filter("group-id", &group.security_group_id)];
        let rules = client.describe_rules(&of_group).await?;
        output::line("")?;
        sg_rules::print(&rules, &names, false)?;
    }
    Ok(())
}

async fn rules(client: &mut Client, output: Output, args: RulesArgs) -> Result<(), Failure> {
    let mut filters = args.filter;
    let ids = group_ids(client, &args.groups, &args.network).await?;
    if !ids.is_empty() {
        filters.push(Filter {
            name: "group-id".to_owned(),
            values: ids,
        });
    }
    let rules = client.describe_rules(&filters).await?;
    match output {
        Output::Json => output::json(
            "DescribeSecurityGroupRulesResponse",
            &DescribeSecurityGroupRulesResponse {
                rules,
                next_token: String::new(),
            },
        ),
        Output::Table if rules.is_empty() => {
            eprintln!("No rules. Allow something with `hearth sg authorize GROUP`.");
            Ok(())
        }
        Output::Table => {
            let names = sg_rules::peer_names(client).await?;
            sg_rules::print(&rules, &names, true)
        }
    }
}

async fn authorize(
    client: &mut Client,
    output: Output,
    args: AuthorizeArgs,
) -> Result<(), Failure> {
    let group = group_id(client, &args.group, &args.network).await?;
    let asked = args.rules.read(client, &group).await?;
    let description = args.description.unwrap_or_default();
    let mut permissions = asked.permissions;
    for permission in &mut permissions {
        permission.description.clone_from(&description);
    }
    let request = AuthorizeSecurityGroupRequest {
        security_group_id: group,
        direction: asked.direction.into(),
        permissions,
        dry_run: false,
    };
    let answer = client.security_groups.authorize_security_group(request);
    let answer = answer.await.map_err(sg_rules::failed)?.into_inner();
    match output {
        Output::Json => output::json("AuthorizeSecurityGroupResponse", &answer),
        Output::Table => {
            let names = sg_rules::peer_names(client).await?;
            sg_rules::print(&answer.rules, &names, false)
        }
    }
}

async fn revoke(client: &mut Client, output: Output, args: RevokeArgs) -> Result<(), Failure> {
    let group = group_id(client, &args.group, &args.network).await?;
    let mut request = RevokeSecurityGroupRequest {
        security_group_id: group.clone(),
        direction: Direction::Unspecified.into(),
        rule_ids: args.ids,
        keep_connections: args.keep.keep_connections,
        ..Default::default()
    };
    if request.rule_ids.is_empty() {
        let asked = args.rules.read(client, &group).await?;
        request.direction = asked.direction.into();
        request.permissions = asked.permissions;
    }
    let answer = client.security_groups.revoke_security_group(request);
    let answer = answer.await.map_err(sg_rules::failed)?.into_inner();
    match output {
        Output::Json => output::json("RevokeSecurityGroupResponse", &answer),
        Output::Table => {
            tell_cut(answer.connections_cut);
            Ok(())
        }
    }
}

async fn replace(client: &mut Client, output: Output, args: ReplaceArgs) -> Result<(), Failure> {
    let request = ReplaceInstanceSecurityGroupsRequest {
        instance_id: client.instance_id(&args.instance).await?,
        security_group_ids: group_ids(client, &args.groups, &args.network).await?,
        keep_connections: args.keep.keep_connections,
    };
    let answer = client
        .security_groups
        .replace_instance_security_groups(request);
    let answer = answer.await.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("ReplaceInstanceSecurityGroupsResponse", &answer),
        Output::Table => {
            tell_cut(answer.connections_cut);
            Ok(())
        }
    }
}

async fn delete(client: &mut Client, args: GroupsArgs) -> Result<(), Failure> {
    for security_group_id in group_ids(client, &args.groups, &args.network).await? {
        let request = DeleteSecurityGroupRequest { security_group_id };
        let answer = client.security_groups.delete_security_group(request).await;
        answer.map_err(failed)?;
    }
    Ok(())
}

fn tell_cut(count: u64) {
    match count {
        0 => {}
        1 => eprintln!("1 connection was cut."),
        count => eprintln!("{count} connections were cut."),
    }
}

async fn group_id(
    client: &mut Client,
    id_or_name: &str,
    network: &NetworkArgs,
) -> Result<String, Failure> {
    let network = client.given_network_id(network.network.as_deref()).await?;
    client.security_group_id(id_or_name, &network).await
}

async fn group_ids(
    client: &mut Client,
    ids_or_names: &[String],
    network: &NetworkArgs,
) -> Result<Vec<String>, Failure> {
    let network = client.given_network_id(network.network.as_deref()).await?;
    let mut ids = Vec::with_capacity(ids_or_names.len());
    for id_or_name in ids_or_names {
        ids.push(client.security_group_id(id_or_name, &network).await?);
    }
    Ok(ids)
}

fn print_json(security_groups: Vec<SecurityGroup>) -> Result<(), Failure> {
    output::json(
        "DescribeSecurityGroupsResponse",
        &DescribeSecurityGroupsResponse {
            security_groups,
            next_token: String::new(),
        },
    )
}

fn count(group: &SecurityGroup, direction: Direction) -> String {
    let rules = group.rules.iter();
    rules
        .filter(|rule| rule.direction() == direction)
        .count()
        .to_string()
}

fn print_groups(groups: &[SecurityGroup]) -> Result<(), Failure> {
    let row = |group: &SecurityGroup| {
        vec![
            group.security_group_id.clone(),
            group.name.clone(),
            group.network_id.clone(),
            count(group, Direction::Ingress),
            count(group, Direction::Egress),
            group.description.clone(),
            human::age(group.create_time.as_ref()),
        ]
    };
    let header = [
        "GROUP",
        "NAME",
        "NETWORK",
        "IN",
        "OUT",
        "DESCRIPTION",
        "AGE",
    ];
    output::table(&header, &[3, 4, 6], groups.iter().map(row).collect())
}

fn print_one(group: &SecurityGroup) -> Result<(), Failure> {
    let tags: Vec<String> = group
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    output::fields(vec![
        ("Group", group.security_group_id.clone()),
        ("Name", group.name.clone()),
        ("Network", group.network_id.clone()),
        ("Description", group.description.clone()),
        ("Created", human::time_and_age(group.create_time.as_ref())),
        ("Tags", tags.join("\n")),
        ("Owner", group.owner_id.clone()),
    ])
}
