//! The host's side of interfaces: taps with their addresses, routes, neighbours and sysctls, and
//! public addresses on the loopback interface. Knows nothing of the database; [`crate::networks`]
//! says what is wanted.
//!
//! - [`tap`] makes a tap what its specification says, or takes it away
//! - `tun` is `/dev/net/tun`
//! - [`seen`] is what the kernel has now
//! - `sysctl`: files below `/proc/sys/net`
//! - [`host`] is about what is not a tap: forwarding, public addresses, ranges that others use
//!
//! Everything works in the network namespace of the process, and touches nothing that does not
//! carry our mark: taps have our `ifalias`, routes and addresses our protocol number.

pub mod host;
pub mod seen;
mod sysctl;
pub mod tap;
mod tun;

use std::io;

use rtnetlink::Handle;
use thiserror::Error;

/// Protocol number of our routes and public addresses (`RTA_PROTOCOL`, `IFA_PROTO`).
pub const PROTOCOL: u8 = 72;

/// What could not be done with the host's links.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The device that taps are made with.
    #[error("/dev/net/tun: {0}; load the kernel module `tun`, and let hearthd open the device")]
    NoTun(io::Error),
    /// The process lacks a right.
    #[error("{0}: not permitted; hearthd needs CAP_NET_ADMIN for networks (run it as root)")]
    NotPermitted(String),
    /// Somebody else's link has the name of one of our taps.
    #[error("the link {0} is there and is not Hearth's; remove it (`ip link del {0}`)")]
    Taken(String),
    /// The kernel's answer to a request.
    #[error("{doing}: {source}")]
    Refused {
        /// What was asked.
        doing: String,
        /// Why not.
        source: io::Error,
    },
}

impl LinkError {
    fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted(doing),
            _ => Self::Refused { doing, source },
        }
    }

    fn netlink(doing: impl Into<String>, error: rtnetlink::Error) -> Self {
        Self::io(doing, to_io(error))
    }
}

/// Result of work on links.
pub type LinkResult<T> = Result<T, LinkError>;

/// A connection to the kernel; its task ends with the last handle.
fn connect() -> LinkResult<Handle> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|error| LinkError::io("netlink", error))?;
    tokio::spawn(connection);
    Ok(handle)
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
