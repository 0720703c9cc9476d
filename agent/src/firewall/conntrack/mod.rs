//! Connections that the kernel tracks: which of them the policy would no longer admit, and the end
//! of those. Rules look at the first packet of a connection only; what was opened under other
//! rules is found here.

use std::net::IpAddr;

use super::{
    netlink::{
        CTNETLINK, NetlinkError, Socket,
        attributes::{Writer, find},
        socket::ACK,
    },
    policy::Policy,
};

mod admit;
mod scope;

pub use scope::Scope;

/// `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`
const GET: u16 = CTNETLINK << 8 | 1;
const DELETE: u16 = CTNETLINK << 8 | 2;

/// `IPS_DST_NAT`
const DST_NAT: u32 = 1 << 5;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// 0 for protocols without ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// As it was opened.
    pub original: Tuple,
    /// As replies come back: source and destination after translation.
    pub reply: Tuple,
    pub translated: bool,
    pub mark: u32,
    /// What tells the kernel which one it is.
    handle: Vec<u8>,
}

/// Ends the connections in each of `scopes` that the policy does not admit; says how many they
/// were for each.
///
/// # Errors
/// [`NetlinkError`].
pub fn cut(
    socket: &mut Socket,
    policy: &Policy,
    scopes: &[&Scope],
) -> Result<Vec<u64>, NetlinkError> {
    let mut counts = vec![0; scopes.len()];
    if scopes.iter().all(|scope| scope.is_empty()) {
        return Ok(counts);
    }
    let index = admit::Index::new(policy);
    for connection in dump(socket)? {
        let hit: Vec<usize> = (0..scopes.len())
            .filter(|it| {
                let scope = scopes[*it];
                scope.touches(&connection) && !index.admits(scope, &connection)
            })
            .collect();
        if hit.is_empty() {
            continue;
        }
        let family = if connection.original.source.is_ipv6() {
            10
        } else {
            2
        };
        match socket.ask(DELETE, ACK, family, &connection.handle) {
            Ok(_) => hit.into_iter().for_each(|it| counts[it] += 1),
            // It came to its end by itself.
            Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(counts)
}

/// All connections.
///
/// # Errors
/// [`NetlinkError`].
pub fn dump(socket: &mut Socket) -> Result<Vec<Connection>, NetlinkError> {
    let messages = socket.dump(GET, 0, &[])?;
    Ok(messages
        .iter()
        .filter_map(|message| parse(message.attributes()))
        .collect())
}

/// Ends all connections.
#[cfg(test)]
pub fn flush(socket: &mut Socket) -> Result<(), NetlinkError> {
    socket.ask(DELETE, ACK, 0, &[]).map(drop)
}

fn parse(attributes: &[u8]) -> Option<Connection> {
    let original = find(attributes, 1)?.value;
    let reply = find(attributes, 2)?.value;
    let number = |kind| find(attributes, kind).and_then(|it| it.u32());
    let mut handle = Writer::new();
    handle.bytes(1 | 1 << 15, original);
    if let Some(id) = number(12) {
        handle.u32(12, id);
    }
    if let Some(zone) = find(attributes, 18) {
        handle.bytes(18, zone.value);
    }
    Some(Connection {
        original: tuple(original)?,
        reply: tuple(reply)?,
        translated: number(3).unwrap_or_default() & DST_NAT != 0,
        mark: number(8).unwrap_or_default(),
        handle: handle.into_bytes(),
    })
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let addresses = find(attributes, 1)?.value;
    let address = |v4, v6| -> Option<IpAddr> {
        if let Some(it) = find(addresses, v4) {
            return Some(IpAddr::from(<[u8; 4]>::try_from(it.value).ok()?));
        }
        let it = find(addresses, v6)?;
        Some(IpAddr::from(<[u8; 16]>::try_from(it.value).ok()?))
    };
    let protocol = find(attributes, 2)?.value;
    let byte = |kind| find(protocol, kind).and_then(|it| it.value.first().copied());
    let port = |kind| find(protocol, kind).and_then(|it| it.u16());
    let icmp = match (byte(5), byte(6), byte(8), byte(9)) {
        (Some(kind), Some(code), ..) | (_, _, Some(kind), Some(code)) => Some((kind, code)),
        _ => None,
    };
    Some(Tuple {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        protocol: byte(1)?,
        source_port: port(2).unwrap_or_default(),
        destination_port: port(3).unwrap_or_default(),
        icmp,
    })
}
