//! Ids of objects: a prefix and 17 hexadecimal digits, as in EC2.

use crate::error::{ApiError, ApiResult, Reason};

/// Most ids in one request.
pub const MAX_IDS: usize = 100;

/// The kinds of object that have ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `i-…`
    Instance,
    /// `vol-…`
    Volume,
    /// `img-…`
    Image,
    /// `snap-…`
    Snapshot,
    /// `net-…`
    Network,
    /// `eni-…`
    NetworkInterface,
    /// `pool-…`
    AddressPool,
    /// `eipalloc-…`
    Address,
    /// `pf-…`
    PortForward,
    /// `sg-…`
    SecurityGroup,
    /// `sgr-…`
    SecurityGroupRule,
    /// `pl-…`
    PrefixList,
    /// `key-…`
    KeyPair,
    /// `fl-…`
    FlowLog,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Instance => "i-",
            Self::Volume => "vol-",
            Self::Image => "img-",
            Self::Snapshot => "snap-",
            Self::Network => "net-",
            Self::NetworkInterface => "eni-",
            Self::AddressPool => "pool-",
            Self::Address => "eipalloc-",
            Self::PortForward => "pf-",
            Self::SecurityGroup => "sg-",
            Self::SecurityGroupRule => "sgr-",
            Self::PrefixList => "pl-",
            Self::KeyPair => "key-",
            Self::FlowLog => "fl-",
        }
    }

    const fn malformed(self) -> Reason {
        match self {
            Self::Instance => Reason::InstanceIdMalformed,
            Self::Volume => Reason::VolumeIdMalformed,
            Self::Image => Reason::ImageIdMalformed,
            Self::Snapshot => Reason::SnapshotIdMalformed,
            Self::Network => Reason::NetworkIdMalformed,
            Self::NetworkInterface => Reason::NetworkInterfaceIdMalformed,
            Self::AddressPool => Reason::AddressPoolIdMalformed,
            Self::Address => Reason::AllocationIdMalformed,
            Self::PortForward => Reason::PortForwardIdMalformed,
            Self::SecurityGroup => Reason::SecurityGroupIdMalformed,
            Self::SecurityGroupRule => Reason::SecurityGroupRuleIdMalformed,
            Self::PrefixList => Reason::PrefixListIdMalformed,
            Self::KeyPair => Reason::KeyPairIdMalformed,
            Self::FlowLog => Reason::FlowLogIdMalformed,
        }
    }

    const fn not_found(self) -> Reason {
        match self {
            Self::Instance => Reason::InstanceNotFound,
            Self::Volume => Reason::VolumeNotFound,
            Self::Image => Reason::ImageNotFound,
            Self::Snapshot => Reason::SnapshotNotFound,
            Self::Network => Reason::NetworkNotFound,
            Self::NetworkInterface => Reason::NetworkInterfaceNotFound,
            Self::AddressPool => Reason::AddressPoolNotFound,
            Self::Address => Reason::AllocationNotFound,
            Self::PortForward => Reason::PortForwardNotFound,
            Self::SecurityGroup => Reason::SecurityGroupNotFound,
            Self::SecurityGroupRule => Reason::SecurityGroupRuleNotFound,
            Self::PrefixList => Reason::PrefixListNotFound,
            Self::KeyPair => Reason::KeyPairNotFound,
            Self::FlowLog => Reason::FlowLogNotFound,
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Volume => "volume",
            Self::Image => "image",
            Self::Snapshot => "snapshot",
            Self::Network => "network",
            Self::NetworkInterface => "network interface",
            Self::AddressPool => "address pool",
            Self::Address => "elastic address",
            Self::PortForward => "port forward",
            Self::SecurityGroup => "security group",
            Self::SecurityGroupRule => "security group rule",
            Self::PrefixList => "prefix list",
            Self::KeyPair => "key pair",
            Self::FlowLog => "flow log",
        }
    }

    /// A new id that nobody has.
    ///
    /// # Errors
    /// When the host gives no random numbers.
    pub fn new_id(self) -> ApiResult<String> {
        let mut random = [0u8; 9];
        getrandom::fill(&mut random)
            .map_err(|error| ApiError::internal("asking the host for random numbers", error))?;
        let digits = hex(&random);
        Ok(format!("{}{}", self.prefix(), &digits[..17]))
    }

    /// Whether this is the shape of such an id.
    pub fn matches(self, id: &str) -> bool {
        id.strip_prefix(self.prefix()).is_some_and(|digits| {
            digits.len() == 17
                && digits
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        })
    }

    /// Checks the shape of an id that a caller gave in `field`.
    pub fn check(self, id: &str, field: &str) -> ApiResult<()> {
        if id.is_empty() {
            return Err(ApiError::field(
                Reason::MissingParameter,
                field,
                format!("the id of the {} is missing", self.noun()),
            ));
        }
        if !self.matches(id) {
            return Err(ApiError::field(
                self.malformed(),
                field,
                format!(
                    "{:?} is not the id of an {}: {} and 17 hexadecimal digits",
                    shortened(id),
                    self.noun(),
                    self.prefix()
                ),
            ));
        }
        Ok(())
    }

    /// The error for an id that nobody has.
    pub fn missing(self, id: &str, field: &str) -> ApiError {
        ApiError::field(
            self.not_found(),
            field,
            format!("there is no {} {id}", self.noun()),
        )
        .with("resource_id", id)
    }

    /// Checks a list of ids that must not be empty; the result has no id twice.
    pub fn check_list(self, ids: &[String], field: &str) -> ApiResult<Vec<String>> {
        if ids.is_empty() {
            return Err(ApiError::field(
                Reason::MissingParameter,
                field,
                format!("name at least one {}", self.noun()),
            ));
        }
        self.check_optional_list(ids, field)
    }

    /// Checks a list of ids that may be empty; the result has no id twice.
    pub fn check_optional_list(self, ids: &[String], field: &str) -> ApiResult<Vec<String>> {
        if ids.len() > MAX_IDS {
            return Err(ApiError::invalid(
                field,
                format!(
                    "{} ids are too many; at most {MAX_IDS} in one call",
                    ids.len()
                ),
            ));
        }
        let mut unique: Vec<String> = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            self.check(id, &format!("{field}[{index}]"))?;
            if !unique.contains(id) {
                unique.push(id.clone());
            }
        }
        Ok(unique)
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A caller's text, short enough for a message.
pub fn shortened(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_have_the_shape_of_their_kind_and_no_other() {
        let id = Kind::Volume.new_id().expect("random");
        assert_eq!(id.len(), 4 + 17);
        assert!(Kind::Volume.matches(&id));
        assert!(!Kind::Instance.matches(&id));
    }

    #[test]
    fn an_id_with_a_slash_is_malformed() {
        let error = Kind::Instance
            .check("i-../../etc/passwd", "instance_ids[0]")
            .expect_err("slash");
        assert_eq!(error.reason(), Reason::InstanceIdMalformed);
        assert_eq!(error.fields(), ["instance_ids[0]"]);
    }

    #[test]
    fn more_than_a_hundred_ids_are_refused_and_twins_are_merged() {
        let id = Kind::Instance.new_id().expect("random");
        let twins = vec![id.clone(), id.clone()];
        assert_eq!(
            Kind::Instance
                .check_list(&twins, "instance_ids")
                .expect("fine"),
            std::slice::from_ref(&id)
        );
        let many = vec![id; 101];
        let error = Kind::Instance
            .check_list(&many, "instance_ids")
            .expect_err("too many");
        assert_eq!(error.fields(), ["instance_ids"]);
        assert!(Kind::Instance.check_list(&[], "instance_ids").is_err());
    }
}
