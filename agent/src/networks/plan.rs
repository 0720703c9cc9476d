//! Who gets which address: the lowest one of the range that is free, or the one that was asked
//! for.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use rusqlite::Connection;

use super::model::{MacAddress, Network};
use crate::{
    db,
    error::{ApiError, ApiResult, Reason},
    links::tap::HOST_MAC,
};

/// So many of the first IPv6 addresses of a range have the host numbers of IPv4 ones.
const BESIDE_IPV4: u128 = 1 << 16;

/// The free addresses of some networks, in the transaction in which they are given out.
#[derive(Default)]
pub struct Plan {
    free: HashMap<String, Box<dyn Iterator<Item = Ipv4Addr>>>,
}

impl Plan {
    /// The next free address; `None` when there is none.
    pub fn next(
        &mut self,
        connection: &Connection,
        network: &Network,
    ) -> ApiResult<Option<Ipv4Addr>> {
        if !self.free.contains_key(&network.id) {
            let taken = db::interfaces::taken(connection, &network.id)?;
            let free = network.assignable().filter(move |it| !taken.contains(it));
            self.free.insert(network.id.clone(), Box::new(free));
        }
        let free = self.free.get_mut(&network.id);
        for address in free.into_iter().flatten() {
            // One that was asked for may have been given out meanwhile.
            let text = address.to_string();
            if db::interfaces::holder(connection, &network.id, &text)?.is_none() {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }
}

/// How many more addresses there are in a network.
pub fn available(connection: &Connection, network: &Network) -> ApiResult<u64> {
    let taken = db::interfaces::count(connection, &network.id)?;
    Ok(network.capacity().saturating_sub(taken))
}

/// The error when a network is full.
pub fn exhausted(network: &Network, field: &str) -> ApiError {
    ApiError::field(
        Reason::InsufficientFreeAddresses,
        field,
        format!(
            "{} ({}) has too few free addresses: {} for instances, and most are taken",
            network.id,
            network.ipv4,
            network.capacity()
        ),
    )
    .with("resource_id", &network.id)
}

/// Reads an IPv4 address that a caller chose, and checks that it can be given out.
pub fn chosen_ipv4(
    connection: &Connection,
    network: &Network,
    text: &str,
    field: &str,
) -> ApiResult<Ipv4Addr> {
    let address: Ipv4Addr = text
        .parse()
        .map_err(|_| ApiError::invalid(field, "not an IPv4 address"))?;
    if !network.ipv4.contains(&address) {
        return Err(ApiError::invalid(
            field,
            format!("{address} is not in {} of {}", network.ipv4, network.id),
        ));
    }
    if !network.may_assign(address) {
        return Err(ApiError::invalid(
            field,
            format!(
                "{address} is not given out: the first four addresses and the last are reserved"
            ),
        ));
    }
    check_free(connection, network, &address.to_string(), field)?;
    Ok(address)
}

/// The same of an IPv6 address, for an interface that has this IPv4 address.
pub fn chosen_ipv6(
    connection: &Connection,
    network: &Network,
    ipv4: Ipv4Addr,
    text: &str,
    field: &str,
) -> ApiResult<Ipv6Addr> {
    let address: Ipv6Addr = text
        .parse()
        .map_err(|_| ApiError::invalid(field, "not an IPv6 address"))?;
    let Some(range) = network.ipv6 else {
        return Err(ApiError::invalid(
            field,
            format!("{} has no IPv6 range", network.id),
        ));
    };
    if !range.contains(&address) {
        return Err(ApiError::invalid(
            field,
            format!("{address} is not in {range} of {}", network.id),
        ));
    }
    let host = u128::from(address) - u128::from(range.network());
    let beside = network.ipv6_beside(ipv4);
    if host < BESIDE_IPV4 && beside != Some(address) {
        let beside = beside.map(|it| it.to_string()).unwrap_or_default();
        return Err(ApiError::invalid(
            field,
            format!(
                "the first 65,536 addresses go with IPv4 ones: beside {ipv4} it can be {beside}, \
                 not {address}"
            ),
        ));
    }
    check_free(connection, network, &address.to_string(), field)?;
    Ok(address)
}

fn check_free(
    connection: &Connection,
    network: &Network,
    address: &str,
    field: &str,
) -> ApiResult<()> {
    match db::interfaces::holder(connection, &network.id, address)? {
        None => Ok(()),
        Some((interface, instance)) => Err(ApiError::field(
            Reason::IpAddressInUse,
            field,
            format!("{address} is the address of {interface} of {instance}"),
        )
        .with("resource_id", interface)),
    }
}

/// A hardware address that nobody has.
pub fn mac(connection: &Connection) -> ApiResult<MacAddress> {
    loop {
        let mac = MacAddress::random()?;
        if mac.0 != HOST_MAC && !db::interfaces::has_mac(connection, mac)? {
            return Ok(mac);
        }
    }
}
