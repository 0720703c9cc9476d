//! `hearth sg explain`.

use std::net::IpAddr;

use clap::Args;
use hearth_proto::v1::{ExplainTrafficRequest, TrafficStep};

use crate::{
    client::Client,
    failure::{Failure, flags, rpc_with_flags},
    output::{self, Output},
    sg_rules,
};

#[derive(Args)]
#[command(after_help = "\
Examples:
  hearth sg explain --from 203.0.113.7 --to web-1 --port 443
  hearth sg explain --from web-1 --to db-1 --port 5432
  hearth sg explain --from web-1 --to 1.1.1.1 --protocol icmp")]
pub struct ExplainArgs {
    /// Who sends: an instance (id or name), an interface, or an address.
    #[arg(long, value_name = "WHO")]
    from: String,
    /// Who is to receive it.
    #[arg(long, value_name = "WHO")]
    to: String,
    /// The destination port, of tcp and udp.
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp, icmp, icmpv6, or a number.
    #[arg(long, default_value = "tcp")]
    protocol: String,
    /// The source port.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    source_port: u16,
    /// The type of icmp and icmpv6; an echo request by default.
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "port")]
    kind: Option<u8>,
    /// The code of icmp and icmpv6.
    #[arg(long, default_value_t = 0)]
    code: u8,
}

/// Prints the steps; fails when the packet does not pass.
pub async fn explain(
    client: &mut Client,
    output: Output,
    args: ExplainArgs,
) -> Result<(), Failure> {
    let echo = match args.protocol.as_str() {
        "icmp" | "1" => Some(8),
        "icmpv6" | "58" => Some(128),
        _ => None,
    };
    let port = match echo {
        Some(echo) => args.kind.unwrap_or(echo).into(),
        None => args.port.unwrap_or(0),
    };
    let request = ExplainTrafficRequest {
        from: end(client, args.from).await?,
        to: end(client, args.to).await?,
        protocol: args.protocol,
        port: port.into(),
        code: args.code.into(),
        source_port: args.source_port.into(),
    };
    let answer = client.security_groups.explain_traffic(request).await;
    let answer = answer
        .map_err(|status| {
            rpc_with_flags(
                status,
                &flags([
                    ("from", "--from"),
                    ("to", "--to"),
                    ("port", "--port"),
                    ("code", "--code"),
                    ("protocol", "--protocol"),
                    ("source_port", "--source-port"),
                ]),
            )
        })?
        .into_inner();
    match output {
        Output::Json => output::json("ExplainTrafficResponse", &answer)?,
        Output::Table => {
            print(&answer.steps)?;
            if answer.allowed {
                output::line("allowed")?;
            }
        }
    }
    if answer.allowed {
        return Ok(());
    }
    let stop = answer.steps.into_iter().find(|step| !step.passes);
    let stop = stop.unwrap_or_default();
    Err(Failure::new(format!(
        "not allowed: {}: {}",
        stop.point, stop.reason
    )))
}

/// Instances may be named.
async fn end(client: &mut Client, text: String) -> Result<String, Failure> {
    if text.starts_with("eni-") || text.parse::<IpAddr>().is_ok() {
        return Ok(text);
    }
    client.instance_id(&text).await
}

fn print(steps: &[TrafficStep]) -> Result<(), Failure> {
    let row = |step: &TrafficStep| {
        let rule = step.rule.as_ref();
        vec![
            step.point.clone(),
            if step.passes { "passes" } else { "stops" }.to_owned(),
            step.reason.clone(),
            rule.map(sg_rules::words).unwrap_or_default(),
        ]
    };
    let header = ["STEP", "PACKET", "WHY", "RULE"];
    output::table(&header, &[], steps.iter().map(row).collect())
}
