//! Pools of public addresses: the operator's, for all accounts.

use std::{net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;
use rusqlite::Connection;

use super::{model::AddressPool, names};
use crate::{
    blocking::carried_through,
    context::Context,
    db,
    error::{ApiError, ApiResult, Reason},
    ids::{Kind, shortened},
    links::{host, seen::Seen},
    query::{
        Described,
        page::{Page, Query},
    },
    tags::Tag,
    time::Millis,
};

/// The largest pool, in bits of the prefix.
const LARGEST: u8 = 16;

/// A pool, and how much is left of it.
#[derive(Clone, Debug)]
pub struct PoolView {
    pub pool: AddressPool,
    pub available_addresses: u64,
}

/// CreateAddressPool.
pub async fn create(
    context: Arc<Context>,
    range: String,
    description: String,
) -> ApiResult<PoolView> {
    let ipv4 = parse(&range)?;
    names::check_text(&description, "description")?;
    carried_through(async move {
        let seen = Seen::now()
            .await
            .map_err(|error| super::link_failed(&error))?;
        let mut pool = AddressPool {
            seq: 0,
            id: Kind::AddressPool.new_id()?,
            ipv4,
            description,
            create_time: Millis::now(),
        };
        context
            .db
            .write(move |tx| {
                check_free(tx, ipv4, &seen)?;
                db::addresses::insert_pool(tx, &mut pool)?;
                view(tx, pool)
            })
            .await
    })
    .await
}

fn parse(text: &str) -> ApiResult<Ipv4Net> {
    const FIELD: &str = "ipv4_range";
    let bad = |message: String| ApiError::invalid(FIELD, message);
    let range: Ipv4Net = text.parse().map_err(|_| {
        let text = shortened(text);
        bad(format!("{text:?} is not a range such as 192.0.2.0/28"))
    })?;
    if range != range.trunc() {
        return Err(bad(format!(
            "{range} has bits beyond its prefix; the range would be {}",
            range.trunc()
        )));
    }
    if range.prefix_len() < LARGEST {
        return Err(bad(format!("a pool is a /{LARGEST} at most")));
    }
    let (first, last) = (range.network(), range.broadcast());
    let unusable = |it: Ipv4Addr| {
        it.is_unspecified()
            || it.is_loopback()
            || it.is_link_local()
            || it.is_multicast()
            || it.octets()[0] >= 240
    };
    if unusable(first) || unusable(last) {
        return Err(bad(format!("{range} has addresses that no host can have")));
    }
    Ok(range)
}

/// Nobody else has these addresses: no pool, no network, and not the host itself.
fn check_free(connection: &Connection, range: Ipv4Net, seen: &Seen) -> ApiResult<()> {
    let conflict = |with: String| {
        let message = format!("{range} overlaps with {with}");
        ApiError::field(Reason::AddressPoolConflict, "ipv4_range", message)
    };
    let meets = |other: &Ipv4Net| other.contains(&range) || range.contains(other);
    for other in db::addresses::pools(connection)? {
        if meets(&other.ipv4) {
            return Err(conflict(format!("{} ({})", other.id, other.ipv4)));
        }
    }
    for network in db::networks::all(connection)? {
        if meets(&network.ipv4) {
            return Err(conflict(format!("{} ({})", network.id, network.ipv4)));
        }
    }
    match host::own_address_in(seen, range) {
        Some(address) => Err(conflict(format!("the host's own address {address}"))),
        None => Ok(()),
    }
}

/// DescribeAddressPools.
pub async fn describe(context: &Context, query: Query) -> ApiResult<Page<PoolView>> {
    context
        .db
        .read(move |connection| {
            let page = query.page(connection, "pool_ids", get, db::addresses::pools_after)?;
            let views = page.objects.into_iter().map(|pool| view(connection, pool));
            Ok(Page {
                objects: views.collect::<ApiResult<_>>()?,
                next_token: page.next_token,
            })
        })
        .await
}

fn view(connection: &Connection, pool: AddressPool) -> ApiResult<PoolView> {
    let taken = db::addresses::taken(connection, &pool.id)?.len() as u64;
    let all = 1 << (32 - pool.ipv4.prefix_len());
    Ok(PoolView {
        available_addresses: u64::saturating_sub(all, taken),
        pool,
    })
}

/// DeleteAddressPool.
pub async fn delete(context: Arc<Context>, pool_id: String) -> ApiResult<()> {
    Kind::AddressPool.check(&pool_id, "pool_id")?;
    let delete = move |tx: &mut db::Tx<'_>| {
        let pool = get(tx, &pool_id, "pool_id")?;
        let taken = db::addresses::taken(tx, &pool.id)?;
        if !taken.is_empty() {
            let mut taken: Vec<String> = taken.iter().map(ToString::to_string).collect();
            taken.sort();
            taken.truncate(5);
            return Err(ApiError::field(
                Reason::DependencyViolation,
                "pool_id",
                format!(
                    "accounts hold addresses of {}: {}; release them first",
                    pool.id,
                    taken.join(", ")
                ),
            )
            .with("resource_id", &pool.id));
        }
        Ok(db::addresses::remove_pool(tx, &pool.id)?)
    };
    context.db.write(delete).await
}

/// Looks a pool up that a caller named in `field`.
pub fn get(connection: &Connection, id: &str, field: &str) -> ApiResult<AddressPool> {
    let found = db::addresses::get_pool(connection, id)?;
    found.ok_or_else(|| Kind::AddressPool.missing(id, field))
}

impl Described for AddressPool {
    const KIND: Kind = Kind::AddressPool;
    const FILTERS: &'static [&'static str] = &[];

    fn seq(&self) -> i64 {
        self.seq
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn owner(&self) -> &str {
        crate::accounts::EVERYBODY
    }

    fn values(&self, _filter: &str) -> Vec<String> {
        Vec::new()
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

    #[test]
    fn a_pool_is_a_range_of_addresses_that_a_host_can_have() {
        for good in ["192.0.2.0/28", "198.51.100.7/32", "10.0.0.0/16"] {
            assert_eq!(parse(good).expect(good).to_string(), good);
        }
        for bad in [
            "",
            "x",
            "192.0.2.1/28",
            "10.0.0.0/8",
            "127.0.0.0/24",
            "169.254.0.0/16",
            "224.0.0.0/24",
            "0.0.0.0/16",
            "255.255.255.0/24",
        ] {
            assert_eq!(parse(bad).expect_err(bad).fields(), ["ipv4_range"]);
        }
    }
}
