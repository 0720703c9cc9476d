//! CreateNetwork.

use std::sync::Arc;

use hearth_images::crash_point;

use super::{
    enforce::{self, Failure},
    model::Network,
    names, range,
};
use crate::{
    blocking::{blocking, carried_through},
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
    links::{host, seen::Seen},
    security_groups::{default_group, model::SecurityGroup},
    tags::{self, Tag},
    time::Millis,
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const CREATE: &str = "CreateNetwork";

/// Most networks of an account.
pub const MAX_NETWORKS: u32 = 100;

/// Bytes of an IP packet: what IPv6 asks for at least, and EC2's jumbo frames.
const MTUS: std::ops::RangeInclusive<u32> = 1280..=9001;
const DEFAULT_MTU: u32 = 1500;

/// What a caller wants made.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// The account that will own what is made.
    pub owner: String,
    pub ipv4_range: String,
    pub ipv6_range: String,
    pub name: String,
    pub mtu: u32,
    pub nat: bool,
    pub is_default: bool,
    pub dns_domain: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
    pub dry_run: bool,
}

/// CreateNetwork.
pub async fn create(context: Arc<Context>, request: CreateRequest) -> ApiResult<Network> {
    let ipv4 = range::parse_ipv4(&request.ipv4_range, "ipv4_range")?;
    let ipv6 = range::parse_ipv6(&request.ipv6_range, "ipv6_range")?;
    let mtu = match request.mtu {
        0 => DEFAULT_MTU,
        mtu if MTUS.contains(&mtu) => mtu,
        _ => {
            return Err(ApiError::invalid(
                "mtu",
                format!("{} to {} bytes", MTUS.start(), MTUS.end()),
            ));
        }
    };
    names::check_name(&request.name, "name")?;
    let dns_domain = names::domain(&request.dns_domain, "dns_domain")?;
    tags::check(&request.tags, "tags")?;
    let network = Network {
        seq: 0,
        id: Kind::Network.new_id()?,
        owner: request.owner.clone(),
        name: request.name.clone(),
        ipv4,
        ipv6,
        mtu,
        nat: request.nat,
        is_default: request.is_default,
        dns_domain,
        create_time: Millis::now(),
        tags: request.tags.clone(),
        client_token: request.client_token.clone(),
    };
    carried_through(async move {
        let _turn = context.turns.take([&network.id]).await;
        let seen = Seen::now()
            .await
            .map_err(|error| super::link_failed(&error))?;
        let token = request.token.clone();
        let dry_run = request.dry_run;
        let made = context
            .db
            .write(move |tx| insert(tx, network, token.as_ref(), dry_run, &seen))
            .await?;
        let (network, group) = match made {
            Made::Earlier(network) => return Ok(network),
            Made::New(made) => *made,
        };
        crash_point("network.row-made");
        let ipv6 = network.ipv6.is_some();
        let forwarding = blocking("turning forwarding on", move || {
            host::enable_forwarding(ipv6)
        });
        let result = match forwarding.await? {
            Ok(()) => {
                let changes = vec![
                    Change::PutNetwork(network.id.clone(), network.policy()),
                    Change::PutGroup(group.id.clone(), (&group).into()),
                ];
                enforce::changes(&context, changes, Connections::Cut).await
            }
            Err(error) => Err(Failure::NotInForce(super::link_failed(&error))),
        };
        match result {
            Ok(()) => {
                crash_point("network.in-force");
                Ok(network)
            }
            Err(Failure::InForce(error)) => Err(error),
            Err(Failure::NotInForce(error)) => {
                undo(&context, network).await?;
                Err(error)
            }
        }
    })
    .await
}

enum Made {
    New(Box<(Network, SecurityGroup)>),
    Earlier(Network),
}

fn insert(
    tx: &mut Tx<'_>,
    mut network: Network,
    token: Option<&ClientToken>,
    dry_run: bool,
    seen: &Seen,
) -> ApiResult<Made> {
    if let Some(token) = token
        && let Some(ids) = token.earlier(tx)?
    {
        let id = ids.first().map(String::as_str).unwrap_or_default();
        return super::get(tx, id, "client_token").map(Made::Earlier);
    }
    if db::networks::count(tx, &network.owner)? >= MAX_NETWORKS {
        return Err(ApiError::new(
            Reason::NetworkLimitExceeded,
            format!("the account has {MAX_NETWORKS} networks, which is the most"),
        ));
    }
    names::check_name_free(tx, &network.owner, &network.name, "")?;
    let others = db::networks::all(tx)?;
    range::check_free(network.ipv4, network.ipv6, &others, &network.owner, seen)?;
    if network.is_default {
        db::networks::clear_default(tx, &network.owner)?;
    }
    db::networks::insert(tx, &mut network)?;
    let group = default_group::create(tx, &network)?;
    if let Some(token) = token {
        token.keep(tx, std::slice::from_ref(&network.id))?;
    }
    if dry_run {
        return Err(super::dry_run());
    }
    Ok(Made::New(Box::new((network, group))))
}

/// Takes a network back that could not be put in force.
async fn undo(context: &Context, network: Network) -> ApiResult<()> {
    context
        .db
        .write(move |tx| {
            crate::tokens::forget(tx, &network.owner, CREATE, &network.client_token)?;
            Ok::<_, ApiError>(db::networks::remove(tx, &network)?)
        })
        .await
}
