//! A prefix list as the agent knows it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::tags::Tag;

crate::db::state_names! {
    /// The family of all of a list's blocks.
    Family {
        Ipv4 = "IPv4",
        Ipv6 = "IPv6",
    }
}

impl Family {
    /// Whether it is IPv6.
    pub fn is_ipv6(self) -> bool {
        self == Self::Ipv6
    }
}

/// One list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixList {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    pub name: String,
    pub family: Family,
    pub max_entries: u32,
    /// Counts the modifications; 1 at first.
    pub version: u64,
    /// No block twice.
    pub entries: Vec<Entry>,
    pub tags: Vec<Tag>,
    pub client_token: String,
}

/// One of its blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub block: IpNet,
    pub description: String,
}
