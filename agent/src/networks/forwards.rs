//! Port forwards: ports of the host that are instances'.

use std::{fs, io, sync::Arc};

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{
    enforce::{self, Failure},
    interfaces,
    model::{PortForward, Protocol},
    names,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, METADATA_PORT, policy::Change},
    ids::{Kind, shortened},
    query::{
        Described,
        page::{Page, Query},
    },
    tags::Tag,
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreatePortForward";

/// Where the agent picks ports: below those that the kernel picks from.
const PICKED: std::ops::RangeInclusive<u16> = 30000..=32767;

/// What the host answers on taps: DNS, DHCP, DHCPv6, metadata.
const OWN: [(Protocol, u16); 5] = [
    (Protocol::Tcp, 53),
    (Protocol::Udp, 53),
    (Protocol::Udp, 67),
    (Protocol::Udp, 547),
    (Protocol::Tcp, METADATA_PORT),
];

/// Whose turn it is to change forwards.
const TURN: &str = "port-forwards";

/// What a caller wants forwarded.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    pub owner: String,
    pub protocol: String,
    pub host_port: u32,
    pub interface_id: String,
    pub instance_id: String,
    pub instance_port: u32,
    pub description: String,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// CreatePortForward. In force when it returns.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<PortForward> {
    let protocol = match request.protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            let other = shortened(other);
            return Err(ApiError::invalid(
                "protocol",
                format!("{other:?} is neither tcp nor udp"),
            ));
        }
    };
    let port = |number: u32, field: &str| {
        let port = u16::try_from(number).ok();
        port.ok_or_else(|| ApiError::invalid(field, "a port is 1 to 65535"))
    };
    let host_port = port(request.host_port, "host_port")?;
    let instance_port = match port(request.instance_port, "instance_port")? {
        0 => return Err(ApiError::invalid("instance_port", "a port is 1 to 65535")),
        port => port,
    };
    interfaces::check_named(&request.interface_id, &request.instance_id)?;
    names::check_text(&request.description, "description")?;
    carried_through(async move {
        let (interface_id, instance_id) =
            (request.interface_id.clone(), request.instance_id.clone());
        let named = move |c: &Connection| interfaces::named(c, &interface_id, &instance_id);
        let interface = context.db.read(named).await?;
        let _turn = context.turns.take([TURN, interface.id.as_str()]).await;
        let listening = blocking("looking for ports that are in use", move || {
            listening(protocol)
        });
        let listening = listening
            .await?
            .map_err(|error| ApiError::internal("looking for ports that are in use", error))?;
        let forward = PortForward {
            seq: 0,
            id: Kind::PortForward.new_id()?,
            owner: request.owner.clone(),
            protocol,
            host_port,
            instance_id: interface.instance_id.clone(),
            interface_id: interface.id.clone(),
            instance_port,
            description: request.description.clone(),
            client_token: request.client_token.clone(),
        };
        let token = request.token.clone();
        let (forward, new) = context
            .db
            .write(move |tx| insert(tx, forward, token.as_ref(), &listening))
            .await?;
        if !new {
            return Ok(forward);
        }
        crash_point("port-forward.row-made");
        let put = Change::PutForward(forward.id.clone(), forward.policy());
        match enforce::changes(&context, vec![put], Connections::Cut).await {
            Ok(()) => Ok(forward),
            Err(Failure::InForce(error)) => Err(error),
            Err(Failure::NotInForce(error)) => {
                let back = move |tx: &mut Tx<'_>| {
                    crate::tokens::forget(tx, &forward.owner, CREATE, &forward.client_token)?;
                    Ok::<_, ApiError>(db::port_forwards::remove(tx, &forward)?)
                };
                context.db.write(back).await?;
                Err(error)
            }
        }
    })
    .await
}

fn insert(
    tx: &mut Tx<'_>,
    mut forward: PortForward,
    token: Option<&ClientToken>,
    listening: &[u16],
) -> ApiResult<(PortForward, bool)> {
    if let Some(token) = token
        && let Some(ids) = token.earlier(tx)?
    {
        let id = ids.first().map(String::as_str).unwrap_or_default();
        return Ok((get(tx, id, "client_token")?, false));
    }
    let interface =
        super::describe::get_interface(tx, &forward.interface_id, "network_interface_id")?;
    if interface.owner != forward.owner {
        return Err(Kind::NetworkInterface.missing(&interface.id, "network_interface_id"));
    }
    let protocol = forward.protocol;
    let in_use = |port: u16| -> ApiResult<Option<String>> {
        let word = protocol.word();
        if OWN.contains(&(protocol, port)) {
            return Ok(Some(format!("{word} port {port} is Hearth's own on taps")));
        }
        if listening.contains(&port) {
            return Ok(Some(format!(
                "something on the host has {word} port {port}"
            )));
        }
        let taken = db::port_forwards::is_taken(tx, protocol, port)?;
        Ok(taken.then(|| format!("{word} port {port} is forwarded already")))
    };
    if forward.host_port == 0 {
        for port in PICKED {
            if in_use(port)?.is_none() {
                forward.host_port = port;
                break;
            }
        }
        if forward.host_port == 0 {
            let (first, last) = (PICKED.start(), PICKED.end());
            let message = format!("all ports from {first} to {last} are in use; name one");
            return Err(ApiError::field(Reason::PortInUse, "host_port", message));
        }
    } else if let Some(message) = in_use(forward.host_port)? {
        return Err(ApiError::field(Reason::PortInUse, "host_port", message));
    }
    db::port_forwards::insert(tx, &mut forward)?;
    if let Some(token) = token {
        token.keep(tx, std::slice::from_ref(&forward.id))?;
    }
    Ok((forward, true))
}

