//! DHCPv6 (RFC 8415) for the one client of a tap.

mod answer;
mod request;

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use tokio::net::UdpSocket;

use super::{Service, Tap, sockets};

const SERVER_PORT: u16 = 547;

/// All DHCP relay agents and servers of a link (RFC 8415 section 7.1).
const ALL_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// Largest message that is looked at.
const MAX_MESSAGE: usize = 1500;

/// The service.
pub struct Dhcp6;

impl Service for Dhcp6 {
    const NAME: &'static str = "DHCPv6";
    type Socket = UdpSocket;

    fn open(tap: &Tap) -> io::Result<UdpSocket> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, SERVER_PORT));
        let socket = sockets::udp(&tap.config.tap, any)?;
        sockets::join(&socket, &tap.config.tap, &ALL_SERVERS)?;
        Ok(socket)
    }

    async fn serve(tap: Arc<Tap>, socket: UdpSocket) -> io::Error {
        let Some(ipv6) = &tap.config.ipv6 else {
            // Not started without IPv6.
            return io::Error::other("no IPv6");
        };
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => return error,
            };
            let Some(request) = request::Request::read(&buffer[..length]) else {
                continue;
            };
            let domain = match super::domain(&tap).await {
                Ok(Some(domain)) => domain,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!("DHCPv6 on {}: {error}", tap.config.tap);
                    continue;
                }
            };
            let Some(reply) = answer::answer(ipv6, &domain, &request) else {
                continue;
            };
            // The client asks again for what is lost.
            if let Err(error) = socket.send_to(&reply, from).await {
                tracing::debug!("DHCPv6 on {}: {error}", tap.config.tap);
            }
        }
    }
}
