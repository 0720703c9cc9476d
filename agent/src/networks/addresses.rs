//! Elastic addresses: public ones that an account holds, each mapped one to one to an interface's
//! private IPv4 address while it is associated. The host has the address itself meanwhile, so
//! that it answers ARP for it.

use std::{net::Ipv4Addr, sync::Arc};

use hearth_images::crash_point;
use rusqlite::Connection;

use super::{
    enforce::{self, Failure},
    interfaces,
    model::{Address, AddressPool, Interface},
    pools,
};
use crate::{
    blocking::carried_through,
    context::Context,
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    firewall::{Connections, policy::Change},
    ids::Kind,
    links::host,
    query::{
        Described,
        page::{Page, Query},
        tags_weight,
    },
    tags::{self, Tag},
    tokens::ClientToken,
};

/// Name of the operation for client tokens.
pub const ALLOCATE: &str = "AllocateAddress";

/// Most addresses of an account.
const MAX_ADDRESSES: u32 = 100;

/// Whose turn it is to change who has which address.
const TURN: &str = "addresses";

/// What a caller wants to hold.
#[derive(Clone, Debug)]
pub struct AllocateRequest {
    pub owner: String,
    pub pool_id: String,
    pub public_ipv4: String,
    pub tags: Vec<Tag>,
    pub client_token: String,
    pub token: Option<ClientToken>,
}

/// AllocateAddress.
pub async fn allocate(context: Arc<Context>, request: AllocateRequest) -> ApiResult<Address> {
    if !request.pool_id.is_empty() {
        Kind::AddressPool.check(&request.pool_id, "pool_id")?;
    }
    let wanted: Option<Ipv4Addr> = match request.public_ipv4.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| ApiError::invalid("public_ipv4", "not an IPv4 address"))?,
        ),
    };
    tags::check(&request.tags, "tags")?;
    let allocate = move |tx: &mut Tx<'_>| {
        if let Some(token) = &request.token
            && let Some(ids) = token.earlier(tx)?
        {
            let id = ids.first().map(String::as_str).unwrap_or_default();
            return get(tx, id, "client_token");
        }
        if db::addresses::count(tx, &request.owner)? >= MAX_ADDRESSES {
            return Err(ApiError::new(
                Reason::AddressLimitExceeded,
                format!("the account holds {MAX_ADDRESSES} addresses, which is the most"),
            ));
        }
        let (pool, public_ipv4) = free(tx, &request.pool_id, wanted)?;
        let mut address = Address {
            seq: 0,
            id: Kind::Address.new_id()?,
            owner: request.owner.clone(),
            public_ipv4,
            pool_id: pool.id,
            interface_id: None,
            tags: request.tags.clone(),
            client_token: request.client_token.clone(),
            instance_id: None,
            private_ipv4: None,
        };
        db::addresses::insert(tx, &mut address)?;
        if let Some(token) = &request.token {
            token.keep(tx, std::slice::from_ref(&address.id))?;
        }
        Ok(address)
    };
    context.db.write(allocate).await
}

/// A public address that nobody holds: the wanted one, or the lowest of a pool.
fn free(
    connection: &Connection,
    pool_id: &str,
    wanted: Option<Ipv4Addr>,
) -> ApiResult<(AddressPool, Ipv4Addr)> {
    let pools = match pool_id {
        "" => db::addresses::pools(connection)?,
        id => vec![pools::get(connection, id, "pool_id")?],
    };
    if let Some(wanted) = wanted {
        let pool = pools.into_iter().find(|pool| pool.ipv4.contains(&wanted));
        let pool = pool.ok_or_else(|| {
            ApiError::invalid(
                "public_ipv4",
                format!("{wanted} is not an address of a pool"),
            )
        })?;
        if db::addresses::taken(connection, &pool.id)?.contains(&wanted) {
            return Err(ApiError::field(
                Reason::IpAddressInUse,
                "public_ipv4",
                format!("somebody holds {wanted}"),
            ));
        }
        return Ok((pool, wanted));
    }
    for pool in pools {
        let taken = db::addresses::taken(connection, &pool.id)?;
        let (first, last) = (pool.ipv4.network(), pool.ipv4.broadcast());
        let mut all = (first.into()..=u32::from(last)).map(Ipv4Addr::from);
        if let Some(address) = all.find(|it| !taken.contains(it)) {
            return Ok((pool, address));
        }
    }
    Err(ApiError::field(
        Reason::InsufficientAddressCapacity,
        "pool_id",
        "no public address is free; the operator can add a pool",
    ))
}

