//! What went wrong, in one line, and what to do next, in another.

use std::{fmt, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Ends the command: printed on standard error, exit code 1.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// [`Self::hint`], unless there is one already.
    pub fn hint_if_none(self, hint: &str) -> Self {
        if self.hint.is_some() {
            self
        } else {
            self.hint(hint)
        }
    }

    /// Prints both lines and gives the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("{self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hearth: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// A failed call, where no field of the request has a flag of its own.
pub fn rpc(status: Status) -> Failure {
    rpc_with_flags(status, &[])
}

/// A failed call. `flags` says which flag or argument of the command filled which field of the
/// request, so that the message names what was typed; a field is also found by its beginning
/// (`block_devices[1]` for `block_devices[1].size_gib`).
pub fn rpc_with_flags(status: Status, flags: &[(String, String)]) -> Failure {
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| info.reason.as_str());

    let violations = details
        .bad_request()
        .map(|bad| &bad.field_violations[..])
        .unwrap_or_default();
    let fields: Vec<&str> = violations
        .iter()
        .map(|violation| violation.field.as_str())
        .collect();
    let faults: Vec<String> = violations
        .iter()
        .map(|violation| {
            let field = flag_of(&violation.field, flags).unwrap_or(&violation.field);
            format!("{field}: {}", violation.description)
        })
        .collect();

    let mut message = match faults.is_empty() {
        true => status.message().to_owned(),
        false => faults.join("; "),
    };
    if message.is_empty() {
        message = format!("{:?}", status.code());
    }
    // One line, whatever the agent says.
    message = message.replace('\n', " ");
    if !reason.is_empty() && !message.contains(reason) {
        message = format!("{message} ({reason})");
    }

    let failure = Failure::new(message);
    match hint_for(reason, &fields, status.code()) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn flag_of<'a>(field: &str, flags: &'a [(String, String)]) -> Option<&'a str> {
    flags
        .iter()
        .find(|(name, _)| {
            field
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
        .map(|(_, flag)| flag.as_str())
}

/// What to do next, by EC2's name of the error, else by the field at fault, else by the gRPC
/// code.
fn hint_for(reason: &str, fields: &[&str], code: Code) -> Option<&'static str> {
    let hint = match reason {
        "InvalidInstanceID.NotFound" | "InvalidInstanceID.Malformed" => {
            "see what there is with `hearth instance list`"
        }
        "InvalidVolume.NotFound" | "InvalidVolumeID.Malformed" => {
            "see what there is with `hearth volume list`"
        }
        "InvalidAMIID.NotFound" | "InvalidAMIID.Malformed" | "InvalidAMIID.Unavailable" => {
            "see what there is with `hearth image list`"
        }
        "InvalidSnapshot.NotFound" | "InvalidSnapshotID.Malformed" => {
            "see what there is with `hearth snapshot list`"
        }
        "InvalidKeyPair.NotFound" | "InvalidKeyPair.Malformed" => {
            "see what there is with `hearth key list`"
        }
        "InvalidKeyPair.Duplicate" => "choose another name, or delete it with `hearth key delete`",
        "InvalidFlowLogId.NotFound" | "InvalidFlowLogId.Malformed" => {
            "see what there is with `hearth flow-log list`"
        }
        "FlowLogAlreadyExists" => {
            "see it with `hearth flow-log list`; delete it with `hearth flow-log delete`"
        }
        "InvalidGroup.NotFound" | "InvalidGroupId.Malformed" => {
            "see what there is with `hearth sg list`"
        }
        "InvalidPermission.NotFound"
        | "InvalidSecurityGroupRuleId.NotFound"
        | "InvalidSecurityGroupRuleId.Malformed" => "see the rules with `hearth sg rules GROUP`",
        "InvalidPrefixListID.NotFound" | "InvalidPrefixListID.Malformed" => {
            "see what there is with `hearth prefix-list list`"
        }
        "PrefixListVersionMismatch" => "look at it again with `hearth prefix-list show`",
        "InvalidNetworkID.NotFound" | "InvalidNetworkID.Malformed" | "InvalidNetwork.Duplicate" => {
            "see what there is with `hearth network list`"
        }
        "InvalidNetwork.Conflict" => "choose another range; `ip route` shows those of the host",
        "InvalidNetworkInterfaceID.NotFound" | "InvalidIPAddress.InUse" => {
            "see who has which address with `hearth net`"
        }
        "InvalidAllocationID.NotFound" | "InvalidAllocationID.Malformed" => {
            "see what there is with `hearth address list`"
        }
        "InvalidAddressPoolID.NotFound" | "InvalidAddressPoolID.Malformed" => {
            "see what there is with `hearth address pool list`"
        }
        "InsufficientAddressCapacity" => "add a pool with `hearth address pool create`",
        "Resource.AlreadyAssociated" => "take it over with --reassociate",
        "InvalidPortForwardID.NotFound" | "InvalidPortForwardID.Malformed" => {
            "see what there is with `hearth port-forward list`"
        }
        "InvalidPort.InUse" => "choose another --host-port, or leave it out",
        "NetworkNotSpecified" => "say which --network",
        "InvalidSnapshot.InUse" => "take the image away first, with `hearth image deregister`",
        "UnauthorizedOperation" => {
            "make your own with `hearth snapshot copy`, or act as its owner with --account"
        }
        "InvalidAMIName.Duplicate" => {
            "choose another --name, or take the old image away with `hearth image deregister`"
        }
        "VolumeInUse" => {
            "see who uses it with `hearth volume show`; detach it with `hearth volume detach`"
        }
        "IncorrectInstanceState" => {
            "see its state with `hearth instance show`; change it with `hearth instance start` or \
             `stop`"
        }
        "IncorrectState" => "see its state with `hearth volume show` or `hearth snapshot show`",
        "InsufficientInstanceCapacity" => {
            "ask for less (--type, --memory, --count), or stop other instances"
        }
        "InsufficientVolumeCapacity" => "make room in the agent's state directory",
        "IdempotentParameterMismatch" | "IdempotentInstanceTerminated" => {
            "this --client-token was used before; use a new one"
        }
        "EventsOutOfRange" => "leave out --after to begin with what comes next",
        _ if fields.contains(&"instance_type") => "see what there is with `hearth instance types`",
        _ => match code {
            Code::Unavailable => "the agent went away; check that hearthd is running",
            Code::Unimplemented => "hearth and hearthd are of different versions",
            Code::Internal | Code::DataLoss => "hearthd's log has more",
            _ => return None,
        },
    };
    Some(hint)
}

