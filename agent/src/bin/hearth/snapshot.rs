//! `hearth snapshot …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::ExportSnapshotRequest;

use crate::{
    client::Client,
    download::TargetArgs,
    failure::{Failure, flags, rpc_with_flags},
    output::Output,
};

/// Snapshots of volumes.
#[derive(Subcommand)]
pub enum SnapshotCommand {
    /// Write a snapshot into a file of its own.
    Export(ExportArgs),
}

#[derive(Args)]
pub struct ExportArgs {
    /// The snapshot's id.
    #[arg(value_name = "SNAPSHOT")]
    id: String,
    #[command(flatten)]
    target: TargetArgs,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: SnapshotCommand,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Export(args) => export(client, output, args).await,
    }
}

async fn export(client: &mut Client, output: Output, args: ExportArgs) -> Result<(), Failure> {
    let target = args.target.open()?;
    let request = ExportSnapshotRequest {
        snapshot_id: args.id,
        format: target.format().into(),
    };
    let flags = flags([("snapshot_id", "SNAPSHOT"), ("format", "--format")]);
    let failed = |status| rpc_with_flags(status, &flags);
    let answers = client
        .store
        .export_snapshot(request)
        .await
        .map_err(failed)?;
    target.receive(answers.into_inner()).await?.print(output)
}