/// DescribeAddresses.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<Address>> {
    context
        .db
        .read(move |connection| query.page(connection, "allocation_ids", get, db::addresses::after))
        .await
}

/// Which address is to be whose.
#[derive(Clone, Debug)]
pub struct AssociateRequest {
    pub allocation_id: String,
    pub interface_id: String,
    pub instance_id: String,
    pub allow_reassociation: bool,
}

/// AssociateAddress. In force when it returns.
pub async fn associate(context: Arc<Context>, request: AssociateRequest) -> ApiResult<Address> {
    Kind::Address.check(&request.allocation_id, "allocation_id")?;
    interfaces::check_named(&request.interface_id, &request.instance_id)?;
    carried_through(async move {
        let (interface_id, instance_id) =
            (request.interface_id.clone(), request.instance_id.clone());
        let named = move |c: &Connection| interfaces::named(c, &interface_id, &instance_id);
        let interface = context.db.read(named).await?;
        let _turn = context.turns.take([TURN, interface.id.as_str()]).await;
        let id = interface.id.clone();
        let (before, other) = context
            .db
            .write(move |tx| put(tx, &request, &interface))
            .await?;
        crash_point("address.row-associated");
        let mut changes: Vec<Change> = Vec::new();
        changes.extend(other.iter().map(|it| Change::RemoveAddress(it.public_ipv4)));
        changes.push(Change::PutAddress(before.public_ipv4, id.clone()));
        let result = match enforce::changes(&context, changes, Connections::Cut).await {
            Ok(()) => settle(&context).await.map_err(Failure::NotInForce),
            failed => failed,
        };
        match result {
            Ok(()) => {}
            Err(Failure::InForce(error)) => return Err(error),
            Err(Failure::NotInForce(error)) => {
                take_back(&context, before, other, &id).await?;
                return Err(error);
            }
        }
        crash_point("address.in-force");
        let id = before.id;
        context.db.read(move |c| get(c, &id, "allocation_id")).await
    })
    .await
}

/// Makes the rows say whose the address is. Gives the address as it was, and the one that the
/// interface had.
fn put(
    tx: &mut Tx<'_>,
    request: &AssociateRequest,
    interface: &Interface,
) -> ApiResult<(Address, Option<Address>)> {
    let address = get(tx, &request.allocation_id, "allocation_id")?;
    // It may have gone meanwhile.
    super::describe::get_interface(tx, &interface.id, "network_interface_id")?;
    if address.owner != interface.owner {
        return Err(Kind::NetworkInterface.missing(&interface.id, "network_interface_id"));
    }
    let other = db::addresses::of_interface(tx, &interface.id)?.filter(|it| it.id != address.id);
    let elsewhere = address
        .interface_id
        .as_ref()
        .filter(|id| **id != interface.id);
    if !request.allow_reassociation {
        let already = |field: &str, message: String| {
            Err(ApiError::field(Reason::AlreadyAssociated, field, message))
        };
        if let Some(id) = elsewhere {
            let message = format!(
                "{} is associated with {id}; ask for reassociation to take it away from there",
                address.public_ipv4
            );
            return already("allocation_id", message);
        }
        if let Some(other) = &other {
            let message = format!(
                "{} has {} ({}); ask for reassociation to replace it",
                interface.id, other.public_ipv4, other.id
            );
            return already("network_interface_id", message);
        }
    }
    if let Some(other) = &other {
        db::addresses::associate(tx, other, None)?;
    }
    db::addresses::associate(tx, &address, Some(&interface.id))?;
    Ok((address, other))
}

