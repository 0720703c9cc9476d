//! `hearth prefix-list …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CreatePrefixListRequest, DeletePrefixListRequest, DescribePrefixListsResponse, Filter,
    ModifyPrefixListRequest, PrefixList, PrefixListEntry,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::parse_filter,
    labels::LabelArgs,
    output::{self, Output},
    sg::KeepArgs,
};

/// Named lists of address blocks that rules of security groups can name.
#[derive(Subcommand)]
pub enum PrefixListCommand {
    /// Make a list.
    Create(CreateArgs),
    /// List them.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show everything about lists, with their entries.
    Show(ListsArgs),
    /// Add and remove entries; rules that name the list follow at once.
    Modify(ModifyArgs),
    /// Delete lists that no rule names.
    #[command(visible_alias = "rm")]
    Delete(ListsArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// 1 to 255 characters.
    name: String,
    /// A block, with words for people if wanted; may be repeated.
    #[arg(long, value_name = "CIDR[=WORDS]", value_parser = parse_entry)]
    entry: Vec<PrefixListEntry>,
    /// IPv4 or IPv6; by default the family of the first entry, else IPv4.
    #[arg(long, value_name = "FAMILY")]
    family: Option<String>,
    /// How many entries it may get, which is what it counts for as rules; by default as many as it
    /// has.
    #[arg(long, value_name = "COUNT")]
    max_entries: Option<u32>,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: prefix-list-id, name, owner-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct ListsArgs {
    /// The lists, by id or name.
    #[arg(required = true, value_name = "LIST")]
    lists: Vec<String>,
}

#[derive(Args)]
#[group(id = "changes", required = true, multiple = true, args = ["add", "remove", "rename"])]
pub struct ModifyArgs {
    /// The list, by id or name.
    #[arg(value_name = "LIST")]
    list: String,
    /// A block to add, with words for people if wanted; may be repeated.
    #[arg(long, value_name = "CIDR[=WORDS]", value_parser = parse_entry)]
    add: Vec<PrefixListEntry>,
    /// A block to remove; may be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    remove: Vec<String>,
    /// The list's new name.
    #[arg(long, value_name = "NAME")]
    rename: Option<String>,
    /// Only if the list has this version.
    #[arg(
        long = "if-version",
        value_name = "VERSION",
        default_value_t = 0,
        hide_default_value = true
    )]
    version: u64,
    #[command(flatten)]
    keep: KeepArgs,
}

/// Reads `CIDR` or `CIDR=WORDS`.
fn parse_entry(text: &str) -> Result<PrefixListEntry, String> {
    let (cidr, description) = text.split_once('=').unwrap_or((text, ""));
    if cidr.is_empty() {
        return Err("expected CIDR or CIDR=WORDS".to_owned());
    }
    Ok(PrefixListEntry {
        cidr: cidr.to_owned(),
        description: description.to_owned(),
    })
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: PrefixListCommand,
) -> Result<(), Failure> {
    match command {
        PrefixListCommand::Create(args) => create(client, output, args).await,
        PrefixListCommand::List(args) => list(client, output, args).await,
        PrefixListCommand::Show(args) => show(client, output, args).await,
        PrefixListCommand::Modify(args) => modify(client, output, args).await,
        PrefixListCommand::Delete(args) => delete(client, args).await,
    }
}

