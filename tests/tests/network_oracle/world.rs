//! An agent with two networks, six interfaces of four guests, and an outside, and the model of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use hearth_proto::v1::{ExplainTrafficRequest, Network as NetworkMessage};
use hearth_tests::{
    Hearth,
    net::{Arrival, Body, Cut, End, GuestEnd, Lab, Outside, Packet, Random, packet::tcp, relayed},
    networks::in_network,
};

use crate::{
    changes::{self, KEPT},
    connections::{Connection, Connections},
    model::{self, Guest, Model, Network},
    outward,
    packets::{self, Unique},
};

/// The interfaces of each guest, by their networks. The model has them as guests of their own.
const GUESTS: [&[usize]; 4] = [&[0, 0], &[0], &[0, 1], &[1]];

/// Public addresses.
const POOL: &str = "192.0.2.192/29";
const ADDRESSES: usize = 4;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    sent: usize,
    arrived: usize,
    explained: usize,
    connections: usize,
    cut: usize,
    kept: usize,
    translated: usize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} packets sent, {} arrived; {} explained; {} connections, {} of them through public \
             addresses and forwards; {} cut and then tried, {} kept",
            self.sent,
            self.arrived,
            self.explained,
            self.connections,
            self.translated,
            self.cut,
            self.kept
        )
    }
}

pub struct World {
    pub hearth: Hearth,
    pub lab: Lab,
    pub model: Model,
    pub random: Random,
    pub unique: Unique,
    pub connections: Connections,
    pub network_ids: Vec<String>,
    /// Ids of public addresses.
    addresses: BTreeMap<IpAddr, String>,
    /// Connections that the last change should have cut.
    cut: Vec<Connection>,
    /// The changes so far.
    pub said: Vec<String>,
    pub count: Count,
}

/// A packet that is sent, and where it should come to.
struct Trial {
    from: End,
    packet: Packet,
    expected: Option<End>,
    /// It opens a connection, if it passes; else it is of one that is there.
    is_new: bool,
}

fn network_model(network: &NetworkMessage) -> Result<Network> {
    let parts = [&network.ipv4_range, &network.ipv6_range];
    let ranges = parts.into_iter().filter(|it| !it.is_empty());
    let parts = [&network.ipv4_gateway, &network.ipv6_gateway];
    let gateways = parts.into_iter().filter(|it| !it.is_empty());
    Ok(Network {
        ranges: ranges.map(|it| it.parse()).collect::<Result<_, _>>()?,
        gateways: gateways.map(|it| it.parse()).collect::<Result<_, _>>()?,
    })
}

impl World {
    /// With groups and lists of this seed.
    pub async fn new(seed: u64) -> Result<Self> {
        eprintln!("seed {seed}");
        let hearth = Hearth::start_with_namespace().await?;
        let netns = hearth.netns()?;
        let outside = Outside::new(netns)?;
        let networks = [
            hearth
                .network("10.20.0.0/24", |it| {
                    it.ipv6_range = "fd12:3456:789a:1::/64".to_owned();
                    it.nat = Some(false);
                })
                .await?,
            hearth.network("10.30.0.0/24", |_| {}).await?,
        ];
        let network_ids: Vec<_> = networks.iter().map(|it| it.network_id.clone()).collect();
        let mut model = Model {
            networks: networks.iter().map(network_model).collect::<Result<_>>()?,
            ..Default::default()
        };
        let mut ends = Vec::new();
        for (number, interfaces) in GUESTS.into_iter().enumerate() {
            let control = format!("ctl{number}");
            let relay = relayed(netns, &control)?;
            let probe = hearth
                .probe(|request| {
                    for network in interfaces {
                        in_network(&networks[*network])(request);
                    }
                    relay(request);
                })
                .await?;
            let all = GuestEnd::all_of(netns, probe, &control).await?;
            ensure!(all.len() == interfaces.len(), "{} interfaces", all.len());
            let first = model.guests.len();
            for (index, (end, network)) in all.into_iter().zip(interfaces).enumerate() {
                let addresses = [false, true].into_iter().filter_map(|it| end.address(it));
                model.guests.push(Guest {
                    instance: end.instance.clone(),
                    interface: end.interface.network_interface_id.clone(),
                    sibling: (interfaces.len() > 1).then_some(first + 1 - index),
                    network: *network,
                    addresses: addresses.collect(),
                    groups: end.interface.security_group_ids.iter().cloned().collect(),
                });
                ends.push(end);
            }
        }
        let lab = Lab::new(netns, outside, ends)?;
        changes::take_groups(&hearth, &mut model, &network_ids).await?;
        let mut world = Self {
            hearth,
            lab,
            model,
            random: Random::new(seed),
            unique: Unique::default(),
            connections: Connections::default(),
            network_ids,
            addresses: BTreeMap::new(),
            cut: Vec::new(),
            said: Vec::new(),
            count: Count::default(),
        };
        world.first_rules().await?;
        Ok(world)
    }

