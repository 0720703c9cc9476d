//! Networks and what is in them, as rows; the wire's form is made in `api`.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    error::{ApiError, ApiResult},
    firewall::{TAP_PREFIX, policy},
    links::tap::TapSpec,
    tags::Tag,
    time::Millis,
};

/// The first addresses of a range that no instance gets: the network's own, the gateway's, and
/// two that EC2 keeps.
const RESERVED_FIRST: u64 = 4;

/// The last one: broadcast.
const RESERVED_LAST: u64 = 1;

/// One network: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub name: String,
    pub ipv4: Ipv4Net,
    pub ipv6: Option<Ipv6Net>,
    /// Bytes of an IP packet.
    pub mtu: u32,
    pub nat: bool,
    pub is_default: bool,
    pub dns_domain: String,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
}

impl Network {
    /// The first address of the range.
    pub fn gateway_ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.ipv4.network()) + 1)
    }

    /// The first address of the range, after the router's anycast address.
    pub fn gateway_ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
            .map(|range| Ipv6Addr::from(u128::from(range.network()) + 1))
    }

    /// How many instances' addresses the IPv4 range has room for.
    pub fn capacity(&self) -> u64 {
        (1 << (32 - self.ipv4.prefix_len())) - RESERVED_FIRST - RESERVED_LAST
    }

    /// The addresses that instances may get, in order.
    pub fn assignable(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = u32::from(self.ipv4.network()) + RESERVED_FIRST as u32;
        let last = u32::from(self.ipv4.broadcast()) - RESERVED_LAST as u32;
        (first..=last).map(Ipv4Addr::from)
    }

    /// Whether an instance may get this address.
    pub fn may_assign(&self, address: Ipv4Addr) -> bool {
        let number = u64::from(u32::from(address));
        let first = u64::from(u32::from(self.ipv4.network())) + RESERVED_FIRST;
        let last = u64::from(u32::from(self.ipv4.broadcast())) - RESERVED_LAST;
        (first..=last).contains(&number)
    }

    /// The IPv6 address that goes with an IPv4 address: it has the same host number.
    pub fn ipv6_beside(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let host = u32::from(address) - u32::from(self.ipv4.network());
        self.ipv6
            .map(|range| Ipv6Addr::from(u128::from(range.network()) + u128::from(host)))
    }

    /// As the firewall knows it.
    pub fn policy(&self) -> policy::Network {
        policy::Network {
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            gateway_ipv4: self.gateway_ipv4(),
            gateway_ipv6: self.gateway_ipv6(),
            nat: self.nat,
        }
    }
}

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered one, at random.
    pub fn random() -> ApiResult<Self> {
        let mut bytes = [0x02, 0, 0, 0, 0, 0];
        getrandom::fill(&mut bytes[1..])
            .map_err(|error| ApiError::internal("asking the host for random numbers", error))?;
        Ok(Self(bytes))
    }

    /// Reads six bytes in hexadecimal with colons.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An interface of an instance, from its launch to its termination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub network_id: String,
    pub instance_id: String,
    pub device_index: u32,
    pub mac: MacAddress,
    pub ipv4: Ipv4Addr,
    pub ipv6: Option<Ipv6Addr>,
    pub tap: String,
    pub description: String,
    pub create_time: Millis,
    /// Its security groups, from a table of their own.
    pub groups: Vec<String>,
    /// The elastic address that is associated with it, from its own row.
    pub public_ipv4: Option<Ipv4Addr>,
}

impl Interface {
    /// The name of the tap of an interface: the prefix and the id's last 12 digits, which is as
    /// long as a link's name may be.
    pub fn tap_name(id: &str) -> String {
        format!("{TAP_PREFIX}{}", &id[id.len().saturating_sub(12)..])
    }

    /// As the firewall knows it.
    pub fn policy(&self) -> policy::Interface {
        policy::Interface {
            network: self.network_id.clone(),
            tap: self.tap.clone(),
            mac: self.mac.0,
            ipv4: self.ipv4,
            ipv6: self.ipv6,
            groups: self.groups.iter().cloned().collect(),
        }
    }

