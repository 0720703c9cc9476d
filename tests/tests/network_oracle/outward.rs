//! Public addresses and port forwards: changed through the API, and in the model.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use hearth_proto::v1::{
    AllocateAddressRequest, AssociateAddressRequest, CreateAddressPoolRequest,
    CreatePortForwardRequest, DeletePortForwardRequest, DisassociateAddressRequest,
};
use hearth_tests::{
    Hearth,
    net::{Random, packet::protocol},
};

use crate::{
    model::{Forward, Model},
    packets::PORTS,
};

/// Ports of the host that are forwarded.
const HOST_PORTS: [u16; 3] = [443, 5000, 5001];
const FORWARDS_MOST: usize = 3;

/// Makes a pool, and takes addresses from it; gives their ids.
pub async fn allocate(
    hearth: &Hearth,
    model: &mut Model,
    pool: &str,
    count: usize,
) -> Result<BTreeMap<IpAddr, String>> {
    let request = CreateAddressPoolRequest {
        ipv4_range: pool.to_owned(),
        ..Default::default()
    };
    let mut client = hearth.networks();
    client.create_address_pool(request).await?;
    let mut ids = BTreeMap::new();
    for _ in 0..count {
        let request = AllocateAddressRequest::default();
        let answer = client.allocate_address(request).await?.into_inner();
        let address = answer.address.context("no address")?;
        let public: IpAddr = address.public_ipv4.parse()?;
        model.public.insert(public, None);
        ids.insert(public, address.allocation_id);
    }
    Ok(ids)
}

/// Takes a public address from a guest, or gives one to a guest that has none: also one that is
/// another's so far.
pub async fn change_address(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
    ids: &BTreeMap<IpAddr, String>,
) -> Result<String> {
    let all: Vec<_> = ids.iter().collect();
    let (public, allocation_id) = *random.pick(&all);
    let allocation_id = allocation_id.clone();
    let mut client = hearth.networks();
    if model.public[public].is_some() && random.percent(40) {
        let request = DisassociateAddressRequest { allocation_id };
        client.disassociate_address(request).await?;
        model.public.insert(*public, None);
        return Ok(format!("{public} is nobody's"));
    }
    let has_none = |it: &usize| model.public_of(*it).is_none();
    let guests: Vec<_> = (0..model.guests.len()).filter(has_none).collect();
    let guest = *random.pick(&guests);
    let request = AssociateAddressRequest {
        allocation_id,
        network_interface_id: model.guests[guest].interface.clone(),
        allow_reassociation: true,
        ..Default::default()
    };
    client.associate_address(request).await?;
    model.public.insert(*public, Some(guest));
    Ok(format!("{public} is guest {guest}'s"))
}

/// Makes a forward, or deletes one.
pub async fn change_forward(
    hearth: &Hearth,
    model: &mut Model,
    random: &mut Random,
) -> Result<String> {
    let mut client = hearth.networks();
    let ids = model.in_order(model.forwards.keys());
    if ids.len() == FORWARDS_MOST || !ids.is_empty() && random.percent(40) {
        let id = random.pick(&ids).clone();
        let request = DeletePortForwardRequest {
            port_forward_id: id.clone(),
        };
        client.delete_port_forward(request).await?;
        let gone = model.forwards.remove(&id);
        return Ok(format!("no more {gone:?}"));
    }
    let forward = loop {
        let it = Forward {
            protocol: *random.pick(&[protocol::TCP, protocol::UDP]),
            host_port: *random.pick(&HOST_PORTS),
            guest: random.below(model.guests.len()),
            port: *random.pick(&PORTS),
        };
        let is_taken =
            |other: &Forward| (other.protocol, other.host_port) == (it.protocol, it.host_port);
        if !model.forwards.values().any(is_taken) {
            break it;
        }
    };
    let request = CreatePortForwardRequest {
        protocol: match forward.protocol {
            protocol::TCP => "tcp".to_owned(),
            _ => "udp".to_owned(),
        },
        host_port: forward.host_port.into(),
        network_interface_id: model.guests[forward.guest].interface.clone(),
        instance_port: forward.port.into(),
        ..Default::default()
    };
    let answer = client.create_port_forward(request).await?.into_inner();
    let made = answer.port_forward.context("no forward")?;
    let said = format!("{forward:?}");
    model.seen.push(made.port_forward_id.clone());
    model.forwards.insert(made.port_forward_id, forward);
    Ok(said)
}