/// DescribePortForwards.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<PortForward>> {
    context
        .db
        .read(move |connection| {
            query.page(
                connection,
                "port_forward_ids",
                get,
                db::port_forwards::after,
            )
        })
        .await
}

/// DeletePortForward. Nothing passes by it when it returns.
pub async fn delete(context: Arc<Context>, id: String) -> ApiResult<()> {
    Kind::PortForward.check(&id, "port_forward_id")?;
    carried_through(async move {
        let _turn = context.turns.take([TURN]).await;
        let forward = context
            .db
            .write(move |tx| {
                let forward = get(tx, &id, "port_forward_id")?;
                db::port_forwards::remove(tx, &forward)?;
                Ok::<_, ApiError>(forward)
            })
            .await?;
        crash_point("port-forward.row-removed");
        let removal = vec![Change::RemoveForward(forward.id.clone())];
        match enforce::changes(&context, removal, Connections::Cut).await {
            Ok(()) => Ok(()),
            Err(Failure::InForce(error)) => Err(error),
            Err(Failure::NotInForce(error)) => {
                let mut forward = forward;
                let back = move |tx: &mut Tx<'_>| db::port_forwards::insert(tx, &mut forward);
                context.db.write(back).await?;
                Err(error)
            }
        }
    })
    .await
}

/// Looks a forward up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<PortForward> {
    let found = db::port_forwards::get(connection, id)?;
    found.ok_or_else(|| Kind::PortForward.missing(id, field))
}

/// Ports that something on the host listens on, or receives by, in this network namespace.
fn listening(protocol: Protocol) -> io::Result<Vec<u16>> {
    let mut ports = Vec::new();
    for family in ["", "6"] {
        let path = format!("/proc/self/net/{}{family}", protocol.word());
        match fs::read_to_string(path) {
            Ok(table) => ports.extend(parse_sockets(&table, protocol)),
            // No IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}

/// The local ports in a table of sockets: of TCP, those that listen (state 0A).
fn parse_sockets(table: &str, protocol: Protocol) -> Vec<u16> {
    let port = |line: &str| {
        let mut fields = line.split_whitespace();
        let (_, port) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let counts = protocol == Protocol::Udp || state == "0A";
        counts.then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().skip(1).filter_map(port).collect()
}

impl Described for PortForward {
    const KIND: Kind = Kind::PortForward;
    const FILTERS: &'static [&'static str] = &[
        "port-forward-id",
        "instance-id",
        "network-interface-id",
        "host-port",
        "protocol",
        "owner-id",
    ];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        &self.owner
    }

    fn values(&self, filter: &str) -> Vec<String> {
        vec![match filter {
            "port-forward-id" => self.id.clone(),
            "instance-id" => self.instance_id.clone(),
            "network-interface-id" => self.interface_id.clone(),
            "host-port" => self.host_port.to_string(),
            "protocol" => self.protocol.word().to_owned(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        self.description.len()
    }

    fn tags(&self) -> &[Tag] {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1 0 100 0 0 10 0
   1: 0100007F:0016 0100007F:C350 01 00000000:00000000 00:00000000 00000000 0 0 2 1 0 20 4 30 10 -1
";

    #[test]
    fn listeners_are_found_and_connections_are_not() {
        assert_eq!(parse_sockets(TABLE, Protocol::Tcp), [8080]);
        assert_eq!(parse_sockets(TABLE, Protocol::Udp), [8080, 22]);
        assert!(parse_sockets("", Protocol::Tcp).is_empty());
    }

    #[test]
    fn a_port_that_this_process_listens_on_is_in_use() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        assert!(listening(Protocol::Tcp).expect("read").contains(&port));
        drop(listener);
        assert!(!listening(Protocol::Tcp).expect("read").contains(&port));
    }
}
