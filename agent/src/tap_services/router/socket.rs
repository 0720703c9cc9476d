//! A raw ICMPv6 socket of one tap that sees router solicitations only, with their hop limits.

use std::{
    ffi::c_int,
    io,
    mem::{size_of, zeroed},
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

use super::message::SOLICITATION;

/// All routers of a link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// `ICMP6_FILTER` of `netinet/icmp6.h`.
const ICMP6_FILTER: c_int = 1;

/// The socket.
pub struct RouterSocket {
    socket: AsyncFd<Socket>,
    /// The tap's index.
    index: u32,
}

/// What came in.
pub struct Received {
    /// Bytes of ICMPv6.
    pub length: usize,
    pub from: Ipv6Addr,
    /// Of the IP header.
    pub hop_limit: Option<i32>,
}

impl RouterSocket {
    /// Opens one.
    pub fn open(tap: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        pass_only(&socket, SOLICITATION)?;
        socket.set_nonblocking(true)?;
        socket.bind_device(Some(tap.as_bytes()))?;
        let index = rustix::net::netdevice::name_to_index(&socket, tap)?;
        socket.join_multicast_v6(&ALL_ROUTERS, index)?;
        socket.set_multicast_if_v6(index)?;
        socket.set_multicast_loop_v6(false)?;
        // Hosts take nothing else for neighbour discovery (RFC 4861 section 6.1.2).
        socket.set_multicast_hops_v6(255)?;
        socket.set_unicast_hops_v6(255)?;
        socket.set_recv_hoplimit_v6(true)?;
        // SAFETY: a `Socket` gives the same descriptor for as long as it lives, open until it is
        // dropped, which the `AsyncFd` does after it has taken it off the reactor.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, index })
    }

    /// The next message.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| receive(rustix::fd::AsFd::as_fd(socket), buffer)) {
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    /// Sends a message to an address on the link.
    pub async fn send(&self, message: &[u8], to: Ipv6Addr) -> io::Result<()> {
        let to = SocketAddrV6::new(to, 0, 0, self.index).into();
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| socket.get_ref().send_to(message, &to)) {
                Ok(sent) => return sent.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// Lets messages of one type through (RFC 3542 section 3.2): a set bit blocks its type.
fn pass_only(socket: &Socket, kind: u8) -> io::Result<()> {
    let mut filter = [u32::MAX; 8];
    filter[usize::from(kind >> 5)] &= !(1 << (kind & 31));
    // SAFETY: the pointer and the length are those of `filter`, which the call only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_ICMPV6,
            ICMP6_FILTER,
            ptr::from_ref(&filter).cast(),
            size_of::<[u32; 8]>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    // SAFETY: both are plain data, for which all zeroes is a value.
    let (mut from, mut header): (libc::sockaddr_in6, libc::msghdr) =
        unsafe { (zeroed(), zeroed()) };
    let mut pieces = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // Aligned for `cmsghdr`, with room for the one message that is asked for.
    let mut control = [0u64; 8];
    header.msg_name = ptr::from_mut(&mut from).cast();
    header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    header.msg_iov = &raw mut pieces;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer of `header` is to one of the variables above, with its length, and
    // they live until the function's end.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    Ok(Received {
        length,
        from: Ipv6Addr::from(from.sin6_addr.s6_addr),
        hop_limit: hop_limit(&header),
    })
}

fn hop_limit(header: &libc::msghdr) -> Option<i32> {
    // SAFETY: `recvmsg` filled in `header`, whose control buffer is still there. The macros stay
    // within `msg_controllen`.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so it points to a whole `cmsghdr` in the buffer, which is aligned
        // for it.
        let (level, kind, length) = unsafe {
            (
                (*message).cmsg_level,
                (*message).cmsg_type,
                (*message).cmsg_len,
            )
        };
        // SAFETY: only computes a length.
        let wanted = unsafe { libc::CMSG_LEN(size_of::<c_int>() as u32) } as usize;
        if level == libc::IPPROTO_IPV6 && kind == libc::IPV6_HOPLIMIT && length >= wanted {
            // SAFETY: the kernel says that an int is there; it may lie on any address.
            return Some(unsafe { libc::CMSG_DATA(message).cast::<c_int>().read_unaligned() });
        }
        // SAFETY: as for the first one.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}
