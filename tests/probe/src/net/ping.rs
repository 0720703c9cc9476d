//! ICMP and ICMPv6 echo.

use alloc::vec;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp::{Endpoint, PacketBuffer, PacketMetadata, Socket};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress};

use super::Stack;
use crate::command::Failure;
use crate::cpu::clock;
use crate::histogram::Histogram;

/// What is asked for.
pub struct Ping {
    /// Of whom.
    pub address: IpAddress,
    /// How many, one after the other.
    pub count: u16,
    /// Bytes of data in each.
    pub size: usize,
    /// How long to wait for each answer, in nanoseconds.
    pub timeout_ns: u64,
}

/// Round trips in nanoseconds, one for each answer.
pub fn run(stack: &mut Stack, ping: &Ping) -> Result<Histogram, Failure> {
    let buffer = || {
        let bytes = 2 * (ping.size + 64);
        PacketBuffer::new(vec![PacketMetadata::EMPTY; 8], vec![0; bytes])
    };
    let handle = stack.sockets.add(Socket::new(buffer(), buffer()));
    let ident = stack.local_port();
    let mut round_trips = Histogram::default();
    let mut result = stack
        .sockets
        .get_mut::<Socket<'_>>(handle)
        .bind(Endpoint::Ident(ident))
        .map_err(|error| alloc::format!("{error:?}").into());
    for number in 0..ping.count {
        if result.is_err() {
            break;
        }
        let start = clock::now();
        result = send(stack, handle, ping, ident, number);
        let answer = stack.wait(ping.timeout_ns, |stack| {
            answered(stack, handle, ping, ident, number)
        });
        if answer.is_some() {
            round_trips.add(clock::now() - start);
        }
    }
    stack.sockets.remove(handle);
    result.map(|()| round_trips)
}

fn send(
    stack: &mut Stack,
    handle: smoltcp::iface::SocketHandle,
    ping: &Ping,
    ident: u16,
    seq_no: u16,
) -> Result<(), Failure> {
    let data = vec![0x5a; ping.size];
    let checksums = ChecksumCapabilities::default();
    let socket = stack.sockets.get_mut::<Socket<'_>>(handle);
    let failed = |error| alloc::format!("ping: {error:?}");
    match ping.address {
        IpAddress::Ipv4(_) => {
            let echo = Icmpv4Repr::EchoRequest {
                ident,
                seq_no,
                data: &data,
            };
            let bytes = socket
                .send(echo.buffer_len(), ping.address)
                .map_err(failed)?;
            echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
        }
        IpAddress::Ipv6(to) => {
            let from = stack.interface.get_source_address_ipv6(&to);
            let echo = Icmpv6Repr::EchoRequest {
                ident,
                seq_no,
                data: &data,
            };
            let bytes = socket
                .send(echo.buffer_len(), ping.address)
                .map_err(failed)?;
            echo.emit(
                &from,
                &to,
                &mut Icmpv6Packet::new_unchecked(bytes),
                &checksums,
            );
        }
    }
    Ok(())
}

fn answered(
    stack: &mut Stack,
    handle: smoltcp::iface::SocketHandle,
    ping: &Ping,
    ident: u16,
    number: u16,
) -> Option<()> {
    let checksums = ChecksumCapabilities::default();
    let socket = stack.sockets.get_mut::<Socket<'_>>(handle);
    while let Ok((packet, from)) = socket.recv() {
        let numbers = match ping.address {
            IpAddress::Ipv4(_) => {
                match Icmpv4Repr::parse(&Icmpv4Packet::new_checked(packet).ok()?, &checksums) {
                    Ok(Icmpv4Repr::EchoReply { ident, seq_no, .. }) => Some((ident, seq_no)),
                    _ => None,
                }
            }
            IpAddress::Ipv6(to) => {
                let own = stack.interface.get_source_address_ipv6(&to);
                match Icmpv6Repr::parse(
                    &to,
                    &own,
                    &Icmpv6Packet::new_checked(packet).ok()?,
                    &checksums,
                ) {
                    Ok(Icmpv6Repr::EchoReply { ident, seq_no, .. }) => Some((ident, seq_no)),
                    _ => None,
                }
            }
        };
        if numbers == Some((ident, number)) && from == ping.address {
            return Some(());
        }
    }
    None
}
