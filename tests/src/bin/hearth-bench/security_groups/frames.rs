//! Frames as they are on a link: UDP datagrams that were made before, sent many with one system
//! call, and whatever goes through an interface.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use anyhow::{Context, Result};
use hearth_tests::{Netns, netns::EVERY_FRAME};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, netdevice, recv, socket_with,
    sockopt,
};

/// Of a link and its other end.
pub const NEAR_MAC: &str = "02:00:5e:00:00:01";
pub const FAR_MAC: &str = "02:00:5e:00:00:02";

/// Frames of one system call.
const BATCH: usize = 32;

/// Data of a datagram: a number, and as much more as makes a frame of 60 bytes.
const DATA: usize = 18;

/// Before the data.
const HEADERS: usize = 14 + 20 + 8;

/// A packet socket on one interface.
pub struct Link(OwnedFd);

impl Link {
    /// For sending alone.
    pub fn sender(netns: &Netns, interface: &str) -> Result<Self> {
        Self::open(netns, interface, 0)
    }

    /// For all frames that come in by it and go out by it.
    pub fn watcher(netns: &Netns, interface: &str) -> Result<Self> {
        Self::open(netns, interface, EVERY_FRAME)
    }

    fn open(netns: &Netns, interface: &str, ethertype: u16) -> Result<Self> {
        let opened = netns.enter(|| {
            let flags = SocketFlags::CLOEXEC;
            // Without a protocol it gets nothing until it is bound.
            let fd = socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                flags,
                None::<Protocol>,
            )?;
            let index = netdevice::name_to_index(&fd, interface)?;
            let address = libc::sockaddr_ll {
                sll_family: u16::try_from(libc::AF_PACKET)?,
                sll_protocol: ethertype.to_be(),
                sll_ifindex: i32::try_from(index)?,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            let length = u32::try_from(size_of_val(&address))?;
            // SAFETY: the address is a sockaddr_ll of that length, and lives through the call.
            let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
            if bound != 0 {
                return Err(io::Error::last_os_error().into());
            }
            // More than comes in while nobody looks.
            sockopt::set_socket_recv_buffer_size_force(&fd, 16 << 20)?;
            Ok(fd)
        });
        Ok(Self(opened.with_context(|| interface.to_owned())?))
    }

    /// Sends all of them.
    pub fn send(&self, frames: &[Frame]) -> Result<()> {
        for batch in frames.chunks(BATCH) {
            let mut vectors: Vec<libc::iovec> = batch
                .iter()
                .map(|frame| libc::iovec {
                    iov_base: frame.0.as_ptr().cast_mut().cast(),
                    iov_len: frame.0.len(),
                })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = vectors
                .iter_mut()
                .map(|vector| libc::mmsghdr {
                    msg_hdr: libc::msghdr {
                        msg_name: ptr::null_mut(),
                        msg_namelen: 0,
                        msg_iov: vector,
                        msg_iovlen: 1,
                        msg_control: ptr::null_mut(),
                        msg_controllen: 0,
                        msg_flags: 0,
                    },
                    msg_len: 0,
                })
                .collect();
            let mut sent = 0;
            while sent < messages.len() {
                let rest = &mut messages[sent..];
                let length = u32::try_from(rest.len())?;
                // SAFETY: the messages point to vectors, those to frames, and all of them live
                // through the call, which writes to `msg_len` alone.
                let done =
                    unsafe { libc::sendmmsg(self.0.as_raw_fd(), rest.as_mut_ptr(), length, 0) };
                sent += usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
            }
        }
        Ok(())
    }

    /// The next frame that is there; `None` when there is none now.
    pub fn next<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
        match recv(&self.0, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => Ok(Some(&buffer[..length])),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The numbers of the datagrams to this port that went through since the last look.
    pub fn numbers(&self, port: u16) -> Result<Vec<u64>> {
        let mut buffer = [0; 2048];
        let mut numbers = Vec::new();
        while let Some(frame) = self.next(&mut buffer)? {
            let data = frame.get(HEADERS..HEADERS + 8);
            if frame.get(12..14) == Some(&[0x08, 0])
                && frame.get(23) == Some(&17)
                && frame.get(36..38) == Some(&port.to_be_bytes())
                && let Some(data) = data
            {
                numbers.push(u64::from_be_bytes(data.try_into()?));
            }
        }
        Ok(numbers)
    }
}

/// A datagram of UDP over IPv4, in Ethernet.
pub struct Frame([u8; HEADERS + DATA]);

/// An address and a port.
pub type End = (Ipv4Addr, u16);

impl Frame {
    /// From one end of the link to its other end.
    pub fn udp(macs: [&str; 2], from: End, to: End, number: u64) -> Self {
        let mut bytes = [0; HEADERS + DATA];
        let [from_mac, to_mac] = macs.map(mac);
        bytes[..6].copy_from_slice(&to_mac);
        bytes[6..12].copy_from_slice(&from_mac);
        bytes[12..14].copy_from_slice(&[0x08, 0]);
        let ip = &mut bytes[14..];
        ip[0] = 0x45;
        put(ip, 2, (20 + 8 + DATA) as u16);
        ip[8] = 64;
        ip[9] = 17;
        ip[12..16].copy_from_slice(&from.0.octets());
        ip[16..20].copy_from_slice(&to.0.octets());
        let sum = checksum(&ip[..20]);
        put(ip, 10, sum);
        put(ip, 20, from.1);
        put(ip, 22, to.1);
        put(ip, 24, (8 + DATA) as u16);
        // No checksum of UDP: RFC 768 allows it.
        ip[28..36].copy_from_slice(&number.to_be_bytes());
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn mac(text: &str) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, digits) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    bytes
}