    async fn first_rules(&mut self) -> Result<()> {
        let (hearth, model, random) = (&self.hearth, &mut self.model, &mut self.random);
        for ipv6 in [false, true] {
            changes::new_list(hearth, model, random, ipv6).await?;
        }
        for (network, count) in [(0, 4), (1, 2)] {
            for _ in 0..count {
                let id = &self.network_ids[network];
                changes::new_group(hearth, model, random, network, id).await?;
            }
        }
        for guest in 0..model.guests.len() {
            changes::replace_groups(hearth, model, random, guest, false).await?;
        }
        self.addresses = outward::allocate(hearth, model, POOL, ADDRESSES).await?;
        for _ in 0..2 {
            outward::change_address(hearth, model, random, &self.addresses).await?;
            outward::change_forward(hearth, model, random).await?;
        }
        Ok(())
    }

    /// Makes a change.
    pub async fn change(&mut self) -> Result<()> {
        let (model, random) = (&mut self.model, &mut self.random);
        let keep = random.percent(30);
        let said = match random.below(100) {
            0..72 => changes::change(&self.hearth, model, random, &self.network_ids, keep).await?,
            72..88 => outward::change_address(&self.hearth, model, random, &self.addresses).await?,
            _ => outward::change_forward(&self.hearth, model, random).await?,
        };
        if said.ends_with(KEPT) {
            self.count.kept += self.connections.keep(&self.model);
        } else {
            let cut = self.connections.cut(&self.model);
            self.cut.extend(cut);
        }
        self.said.push(said);
        Ok(())
    }

    /// The agent is killed; packets; it comes back.
    pub async fn while_the_agent_is_down(&mut self, count: usize) -> Result<()> {
        self.said.push("kill -9".to_owned());
        self.hearth.kill_agent()?;
        self.packets(count, false).await?;
        self.hearth.start_agent().await?;
        self.said.push("agent started".to_owned());
        Ok(())
    }

    /// Tries new connections and goes on with old ones; then answers what has arrived.
    pub async fn packets(&mut self, count: usize, explain: bool) -> Result<()> {
        let mut trials = self.old_connections();
        let mut pairs = BTreeSet::new();
        while trials.len() < count {
            let (from, packet) = packets::packet(&mut self.random, &self.model, &mut self.unique);
            // One at a time of what is one connection.
            let (source, destination) = (packet.source, packet.destination);
            let pair = (
                source.min(destination),
                source.max(destination),
                packet.protocol(),
            );
            if matches!(packet.body, Body::Other(_)) && !pairs.insert(pair) {
                continue;
            }
            if self.connections.is_unsure(&packet) {
                continue;
            }
            let opens = self.model.opens(from, &packet);
            if explain && model::can_open(&packet) {
                self.explain(from, &packet, opens).await?;
            }
            let known = self.connections.part_of(from, &packet);
            // What could never open one can't be of one either: source routes.
            let known =
                known.filter(|_| model::can_open(&packet) && !self.model.is_forged(from, &packet));
            let expected = known.or(opens);
            trials.push(Trial {
                from,
                packet,
                expected,
                is_new: true,
            });
        }
        let openers = self.try_all(trials)?;
        let opened = self.answer(openers)?;
        self.go_on(opened)
    }

