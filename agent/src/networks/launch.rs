//! RunInstances: which interfaces a new instance gets.

use rusqlite::Connection;

use super::{
    model::{Interface, Network},
    names,
    plan::{self, Plan},
};
use crate::{
    db::{self, Tx},
    error::{ApiError, ApiResult, Reason},
    ids::Kind,
    instances::model::Instance,
    security_groups::{default_group, membership},
    time::Millis,
};

/// Most interfaces of one instance, with those on taps of others.
const MAX_INTERFACES: usize = 4;

/// One interface that a caller asks for.
#[derive(Clone, Debug, Default)]
pub struct InterfaceRequest {
    pub network_id: String,
    pub security_group_ids: Vec<String>,
    pub private_ipv4: String,
    pub private_ipv6: String,
    pub description: String,
}

/// What a caller asks for.
#[derive(Clone, Debug, Default)]
pub struct NetworkRequest {
    pub interfaces: Vec<InterfaceRequest>,
    pub security_group_ids: Vec<String>,
    pub no_network: bool,
    /// How many interfaces it has on taps of others.
    pub taps: usize,
}

/// What it comes to: interfaces of each of the instances.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Vec<WantedInterface>);

#[derive(Clone, Debug)]
struct WantedInterface {
    network: Network,
    groups: Vec<String>,
    /// The request's, or one without a word.
    request: InterfaceRequest,
    field: String,
}

impl NetworkRequest {
    /// Checks all that needs no database.
    pub fn check(&self, max_count: u32) -> ApiResult<()> {
        let combination = |field: &str, message: &str| {
            Err(ApiError::field(
                Reason::InvalidParameterCombination,
                field,
                message,
            ))
        };
        if self.no_network && !(self.interfaces.is_empty() && self.security_group_ids.is_empty()) {
            return combination("no_network", "with it, the instance has no interface");
        }
        if !self.interfaces.is_empty() && !self.security_group_ids.is_empty() {
            return combination(
                "security_group_ids",
                "with network_interfaces, give the groups of each of them",
            );
        }
        if self.interfaces.len() + self.taps > MAX_INTERFACES {
            return Err(ApiError::invalid(
                "network_interfaces",
                format!("at most {MAX_INTERFACES} interfaces, with those of tap_interfaces"),
            ));
        }
        if self.taps > 0 && self.interfaces.is_empty() && !self.security_group_ids.is_empty() {
            return combination(
                "security_group_ids",
                "interfaces on taps have no security groups",
            );
        }
        check_groups(&self.security_group_ids, "security_group_ids")?;
        for (index, interface) in self.interfaces.iter().enumerate() {
            let field = |name: &str| format!("network_interfaces[{index}].{name}");
            if !interface.network_id.is_empty() {
                Kind::Network.check(&interface.network_id, &field("network_id"))?;
            }
            check_groups(&interface.security_group_ids, &field("security_group_ids"))?;
            names::check_text(&interface.description, &field("description"))?;
            for (address, name) in [
                (&interface.private_ipv4, "private_ipv4"),
                (&interface.private_ipv6, "private_ipv6"),
            ] {
                if !address.is_empty() && max_count > 1 {
                    return combination(
                        "max_count",
                        &format!("an address is one interface's: with {name}, ask for one"),
                    );
                }
            }
        }
        Ok(())
    }

    /// Checks the rest.
    pub fn wanted(&self, connection: &Connection, owner: &str) -> ApiResult<Wanted> {
        if self.interfaces.is_empty() {
            return self.wanted_by_default(connection, owner);
        }
        let mut wanted = Vec::new();
        for (index, request) in self.interfaces.iter().enumerate() {
            let field = format!("network_interfaces[{index}]");
            let id_field = format!("{field}.network_id");
            let network = match request.network_id.as_str() {
                "" => db::networks::default_of(connection, owner)?
                    .ok_or_else(|| no_default(&id_field))?,
                id => super::get(connection, id, &id_field)?,
            };
            let groups_field = format!("{field}.security_group_ids");
            let groups = &request.security_group_ids;
            wanted.push(WantedInterface {
                groups: groups_in(connection, owner, &network, groups, &groups_field)?,
                network,
                request: request.clone(),
                field,
            });
        }
        Ok(Wanted(wanted))
    }

