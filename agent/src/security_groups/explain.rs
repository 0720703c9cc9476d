//! ExplainTraffic: which rules let a packet pass, by the policy alone. Sends nothing.

use std::{
    collections::BTreeMap,
    net::{IpAddr, UdpSocket},
    sync::Arc,
};

use rusqlite::Connection;

use super::{
    model::{Rule, protocols},
    permission,
};
use crate::{
    accounts::{Account, Named},
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    firewall::{
        explain::{Packet, Transport, explain},
        policy::{Interface, Network, Policy},
    },
    ids::{Kind, shortened},
};

/// What a caller asks.
#[derive(Clone, Debug)]
pub struct ExplainRequest {
    /// Instance, interface, or address.
    pub from: String,
    pub to: String,
    /// Empty means tcp.
    pub protocol: String,
    /// Destination port, or ICMP type.
    pub port: u32,
    /// ICMP code.
    pub code: u32,
    /// 0 means any.
    pub source_port: u32,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub allowed: bool,
    pub steps: Vec<Step>,
}

/// One point that it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub point: String,
    pub passes: bool,
    pub rule: Option<Rule>,
    pub reason: String,
}

/// One end: an address, or one of these interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Address(IpAddr),
    Interfaces(Vec<String>),
}

/// ExplainTraffic.
pub async fn explain_traffic(
    context: &Context,
    account: &Account,
    request: ExplainRequest,
) -> ApiResult<Explained> {
    let (protocol, transport) = traffic(&request)?;
    let named = [(&request.from, "from"), (&request.to, "to")]
        .into_iter()
        .flat_map(|(id, field)| {
            [Kind::Instance, Kind::NetworkInterface].map(|kind| Named::own(kind, id, field))
        })
        .collect();
    account.check(context, named).await?;
    let account = account.clone();
    let policy = context.firewall.policy().await;
    context
        .db
        .read(move |connection| {
            let from = end(connection, &request.from, "from")?;
            let to = end(connection, &request.to, "to")?;
            for (end, field) in [(&from, "from"), (&to, "to")] {
                check_visible(connection, &policy, &account, end, field)?;
            }
            let policy = visible(connection, policy, &account)?;
            let (source, destination) = addresses(&policy, &from, &to, protocol)?;
            let packet = Packet {
                source,
                destination,
                protocol,
                transport,
                to_host: is_the_hosts(destination),
            };
            let verdict = explain(&policy, &packet);
            let allowed = verdict.allowed();
            let steps = verdict.steps.into_iter().map(|step| {
                let rule = step.rule.as_ref();
                let rule = rule.map(|it| db::security_groups::get_rule(connection, &it.rule));
                Ok(Step {
                    point: step.point.to_string(),
                    passes: step.passes,
                    rule: rule.transpose()?.flatten(),
                    reason: step.reason,
                })
            });
            let steps = steps.collect::<ApiResult<_>>()?;
            Ok(Explained { allowed, steps })
        })
        .await
}

/// The protocol's number, and what of it.
fn traffic(request: &ExplainRequest) -> ApiResult<(u8, Transport)> {
    let protocol = match request.protocol.as_str() {
        "" => protocols::TCP,
        text => permission::protocol(text, "protocol")?
            .ok_or_else(|| ApiError::invalid("protocol", "a packet has one protocol; name it"))?,
    };
    let transport = match protocol {
        protocols::TCP | protocols::UDP => {
            if request.port == 0 {
                return Err(ApiError::field(
                    Reason::MissingParameter,
                    "port",
                    "name the destination port",
                ));
            }
            Transport::Ports {
                source: number(request.source_port, "source_port", u16::MAX.into())? as u16,
                destination: number(request.port, "port", u16::MAX.into())? as u16,
            }
        }
        protocols::ICMP | protocols::ICMPV6 => Transport::Icmp {
            kind: number(request.port, "port", u8::MAX.into())? as u8,
            code: number(request.code, "code", u8::MAX.into())? as u8,
        },
        _ => {
            number(request.port, "port", 0)?;
            Transport::Other
        }
    };
    Ok((protocol, transport))
}

fn number(value: u32, field: &str, most: u32) -> ApiResult<u32> {
    if value <= most {
        return Ok(value);
    }
    Err(ApiError::invalid(
        field,
        match most {
            0 => "this protocol has no ports".to_owned(),
            most => format!("{value} is too large; at most {most}"),
        },
    ))
}

fn end(connection: &Connection, text: &str, field: &str) -> ApiResult<End> {
    if text.is_empty() {
        return Err(ApiError::field(
            Reason::MissingParameter,
            field,
            "name an instance, an interface or an address",
        ));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End::Address(address.to_canonical()));
    }
    if text.starts_with("eni-") {
        Kind::NetworkInterface.check(text, field)?;
        return Ok(End::Interfaces(vec![text.to_owned()]));
    }
    if text.starts_with("i-") {
        Kind::Instance.check(text, field)?;
        if db::instances::get(connection, text)?.is_none() {
            return Err(Kind::Instance.missing(text, field));
        }
        let interfaces = db::security_groups::interfaces_of(connection, text)?;
        if interfaces.is_empty() {
            return Err(ApiError::invalid(
                field,
                format!("{text} has no interface in a network"),
            ));
        }
        return Ok(End::Interfaces(interfaces));
    }
    Err(ApiError::invalid(
        field,
        format!(
            "{:?} is not an instance id, an interface id or an IP address",
            shortened(text)
        ),
    ))
}

