//! `hearth sg` and `hearth prefix-list` against a real agent.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hearth_tests::{Hearth, needs_kvm, needs_network, networks::in_network, programs};
use serde_json::Value;

/// What a run of the program printed; it has to end with this code.
fn hearth(agent: &Hearth, words: &str, code: i32) -> Result<(String, String)> {
    let output = Command::new(programs::built("hearth")?)
        .env("HEARTH_SOCKET", agent.socket())
        .args(words.split(' '))
        .stdin(Stdio::null())
        .output()?;
    let (stdout, stderr) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    let ended = output.status.code();
    ensure!(ended == Some(code), "`{words}`: {ended:?} {stdout}{stderr}");
    Ok((stdout, stderr))
}

fn json(agent: &Hearth, words: &str) -> Result<Value> {
    let (stdout, _) = hearth(agent, &format!("--output json {words}"), 0)?;
    serde_json::from_str(&stdout).with_context(|| format!("`{words}` printed {stdout}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_made_opened_shown_and_deleted_by_name() -> Result<()> {
    needs_network!();
    let agent = Hearth::start_with_namespace().await?;
    for (range, name) in [("10.20.0.0/16", "prod"), ("10.21.0.0/16", "lab")] {
        let named = |request: &mut hearth_proto::v1::CreateNetworkRequest| {
            request.name = name.to_owned();
            request.ipv6_range = "auto".to_owned();
        };
        agent.network(range, named).await?;
    }
    hearth(
        &agent,
        "sg create web --network prod --description the+front",
        0,
    )?;
    hearth(&agent, "sg create db --network prod", 0)?;
    // Ports, families and peers in all combinations.
    let (table, _) = hearth(&agent, "sg authorize web --tcp 80,443 --from any", 0)?;
    ensure!(table.lines().count() == 1 + 4, "{table}");
    let (table, _) = hearth(&agent, "sg authorize web --icmp 8 --icmpv6 --from any", 0)?;
    ensure!(table.lines().count() == 1 + 2, "{table}");
    let words = "sg authorize db --tcp 5432 --from web,192.0.2.7 --description clients";
    let answer = json(&agent, words)?;
    let rules = answer["rules"].as_array().context("no rules")?;
    ensure!(rules.len() == 2, "{answer}");
    ensure!(
        rules[1]["permission"]["cidrIpv4"] == "192.0.2.7/32",
        "{answer}"
    );
    ensure!(
        rules[1]["permission"]["description"] == "clients",
        "{answer}"
    );
    let (table, _) = hearth(&agent, "sg show db", 0)?;
    ensure!(table.contains("(web)") && table.contains("5432"), "{table}");
    let (table, _) = hearth(&agent, "sg list --network prod", 0)?;
    ensure!(table.lines().count() == 1 + 3, "{table}");
    ensure!(table.contains("the+front"), "{table}");

    // What is wrong is one line, with what to do next.
    let (_, error) = hearth(&agent, "sg show default", 1)?;
    ensure!(error.contains("--network"), "{error}");
    hearth(&agent, "sg show default --network lab", 0)?;
    let (_, error) = hearth(&agent, "sg authorize web --tcp 80 --from 10.1.2.3/8", 1)?;
    ensure!(error.contains("10.0.0.0/8"), "{error}");
    let (_, error) = hearth(&agent, "sg authorize web --tcp 80 --from nobody", 1)?;
    ensure!(
        error.contains("nobody") && error.contains("hint: "),
        "{error}"
    );
    let (_, error) = hearth(&agent, "sg authorize web --tcp 80", 1)?;
    ensure!(error.contains("--from"), "{error}");
    let (_, error) = hearth(&agent, "sg delete web", 1)?;
    ensure!(error.contains("DependencyViolation"), "{error}");

    hearth(
        &agent,
        "prefix-list create offices --entry 192.0.2.0/24=here --max-entries 2",
        0,
    )?;
    hearth(&agent, "sg authorize db --udp 53 --to offices", 0)?;
    hearth(
        &agent,
        "prefix-list modify offices --add 198.51.100.0/24",
        0,
    )?;
    let (shown, _) = hearth(&agent, "prefix-list show offices", 0)?;
    ensure!(shown.contains("192.0.2.0/24  here"), "{shown}");
    let (_, error) = hearth(&agent, "prefix-list delete offices", 1)?;
    ensure!(error.contains("DependencyViolation"), "{error}");
    hearth(&agent, "sg revoke db --udp 53 --to offices", 0)?;
    hearth(&agent, "prefix-list delete offices", 0)?;

    hearth(&agent, "sg revoke db --tcp 5432 --from web", 0)?;
    let rules = json(&agent, "sg rules db --filter direction=ingress")?;
    let left = rules["rules"].as_array().context("no rules")?;
    ensure!(left.len() == 1, "{rules}");
    let id = left[0]["ruleId"].as_str().context("no id")?;
    hearth(&agent, &format!("sg revoke db --rule {id}"), 0)?;
    hearth(&agent, "sg delete web db", 0)?;
    agent.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_ends_with_0_or_1() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let agent = Hearth::start_with_namespace().await?;
    let network = agent.network("10.20.0.0/16", |_| {}).await?;
    let web = agent.group(&network, "web").await?;
    let probe = agent.probe(in_network(&network)).await?;
    let id = probe.guest.id.clone();
    hearth(&agent, &format!("sg replace {id} web"), 0)?;
    let seen = probe.guest.interface().await?.security_group_ids;
    ensure!(seen == [web.security_group_id.clone()], "{seen:?}");
    let out = format!("sg explain --from {id} --to 192.0.2.1 --port 443");
    let (steps, _) = hearth(&agent, &out, 0)?;
    ensure!(
        steps.contains("egress of eni-") && steps.contains("allowed"),
        "{steps}"
    );
    let into = format!("sg explain --from 192.0.2.1 --to {id} --port 443");
    let (_, error) = hearth(&agent, &into, 1)?;
    ensure!(error.contains("ingress of eni-"), "{error}");
    hearth(&agent, "sg authorize web --tcp 443 --from 192.0.2.0/24", 0)?;
    let (steps, _) = hearth(&agent, &into, 0)?;
    ensure!(steps.contains("in tcp 443 with 192.0.2.0/24"), "{steps}");
    let ping = format!("sg explain --from 192.0.2.1 --to {id} --protocol icmp");
    hearth(&agent, &ping, 1)?;
    let answer = json(&agent, &into)?;
    ensure!(answer["allowed"] == true, "{answer}");
    drop(probe);
    agent.finish().await
}
