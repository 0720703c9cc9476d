//! DHCP for the one client of a tap.

mod answer;
mod request;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use tokio::net::UdpSocket;

use super::{Service, Tap, sockets};

/// Largest message that is looked at. A client's is below 600 bytes.
const MAX_MESSAGE: usize = 1500;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// The service.
pub struct Dhcp4;

impl Service for Dhcp4 {
    const NAME: &'static str = "DHCP";
    type Socket = UdpSocket;

    fn open(tap: &Tap) -> io::Result<UdpSocket> {
        // Clients without an address broadcast.
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT));
        sockets::udp(&tap.config.tap, any)
    }

    async fn serve(tap: Arc<Tap>, socket: UdpSocket) -> io::Error {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let length = match socket.recv(&mut buffer).await {
                Ok(length) => length,
                Err(error) => return error,
            };
            let Some(request) = request::Request::read(&buffer[..length]) else {
                continue;
            };
            let domain = match super::domain(&tap).await {
                Ok(Some(domain)) => domain,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!("DHCP on {}: {error}", tap.config.tap);
                    continue;
                }
            };
            let Some(reply) = answer::answer(&tap.config, &domain, &request) else {
                continue;
            };
            let to = (reply.to, CLIENT_PORT);
            // The client asks again for what is lost.
            if let Err(error) = socket.send_to(&reply.bytes, to).await {
                tracing::debug!("DHCP on {}: {error}", tap.config.tap);
            }
        }
    }
}
