//! `hearth flow-log …`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand, ValueEnum};
use hearth_proto::v1::{
    CreateFlowLogsRequest, DeleteFlowLogsRequest, DescribeFlowLogsRequest,
    DescribeFlowLogsResponse, Filter, FlowLog, FlowLogRecord, FlowLogTrafficType,
    ReadFlowLogRequest,
};
use tonic::Status;

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    filters::{filter, parse_filter},
    human,
    labels::LabelArgs,
    output::{self, Output},
    pages::all_pages,
};

/// Who talked to whom through interfaces, and whether it was let through.
#[derive(Subcommand)]
pub enum FlowLogCommand {
    /// Begin flow logs of interfaces, or of all that are and will be in a network.
    Create(CreateArgs),
    /// List flow logs.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Print the records of a flow log, a line each.
    Show(ShowArgs),
    /// End flow logs. Their records are gone.
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
}

/// Which packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Traffic {
    /// What was let through.
    Accept,
    /// What was refused.
    Reject,
    #[default]
    All,
}

#[derive(Args)]
#[command(after_help = "\
Examples: hearth flow-log create web --traffic reject
          hearth flow-log create --network prod --interval 60")]
pub struct CreateArgs {
    /// Instances (id or `Name`; all their interfaces), or interfaces' ids.
    #[arg(value_name = "INSTANCE|INTERFACE", required_unless_present = "network")]
    of: Vec<String>,
    /// A network (id or name): all interfaces in it, also later ones; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Which packets.
    #[arg(long, value_enum, default_value_t)]
    traffic: Traffic,
    /// Seconds that a record is about, at most: 10, 60 or 600.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    interval: u32,
    #[command(flatten)]
    labels: LabelArgs,
}

#[derive(Args)]
pub struct ListArgs {
    /// Only what matches: flow-log-id, resource-id, traffic-type, tag:KEY, …
    #[arg(long, value_name = "NAME=VALUE[,VALUE…]", value_parser = parse_filter)]
    filter: Vec<Filter>,
}

#[derive(Args)]
#[command(after_help = "\
A line: version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes \
start end action log-status flow-direction; - where a record has no data.")]
pub struct ShowArgs {
    /// Its id; or the id of the interface or network that it is of.
    #[arg(value_name = "FLOW-LOG|INTERFACE|NETWORK")]
    flow_log: String,
    /// Only of this interface, which may be gone by now.
    #[arg(long, value_name = "INTERFACE")]
    interface: Option<String>,
    /// Only records of the last so many seconds, minutes, hours or days: 30s, 10m, 2h, 7d.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// Go on with new records as they are written.
    #[arg(long, short)]
    follow: bool,
}

#[derive(Args)]
pub struct DeleteArgs {
    /// Their ids.
    #[arg(required = true, value_name = "FLOW-LOG")]
    ids: Vec<String>,
}

pub async fn dispatch(
    client: &mut Client,
    output: Output,
    command: FlowLogCommand,
) -> Result<(), Failure> {
    match command {
        FlowLogCommand::Create(args) => create(client, output, args).await,
        FlowLogCommand::List(args) => list(client, output, args).await,
        FlowLogCommand::Show(args) => show(client, output, args).await,
        FlowLogCommand::Delete(args) => delete(client, args).await,
    }
}

fn failed(status: Status) -> Failure {
    let flags = flags([
        ("resource_ids", "INSTANCE|INTERFACE"),
        ("max_aggregation_interval", "--interval"),
        ("traffic_type", "--traffic"),
        ("tags", "--tag"),
        ("client_token", "--client-token"),
        ("flow_log_ids", "FLOW-LOG"),
        ("flow_log_id", "FLOW-LOG"),
        ("network_interface_id", "--interface"),
        ("start_time", "--since"),
    ]);
    rpc_with_flags(status, &flags)
}

async fn create(client: &mut Client, output: Output, args: CreateArgs) -> Result<(), Failure> {
    let mut resource_ids = Vec::new();
    for of in &args.of {
        if of.starts_with("eni-") {
            resource_ids.push(of.clone());
            continue;
        }
        let id = client.instance_id(of).await?;
        let filters = [filter("instance-id", &id)];
        let interfaces = client.describe_network_interfaces(&filters).await?;
        if interfaces.is_empty() {
            return Err(Failure::new(format!("{id} has no interface in a network")));
        }
        resource_ids.extend(interfaces.into_iter().map(|it| it.network_interface_id));
    }
    for network in &args.network {
        resource_ids.push(client.given_network_id(Some(network)).await?);
    }
    let traffic = match args.traffic {
        Traffic::Accept => FlowLogTrafficType::Accept,
        Traffic::Reject => FlowLogTrafficType::Reject,
        Traffic::All => FlowLogTrafficType::All,
    };
    let request = CreateFlowLogsRequest {
        resource_ids,
        traffic_type: traffic.into(),
        max_aggregation_interval: args.interval,
        tags: args.labels.tag,
        client_token: args.labels.client_token.unwrap_or_default(),
    };
    let answer = client.flow_logs.create_flow_logs(request).await;
    let answer = answer.map_err(failed)?.into_inner();
    match output {
        Output::Json => output::json("CreateFlowLogsResponse", &answer),
        Output::Table => print_logs(&answer.flow_logs),
    }
}

