//! Flow logs as rows, and what Describe calls look for.

use crate::{
    firewall::policy::Traffic,
    ids::Kind,
    query::{Described, tags_weight},
    tags::Tag,
    time::Millis,
};

/// Which packets a flow log is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficType {
    Accept,
    Reject,
    All,
}

impl TrafficType {
    /// EC2's word, which is also what the database has.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "ACCEPT",
            Self::Reject => "REJECT",
            Self::All => "ALL",
        }
    }

    /// Reads [`Self::name`].
    pub fn parse(name: &str) -> Option<Self> {
        let all = [Self::Accept, Self::Reject, Self::All];
        all.into_iter().find(|it| it.name() == name)
    }

    /// As the firewall knows it.
    pub fn traffic(self) -> Traffic {
        Traffic {
            accepted: self != Self::Reject,
            refused: self != Self::Accept,
        }
    }

    /// Whether such packets are in it.
    pub fn has(self, accepted: bool) -> bool {
        let traffic = self.traffic();
        if accepted {
            traffic.accepted
        } else {
            traffic.refused
        }
    }
}

/// One flow log: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowLog {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    /// An interface or a network.
    pub resource_id: String,
    pub traffic: TrafficType,
    /// Seconds.
    pub interval: u32,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
    pub client_token: String,
}

impl FlowLog {
    /// Whether it is about this interface.
    pub fn covers(&self, interface_id: &str, network_id: &str) -> bool {
        self.resource_id == interface_id || self.resource_id == network_id
    }
}

/// An interface that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    pub tap: String,
    pub id: String,
    pub owner: String,
    pub network_id: String,
}

impl Described for FlowLog {
    const KIND: Kind = Kind::FlowLog;
    const FILTERS: &'static [&'static str] =
        &["flow-log-id", "resource-id", "traffic-type", "owner-id"];

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
        vec![match filter {
            "flow-log-id" => self.id.clone(),
            "resource-id" => self.resource_id.clone(),
            "traffic-type" => self.traffic.name().to_owned(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags)
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
