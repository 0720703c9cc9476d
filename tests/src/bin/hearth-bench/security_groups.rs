//! Security groups: how soon a change is in force, what it costs when there are many groups, and
//! what a packet costs, with one rule and with a full policy; beside the same policy as a plain
//! list of rules.

mod changes;
mod frames;
mod packets;
mod plain;
mod policy;
mod world;

use std::cell::Cell;

use anyhow::{Context, Result};
use hearth_tests::netns;

use crate::{
    Bench,
    memory::Memory,
    table::{Columns, Row, Section, quantile},
};
use changes::{Changes, Times};
use packets::{Rates, Way};
use plain::Plain;
use policy::{CHANGED, GROUPS, INSTANCES, MEASURED, OPEN_PORT, OTHER, RULES};
use world::{Halted, UDP_PORT, World};

/// Changes of each kind without any traffic.
const CALLS: usize = 50;

/// Launches to the first line.
const LAUNCHES: usize = 10;

/// Changes of the plain list.
const LIST_CALLS: usize = 15;

/// What is measured with one rule, and again with the full policy.
struct Figures {
    changes: Changes,
    calls: Calls,
    rates: Rates,
    /// Of the agent.
    memory_mib: f64,
}

/// In ms, without any traffic.
#[derive(Default)]
struct Calls {
    authorize: Vec<f64>,
    revoke: Vec<f64>,
    replace: Vec<f64>,
    launch: Vec<f64>,
}

/// The same of the plain list.
struct ListFigures {
    rates: Rates,
    add: Vec<f64>,
    delete: Vec<f64>,
    /// In ms, and how many rules.
    load: (f64, usize),
}

pub async fn measure(_: &Bench) -> Result<Vec<Section>> {
    if let Some(missing) = netns::missing() {
        println!("\nsecurity-groups: skipped: {missing}");
        return Ok(Vec::new());
    }
    let mut world = World::new().await?;
    let one = figures(&world, &[CHANGED], &[CHANGED, OTHER]).await;
    let one = one.context("one rule")?;
    let start_of_one = world.restart(|_| Ok(())).await?;
    let list = Plain::new(&world.target)?;
    let bare = list.rates(false).context("no rules")?;
    let first = policy::first_rule().lines(&world.target.tap, &[]);
    let list_of_one = list_figures(&list, &first).context("a list of one rule")?;

    let filling = world.fill().await.context("the full policy")?;
    let groups = policy::groups_of(MEASURED);
    println!(
        "\n{GROUPS} groups and {INSTANCES} instances are there; a change now: {:.1} ms",
        world.allow(CHANGED, &[policy::udp(UDP_PORT)]).await?
    );
    world.revoke(CHANGED, &policy::udp(UDP_PORT)).await?;
    let full = figures(&world, &groups, &groups[1..]).await;
    let full = full.context("the full policy")?;
    let rules = plain::list(&world.interfaces().await?)?;
    let list_of_all = list_figures(&list, &rules).context("the full list")?;
    let start_of_full = world.restart(|_| Ok(())).await?;
    let start_without_rules = world
        .restart(|host| {
            for family in ["inet", "arp"] {
                let mut nft = host.command("nft");
                let deleted = nft.args(["delete", "table", family, "hearth"]);
                hearth_tests::programs::output_of(deleted)?;
            }
            Ok(())
        })
        .await?;

    let sections = vec![
        in_force(&one.changes, &full.changes),
        calls(&one, &full),
        packets(&one, &full, &bare, &list_of_one, &list_of_all),
        beside_the_list(&one, &full, &list_of_one, &list_of_all),
        Section::of(
            format!("{GROUPS} groups of {RULES} rules, {INSTANCES} instances"),
            ONE_AND_FULL,
            vec![
                row_of(
                    "AuthorizeSecurityGroup of a group's rules, ms",
                    &filling.authorize,
                    0.5,
                ),
                row_of(
                    "RunInstances while they come, ms: median",
                    &filling.run,
                    0.5,
                ),
                row_of("RunInstances while they come, ms: p90", &filling.run, 0.9),
                Row::beside(
                    "agent's start to first answer, ms",
                    start_of_full,
                    start_of_one,
                ),
                Row::alone("the same, all rules to be made, ms", start_without_rules),
                Row::beside("agent's memory, MiB", full.memory_mib, one.memory_mib),
            ],
        ),
    ];
    // Faster than to terminate them one by one; the namespaces go with it.
    drop(world);
    Ok(sections)
}

const ONE_AND_FULL: Columns = Columns {
    ours: "full policy",
    peer: "1 rule",
    bare: "-",
};

/// `groups` are the measured instance's; it is put into `others` and back.
async fn figures(world: &World, groups: &[usize], others: &[usize]) -> Result<Figures> {
    let host = world.hearth.netns()?;
    let way = Way::new(host, &world.outside, &world.target.tap, world.target.ipv4)?;
    let changes = changes::measure(world, &way).await?;

    let mut calls = Calls::default();
    let rule = || policy::udp(UDP_PORT);
    for _ in 0..CALLS {
        calls.authorize.push(world.allow(CHANGED, &[rule()]).await?);
        calls.revoke.push(world.revoke(CHANGED, &rule()).await?.0);
        calls.replace.push(world.join(others).await?);
        calls.replace.push(world.join(groups).await?);
    }
    for _ in 0..LAUNCHES {
        calls.launch.push(world.launch(groups).await?);
    }
    let memory_mib = Memory::of_process(world.hearth.agent_pid())? as f64 / 1024.0;

    // The guest only answers: what it can take in would be measured instead.
    let halted = Cell::new(Some(Halted::new(&world.target)?));
    let rates = way.rates(true, |_, port| {
        drop(halted.take());
        changes::answered(world, port, OPEN_PORT)?;
        halted.set(Some(Halted::new(&world.target)?));
        Ok(())
    })?;
    Ok(Figures {
        changes,
        calls,
        rates,
        memory_mib,
    })
}

