//! Connections that were opened and may go on: the part of the model that has a memory.

use std::{
    collections::BTreeMap,
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

    /// After a change of rules: takes out what they would not let open any more.
    pub fn cut(&mut self, model: &Model) -> Vec<Connection> {
        let admitted = |it: &Connection| model.opens(it.from, &it.sent) == Some(it.to);
        let mut cut: Vec<_> = self.open.extract_if(.., |it| !admitted(it)).collect();
        let now = Instant::now();
        cut.retain(|it| it.is_complete && now.duration_since(it.last) < FRESH);
        self.open.retain(|it| now.duration_since(it.last) < FRESH);
        self.pairs.retain(|_, it| admitted(it));
        cut
    }
}