/// Rows and rules as they were. The caller has the turn.
async fn take_back(
    context: &Context,
    before: Address,
    other: Option<Address>,
    interface_id: &str,
) -> ApiResult<()> {
    let mut changes = vec![match &before.interface_id {
        Some(id) => Change::PutAddress(before.public_ipv4, id.clone()),
        None => Change::RemoveAddress(before.public_ipv4),
    }];
    if let Some(other) = &other {
        changes.push(Change::PutAddress(
            other.public_ipv4,
            interface_id.to_owned(),
        ));
    }
    let id = interface_id.to_owned();
    let back = move |tx: &mut Tx<'_>| {
        // One row at a time, because no two may be of one interface.
        db::addresses::associate(tx, &before, None)?;
        if let Some(other) = &other {
            db::addresses::associate(tx, other, Some(&id))?;
        }
        match &before.interface_id {
            // That one may be gone by now.
            Some(was) if db::interfaces::get(tx, was)?.is_some() => {
                db::addresses::associate(tx, &before, Some(was))
            }
            _ => Ok(()),
        }
    };
    context.db.write(back).await?;
    if let Err(failure) = enforce::changes(context, changes, Connections::Cut).await {
        let error = ApiError::from(failure);
        tracing::error!(%error, "taking an association back");
    }
    if let Err(error) = settle(context).await {
        tracing::error!(%error, "taking an association back");
    }
    Ok(())
}

/// DisassociateAddress. Nothing reaches the interface by it when it returns.
pub async fn disassociate(context: Arc<Context>, allocation_id: String) -> ApiResult<()> {
    Kind::Address.check(&allocation_id, "allocation_id")?;
    carried_through(async move {
        let _turn = context.turns.take([TURN]).await;
        let before = context
            .db
            .write(move |tx| {
                let address = get(tx, &allocation_id, "allocation_id")?;
                if address.interface_id.is_none() {
                    return Err(ApiError::field(
                        Reason::AssociationNotFound,
                        "allocation_id",
                        format!("{} is not associated", address.public_ipv4),
                    ));
                }
                db::addresses::associate(tx, &address, None)?;
                Ok(address)
            })
            .await?;
        crash_point("address.row-disassociated");
        let removal = vec![Change::RemoveAddress(before.public_ipv4)];
        match enforce::changes(&context, removal, Connections::Cut).await {
            Ok(()) => {}
            Err(Failure::InForce(error)) => return Err(error),
            Err(Failure::NotInForce(error)) => {
                let back = move |tx: &mut Tx<'_>| {
                    db::addresses::associate(tx, &before, before.interface_id.as_deref())
                };
                context.db.write(back).await?;
                return Err(error);
            }
        }
        settle(&context).await
    })
    .await
}

/// ReleaseAddress.
pub async fn release(context: Arc<Context>, allocation_id: String) -> ApiResult<()> {
    Kind::Address.check(&allocation_id, "allocation_id")?;
    let release = move |tx: &mut Tx<'_>| {
        let address = get(tx, &allocation_id, "allocation_id")?;
        if let Some(interface) = &address.interface_id {
            return Err(ApiError::field(
                Reason::IpAddressInUse,
                "allocation_id",
                format!(
                    "{} is associated with {interface}; disassociate it first",
                    address.public_ipv4
                ),
            )
            .with("resource_id", interface));
        }
        Ok(db::addresses::remove(tx, &address)?)
    };
    context.db.write(release).await
}

/// Gives the host the public addresses that are associated, and no others of ours. A host without
/// pools is left alone.
pub async fn settle(context: &Context) -> ApiResult<()> {
    let _links = context.networks.links.lock().await;
    let read = |c: &Connection| {
        let any = db::addresses::any_pool(c)?;
        any.then(|| db::addresses::associated(c)).transpose()
    };
    let Some(wanted) = context.db.read(read).await? else {
        return Ok(());
    };
    let set = host::set_public_addresses(&wanted).await;
    let (added, removed) = set.map_err(|error| super::link_failed(&error))?;
    if !added.is_empty() || !removed.is_empty() {
        tracing::debug!(?added, ?removed, "public addresses of the host");
    }
    Ok(())
}

/// Looks an address up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<Address> {
    let found = db::addresses::get(connection, id)?;
    found.ok_or_else(|| Kind::Address.missing(id, field))
}

impl Described for Address {
    const KIND: Kind = Kind::Address;
    const FILTERS: &'static [&'static str] = &[
        "allocation-id",
        "public-ipv4",
        "network-interface-id",
        "instance-id",
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
        match filter {
            "allocation-id" => vec![self.id.clone()],
            "public-ipv4" => vec![self.public_ipv4.to_string()],
            "network-interface-id" => self.interface_id.iter().cloned().collect(),
            "instance-id" => self.instance_id.iter().cloned().collect(),
            "owner-id" => vec![self.owner.clone()],
            _ => Vec::new(),
        }
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags)
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
