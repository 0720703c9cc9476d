//! Two agents in one network namespace: one has networks, and the other one leaves them alone.

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{CreateNetworkRequest, DeleteNetworkRequest, DescribeNetworksRequest};
use hearth_tests::{
    Guest, Hearth, Netns, needs_kvm, needs_network,
    networks::{in_network, left_on_the_host},
    programs,
};

fn rules(netns: &Netns) -> Result<String> {
    // Without what counters say.
    programs::output_of(netns.command("nft").args(["-s", "list", "ruleset"]))
}

/// Nothing changed since.
fn is_still(netns: &Netns, wanted: &(String, Vec<String>)) -> Result<()> {
    let (rules, left) = (rules(netns)?, left_on_the_host(netns)?);
    ensure!(left == wanted.1, "{left:?} instead of {:?}", wanted.1);
    ensure!(rules == wanted.0, "{rules}\ninstead of\n{}", wanted.0);
    Ok(())
}

/// Asks for a network and is refused, with nothing left of it.
async fn is_refused(hearth: &Hearth, why: &str) -> Result<()> {
    let request = CreateNetworkRequest {
        ipv4_range: "10.61.0.0/24".to_owned(),
        ..Default::default()
    };
    let mut client = hearth.networks();
    let refused = client.create_network(request).await;
    let error = refused.err().context("a second agent got a network")?;
    ensure!(error.code() == tonic::Code::Unavailable, "{error}");
    ensure!(error.message().contains(why), "{error}");
    let request = DescribeNetworksRequest::default();
    let networks = client.describe_networks(request).await?.into_inner();
    ensure!(networks.networks.is_empty(), "{networks:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_keeps_its_hands_off_the_networks_of_another() -> Result<()> {
    needs_kvm!();
    needs_network!();
    let mut first = Hearth::start_with_namespace().await?;
    let network = first.network("10.60.0.0/24", |_| {}).await?;
    let instance = first.probe(in_network(&network)).await?.guest.id.clone();
    let netns = first.netns()?.share()?;
    let wanted = (rules(&netns)?, left_on_the_host(&netns)?);
    let state = first.state_dir().display().to_string();
    ensure!(wanted.0.contains(&state), "whose is it? {}", wanted.0);

    // Without networks it starts and runs, and nothing happens to what is there.
    let mut second = Hearth::start_in(Some(netns.share()?)).await?;
    is_still(&netns, &wanted)?;
    is_refused(&second, "another agent (hearthd ").await?;
    is_still(&netns, &wanted)?;

    // Also while the first one is away: its guests' rules are in force.
    first.kill_agent()?;
    second.stop_agent()?;
    second.start_agent().await?;
    is_refused(&second, &state).await?;
    is_still(&netns, &wanted)?;

    // Once nothing of the first one's is there any more, the other one has its turn.
    first.start_agent().await?;
    is_still(&netns, &wanted)?;
    Guest::new(&first, instance).terminate().await?;
    let request = DeleteNetworkRequest {
        network_id: network.network_id,
    };
    first.networks().delete_network(request).await?;
    ensure!(rules(&netns)?.is_empty());
    second.network("10.61.0.0/24", |_| {}).await?;
    let theirs = rules(&netns)?;
    ensure!(theirs.contains(&second.state_dir().display().to_string()));
    is_refused(&first, "give each agent a namespace of its own").await?;
    ensure!(rules(&netns)? == theirs);
    first.finish().await?;
    second.finish().await
}
