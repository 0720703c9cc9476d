//! What can go wrong with a call, and the one place that makes a gRPC status of it.
//!
//! A [`ApiError`] has a message for the caller and, apart from it, words for the log; the rest
//! of the agent knows nothing of gRPC.

use std::collections::HashMap;

use hearth_images::ErrorKind;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::db::DbError;

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "hearth";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $code:ident;)*) => {
        /// Names of errors, EC2's where EC2 has one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// `ErrorInfo.reason`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }

            /// All of them.
            #[cfg(test)]
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }
    };
}

reasons! {
    /// No such instance.
    InstanceNotFound = "InvalidInstanceID.NotFound", NotFound;
    /// Not the shape of an instance id.
    InstanceIdMalformed = "InvalidInstanceID.Malformed", InvalidArgument;
    /// No such volume.
    VolumeNotFound = "InvalidVolume.NotFound", NotFound;
    /// Not the shape of a volume id.
    VolumeIdMalformed = "InvalidVolumeID.Malformed", InvalidArgument;
    /// No such image.
    ImageNotFound = "InvalidAMIID.NotFound", NotFound;
    /// Not the shape of an image id.
    ImageIdMalformed = "InvalidAMIID.Malformed", InvalidArgument;
    /// The image is not (or no longer) there to be used.
    ImageUnavailable = "InvalidAMIID.Unavailable", FailedPrecondition;
    /// The owner has an image of this name.
    ImageNameDuplicate = "InvalidAMIName.Duplicate", AlreadyExists;
    /// Not allowed in an image's name.
    ImageNameMalformed = "InvalidAMIName.Malformed", InvalidArgument;
    /// No such snapshot.
    SnapshotNotFound = "InvalidSnapshot.NotFound", NotFound;
    /// Not the shape of a snapshot id.
    SnapshotIdMalformed = "InvalidSnapshotID.Malformed", InvalidArgument;
    /// An image uses the snapshot.
    SnapshotInUse = "InvalidSnapshot.InUse", FailedPrecondition;
    /// The volume is attached to an instance.
    VolumeInUse = "VolumeInUse", FailedPrecondition;
    /// The instance has no place for another disk.
    AttachmentLimitExceeded = "AttachmentLimitExceeded", ResourceExhausted;
    /// The tap is another instance's.
    NetworkInterfaceInUse = "InvalidNetworkInterface.InUse", FailedPrecondition;
    /// No such network.
    NetworkNotFound = "InvalidNetworkID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    NetworkIdMalformed = "InvalidNetworkID.Malformed", InvalidArgument;
    /// No such network interface.
    NetworkInterfaceNotFound = "InvalidNetworkInterfaceID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    NetworkInterfaceIdMalformed = "InvalidNetworkInterfaceID.Malformed", InvalidArgument;
    /// No such address pool.
    AddressPoolNotFound = "InvalidAddressPoolID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    AddressPoolIdMalformed = "InvalidAddressPoolID.Malformed", InvalidArgument;
    /// No such elastic address.
    AllocationNotFound = "InvalidAllocationID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    AllocationIdMalformed = "InvalidAllocationID.Malformed", InvalidArgument;
    /// No such port forward.
    PortForwardNotFound = "InvalidPortForwardID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    PortForwardIdMalformed = "InvalidPortForwardID.Malformed", InvalidArgument;
    /// No such security group.
    SecurityGroupNotFound = "InvalidGroup.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    SecurityGroupIdMalformed = "InvalidGroupId.Malformed", InvalidArgument;
    /// No such security group rule.
    SecurityGroupRuleNotFound = "InvalidSecurityGroupRuleId.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    SecurityGroupRuleIdMalformed = "InvalidSecurityGroupRuleId.Malformed", InvalidArgument;
    /// No such prefix list.
    PrefixListNotFound = "InvalidPrefixListID.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    PrefixListIdMalformed = "InvalidPrefixListID.Malformed", InvalidArgument;
    /// No such key pair.
    KeyPairNotFound = "InvalidKeyPair.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    KeyPairIdMalformed = "InvalidKeyPair.Malformed", InvalidArgument;
    /// No such flow log.
    FlowLogNotFound = "InvalidFlowLogId.NotFound", NotFound;
    /// Not the shape of the id of such an object.
    FlowLogIdMalformed = "InvalidFlowLogId.Malformed", InvalidArgument;
    /// The resource has a flow log of this traffic type.
    FlowLogAlreadyExists = "FlowLogAlreadyExists", AlreadyExists;
    /// The account has as many flow logs as it may.
    FlowLogsLimitExceeded = "FlowLogsLimitExceeded", ResourceExhausted;
    /// The owner has a network of this name.
    NetworkNameDuplicate = "InvalidNetwork.Duplicate", AlreadyExists;
    /// The range overlaps with another network or a route of the host.
    NetworkConflict = "InvalidNetwork.Conflict", FailedPrecondition;
    /// Not a range that a network may have.
    NetworkRange = "InvalidNetwork.Range", InvalidArgument;
    /// The account has as many networks as it may.
    NetworkLimitExceeded = "NetworkLimitExceeded", ResourceExhausted;
    /// The account has no default network.
    NetworkNotSpecified = "NetworkNotSpecified", FailedPrecondition;
    /// Somebody has the address.
    IpAddressInUse = "InvalidIPAddress.InUse", FailedPrecondition;
    /// No address is left.
    InsufficientFreeAddresses = "InsufficientFreeAddressesInSubnet", ResourceExhausted;
    /// No public address is left.
    InsufficientAddressCapacity = "InsufficientAddressCapacity", ResourceExhausted;
    /// The account has as many elastic addresses as it may.
    AddressLimitExceeded = "AddressLimitExceeded", ResourceExhausted;
    /// The pool's range overlaps with another or with the host's own.
    AddressPoolConflict = "InvalidAddressPool.Conflict", FailedPrecondition;
    /// Something listens on the host's port, or it is forwarded already.
    PortInUse = "InvalidPort.InUse", FailedPrecondition;
    /// The elastic address is not associated.
    AssociationNotFound = "InvalidAssociationID.NotFound", NotFound;
    /// The elastic address, or the interface, has a partner already.
    AlreadyAssociated = "Resource.AlreadyAssociated", FailedPrecondition;
    /// Others need it.
    DependencyViolation = "DependencyViolation", FailedPrecondition;
    /// The network has a group of this name.
    SecurityGroupDuplicate = "InvalidGroup.Duplicate", AlreadyExists;
    /// The group `default` can't be deleted.
    CannotDelete = "CannotDelete", FailedPrecondition;
    /// The group has such a rule.
    PermissionDuplicate = "InvalidPermission.Duplicate", AlreadyExists;
    /// The group has no such rule.
    PermissionNotFound = "InvalidPermission.NotFound", NotFound;
    /// More rules than a group may have.
    RulesPerSecurityGroupLimitExceeded = "RulesPerSecurityGroupLimitExceeded", ResourceExhausted;
    /// More groups than an interface may have.
    SecurityGroupsPerInterfaceLimitExceeded = "SecurityGroupsPerInterfaceLimitExceeded", ResourceExhausted;
    /// The prefix list has another version.
    PrefixListVersionMismatch = "PrefixListVersionMismatch", FailedPrecondition;
    /// The owner has a key pair of this name.
    KeyPairDuplicate = "InvalidKeyPair.Duplicate", AlreadyExists;
    /// Not a public key.
    KeyFormat = "InvalidKey.Format", InvalidArgument;
    /// The guest did not take the connection.
    ConnectionFailed = "ConnectionFailed", Unavailable;
    /// The instance's state does not allow it.
    IncorrectInstanceState = "IncorrectInstanceState", FailedPrecondition;
    /// The volume's or the snapshot's state does not allow it.
    IncorrectState = "IncorrectState", FailedPrecondition;
    /// The object is somebody else's, and shared for use only.
    UnauthorizedOperation = "UnauthorizedOperation", PermissionDenied;
    /// A field's value is not allowed.
    InvalidParameterValue = "InvalidParameterValue", InvalidArgument;
    /// A field that must be given is not.
    MissingParameter = "MissingParameter", InvalidArgument;
    /// Fields that do not go together.
    InvalidParameterCombination = "InvalidParameterCombination", InvalidArgument;
    /// A stream of bytes ended too early.
    IncompleteBody = "IncompleteBody", InvalidArgument;
    /// The client token was used with another request.
    IdempotentParameterMismatch = "IdempotentParameterMismatch", FailedPrecondition;
    /// The instances that the client token stands for are gone.
    IdempotentInstanceTerminated = "IdempotentInstanceTerminated", FailedPrecondition;
    /// More tags than an object may have.
    TagLimitExceeded = "TagLimitExceeded", InvalidArgument;
    /// The host has no room for the guest.
    InsufficientInstanceCapacity = "InsufficientInstanceCapacity", ResourceExhausted;
    /// The host's disk has no room for the volume.
    InsufficientVolumeCapacity = "InsufficientVolumeCapacity", ResourceExhausted;
    /// `dry_run` was set and all is well.
    DryRunOperation = "DryRunOperation", FailedPrecondition;
    /// Events that are no longer, or not yet, there.
    EventsOutOfRange = "EventsOutOfRange", OutOfRange;
    /// The host can't do it: no KVM, no VMM program.
    Unsupported = "Unsupported", FailedPrecondition;
    /// The daemon is ending.
    Unavailable = "Unavailable", Unavailable;
    /// The agent's own fault; the log says more.
    InternalError = "InternalError", Internal;
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub struct ApiError(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    reason: Reason,
    message: String,
    violations: Vec<(String, String)>,
    metadata: HashMap<String, String>,
    log: Option<String>,
}

/// Result of what a call does.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with words for the caller.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            reason,
            message: message.into(),
            violations: Vec::new(),
            metadata: HashMap::new(),
            log: None,
        }))
    }

    /// An error of one field of the request; `field` is its path in the proto.
    pub fn field(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        let (field, message) = (field.into(), message.into());
        Self::new(reason, format!("{field}: {message}")).violating(field, message)
    }

    /// A field whose value is not allowed.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::field(Reason::InvalidParameterValue, field, message)
    }

    /// The agent's own fault. The caller learns little, the log everything.
    pub fn internal(doing: &str, cause: impl std::fmt::Display) -> Self {
        let mut error = Self::new(
            Reason::InternalError,
            format!("hearthd failed while {doing}; its log has the cause"),
        );
        error.0.log = Some(format!("{doing}: {cause}"));
        error
    }

    /// Adds a field to blame.
    pub fn violating(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.0.violations.push((field.into(), message.into()));
        self
    }

    /// Adds a fact for programs.
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.0.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// Its name.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// Words for the caller.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The fields to blame.
    #[cfg(test)]
    pub fn fields(&self) -> Vec<&str> {
        self.0
            .violations
            .iter()
            .map(|(field, _)| field.as_str())
            .collect()
    }

    /// An error of the volume store, with the request's field that led to it (or none).
    ///
    /// What is wrong with the caller's file is told in full; what is wrong with the host goes
    /// to the log.
    pub fn from_store(error: &hearth_images::Error, field: &str, doing: &str) -> Self {
        let kind = error.kind();
        let reason = match kind {
            ErrorKind::InvalidSize
            | ErrorKind::InvalidFormat
            | ErrorKind::Corrupt
            | ErrorKind::UnsafeReference
            | ErrorKind::DigestMismatch
            | ErrorKind::LengthMismatch
            | ErrorKind::Truncated
                if !field.is_empty() =>
            {
                Reason::InvalidParameterValue
            }
            ErrorKind::NoSpace => {
                return Self::new(
                    Reason::InsufficientVolumeCapacity,
                    format!("the host's disk has no room left ({doing})"),
                );
            }
            ErrorKind::InUse => {
                return Self::new(Reason::VolumeInUse, format!("{error} ({doing})"));
            }
            _ => return Self::internal(doing, full_cause(error)),
        };
        Self::field(reason, field, error.to_string()).with("kind", format!("{kind:?}"))
    }
}