    /// What ExplainTraffic says is what the model says.
    async fn explain(&mut self, from: End, packet: &Packet, opens: Option<End>) -> Result<()> {
        // What is forged is nothing that can be asked about.
        if self.model.is_forged(from, packet) {
            return Ok(());
        }
        let (port, code, source_port) = match packet.body {
            Body::Tcp {
                source,
                destination,
                ..
            }
            | Body::Udp {
                source,
                destination,
            } => (u32::from(destination), 0, u32::from(source)),
            Body::Icmp { kind, code, .. } => (kind.into(), code.into(), 0),
            _ => (0, 0, 0),
        };
        let request = ExplainTrafficRequest {
            from: packet.source.to_string(),
            to: packet.destination.to_string(),
            protocol: packet.protocol().to_string(),
            port,
            code,
            source_port,
        };
        let mut client = self.hearth.security_groups();
        let answer = client.explain_traffic(request.clone()).await?.into_inner();
        ensure!(
            answer.allowed == opens.is_some(),
            "the model says {opens:?} of {packet:?}, ExplainTraffic says {answer:#?}"
        );
        self.count.explained += 1;
        Ok(())
    }

    /// Packets of connections that are open, and of those that the last change should have cut.
    fn old_connections(&mut self) -> Vec<Trial> {
        let mut trials = Vec::new();
        let mut fresh: Vec<_> = self.connections.fresh().cloned().collect();
        while fresh.len() > 12 {
            fresh.swap_remove(self.random.below(fresh.len()));
        }
        for connection in fresh {
            let forward = self.random.percent(50);
            trials.push(self.another(&connection, forward, true));
        }
        for connection in std::mem::take(&mut self.cut) {
            self.count.cut += 1;
            // A datagram the other way could open one of its own, if the rules allow it; a TCP
            // segment can't.
            let is_tcp = matches!(connection.sent.body, Body::Tcp { .. });
            // Behind a translated address is the host, when the connection is no more.
            let is_translated = connection.sent.source != connection.seen.source;
            let forward = !is_tcp || is_translated || self.random.percent(50);
            let mut trial = self.another(&connection, forward, false);
            if forward {
                // What it went through may be another's now, who may let it in: or the host's, or
                // nobody's here, of whom the outside may ask what it likes.
                let to = self.model.translated(&trial.packet);
                if to.is_none() && connection.from == End::Outside {
                    let direct = self.model.holder(trial.packet.destination);
                    if !matches!(direct, Some(End::Guest(_))) {
                        continue;
                    }
                }
                trial.expected = self.model.opens(trial.from, &trial.packet);
            }
            trials.push(trial);
        }
        trials
    }

    /// One more packet of a connection.
    fn another(&mut self, connection: &Connection, forward: bool, passes: bool) -> Trial {
        let tag = self.unique.tag();
        let (from, to) = (connection.from, connection.to);
        let (from, mut packet, to) = if forward {
            (from, connection.sent.clone(), to)
        } else {
            (to, connection.seen.answer(tag), from)
        };
        if let Body::Tcp { flags, .. } = &mut packet.body {
            *flags = tcp::ACK;
        }
        packet.tag = tag;
        Trial {
            from,
            packet,
            expected: passes.then_some(to),
            is_new: false,
        }
    }

    /// Sends all of them and compares; gives those that arrived, with how they looked there.
    fn try_all(&mut self, trials: Vec<Trial>) -> Result<Vec<(Trial, Packet)>> {
        self.count.sent += trials.len();
        let mut by_end = BTreeMap::<End, Vec<Packet>>::new();
        for trial in &trials {
            by_end
                .entry(trial.from)
                .or_default()
                .push(trial.packet.clone());
        }
        for (end, packets) in by_end {
            self.lab.send(end, &packets)?;
        }
        let wanted = trials
            .iter()
            .filter_map(|it| Some((it.expected?, it.packet.tag)));
        let wanted: Vec<_> = wanted.collect();
        let mut arrived = BTreeMap::new();
        for Arrival { end, packet } in self.lab.arrived_with(&wanted)? {
            let tag = packet.tag;
            let twice = arrived.insert(tag, (end, packet));
            ensure!(twice.is_none(), "it arrived twice: {twice:?}");
        }
        let mut passed = Vec::new();
        for trial in trials {
            let arrival = arrived.remove(&trial.packet.tag);
            let end = arrival.as_ref().map(|it| it.0);
            ensure!(
                end == trial.expected,
                "from {:?} to {:?} instead of {:?}: {:?}\n{}",
                trial.from,
                end,
                trial.expected,
                trial.packet,
                self.explain_ends(&trial)
            );
            passed.extend(arrival.map(|it| (trial, it.1)));
        }
        ensure!(arrived.is_empty(), "out of nowhere: {arrived:#?}");
        self.count.arrived += passed.len();
        Ok(passed)
    }

