//! Networks, as a test makes them, and probes with addresses in them.

use anyhow::{Context, Result};
use hearth_proto::v1::{
    CreateNetworkRequest, DescribeNetworkInterfacesRequest, Network, NetworkInterface,
    NetworkInterfaceSpecification, RunInstancesRequest,
};

use crate::{Guest, Hearth, Netns};

impl Hearth {
    /// Starts an agent with an empty state in a network namespace of its own.
    pub async fn start_with_namespace() -> Result<Self> {
        Self::start_in(Some(Netns::new()?)).await
    }

    /// Makes a network, after `change` had its way with the request.
    pub async fn network(
        &self,
        ipv4_range: &str,
        change: impl FnOnce(&mut CreateNetworkRequest),
    ) -> Result<Network> {
        let mut request = CreateNetworkRequest {
            ipv4_range: ipv4_range.to_owned(),
            ..Default::default()
        };
        change(&mut request);
        let answer = self.networks().create_network(request).await?.into_inner();
        answer.network.context("the answer has no network")
    }

    /// All network interfaces.
    pub async fn interfaces(&self) -> Result<Vec<NetworkInterface>> {
        let request = DescribeNetworkInterfacesRequest::default();
        let answer = self.networks().describe_network_interfaces(request).await?;
        Ok(answer.into_inner().network_interfaces)
    }
}

impl Guest<'_> {
    /// Its first interface.
    pub async fn interface(&self) -> Result<NetworkInterface> {
        let instance = self.describe().await?;
        let first = instance.network_interfaces.into_iter().next();
        first.with_context(|| format!("{} has no interface", self.id))
    }
}

/// Asks for an interface in this network.
pub fn in_network(network: &Network) -> impl FnOnce(&mut RunInstancesRequest) + use<> {
    let interface = NetworkInterfaceSpecification {
        network_id: network.network_id.clone(),
        ..Default::default()
    };
    move |request| request.network_interfaces.push(interface)
}

/// What the probe is told so that its card has the interface's IPv4 address.
pub fn ipv4_address(interface: &NetworkInterface, network: &Network) -> String {
    let prefix = network.ipv4_range.split('/').nth(1).unwrap_or_default();
    format!(
        "nic={} ip={} prefix={prefix} gateway={}",
        interface.device_index, interface.private_ipv4, network.ipv4_gateway
    )
}

/// The same of the IPv6 address: its own alone, all else is behind the router.
pub fn ipv6_address(interface: &NetworkInterface) -> String {
    format!(
        "nic={} ip={} prefix=128 gateway=fe80::1",
        interface.device_index, interface.private_ipv6
    )
}