/// An error and all its causes on one line.
pub fn full_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.reason.name(), self.0.message)?;
        if let Some(log) = &self.0.log {
            write!(f, " ({log})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ApiError {}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        if error.is_disk_full() {
            return Self::new(
                Reason::InsufficientVolumeCapacity,
                "the host's disk has no room left (for the database)",
            );
        }
        Self::internal("using the database", full_cause(&error))
    }
}

impl From<rusqlite::Error> for ApiError {
    fn from(error: rusqlite::Error) -> Self {
        DbError::from(error).into()
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let inner = *error.0;
        if let Some(log) = &inner.log {
            tracing::error!(reason = inner.reason.name(), "{log}");
        }
        let mut details =
            ErrorDetails::with_error_info(inner.reason.name(), DOMAIN, inner.metadata);
        for (field, message) in inner.violations {
            details.add_bad_request_violation(field, message);
        }
        Status::with_error_details(inner.reason.code(), inner.message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_names_the_reason_and_the_field() {
        let error = ApiError::invalid("block_devices[0].size_gib", "must be at least 1")
            .with("kind", "InvalidSize");
        let status = Status::from(error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "block_devices[0].size_gib: must be at least 1"
        );
        let details = status.get_error_details();
        let info = details.error_info().expect("error info");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("InvalidParameterValue", DOMAIN)
        );
        assert_eq!(info.metadata["kind"], "InvalidSize");
        let bad = details.bad_request().expect("bad request");
        assert_eq!(bad.field_violations[0].field, "block_devices[0].size_gib");
    }

    #[test]
    fn an_internal_error_keeps_its_cause_from_the_caller() {
        let error = ApiError::internal("opening a file", "/secret/path is missing");
        assert!(error.to_string().contains("/secret/path"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("secret"));
    }

    #[test]
    fn every_reason_is_in_the_table_of_the_api_document() {
        let document = include_str!("../../docs/api.md");
        for reason in Reason::ALL {
            let row = document
                .lines()
                .find(|line| line.contains(&format!("| `{}` |", reason.name())));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/api.md", reason.name()));
            let code = format!("{:?}", reason.code());
            assert!(
                row.contains(&format!("| {code} |")),
                "{row} does not say {code}"
            );
        }
    }
}