    fn explain_ends(&self, trial: &Trial) -> String {
        let groups = |end| match end {
            Some(End::Guest(number)) => {
                let guest: &Guest = &self.model.guests[number];
                let groups = guest
                    .groups
                    .iter()
                    .map(|it| (it, &self.model.groups[it].rules));
                format!("{guest:?}: {:#?}", groups.collect::<BTreeMap<_, _>>())
            }
            end => format!("{end:?}"),
        };
        let to: IpAddr = trial.packet.destination;
        format!(
            "{}\n{}\n{:?}",
            groups(Some(trial.from)),
            groups(self.model.holder(to)),
            self.model.lists
        )
    }

    /// Answers to what arrived come back, and so do errors about it, but only from whom it went
    /// to.
    fn answer(&mut self, passed: Vec<(Trial, Packet)>) -> Result<Vec<Connection>> {
        let mut trials = Vec::new();
        let mut connections = Vec::new();
        for (trial, seen) in passed {
            let Some(to) = trial.expected else { continue };
            if to == End::Host || !trial.is_new {
                continue;
            }
            if !matches!(trial.packet.body, Body::Other(_)) {
                self.count.connections += 1;
                let translated = self.model.translated(&trial.packet);
                self.count.translated += usize::from(translated.is_some());
            }
            connections.push(Connection {
                from: trial.from,
                to,
                sent: trial.packet.clone(),
                seen: seen.clone(),
                last: Instant::now(),
                is_complete: false,
                is_kept: false,
            });
            if matches!(seen.body, Body::Udp { .. })
                && trial.packet.cut == Cut::Whole
                && self.random.percent(30)
            {
                let error = seen.error(seen.destination, self.unique.tag());
                trials.push(Trial {
                    from: to,
                    packet: error,
                    expected: Some(trial.from),
                    is_new: false,
                });
                trials.extend(self.forged_error(&seen, to, trial.from));
            }
            let answer = seen.answer(self.unique.tag());
            trials.push(Trial {
                from: to,
                packet: answer,
                expected: Some(trial.from),
                is_new: false,
            });
        }
        self.try_all(trials)?;
        Ok(connections)
    }

    /// Another guest of the network that is no part of the connection tells its opener of an
    /// error.
    fn forged_error(&mut self, seen: &Packet, to: End, opener: End) -> Option<Trial> {
        let End::Guest(victim) = opener else {
            return None;
        };
        let network = self.model.guests[victim].network;
        let other = (0..self.model.guests.len()).find(|it| {
            self.model.guests[*it].network == network && ![opener, to].contains(&End::Guest(*it))
        })?;
        let address = self.lab.guests[other].address(seen.source.is_ipv6())?;
        Some(Trial {
            from: End::Guest(other),
            packet: seen.error(address, self.unique.tag()),
            expected: None,
            is_new: false,
        })
    }

    /// TCP needs a third packet; the others are complete.
    fn go_on(&mut self, connections: Vec<Connection>) -> Result<()> {
        let mut trials = Vec::new();
        for mut connection in connections {
            // The host's own stack answers what it did not ask for with a reset.
            if connection.from == End::Host {
                if matches!(connection.sent.body, Body::Other(_)) {
                    self.connections.opened(connection);
                }
                continue;
            }
            connection.is_complete = true;
            if matches!(connection.sent.body, Body::Tcp { .. }) {
                trials.push(self.another(&connection, true, true));
            }
            // What goes on goes in one.
            connection.sent.cut = Cut::Whole;
            self.connections.opened(connection);
        }
        self.try_all(trials)?;
        Ok(())
    }

    pub async fn finish(self) -> Result<()> {
        let parts = self.lab.in_part();
        ensure!(parts.is_empty(), "only a part has arrived: {parts:?}");
        drop(self.lab);
        self.hearth.finish().await.context("at the end")
    }
}
