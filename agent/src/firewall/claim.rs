//! Whose the tables of a network namespace are. Two agents with networks would each repair what the
//! other one does, so the second one has to be told.
//!
//! While an agent has networks, it is bound to an abstract Unix socket, which the kernel keeps by
//! network namespace and takes away with the process. And its tables carry a comment, since they
//! stay in force while it is away.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    FirewallError,
    netlink::{Socket, owner},
    table::Family,
};

/// The abstract socket's name.
const NAME: &[u8] = b"hearth-networks";

/// How long another one may take to let go of it, and how often to look.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Who makes tables: the agent with this state directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Device and inode, which stay when the directory is moved.
    id: String,
    path: String,
}

impl Owner {
    /// The agent with this state directory.
    ///
    /// # Errors
    /// The directory can't be looked at.
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(state_dir)?;
        Ok(Self {
            id: format!("{:x}-{:x}", metadata.dev(), metadata.ino()),
            path: state_dir.display().to_string(),
        })
    }

    /// The comment of its tables. The kernel cuts long ones at their end.
    pub fn mark(&self) -> String {
        format!("hearthd {} {}", self.id, self.path)
    }

    fn made(&self, mark: &str) -> bool {
        let id = mark.split(' ').nth(1);
        mark.starts_with("hearthd ") && id == Some(&self.id)
    }
}

/// Who made the tables that are there.
#[derive(Debug, PartialEq, Eq)]
pub enum Maker {
    /// There are none.
    Nobody,
    /// This agent.
    Us,
    /// Nobody says.
    Unknown,
    /// Another agent, with this mark.
    Other(String),
}

impl Maker {
    /// Looks at the tables called `hearth`.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`].
    pub fn find(socket: &mut Socket, owner: &Owner) -> Result<Self, FirewallError> {
        let mut maker = Self::Nobody;
        for family in Family::ALL {
            let Some(mark) = owner::mark(socket, family)? else {
                continue;
            };
            if mark.is_empty() {
                maker = Self::Unknown;
            } else if !owner.made(&mark) {
                return Ok(Self::Other(mark));
            } else if maker == Self::Nobody {
                maker = Self::Us;
            }
        }
        Ok(maker)
    }
}

/// The right to have networks in this network namespace, for as long as it is held.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixDatagram,
}

impl Claim {
    /// Takes it, if no other agent has it or its tables are still there.
    ///
    /// # Errors
    /// [`FirewallError::Nftables`] says whose it is.
    pub fn take(socket: &mut Socket, owner: &Owner) -> Result<Self, FirewallError> {
        let bound = match bind() {
            Ok(bound) => bound,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let by = match Maker::find(socket, owner) {
                    Ok(Maker::Other(mark)) => format!(" ({mark})"),
                    _ => String::new(),
                };
                return Err(FirewallError::Nftables(format!(
                    "another agent{by} has networks in this network namespace; give each agent a \
                     namespace of its own"
                )));
            }
            Err(error) => {
                let error = format!("the socket that says whose networks these are: {error}");
                return Err(FirewallError::Nftables(error));
            }
        };
        match Maker::find(socket, owner)? {
            Maker::Other(mark) => Err(FirewallError::Nftables(format!(
                "the tables `hearth` of this network namespace are another agent's ({mark}), which \
                 does not run; if it is gone for good, remove them with `nft delete table inet \
                 hearth` and `nft delete table arp hearth`"
            ))),
            Maker::Nobody | Maker::Us | Maker::Unknown => Ok(Self { _socket: bound }),
        }
    }
}

/// An agent that just ended may live on for a moment in a child that is not executed yet.
fn bind() -> io::Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(NAME)?;
    let start = Instant::now();
    loop {
        match UnixDatagram::bind_addr(&name) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && start.elapsed() < PATIENCE =>
            {
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_knows_its_own_mark_whatever_its_directory_is_called() {
        let dir = tempfile::tempdir().expect("directory");
        let (one, two) = (dir.path().join("a b"), dir.path().join("two"));
        fs::create_dir(&one).expect("made");
        fs::create_dir(&two).expect("made");
        let owner = Owner::of(&one).expect("seen");
        let other = Owner::of(&two).expect("seen");
        assert!(owner.made(&owner.mark()) && !owner.made(&other.mark()));
        let moved = dir.path().join("moved");
        fs::rename(&one, &moved).expect("moved");
        let later = Owner::of(&moved).expect("seen");
        assert!(later.made(&owner.mark()));
        for mark in ["", "hearthd", "hearthd ", &owner.mark()[1..]] {
            assert!(!owner.made(mark), "{mark}");
        }
    }
}