/// An address in somebody else's network is none of the account's business.
fn check_visible(
    connection: &Connection,
    policy: &Policy,
    account: &Account,
    end: &End,
    field: &str,
) -> ApiResult<()> {
    match end {
        End::Interfaces(ids) => match ids.iter().find(|id| !policy.interfaces.contains_key(*id)) {
            Some(id) => Err(Kind::NetworkInterface.missing(id, field)),
            None => Ok(()),
        },
        End::Address(address) => {
            let holds = |network: &Network| match address {
                IpAddr::V4(address) => network.ipv4.contains(address),
                IpAddr::V6(address) => network.ipv6.is_some_and(|range| range.contains(address)),
            };
            let network = policy.networks.iter().find(|(_, network)| holds(network));
            match network {
                Some((id, _)) if !owns(connection, account, Kind::Network, id)? => Err(
                    ApiError::invalid(field, format!("{address} is in no network of yours")),
                ),
                _ => Ok(()),
            }
        }
    }
}

fn owns(connection: &Connection, account: &Account, kind: Kind, id: &str) -> ApiResult<bool> {
    let owner = db::permissions::owner(connection, kind, id)?;
    Ok(owner.is_some_and(|owner| account.owns(&owner)))
}

/// The policy without the interfaces of others: their rules are not told.
fn visible(
    connection: &Connection,
    policy: Arc<Policy>,
    account: &Account,
) -> ApiResult<Arc<Policy>> {
    if account.is_all() {
        return Ok(policy);
    }
    let mut policy = Arc::unwrap_or_clone(policy);
    let mut own = BTreeMap::new();
    for (id, interface) in std::mem::take(&mut policy.interfaces) {
        if owns(connection, account, Kind::NetworkInterface, &id)? {
            own.insert(id, interface);
        }
    }
    policy.addresses.retain(|_, id| own.contains_key(id));
    policy
        .forwards
        .retain(|_, forward| own.contains_key(&forward.interface));
    policy.interfaces = own;
    Ok(Arc::new(policy))
}

/// The packet's two addresses. Of several interfaces, those in one network with the other end are
/// taken, else the first.
fn addresses(policy: &Policy, from: &End, to: &End, protocol: u8) -> ApiResult<(IpAddr, IpAddr)> {
    let ipv6 = match (from, to) {
        (End::Address(from), End::Address(to)) if from.is_ipv4() != to.is_ipv4() => {
            return Err(ApiError::field(
                Reason::InvalidParameterCombination,
                "to",
                format!("{from} and {to} are not of one family"),
            ));
        }
        (End::Address(address), _) | (_, End::Address(address)) => address.is_ipv6(),
        _ => protocol == protocols::ICMPV6,
    };
    if protocol == protocols::ICMP && ipv6 || protocol == protocols::ICMPV6 && !ipv6 {
        return Err(ApiError::field(
            Reason::InvalidParameterCombination,
            "protocol",
            "icmp goes with IPv4, and icmpv6 with IPv6",
        ));
    }
    let address = |end: &End, other: &End, field: &str| match end {
        End::Address(address) => Ok(*address),
        End::Interfaces(ids) => {
            let (id, interface) = nearest(policy, ids, other)
                .ok_or_else(|| ApiError::invalid(field, "it has no interface in force"))?;
            let address = match ipv6 {
                false => Some(interface.ipv4.into()),
                true => interface.ipv6.map(IpAddr::from),
            };
            address.ok_or_else(|| {
                ApiError::invalid(field, format!("the interface {id} has no IPv6 address"))
            })
        }
    };
    Ok((address(from, to, "from")?, address(to, from, "to")?))
}

/// The interface that shares a network with the other end, or the first.
fn nearest<'a>(
    policy: &'a Policy,
    ids: &'a [String],
    other: &End,
) -> Option<(&'a String, &'a Interface)> {
    let near = ids.iter().find(|id| shares_network(policy, id, other));
    let id = near.or(ids.first())?;
    Some((id, policy.interfaces.get(id)?))
}

fn shares_network(policy: &Policy, id: &str, other: &End) -> bool {
    let Some(Interface { network, .. }) = policy.interfaces.get(id) else {
        return false;
    };
    match other {
        End::Interfaces(others) => others.iter().any(|other| {
            let other = policy.interfaces.get(other);
            other.is_some_and(|other| other.network == *network)
        }),
        End::Address(address) => policy
            .networks
            .get(network)
            .is_some_and(|it| match address {
                IpAddr::V4(address) => it.ipv4.contains(address),
                IpAddr::V6(address) => it.ipv6.is_some_and(|range| range.contains(address)),
            }),
    }
}

/// Whether the host has this address: nothing else can be bound to, but for addresses that are
/// nobody's.
fn is_the_hosts(address: IpAddr) -> bool {
    !address.is_multicast() && !address.is_unspecified() && UdpSocket::bind((address, 0)).is_ok()
}
