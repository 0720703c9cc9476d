//! Frames on one interface of a namespace, by a packet socket.

use std::{
    io,
    mem::size_of,
    net::UdpSocket,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, Protocol, SocketFlags, SocketType,
        addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque},
        bind, netdevice, socket_with, sockopt,
    },
};

use crate::Netns;

/// For bursts of frames that nobody reads at once.
const BUFFER_BYTES: usize = 16 << 20;
const FRAME_BYTES: usize = 4096;

/// One interface.
pub struct Wire {
    /// A packet socket; its type has no meaning beyond send and recv.
    socket: UdpSocket,
}

/// `struct sockaddr_ll` (packet(7)).
#[repr(C)]
struct LinkAddress {
    family: u16,
    /// In network byte order.
    protocol: u16,
    interface: i32,
    hardware_type: u16,
    packet_type: u8,
    length: u8,
    address: [u8; 8],
}

// SAFETY: the pointer is to a whole `sockaddr_ll`, which lives until the closure returns.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let length = SocketAddrLen::try_from(size_of::<Self>()).unwrap_or_default();
        f((&raw const *self).cast(), length)
    }
}

impl Wire {
    /// Frames of one type that come in on the interface, or for [`crate::netns::EVERY_FRAME`]
    /// those that go out, too; for 0 none, only to send.
    pub fn open(netns: &Netns, interface: &str, ethertype: u16) -> Result<Self> {
        let socket = netns.enter(|| {
            let kind = Some(Protocol::from_raw(
                NonZeroU32::new(u32::from(ethertype.to_be())).unwrap_or(NonZeroU32::MIN),
            ))
            .filter(|_| ethertype != 0);
            // Nothing is received before it is bound to the one interface.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
            let index = netdevice::name_to_index(&socket, interface)?;
            // By force, which needs root: beyond what the system gives everyone.
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
            let address = LinkAddress {
                family: AddressFamily::PACKET.as_raw(),
                protocol: kind.map_or(0, |_| ethertype.to_be()),
                interface: i32::try_from(index)?,
                hardware_type: 0,
                packet_type: 0,
                length: 0,
                address: [0; 8],
            };
            bind(&socket, &address)?;
            Ok(UdpSocket::from(socket))
        });
        let socket = socket.with_context(|| format!("a packet socket on {interface}"))?;
        Ok(Self { socket })
    }

    /// Sends a frame as it is. When it returns, the frame is on its way.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(frame) {
                Ok(_) => return Ok(()),
                // The interface's queue is full.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        || error.raw_os_error()
                            == Some(rustix::io::Errno::NOBUFS.raw_os_error()) =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error).context("sending a frame"),
            }
        }
    }

    /// The next frame, if there is one.
    pub fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; FRAME_BYTES];
        match self.socket.recv(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("receiving a frame"),
        }
    }

    /// Waits for a frame, until the deadline at most.
    pub fn wait(&self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left)?;
        poll(
            &mut [PollFd::new(&self.socket, PollFlags::IN)],
            Some(&timeout),
        )?;
        Ok(())
    }
}
