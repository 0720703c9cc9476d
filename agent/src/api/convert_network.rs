//! Networks and what is in them, as the wire's types.

use hearth_proto::v1;

use super::convert::tags_out;
use crate::{
    networks::{
        describe::{InterfaceView, NetworkView},
        launch::{InterfaceRequest, NetworkRequest},
        model::{Address, Interface, Network, PortForward},
        pools::PoolView,
    },
    tags::Tag,
    tap_services::names,
};

/// What RunInstances says of networks.
pub fn network_request(request: &v1::RunInstancesRequest) -> NetworkRequest {
    let interface = |it: &v1::NetworkInterfaceSpecification| InterfaceRequest {
        network_id: it.network_id.clone(),
        security_group_ids: it.security_group_ids.clone(),
        private_ipv4: it.private_ipv4.clone(),
        private_ipv6: it.private_ipv6.clone(),
        description: it.description.clone(),
    };
    NetworkRequest {
        interfaces: request.network_interfaces.iter().map(interface).collect(),
        security_group_ids: request.security_group_ids.clone(),
        no_network: request.no_network,
        taps: request.tap_interfaces.len(),
    }
}

pub fn network(view: NetworkView) -> v1::Network {
    let NetworkView {
        network,
        available_addresses,
    } = view;
    let text =
        |address: Option<std::net::Ipv6Addr>| address.map(|it| it.to_string()).unwrap_or_default();
    v1::Network {
        ipv4_range: network.ipv4.to_string(),
        ipv6_range: network.ipv6.map(|it| it.to_string()).unwrap_or_default(),
        ipv4_gateway: network.gateway_ipv4().to_string(),
        ipv6_gateway: text(network.gateway_ipv6()),
        network_id: network.id,
        owner_id: network.owner,
        name: network.name,
        mtu: network.mtu,
        nat: network.nat,
        is_default: network.is_default,
        dns_domain: network.dns_domain,
        create_time: Some(network.create_time.into()),
        tags: tags_out(network.tags),
        client_token: network.client_token,
        available_addresses,
    }
}

pub fn interface(view: InterfaceView) -> v1::NetworkInterface {
    interface_of(view.interface, &view.network, &view.instance_tags)
}

/// An interface of an instance with these tags.
pub fn interface_of(
    interface: Interface,
    network: &Network,
    instance_tags: &[Tag],
) -> v1::NetworkInterface {
    let (id, domain) = (&interface.instance_id, &network.dns_domain);
    v1::NetworkInterface {
        dns_names: names::all(id, instance_tags, interface.ipv4, domain),
        network_interface_id: interface.id,
        owner_id: interface.owner,
        network_id: interface.network_id,
        instance_id: interface.instance_id,
        device_index: interface.device_index,
        mac_address: interface.mac.to_string(),
        private_ipv4: interface.ipv4.to_string(),
        private_ipv6: interface.ipv6.map(|it| it.to_string()).unwrap_or_default(),
        public_ipv4: interface
            .public_ipv4
            .map(|it| it.to_string())
            .unwrap_or_default(),
        security_group_ids: interface.groups,
        tap_name: interface.tap,
        description: interface.description,
        create_time: Some(interface.create_time.into()),
    }
}

pub fn pool(view: PoolView) -> v1::AddressPool {
    v1::AddressPool {
        pool_id: view.pool.id,
        ipv4_range: view.pool.ipv4.to_string(),
        description: view.pool.description,
        available_addresses: view.available_addresses,
        create_time: Some(view.pool.create_time.into()),
    }
}

pub fn address(address: Address) -> v1::Address {
    let private = address.private_ipv4;
    v1::Address {
        allocation_id: address.id,
        owner_id: address.owner,
        public_ipv4: address.public_ipv4.to_string(),
        pool_id: address.pool_id,
        network_interface_id: address.interface_id.unwrap_or_default(),
        instance_id: address.instance_id.unwrap_or_default(),
        private_ipv4: private.map(|it| it.to_string()).unwrap_or_default(),
        tags: tags_out(address.tags),
    }
}

pub fn port_forward(forward: PortForward) -> v1::PortForward {
    v1::PortForward {
        port_forward_id: forward.id,
        owner_id: forward.owner,
        protocol: forward.protocol.word().to_owned(),
        host_port: forward.host_port.into(),
        network_interface_id: forward.interface_id,
        instance_id: forward.instance_id,
        instance_port: forward.instance_port.into(),
        description: forward.description,
    }
}