fn failed(status: Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("prefix_list_ids", "LIST"),
            ("prefix_list_id", "LIST"),
            ("entries", "--entry"),
            ("add_entries", "--add"),
            ("remove_cidrs", "--remove"),
            ("current_version", "--if-version"),
            ("address_family", "--family"),
            ("max_entries", "--max-entries"),
            ("name", "NAME"),
            ("tags", "--tag"),
            ("client_token", "--client-token"),
        ]),
    )
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let first_is_ipv6 = args.entry.first().is_some_and(|it| it.cidr.contains(':'));
    let request = CreatePrefixListRequest {
        name: args.name,
        address_family: args.family.unwrap_or_else(|| {
            let family = if first_is_ipv6 { "IPv6" } else { "IPv4" };
            family.to_owned()
        }),
        max_entries: args.max_entries.unwrap_or(0),
        entries: args.entry,
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
    };
    let answer = client.security_groups.create_prefix_list(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CreatePrefixListResponse", &answer),
        Output::Table => print_lists(answer.prefix_list.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let prefix_lists = client.describe_prefix_lists(&[], &args.filter).await?;
    match output {
        Output::Json => print_json(prefix_lists),
        Output::Table if prefix_lists.is_empty() => {
            eprintln!(
                "No prefix lists. Make one with `hearth prefix-list create NAME --entry CIDR`."
            );
            Ok(())
        }
        Output::Table => print_lists(&prefix_lists),
    }
}

async fn show(client: &mut Client, output: Output, args: ListsArgs) -> Result<(), Failure> {
    let ids = ids(client, &args.lists).await?;
    let prefix_lists = client.describe_prefix_lists(&ids, &[]).await?;
    if output == Output::Json {
        return print_json(prefix_lists);
    }
    for (index, list) in prefix_lists.iter().enumerate() {
        if index > 0 {
            output::line("")?;
        }
        print_one(list)?;
    }
    Ok(())
}

async fn modify(client: &mut Client, output: Output, args: ModifyArgs) -> Result<(), Failure> {
    let request = ModifyPrefixListRequest {
        prefix_list_id: client.prefix_list_id(&args.list).await?,
        current_version: args.version,
        add_entries: args.add,
        remove_cidrs: args.remove,
        name: args.rename,
        keep_connections: args.keep.keep_connections,
    };
    let answer = client.security_groups.modify_prefix_list(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("ModifyPrefixListResponse", &answer),
        Output::Table => print_lists(answer.prefix_list.as_slice()),
    }
}

async fn delete(client: &mut Client, args: ListsArgs) -> Result<(), Failure> {
    for prefix_list_id in ids(client, &args.lists).await? {
        let request = DeletePrefixListRequest { prefix_list_id };
        let answer = client.security_groups.delete_prefix_list(request).await;
        answer.map_err(failed)?;
    }
    Ok(())
}

async fn ids(client: &mut Client, ids_or_names: &[String]) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::with_capacity(ids_or_names.len());
    for id_or_name in ids_or_names {
        ids.push(client.prefix_list_id(id_or_name).await?);
    }
    Ok(ids)
}

fn print_json(prefix_lists: Vec<PrefixList>) -> Result<(), Failure> {
    output::json(
        "DescribePrefixListsResponse",
        &DescribePrefixListsResponse {
            prefix_lists,
            next_token: String::new(),
        },
    )
}

fn print_lists(lists: &[PrefixList]) -> Result<(), Failure> {
    let row = |list: &PrefixList| {
        vec![
            list.prefix_list_id.clone(),
            list.name.clone(),
            list.address_family.clone(),
            list.entries.len().to_string(),
            list.max_entries.to_string(),
            list.version.to_string(),
        ]
    };
    let header = ["LIST", "NAME", "FAMILY", "ENTRIES", "MAX", "VERSION"];
    output::table(&header, &[3, 4, 5], lists.iter().map(row).collect())
}

fn print_one(list: &PrefixList) -> Result<(), Failure> {
    let entries: Vec<String> = list
        .entries
        .iter()
        .map(|entry| match entry.description.as_str() {
            "" => entry.cidr.clone(),
            words => format!("{}  {words}", entry.cidr),
        })
        .collect();
    let tags: Vec<String> = list
        .tags
        .iter()
        .map(|tag| format!("{}={}", tag.key, tag.value))
        .collect();
    output::fields(vec![
        ("List", list.prefix_list_id.clone()),
        ("Name", list.name.clone()),
        ("Family", list.address_family.clone()),
        ("Version", list.version.to_string()),
        ("Most entries", list.max_entries.to_string()),
        ("Entries", entries.join("\n")),
        ("Tags", tags.join("\n")),
        ("Owner", list.owner_id.clone()),
    ])
}