    fn wanted_by_default(&self, connection: &Connection, owner: &str) -> ApiResult<Wanted> {
        if self.no_network || self.taps > 0 {
            return Ok(Wanted::default());
        }
        let groups = &self.security_group_ids;
        match db::networks::default_of(connection, owner)? {
            None if groups.is_empty() => Ok(Wanted::default()),
            None => Err(no_default("security_group_ids")),
            Some(network) => Ok(Wanted(vec![WantedInterface {
                groups: groups_in(connection, owner, &network, groups, "security_group_ids")?,
                network,
                request: InterfaceRequest::default(),
                field: "max_count".to_owned(),
            }])),
        }
    }
}

impl Wanted {
    /// How many instances the networks have addresses for, at most `count`.
    ///
    /// # Errors
    /// When it is less than `least`.
    pub fn room(&self, connection: &Connection, least: u64, count: u64) -> ApiResult<u64> {
        let mut room = count;
        for wanted in &self.0 {
            let id = &wanted.network.id;
            let each = self.0.iter().filter(|it| it.network.id == *id).count() as u64;
            let fits = plan::available(connection, &wanted.network)? / each;
            if fits < least {
                return Err(plan::exhausted(&wanted.network, &wanted.field));
            }
            room = room.min(fits);
        }
        Ok(room)
    }

    /// Makes the rows of an instance's interfaces.
    pub fn insert(&self, tx: &mut Tx<'_>, plan: &mut Plan, instance: &Instance) -> ApiResult<()> {
        for (index, wanted) in self.0.iter().enumerate() {
            let (network, request) = (&wanted.network, &wanted.request);
            let field = |name: &str| format!("{}.{name}", wanted.field);
            let ipv4 = match request.private_ipv4.as_str() {
                "" => plan
                    .next(tx, network)?
                    .ok_or_else(|| plan::exhausted(network, &wanted.field))?,
                chosen => plan::chosen_ipv4(tx, network, chosen, &field("private_ipv4"))?,
            };
            let ipv6 = match request.private_ipv6.as_str() {
                "" => network.ipv6_beside(ipv4),
                chosen => Some(plan::chosen_ipv6(
                    tx,
                    network,
                    ipv4,
                    chosen,
                    &field("private_ipv6"),
                )?),
            };
            let id = Kind::NetworkInterface.new_id()?;
            let mut interface = Interface {
                seq: 0,
                owner: instance.owner.clone(),
                network_id: network.id.clone(),
                instance_id: instance.id.clone(),
                device_index: index as u32,
                mac: plan::mac(tx)?,
                ipv4,
                ipv6,
                tap: Interface::tap_name(&id),
                description: request.description.clone(),
                create_time: Millis::now(),
                groups: wanted.groups.clone(),
                public_ipv4: None,
                id,
            };
            db::interfaces::insert(tx, &mut interface)?;
        }
        Ok(())
    }
}

fn no_default(field: &str) -> ApiError {
    ApiError::field(
        Reason::NetworkNotSpecified,
        field,
        "the account has no default network; name one",
    )
}

/// Checks the form of a list of groups; empty means the network's group `default`.
fn check_groups(groups: &[String], field: &str) -> ApiResult<()> {
    if groups.is_empty() {
        return Ok(());
    }
    membership::check_list(groups, field).map(drop)
}

/// The groups of an interface of this owner in a network.
fn groups_in(
    connection: &Connection,
    owner: &str,
    network: &Network,
    groups: &[String],
    field: &str,
) -> ApiResult<Vec<String>> {
    if groups.is_empty() {
        let group = default_group::of_network(connection, &network.id)?;
        return Ok(group.into_iter().collect());
    }
    let mut groups = membership::check_list(groups, field)?;
    membership::check(connection, owner, &network.id, &groups, field)?;
    groups.sort();
    Ok(groups)
}