async fn list(client: &mut Client, output: Output, args: ListArgs) -> Result<(), Failure> {
    let flow_logs = client.describe_flow_logs(args.filter).await?;
    if output == Output::Json {
        let answer = DescribeFlowLogsResponse {
            flow_logs,
            next_token: String::new(),
        };
        return output::json("DescribeFlowLogsResponse", &answer);
    }
    if flow_logs.is_empty() {
        eprintln!("No flow logs. Begin one with `hearth flow-log create INSTANCE`.");
        return Ok(());
    }
    print_logs(&flow_logs)
}

async fn show(client: &mut Client, output: Output, args: ShowArgs) -> Result<(), Failure> {
    let flow_log_id = client.flow_log_id(args.flow_log).await?;
    let start_time = args.since.map(|since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let start = now.unwrap_or_default().saturating_sub(since);
        prost_types::Timestamp {
            seconds: i64::try_from(start.as_secs()).unwrap_or_default(),
            nanos: 0,
        }
    });
    let request = ReadFlowLogRequest {
        flow_log_id,
        network_interface_id: args.interface.unwrap_or_default(),
        start_time,
        follow: args.follow,
    };
    let stream = client.flow_logs.read_flow_log(request).await;
    let mut stream = stream.map_err(failed)?.into_inner();
    while let Some(answer) = stream.message().await.map_err(failed)? {
        for record in answer.records {
            match output {
                Output::Json => output::json_line("FlowLogRecord", &record)?,
                Output::Table => output::line(&line(&record))?,
            }
        }
    }
    Ok(())
}

fn line(record: &FlowLogRecord) -> String {
    let named = format!(
        "{} {} {}",
        record.version, record.account_id, record.network_interface_id
    );
    let (start, end, status) = (record.start, record.end, &record.log_status);
    if status != "OK" {
        return format!("{named} - - - - - - - {start} {end} - {status} -");
    }
    format!(
        "{named} {} {} {} {} {} {} {} {start} {end} {} {status} {}",
        record.source_address,
        record.destination_address,
        record.source_port,
        record.destination_port,
        record.protocol,
        record.packets,
        record.bytes,
        record.action,
        record.flow_direction,
    )
}

async fn delete(client: &mut Client, args: DeleteArgs) -> Result<(), Failure> {
    let request = DeleteFlowLogsRequest {
        flow_log_ids: args.ids.clone(),
    };
    let answer = client.flow_logs.delete_flow_logs(request).await;
    answer.map_err(failed)?;
    for id in args.ids {
        output::line(&format!("{id}: deleted"))?;
    }
    Ok(())
}

fn print_logs(logs: &[FlowLog]) -> Result<(), Failure> {
    let row = |it: &FlowLog| {
        vec![
            it.flow_log_id.clone(),
            it.resource_id.clone(),
            human::enum_word(it.traffic_type().as_str_name(), "FLOW_LOG_TRAFFIC_TYPE_"),
            format!("{} s", it.max_aggregation_interval),
            human::age(it.create_time.as_ref()),
        ]
    };
    let header = ["FLOW LOG", "OF", "TRAFFIC", "INTERVAL", "AGE"];
    output::table(&header, &[3, 4], logs.iter().map(row).collect())
}

/// `30s`, `10m`, `2h`, `7d`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];
    let found = units
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let seconds = found.and_then(|(number, unit)| number.parse::<u64>().ok()?.checked_mul(*unit));
    let seconds = seconds.ok_or("expected a number and s, m, h or d, such as 10m")?;
    Ok(Duration::from_secs(seconds))
}

impl Client {
    async fn describe_flow_logs(&mut self, filters: Vec<Filter>) -> Result<Vec<FlowLog>, Failure> {
        all_pages(async |page| {
            let request = DescribeFlowLogsRequest {
                filters: filters.clone(),
                page,
                ..Default::default()
            };
            let answer = self.flow_logs.describe_flow_logs(request).await;
            let answer = answer.map_err(failed)?.into_inner();
            Ok((answer.flow_logs, answer.next_token))
        })
        .await
    }

    /// A flow log by its id, or the only one of a resource.
    async fn flow_log_id(&mut self, given: String) -> Result<String, Failure> {
        if !given.starts_with("eni-") && !given.starts_with("net-") {
            return Ok(given);
        }
        let logs = self
            .describe_flow_logs(vec![filter("resource-id", &given)])
            .await?;
        match logs.as_slice() {
            [log] => Ok(log.flow_log_id.clone()),
            [] => Err(Failure::new(format!("{given} has no flow log of its own"))
                .hint("see what there is with `hearth flow-log list`")),
            _ => {
                let ids: Vec<&str> = logs.iter().map(|it| it.flow_log_id.as_str()).collect();
                let ids = ids.join(", ");
                Err(
                    Failure::new(format!("{given} has several flow logs: {ids}"))
                        .hint("name one of them"),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_have_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "10", "m", "-1m", "1w", "99999999999999999999d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
