//! Connections that were opened and may go on: the part of the model that has a memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use hearth_tests::net::{Body, End, Packet};

use crate::model::Model;

/// The kernel forgets a datagram's or an echo's connection after 30 seconds without an answer.
const FRESH: Duration = Duration::from_secs(15);

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Who opened it.
    pub from: End,
    pub to: End,
    /// The first packet, as it was sent.
    pub sent: Packet,
    /// The same, as it came: addresses may have been translated.
    pub seen: Packet,
    pub last: Instant,
    /// Packets have gone both ways, and of TCP its three.
    pub is_complete: bool,
    /// The rules would not let it be opened any more, and it was to be kept.
    pub is_kept: bool,
}

/// Of a protocol without ports all packets between two addresses are one connection.
type Pair = (IpAddr, IpAddr, u8);

fn pair(packet: &Packet) -> Option<Pair> {
    let Body::Other(number) = packet.body else {
        return None;
    };
    let (one, other) = (packet.source, packet.destination);
    Some((one.min(other), one.max(other), number))
}

/// All of them.
#[derive(Debug, Default)]
pub struct Connections {
    open: Vec<Connection>,
    pairs: BTreeMap<Pair, Connection>,
    /// Pairs that were kept: whether they still are is not said when rules change further.
    unsure: BTreeSet<Pair>,
}

impl Connections {
    pub fn opened(&mut self, connection: Connection) {
        match pair(&connection.sent) {
            Some(pair) => drop(self.pairs.entry(pair).or_insert(connection)),
            None => self.open.push(connection),
        }
    }

    /// Where a packet comes to because it is of a connection, if it is: for protocols without
    /// ports, where a packet that might open one can be of another's.
    pub fn part_of(&self, from: End, packet: &Packet) -> Option<End> {
        let connection = self.pairs.get(&pair(packet)?)?;
        if connection.from == from {
            Some(connection.to)
        } else {
            Some(connection.from)
        }
    }

    /// Those that the kernel surely remembers, if the firewall lets it.
    pub fn fresh(&self) -> impl Iterator<Item = &Connection> {
        let now = Instant::now();
        let open = self.open.iter();
        open.filter(move |it| it.is_complete && now.duration_since(it.last) < FRESH)
    }

    /// Whether a packet is of a protocol without ports, between two of whom it is not known whether
    /// they have a connection.
    pub fn is_unsure(&self, packet: &Packet) -> bool {
        pair(packet).is_some_and(|it| self.unsure.contains(&it))
    }

    /// After a change of rules: takes out what they would not let open any more, and gives it.
    /// What was kept earlier may go with it or not: that is up to how much is looked at.
    pub fn cut(&mut self, model: &Model) -> Vec<Connection> {
        let admitted = |it: &Connection| admitted(model, it);
        let mut cut: Vec<_> = self.open.extract_if(.., |it| !admitted(it)).collect();
        let now = Instant::now();
        cut.retain(|it| it.is_complete && !it.is_kept && now.duration_since(it.last) < FRESH);
        self.open.retain(|it| now.duration_since(it.last) < FRESH);
        self.open.iter_mut().for_each(|it| it.is_kept = false);
        self.pairs.retain(|_, it| admitted(it));
        cut
    }

    /// After a change of rules that keeps connections; gives how many the rules would not let open
    /// any more.
    pub fn keep(&mut self, model: &Model) -> usize {
        for connection in &mut self.open {
            connection.is_kept |= !admitted(model, connection);
        }
        let gone = self.pairs.iter().filter(|it| !admitted(model, it.1));
        self.unsure.extend(gone.map(|it| *it.0));
        self.pairs.retain(|it, _| !self.unsure.contains(it));
        self.fresh().filter(|it| it.is_kept).count()
    }
}

fn admitted(model: &Model, it: &Connection) -> bool {
    model.lets(it.from, it.to, &it.sent, &it.seen)
        && model.translation_stands(it.from, it.to, &it.sent, &it.seen)
}
