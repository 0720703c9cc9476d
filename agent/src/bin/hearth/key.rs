//! `hearth key …`.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CreateKeyPairRequest, DeleteKeyPairRequest, DescribeKeyPairsRequest, DescribeKeyPairsResponse,
    Filter, ImportKeyPairRequest, KeyPair, Tag,
};

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::{parse_filter, parse_tag},
    human,
    output::{self, Output},
    pages::all_pages,
};

/// SSH keys for instances.
#[derive(Subcommand)]
pub enum KeyCommand {
    /// Make a key pair; its private key goes into a new file, or to standard output.
    Create(CreateArgs),
    /// Take a public key that you have already.
    Import(ImportArgs),
    /// List key pairs.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Delete key pairs. Instances that were launched with them keep them.
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

#[derive(Args)]
pub struct CreateArgs {
    /// The key pair's name.
    name: String,
    /// The private key's file, which must not be there yet; `-` for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The key pair's name.
    name: String,
    /// The public key's file, such as ~/.ssh/id_ed25519.pub.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A tag; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    tag: Vec<Tag>,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: key-name, key-pair-id, fingerprint, owner-id, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
pub struct DeleteArgs {
    /// The key pairs' names or ids.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: KeyCommand,
) -> Result<(), Failure> {
    match command {
        KeyCommand::Create(args) => create(client, output, args).await,
        KeyCommand::Import(args) => import(client, output, args).await,
        KeyCommand::List(args) => list(client, output, args).await,
        KeyCommand::Delete(args) => delete(client, args).await,
    }
}

fn failed(status: tonic::Status) -> Failure {
    rpc_with_flags(
        status,
        &flags([
            ("key_name", "NAME"),
            ("key_pair_id", "KEY"),
            ("public_key", "FILE"),
            ("tags", "--tag"),
        ]),
    )
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let to_file = args.file != Path::new("-");
    // Before the key is made: there is no second chance to get its private half.
    let mut file = if to_file {
        Some(new_private_file(&args.file)?)
    } else {
        None
    };
    let request = CreateKeyPairRequest {
        key_name: args.name,
        tags: args.tag,
    };
    let answer = match client.keys.create_key_pair(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            if to_file {
                let _ = fs::remove_file(&args.file);
            }
            return Err(failed(status));
        }
    };
    if let Some(file) = &mut file {
        let written = file
            .write_all(answer.private_key.as_bytes())
            .and_then(|()| file.sync_all());
        written.map_err(|error| {
            Failure::new(format!("--file {}: {error}", args.file.display()))
                .hint("the private key is lost; `hearth key delete` it and make another")
        })?;
    }
    match output {
        Output::Json => output::json("CreateKeyPairResponse", &answer),
        Output::Table if to_file => print_keys(answer.key_pair.as_slice()),
        Output::Table => output::bytes(answer.private_key.as_bytes()),
    }
}

/// A new file that nobody else may read.
fn new_private_file(path: &Path) -> Result<File, Failure> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::new(format!("--file {}: {error}", path.display())))
}

async fn import(client: &mut Client, output: Output, args: ImportArgs) -> Result<(), Failure> {
    let public_key = fs::read_to_string(&args.file)
        .map_err(|error| Failure::new(format!("{}: {error}", args.file.display())))?;
    let request = ImportKeyPairRequest {
        key_name: args.name,
        public_key: public_key.trim_end().to_owned(),
        tags: args.tag,
    };
    let answer = client.keys.import_key_pair(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("ImportKeyPairResponse", &answer),
        Output::Table => print_keys(answer.key_pair.as_slice()),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let key_pairs = all_pages(async |page| {
        let request = DescribeKeyPairsRequest {
            filters: args.filter.clone(),
            page,
            ..Default::default()
        };
        let answer = client.keys.describe_key_pairs(request).await;
        let answer = answer.map_err(failed)?.into_inner();
        Ok((answer.key_pairs, answer.next_token))
    })
    .await?;
    match output {
        Output::Json => output::json(
            "DescribeKeyPairsResponse",
            &DescribeKeyPairsResponse {
                key_pairs,
                next_token: String::new(),
            },
        ),
        Output::Table if key_pairs.is_empty() => {
            eprintln!("No key pairs. Make one with `hearth key create NAME --file FILE`.");
            Ok(())
        }
        Output::Table => print_keys(&key_pairs),
    }
}

async fn delete(client: &mut Client, args: DeleteArgs) -> Result<(), Failure> {
    for key in args.keys {
        let (key_pair_id, key_name) = if key.starts_with("key-") {
            (key, String::new())
        } else {
            (String::new(), key)
        };
        let request = DeleteKeyPairRequest {
            key_name,
            key_pair_id,
        };
        client.keys.delete_key_pair(request).await.map_err(failed)?;
    }
    Ok(())
}

fn print_keys(keys: &[KeyPair]) -> Result<(), Failure> {
    let header = ["KEY", "NAME", "TYPE", "FINGERPRINT", "AGE"];
    let row = |key: &KeyPair| {
        vec![
            key.key_pair_id.clone(),
            key.key_name.clone(),
            key.key_type.clone(),
            key.fingerprint.clone(),
            human::age(key.create_time.as_ref()),
        ]
    };
    output::table(&header, &[4], keys.iter().map(row).collect())
}