fn list_figures(list: &Plain, rules: &[String]) -> Result<ListFigures> {
    let load = list.load(rules)?;
    let (add, delete) = (0..LIST_CALLS)
        .map(|_| list.change())
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    Ok(ListFigures {
        rates: list.rates(true)?,
        add,
        delete,
        load,
    })
}

fn row_of(what: &str, values: &[f64], part: f64) -> Row {
    Row::alone(what, quantile(values, part))
}

/// Median, 90 % and the longest, of the full policy beside one rule.
fn rows_of(what: &str, full: &[f64], one: &[f64]) -> Vec<Row> {
    [("median", 0.5), ("p90", 0.9), ("longest", 1.0)]
        .map(|(name, part)| {
            let (full, one) = (quantile(full, part), quantile(one, part));
            Row::beside(format!("{what}: {name}"), full, one)
        })
        .into()
}

fn in_force(one: &Changes, full: &Changes) -> Section {
    type Kind = fn(&Changes) -> &Times;
    let kinds: [(&str, Kind, Kind); 2] = [
        ("UDP", |it| &it.udp_opened, |it| &it.udp_closed),
        ("TCP", |it| &it.tcp_opened, |it| &it.tcp_closed),
    ];
    let mut rows = Vec::new();
    for (protocol, opened, closed) in kinds {
        let first = if protocol == "UDP" {
            "packet in"
        } else {
            "connection"
        };
        for (what, times) in [("authorize", opened), ("revoke", closed)] {
            let effect = match what {
                "authorize" => format!("its return to the first {first}, us"),
                _ => "its return to the stream's last packet, us".to_owned(),
            };
            let call = format!("{protocol}, {what}, ms");
            rows.extend(rows_of(&call, &times(full).call, &times(one).call));
            for mut row in rows_of(&effect, &times(full).effect, &times(one).effect) {
                // Of times that may be less than nothing.
                row.ratio = None;
                rows.push(row);
            }
        }
    }
    let title = format!("A change under traffic, {} rounds", changes::ROUNDS);
    Section::of(title, ONE_AND_FULL, rows)
}

fn calls(one: &Figures, full: &Figures) -> Section {
    type Kind = fn(&Calls) -> &Vec<f64>;
    let kinds: [(&str, Kind); 4] = [
        ("AuthorizeSecurityGroup, ms", |it| &it.authorize),
        ("RevokeSecurityGroup, ms", |it| &it.revoke),
        ("ReplaceInstanceSecurityGroups, ms", |it| &it.replace),
        ("RunInstances to first line, ms", |it| &it.launch),
    ];
    let rows = kinds
        .iter()
        .flat_map(|(what, kind)| rows_of(what, kind(&full.calls), kind(&one.calls)));
    let title = format!("Changes without traffic, {CALLS} rounds");
    Section::of(title, ONE_AND_FULL, rows.collect())
}

const LIST: Columns = Columns {
    ours: "ours",
    peer: "plain list",
    bare: "no rules",
};

fn packets(
    one: &Figures,
    full: &Figures,
    bare: &Rates,
    list_of_one: &ListFigures,
    list_of_all: &ListFigures,
) -> Section {
    let mut rows = Vec::new();
    for (policy, ours, list) in [
        ("1 rule", &one.rates, &list_of_one.rates),
        ("full", &full.rates, &list_of_all.rates),
    ] {
        let kinds = [
            (
                "opening packets",
                Some((ours.opening, list.opening)),
                Some(bare.opening),
            ),
            (
                "established packets",
                Some((ours.established, list.established)),
                Some(bare.established),
            ),
            ("refused packets", ours.refused.zip(list.refused), None),
        ];
        for (kind, rates, bare) in kinds {
            let Some((ours, list)) = rates else { continue };
            rows.push(Row {
                bare,
                ..Row::beside(format!("{policy}: {kind}, per second"), ours, list)
            });
            let ns = |rate: f64| 1e9 / rate;
            rows.push(Row {
                bare: bare.map(ns),
                ..Row::beside("  ns for each", ns(ours), ns(list))
            });
        }
    }
    Section::of("Packets from outside to a tap", LIST, rows)
}

fn beside_the_list(
    one: &Figures,
    full: &Figures,
    list_of_one: &ListFigures,
    list_of_all: &ListFigures,
) -> Section {
    let mut rows = Vec::new();
    for (policy, ours, list) in [("1 rule", one, list_of_one), ("full", full, list_of_all)] {
        let kinds = [
            ("rule added", &ours.calls.authorize, &list.add),
            ("rule removed", &ours.calls.revoke, &list.delete),
        ];
        for (what, ours, list) in kinds {
            for (name, part) in [("median", 0.5), ("longest", 1.0)] {
                let what = format!("{policy}: {what}, ms: {name}");
                rows.push(Row::beside(
                    what,
                    quantile(ours, part),
                    quantile(list, part),
                ));
            }
        }
    }
    let (load, count) = list_of_all.load;
    rows.push(Row {
        peer: Some(count as f64),
        ..Row::alone("rules of the full list", (GROUPS * RULES) as f64)
    });
    rows.push(Row {
        ours: None,
        peer: Some(load),
        ..Row::alone("nft -f of the full list, ms", 0.0)
    });
    Section::of("Changes: gRPC, and nft on a plain list", LIST, rows)
}
