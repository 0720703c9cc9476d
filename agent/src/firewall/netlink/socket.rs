//! A netlink socket to netfilter, in the network namespace of the thread that opens it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{NETFILTER, SocketAddrNetlink},
        recv, send, socket_with, sockopt,
    },
};
use thiserror::Error;

/// How long the kernel may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP`, `NLM_F_DUMP_INTR`
pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Length of a message's header, and of that and netfilter's own.
pub const HEADER: usize = 16;
pub const BOTH_HEADERS: usize = 20;

/// How often a dump is begun anew because something changed meanwhile.
const DUMP_ATTEMPTS: usize = 50;

/// Why netfilter did not do what it was asked to.
#[derive(Clone, Debug, Error)]
pub enum NetlinkError {
    /// The socket itself.
    #[error("netlink: {0}")]
    Socket(String),
    /// It is not there.
    #[error(
        "this kernel has no nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT): \
         load the module nf_tables, or use a kernel that has it"
    )]
    Missing,
    /// It refused.
    #[error("the kernel refuses {message}: {source}")]
    Refused { message: String, source: Errno },
    /// Others change the rules all the time.
    #[error("the rules change faster than they can be read")]
    Unsteady,
}

impl NetlinkError {
    /// The errno that the kernel answered with.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NetlinkError::Refused { source, .. } => Some(*source),
            _ => None,
        }
    }
}

fn socket_error(error: impl Into<io::Error>) -> NetlinkError {
    NetlinkError::Socket(error.into().to_string())
}

/// A message that came in.
#[derive(Clone, Debug)]
pub struct Message {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Port of the socket that caused it.
    pub port: u32,
    /// Behind netlink's header: netfilter's own of 4 bytes, then attributes.
    pub body: Vec<u8>,
}

impl Message {
    pub fn attributes(&self) -> &[u8] {
        self.body.get(4..).unwrap_or_default()
    }

    /// Of an `NLMSG_ERROR`.
    fn error(&self) -> Option<Errno> {
        let code = i32::from_ne_bytes(self.body.get(..4)?.try_into().ok()?);
        (code != 0).then(|| Errno::from_raw_os_error(-code))
    }
}

