//! Flows of logged interfaces: the sets that packets count them in, and reading those.
//!
//! A window has sets of its own. When it is over, one transaction makes the rules count in the
//! next one's; then nothing changes in the old sets any more. They are read as often as it takes
//! to have the counts safe, and removed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Counter, Firewall, FirewallError, engine::Engine, netlink::read, policy::Windows, table::Field,
};

/// Names of the sets begin so.
const PREFIX: &str = "flows-";

/// Seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Sent by it.
    Out,
    /// To it.
    In,
}

/// TCP and UDP have ports, others not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    Tcp,
    Udp,
    Other,
}

impl Protocols {
    pub const ALL: [Protocols; 3] = [Protocols::Tcp, Protocols::Udp, Protocols::Other];
}

/// One set of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSet {
    pub window: u64,
    pub side: Side,
    pub ipv6: bool,
    pub accepted: bool,
    pub protocols: Protocols,
}

/// A set of flows, or of interfaces with packets that found no room in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowSet {
    Flows(FlowSet),
    Skipped(u64),
}

impl FlowSet {
    /// The sets of a window.
    pub fn all(window: u64) -> impl Iterator<Item = WindowSet> {
        let sides = [Side::Out, Side::In].into_iter();
        let flags = sides.flat_map(|side| {
            [(false, false), (false, true), (true, false), (true, true)].map(|it| (side, it))
        });
        let flows = flags.flat_map(move |(side, (ipv6, accepted))| {
            Protocols::ALL.map(|protocols| FlowSet {
                window,
                side,
                ipv6,
                accepted,
                protocols,
            })
        });
        flows
            .map(WindowSet::Flows)
            .chain([WindowSet::Skipped(window)])
    }

    /// What the sets of the three kinds of protocol have in common, whatever the window.
    pub fn group(side: Side, ipv6: bool, accepted: bool) -> String {
        let side = match side {
            Side::Out => "out",
            Side::In => "in",
        };
        let version = if ipv6 { 6 } else { 4 };
        let end = if accepted { "accepted" } else { "refused" };
        format!("{PREFIX}{side}{version}-{end}")
    }

    pub fn name(&self) -> String {
        let group = Self::group(self.side, self.ipv6, self.accepted);
        let protocols = match self.protocols {
            Protocols::Tcp => "tcp",
            Protocols::Udp => "udp",
            Protocols::Other => "other",
        };
        format!("{group}-{protocols}-{}", self.window)
    }

    /// The set of interfaces with packets that were not counted.
    pub fn skipped(window: u64) -> String {
        format!("{PREFIX}skipped-{window}")
    }

    /// Interface, source, destination; then ports, or the protocol.
    pub fn key(&self) -> Vec<Field> {
        let address = if self.ipv6 { Field::Ipv6 } else { Field::Ipv4 };
        let mut key = vec![Field::Interface, address, address];
        match self.protocols {
            Protocols::Other => key.push(Field::Protocol),
            Protocols::Tcp | Protocols::Udp => key.extend([Field::Port, Field::Port]),
        }
        key
    }

    /// A flow from its key in the set.
    fn flow(&self, key: &[u8], counter: Counter) -> Option<Flow> {
        let (tap, rest) = interface(key)?;
        let len = if self.ipv6 { 16 } else { 4 };
        let (source, rest) = rest.split_at_checked(len)?;
        let (destination, rest) = rest.split_at_checked(len)?;
        let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (protocol, ports) = match self.protocols {
            Protocols::Tcp => (6, (port(0)?, port(4)?)),
            Protocols::Udp => (17, (port(0)?, port(4)?)),
            Protocols::Other => (*rest.first()?, (0, 0)),
        };
        Some(Flow {
            tap,
            side: self.side,
            accepted: self.accepted,
            source: address(source)?,
            destination: address(destination)?,
            source_port: ports.0,
            destination_port: ports.1,
            protocol,
            counter,
        })
    }
}

impl WindowSet {
    pub fn name(&self) -> String {
        match self {
            WindowSet::Flows(set) => set.name(),
            WindowSet::Skipped(window) => FlowSet::skipped(*window),
        }
    }

    pub fn key(&self) -> Vec<Field> {
        match self {
            WindowSet::Flows(set) => set.key(),
            WindowSet::Skipped(_) => vec![Field::Interface],
        }
    }
}

/// The window that a set is of.
pub fn window_of(set: &str) -> Option<u64> {
    let (_, window) = set.strip_prefix(PREFIX)?.rsplit_once('-')?;
    window.parse().ok()
}

fn interface(key: &[u8]) -> Option<(String, &[u8])> {
    let (name, rest) = key.split_at_checked(16)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&name[..end]).ok()?.to_owned(), rest))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
    }
}

/// Packets of one interface that have all of this in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub tap: String,
    pub side: Side,
    pub accepted: bool,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// 0 where the protocol has none.
    pub source_port: u16,
    pub destination_port: u16,
    /// Bytes are those of IP packets with their headers.
    pub counter: Counter,
}

/// What was counted in a window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub flows: Vec<Flow>,
    /// Packets that could not be told apart, by tap: there were too many flows.
    pub skipped: BTreeMap<String, Counter>,
}

impl Firewall {
    /// What was counted in a window that is retired: the same each time. Empty for one that nobody
    /// knows.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`].
    pub async fn flows(&self, window: u64) -> Result<Counted, FirewallError> {
        self.with_engine(move |engine| engine.flows(window)).await
    }
}

impl Engine {
    /// See [`Firewall::flows`].
    pub fn flows(&mut self, window: u64) -> Result<Counted, FirewallError> {
        let mut counted = Counted::default();
        for set in FlowSet::all(window) {
            let mut elements = Vec::new();
            read::counters(self.socket()?, &set.name(), |key, _, counter| {
                elements.push((key.first.clone(), counter));
            })?;
            match set {
                WindowSet::Flows(set) => {
                    let flows = elements.iter().filter_map(|(key, it)| set.flow(key, *it));
                    counted.flows.extend(flows);
                }
                WindowSet::Skipped(_) => {
                    let taps = elements.into_iter();
                    let taps = taps.filter_map(|(key, it)| Some((interface(&key)?.0, it)));
                    counted.skipped.extend(taps);
                }
            }
        }
        Ok(counted)
    }
}

/// The windows that the kernel has sets of go on; only if it has none, the wanted one begins.
pub(super) fn adopt<'a>(wanted: &mut Windows, sets: impl Iterator<Item = &'a String>) {
    let mut found: BTreeSet<u64> = sets.filter_map(|set| window_of(set)).collect();
    let Some(newest) = found.pop_last() else {
        return;
    };
    match &mut wanted.current {
        Some(current) => *current = newest,
        None => drop(found.insert(newest)),
    }
    wanted.retired.extend(found);
}
