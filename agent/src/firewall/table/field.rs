//! What keys of sets are made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Interface,
    /// A security group, by the number in its id.
    Group,
    /// What an element of a group's rules is about.
    Tag,
    Ether,
    Ipv4,
    Ipv6,
    Protocol,
    Port,
}

impl Field {
    /// Length in bytes.
    pub fn size(self) -> usize {
        match self {
            Field::Interface | Field::Group | Field::Ipv6 => 16,
            Field::Ether => 6,
            Field::Ipv4 => 4,
            Field::Port | Field::Tag => 2,
            Field::Protocol => 1,
        }
    }

    /// Words of 4 bytes that it takes in a key or in registers.
    pub fn words(self) -> usize {
        self.size().div_ceil(4)
    }

    /// The type as `nft` knows it (its `datatype.h`): the kernel keeps it for those who list sets.
    pub fn datatype(self) -> u32 {
        match self {
            Field::Interface => 41,
            Field::Ether => 9,
            Field::Ipv4 => 7,
            // It has no type for a number of 16 bytes.
            Field::Ipv6 | Field::Group => 8,
            Field::Protocol => 12,
            Field::Port | Field::Tag => 13,
        }
    }
}

/// A key, put together from fields.
#[derive(Clone, Debug, Default)]
pub struct KeyBuilder(Vec<u8>);

/// Starts a key.
pub fn key() -> KeyBuilder {
    KeyBuilder::default()
}

impl KeyBuilder {
    /// Any field, as it is in packets.
    pub fn bytes(mut self, field: &[u8]) -> Self {
        self.0.extend(field);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The name of an interface; longer ones than the kernel's 15 characters are none.
    pub fn interface(self, name: &str) -> Self {
        let mut field = [0; 16];
        for (to, from) in field[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self.bytes(&field)
    }

    pub fn ipv4(self, address: Ipv4Addr) -> Self {
        self.bytes(&address.octets())
    }

    pub fn ipv6(self, address: Ipv6Addr) -> Self {
        self.bytes(&address.octets())
    }

    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(it) => self.ipv4(it),
            IpAddr::V6(it) => self.ipv6(it),
        }
    }

    pub fn port(self, port: u16) -> Self {
        self.bytes(&port.to_be_bytes())
    }

    pub fn byte(self, byte: u8) -> Self {
        self.bytes(&[byte])
    }

    pub fn build(self) -> Vec<u8> {
        self.0
    }
}