/// Pairs for [`rpc_with_flags`].
pub fn flags<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(String, String)> {
    pairs
        .map(|(field, flag)| (field.to_owned(), flag.to_owned()))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_field_violation_is_named_as_the_flag_that_was_typed() {
        let mut details = ErrorDetails::with_error_info(
            "InvalidParameterValue",
            "hearth",
            std::collections::HashMap::new(),
        );
        details.add_bad_request_violation("block_devices[1].size_gib", "is 0");
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        let failure = rpc_with_flags(status, &flags([("block_devices[1]", "--disk")]));
        assert_eq!(
            failure.to_string(),
            "hearth: --disk: is 0 (InvalidParameterValue)"
        );
    }

    #[test]
    fn what_is_not_found_comes_with_the_command_that_lists_what_there_is() {
        let details = ErrorDetails::with_error_info(
            "InvalidInstanceID.NotFound",
            "hearth",
            std::collections::HashMap::new(),
        );
        let status = Status::with_error_details(Code::NotFound, "no i-0", details);
        let text = rpc(status).to_string();
        assert!(
            text.contains("\nhint: see what there is with `hearth instance list`"),
            "{text}"
        );
    }

    #[test]
    fn a_longer_field_name_is_not_taken_for_its_beginning() {
        assert_eq!(
            flag_of("memory_mib", &flags([("memory", "--memory")])),
            None
        );
        assert_eq!(flag_of("a.b", &flags([("a", "--a")])), Some("--a"));
    }
}