/// The socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one. `groups` is a bit mask of multicast groups to listen to.
    ///
    /// # Errors
    /// [`NetlinkError::Missing`] on a kernel without netfilter's netlink.
    pub fn open(groups: u32) -> Result<Self, NetlinkError> {
        let flags = SocketFlags::CLOEXEC;
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            flags,
            Some(NETFILTER),
        )
        .map_err(|error| match error {
            Errno::PROTONOSUPPORT => NetlinkError::Missing,
            error => socket_error(error),
        })?;
        bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(socket_error)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(TIMEOUT))
            .map_err(socket_error)?;
        // More than the default for answers to long transactions; not vital.
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, 4 << 20);
        let address = rustix::net::getsockname(&fd).map_err(socket_error)?;
        let address = SocketAddrNetlink::try_from(address).map_err(socket_error)?;
        Ok(Self {
            fd,
            port: address.pid(),
            sequence: 0,
            buffer: vec![0; 1 << 16],
        })
    }

    /// What messages carry that this socket caused.
    pub fn port(&self) -> u32 {
        self.port
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A number for the next message.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends messages that are put together already.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn send(&self, messages: &[u8]) -> Result<(), NetlinkError> {
        // A transaction is one write, however long.
        let size = messages.len() * 2 + (1 << 16);
        if sockopt::set_socket_send_buffer_size_force(&self.fd, size).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&self.fd, size);
        }
        send(&self.fd, messages, SendFlags::empty()).map_err(socket_error)?;
        Ok(())
    }

    /// The messages of one datagram; `None` when there is none (`wait`: within the time limit).
    ///
    /// # Errors
    /// [`NetlinkError::Socket`], also when messages were lost.
    pub fn receive(&mut self, wait: bool) -> Result<Option<Vec<Message>>, NetlinkError> {
        let flags = if wait {
            RecvFlags::empty()
        } else {
            RecvFlags::DONTWAIT
        };
        loop {
            match recv(&self.fd, &mut self.buffer[..], flags) {
                Ok((len, _)) => return Ok(Some(split(&self.buffer[..len]))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(socket_error(error)),
            }
        }
    }

    /// Forgets what is still in the socket, such as the rest of an answer that was given up.
    fn drain(&mut self) {
        while matches!(self.receive(false), Ok(Some(_)) | Err(_)) {}
    }

    /// Asks for all objects of a kind. Answers are of one moment.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
    ) -> Result<Vec<Message>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(messages) = self.try_dump(kind, family, attributes)? {
                return Ok(messages);
            }
            self.drain();
        }
        Err(NetlinkError::Unsteady)
    }

    fn try_dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &[u8],
    ) -> Result<Option<Vec<Message>>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut request = Vec::new();
        message(
            &mut request,
            kind,
            REQUEST | DUMP,
            sequence,
            family,
            0,
            attributes,
        );
        self.send(&request)?;
        let mut all = Vec::new();
        loop {
            let Some(messages) = self.receive(true)? else {
                return Err(NetlinkError::Socket("no answer".to_owned()));
            };
            for message in messages {
                if message.sequence != sequence {
                    continue;
                }
                if message.flags & DUMP_INTERRUPTED != 0 {
                    return Ok(None);
                }
                match message.kind {
                    NLMSG_DONE => return Ok(Some(all)),
                    NLMSG_ERROR => match message.error() {
                        None => return Ok(Some(all)),
                        Some(Errno::INTR | Errno::AGAIN) => return Ok(None),
                        Some(source) => return Err(refused("reading", source)),
                    },
                    _ => all.push(message),
                }
            }
        }
    }

    /// Sends one request and waits for its answer (`None`: only that it was done).
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
    ) -> Result<Option<Message>, NetlinkError> {
        let sequence = self.next_sequence();
        let mut request = Vec::new();
        message(
            &mut request,
            kind,
            REQUEST | flags,
            sequence,
            family,
            0,
            attributes,
        );
        self.send(&request)?;
        loop {
            let Some(messages) = self.receive(true)? else {
                return Err(NetlinkError::Socket("no answer".to_owned()));
            };
            for message in messages {
                if message.sequence != sequence {
                    continue;
                }
                return match message.kind {
                    NLMSG_ERROR => match message.error() {
                        None => Ok(None),
                        Some(source) => Err(refused("a request", source)),
                    },
                    _ => Ok(Some(message)),
                };
            }
        }
    }

    /// Sends a transaction; `describe` says what a message of it is about. The kernel has done all
    /// of it, or nothing, when this returns.
    ///
    /// # Errors
    /// [`NetlinkError`]: nothing was done.
    pub fn transact(
        &mut self,
        messages: &[u8],
        last: u32,
        describe: impl Fn(u32) -> String,
    ) -> Result<(), NetlinkError> {
        self.send(messages)?;
        // The kernel works while we send: all answers are there now.
        let mut failure = None;
        let mut done = false;
        while let Some(messages) = self.receive(false)? {
            for message in messages {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match message.error() {
                    None => done |= message.sequence == last,
                    Some(source) if failure.is_none() => {
                        failure = Some(NetlinkError::Refused {
                            message: describe(message.sequence),
                            source,
                        });
                    }
                    Some(_) => {}
                }
            }
        }
        match failure {
            Some(error) => Err(error),
            None if done => Ok(()),
            None => Err(NetlinkError::Socket(
                "no answer to a transaction".to_owned(),
            )),
        }
    }
}

fn refused(message: &str, source: Errno) -> NetlinkError {
    NetlinkError::Refused {
        message: message.to_owned(),
        source,
    }
}

fn split(mut rest: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let len = word(0) as usize;
        let Some(body) = rest.get(HEADER..len) else {
            break;
        };
        messages.push(Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            body: body.to_vec(),
        });
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// Appends a message with netfilter's header; `resource` is the subsystem in the frame of a
/// transaction.
pub fn message(
    to: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    attributes: &[u8],
) {
    let len = u32::try_from(BOTH_HEADERS + attributes.len()).expect("a message's length");
    to.extend(len.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend(sequence.to_ne_bytes());
    to.extend(0u32.to_ne_bytes());
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(attributes);
    to.resize(to.len().next_multiple_of(4), 0);
}
