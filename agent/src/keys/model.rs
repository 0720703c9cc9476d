//! A key pair as the agent knows it.

use crate::{
    ids::Kind,
    query::{Described, tags_weight},
    tags::Tag,
    time::Millis,
};

/// One key pair: one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// Position in the order of creation; 0 before it is stored.
    pub seq: i64,
    pub id: String,
    pub owner: String,
    /// Unique among the owner's.
    pub name: String,
    /// `ssh-ed25519`, ...
    pub key_type: String,
    /// `SHA256:…`
    pub fingerprint: String,
    /// One line, as in `authorized_keys`.
    pub public_key: String,
    pub create_time: Millis,
    pub tags: Vec<Tag>,
}

impl Described for KeyPair {
    const KIND: Kind = Kind::KeyPair;
    const FILTERS: &'static [&'static str] =
        &["key-pair-id", "key-name", "fingerprint", "owner-id"];

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
            "key-pair-id" => self.id.clone(),
            "key-name" => self.name.clone(),
            "fingerprint" => self.fingerprint.clone(),
            "owner-id" => self.owner.clone(),
            _ => return Vec::new(),
        }]
    }

    fn weight(&self) -> usize {
        tags_weight(&self.tags) + self.public_key.len() + self.name.len()
    }

    fn tags(&self) -> &[Tag] {
        &self.tags
    }
}