    /// What its tap shall be.
    pub fn tap_spec(&self, network: &Network) -> TapSpec {
        TapSpec {
            name: self.tap.clone(),
            interface_id: self.id.clone(),
            mtu: network.mtu,
            guest_mac: self.mac.0,
            guest_ipv4: self.ipv4,
            gateway_ipv4: network.gateway_ipv4(),
            ipv6: self.ipv6.zip(network.gateway_ipv6()),
        }
    }
}

/// Public addresses that the host may give out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    pub seq: i64,
    pub id: String,
    pub ipv4: Ipv4Net,
    pub description: String,
    pub create_time: Millis,
}

/// An elastic address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub public_ipv4: Ipv4Addr,
    pub pool_id: String,
    pub interface_id: Option<String>,
    pub tags: Vec<Tag>,
    pub client_token: String,
    /// Of the interface, from its own row.
    pub instance_id: Option<String>,
    pub private_ipv4: Option<Ipv4Addr>,
}

/// A port of the host that is one of an interface's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForward {
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub protocol: Protocol,
    pub host_port: u16,
    pub interface_id: String,
    pub instance_port: u16,
    pub description: String,
    pub client_token: String,
    /// Of the interface, from its own row.
    pub instance_id: String,
}

impl PortForward {
    /// As the firewall knows it.
    pub fn policy(&self) -> policy::Forward {
        policy::Forward {
            protocol: self.protocol.number(),
            host_port: self.host_port,
            interface: self.interface_id.clone(),
            port: self.instance_port,
        }
    }
}

crate::db::state_names! {
    /// What a port forward forwards.
    Protocol {
        Tcp = "tcp",
        Udp = "udp",
    }
}

impl Protocol {
    /// Its number in IP.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A network for tests.
    pub fn network(ipv4: &str, ipv6: Option<&str>) -> Network {
        Network {
            seq: 0,
            id: "net-0123456789abcdef0".to_owned(),
            owner: "local".to_owned(),
            name: String::new(),
            ipv4: ipv4.parse().expect("IPv4 range"),
            ipv6: ipv6.map(|range| range.parse().expect("IPv6 range")),
            mtu: 1500,
            nat: true,
            is_default: false,
            dns_domain: "hearth.internal".to_owned(),
            create_time: Millis(0),
            tags: Vec::new(),
            client_token: String::new(),
        }
    }

    #[test]
    fn the_first_four_addresses_and_the_last_are_not_given_out() {
        let network = network("10.0.0.16/28", Some("fd00::/64"));
        assert_eq!(network.gateway_ipv4().to_string(), "10.0.0.17");
        assert_eq!(network.capacity(), 11);
        let all: Vec<String> = network.assignable().map(|it| it.to_string()).collect();
        assert_eq!(
            (all.len(), &*all[0], &*all[10]),
            (11, "10.0.0.20", "10.0.0.30")
        );
        assert!(network.assignable().all(|it| network.may_assign(it)));
        for reserved in [
            "10.0.0.15",
            "10.0.0.16",
            "10.0.0.19",
            "10.0.0.31",
            "10.0.0.32",
        ] {
            assert!(!network.may_assign(reserved.parse().expect("address")));
        }
        let beside = network.ipv6_beside("10.0.0.20".parse().expect("address"));
        assert_eq!(beside.map(|it| it.to_string()).as_deref(), Some("fd00::4"));
    }

    #[test]
    fn hardware_addresses_are_read_as_they_are_written() {
        let mac = MacAddress::random().expect("random");
        assert_eq!(mac.0[0], 2);
        assert_eq!(MacAddress::parse(&mac.to_string()), Some(mac));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "xx:00:00:00:00:00",
        ] {
            assert_eq!(MacAddress::parse(bad), None);
        }
    }

    #[test]
    fn a_taps_name_has_the_length_that_the_kernel_takes() {
        let name = Interface::tap_name("eni-0123456789abcdef0");
        assert_eq!((name.as_str(), name.len()), ("hth56789abcdef0", 15));
    }
}
