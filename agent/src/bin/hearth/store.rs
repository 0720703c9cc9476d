//! `hearth store …`.

use clap::{Args, Subcommand};
use hearth_proto::v1::{
    CheckStoreRequest, DescribeUsageRequest, StoreFinding, StoreReport,
    check_store_response::Message,
};

use crate::{
    client::Client,
    failure::{Failure, flags, rpc, rpc_with_flags},
    human,
    output::{self, Output},
    upload::progress_bar,
};

/// The volume store as a whole.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Look for damage and for lost space.
    Check(CheckArgs),
    /// Show what volumes, snapshots, images and accounts take on the host's disk.
    Usage(UsageArgs),
}

#[derive(Args)]
pub struct CheckArgs {
    /// Repair what can be: lost space and refcounts. Contents are never changed.
    #[arg(long)]
    repair: bool,
    /// Do not compare layers with their checksums, which reads all of them.
    #[arg(long)]
    skip_checksums: bool,
}

#[derive(Args)]
pub struct UsageArgs {
    /// Only these volumes, snapshots and images (ids); all when none is given.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Only the accounts and the totals.
    #[arg(long, conflicts_with = "ids")]
    totals: bool,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: StoreCommand,
) -> Result<(), Failure> {
    match command {
        StoreCommand::Check(args) => check(client, output, args).await,
        StoreCommand::Usage(args) => usage(client, output, args).await,
    }
}

async fn check(client: &mut Client, output: Output, args: CheckArgs) -> Result<(), Failure> {
    let request = CheckStoreRequest {
        repair: args.repair,
        skip_checksums: args.skip_checksums,
    };
    let report = wait_for_report(client, request).await?;
    match output {
        Output::Json => output::json("StoreReport", &report)?,
        Output::Table => print_report(&report)?,
    }
    outcome(&report, args.repair)
}

async fn wait_for_report(
    client: &mut Client,
    request: CheckStoreRequest,
) -> Result<StoreReport, Failure> {
    let answers = client.store.check_store(request).await.map_err(rpc)?;
    let mut answers = answers.into_inner();
    let bar = progress_bar(0);
    bar.set_message("checking");
    let report = loop {
        let answer = answers.message().await.map_err(rpc)?;
        match answer.and_then(|answer| answer.message) {
            Some(Message::Progress(progress)) => {
                bar.set_length(progress.bytes_total.max(progress.bytes_read));
                bar.set_position(progress.bytes_read);
            }
            Some(Message::Report(report)) => break report,
            None => return Err(Failure::new("the agent's stream ended early")),
        }
    };
    bar.finish_and_clear();
    Ok(report)
}

/// What the exit code says: failure, for as long as something is wrong.
fn outcome(report: &StoreReport, repaired: bool) -> Result<(), Failure> {
    let left = || report.findings.iter().filter(|finding| !finding.repaired);
    let damage = left().filter(|finding| finding.damage).count();
    match (damage, left().count()) {
        (0, 0) => Ok(()),
        (0, n) => {
            let failure = Failure::new(format!("{n} findings, none of them damage"));
            Err(match repaired {
                false => failure.hint("repair with `hearth store check --repair`"),
                true => failure.hint("what is listed as not repaired needs a look by hand"),
            })
        }
        (damage, _) => Err(
            Failure::new(format!("{damage} findings of damage to contents")).hint(
                "restore what is affected from a copy; all other volumes and snapshots are well",
            ),
        ),
    }
}

fn print_report(report: &StoreReport) -> Result<(), Failure> {
    output::line(&format!(
        "{} volumes, {} snapshots and images, {} layers; checksums of {} compared, {} have none yet",
        report.volumes,
        report.snapshots,
        report.layers,
        report.checksums_verified,
        report.checksums_missing
    ))?;
    for skipped in &report.skipped {
        output::line(&format!("{} is {}", skipped.volume_id, skipped.reason))?;
    }
    if report.findings.is_empty() {
        return output::line("nothing wrong");
    }
    let row = |finding: &StoreFinding| {
        vec![
            human::enum_word(finding.kind().as_str_name(), "STORE_FINDING_KIND_"),
            match (finding.repaired, finding.damage) {
                (true, _) => "repaired",
                (false, true) => "DAMAGE",
                (false, false) => "not repaired",
            }
            .to_owned(),
            finding.file.clone(),
            match finding.lost_bytes {
                0 => "-".to_owned(),
                bytes => human::bytes(bytes),
            },
            finding.detail.clone(),
            match finding.affected_ids.is_empty() {
                true => "-".to_owned(),
                false => finding.affected_ids.join("\n"),
            },
        ]
    };
    let header = ["FINDING", "STATE", "FILE", "LOST", "WHAT", "AFFECTS"];
    output::table(&header, &[3], report.findings.iter().map(row).collect())
}

async fn usage(client: &mut Client, output: Output, args: UsageArgs) -> Result<(), Failure> {
    let request = DescribeUsageRequest {
        resource_ids: args.ids,
        totals_only: args.totals,
    };
    let flags = flags([("resource_ids", "ID")]);
    let answer = client
        .store
        .describe_usage(request)
        .await
        .map_err(|status| rpc_with_flags(status, &flags))?
        .into_inner();
    if output == Output::Json {
        return output::json("DescribeUsageResponse", &answer);
    }
    let mut rows: Vec<Vec<String>> = answer
        .resources
        .iter()
        .map(|resource| {
            let owner = match resource.owner_id.is_empty() {
                true => "-",
                false => &resource.owner_id,
            };
            row(
                &resource.resource_id,
                owner,
                resource.own_bytes,
                resource.shared_bytes,
            )
        })
        .collect();
    rows.extend(answer.accounts.iter().map(|account| {
        row(
            "all of the account",
            &account.owner_id,
            account.own_bytes,
            account.shared_bytes,
        )
    }));
    output::table(&["ID", "OWNER", "OWN DATA", "SHARED DATA"], &[2, 3], rows)?;
    output::line(&format!(
        "{} in all, {} of it unused",
        human::bytes(answer.total_bytes),
        human::bytes(answer.unused_bytes)
    ))
}

fn row(id: &str, owner: &str, own: u64, shared: u64) -> Vec<String> {
    vec![
        id.to_owned(),
        owner.to_owned(),
        human::bytes(own),
        human::bytes(shared),
    ]
}
