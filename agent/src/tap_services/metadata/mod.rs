//! The metadata service: EC2's paths, for the instance that the tap belongs to.
//!
//! Guests send to 169.254.169.254 and fd00:ec2::254, port 80; the firewall redirects that to
//! [`METADATA_PORT`] of the tap. The host itself never has these addresses.
//!
//! - [`http`]: requests and their answers, tokens included
//! - [`token`]: IMDSv2's tokens
//! - [`content`]: what is below `meta-data` and `dynamic`
//! - [`tree`]: folders, listings, leaves

mod content;
mod http;
mod token;
mod tree;

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{Service, Tap, rate::Rate, sockets};
use crate::{db, firewall::METADATA_PORT, time::Millis};

/// Connections of one tap at a time, for each family; others wait.
const MAX_CONNECTIONS: usize = 64;

/// Time for a request's head.
const HEAD_PATIENCE: Duration = Duration::from_secs(15);

/// How long a connection may live.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(300);

/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Most headers of a request.
const MAX_HEADERS: usize = 64;

/// On IPv4.
pub struct MetadataV4;

/// On IPv6.
pub struct MetadataV6;

impl Service for MetadataV4 {
    const NAME: &'static str = "metadata";
    type Socket = TcpListener;

    fn open(tap: &Tap) -> io::Result<TcpListener> {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, METADATA_PORT));
        sockets::tcp(&tap.config.tap, any)
    }

    async fn serve(tap: Arc<Tap>, listener: TcpListener) -> io::Error {
        accept(tap, listener).await
    }
}

impl Service for MetadataV6 {
    const NAME: &'static str = "metadata (IPv6)";
    type Socket = TcpListener;

    fn open(tap: &Tap) -> io::Result<TcpListener> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, METADATA_PORT));
        sockets::tcp(&tap.config.tap, any)
    }

    async fn serve(tap: Arc<Tap>, listener: TcpListener) -> io::Error {
        accept(tap, listener).await
    }
}

async fn accept(tap: Arc<Tap>, listener: TcpListener) -> io::Error {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let rate = Arc::new(Rate::default());
    // They end with the tap.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return io::Error::other("no more connections");
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The peer was faster than we, or the host is out of files.
            Err(error) => {
                tracing::debug!("metadata on {}: {error}", tap.config.tap);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (tap, rate) = (tap.clone(), rate.clone());
        connections.spawn(async move {
            let _ = timeout(CONNECTION_PATIENCE, serve(&tap, &rate, stream)).await;
            drop(place);
        });
    }
}

async fn serve(tap: &Tap, rate: &Rate, stream: TcpStream) {
    // For the hop limit of answers.
    let (Ok(socket), Ok(peer)) = (stream.as_fd().try_clone_to_owned(), stream.peer_addr()) else {
        return;
    };
    let answer = async |request: hyper::Request<Incoming>| {
        let (head, _body) = request.into_parts();
        if !rate.allows() {
            return Ok::<_, Infallible>(http::busy());
        }
        let id = tap.config.interface_id.clone();
        let facts = tap
            .shared
            .db
            .read(move |connection| db::tap_services::facts(connection, &id))
            .await;
        let facts = match facts {
            Ok(Some(facts)) => facts,
            Ok(None) => return Ok(http::gone()),
            Err(error) => {
                tracing::error!("metadata on {}: {error}", tap.config.tap);
                return Ok(http::failed());
            }
        };
        let answer = http::answer(&(&*tap.shared).into(), &facts, &head, Millis::now());
        match answer.hop_limit {
            Some(hops) if limit_hops(&socket, peer, hops).is_err() => Ok(http::failed()),
            _ => Ok(answer.response),
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    // Whatever goes wrong with a connection is the guest's affair.
    let _ = connection.await;
}

/// From now on, what is sent on the connection goes no farther: whoever is behind the guest (a
/// container, a client of its proxy) does not get the token.
fn limit_hops(socket: &OwnedFd, peer: SocketAddr, hops: u8) -> io::Result<()> {
    let socket = SockRef::from(socket);
    if peer.is_ipv6() {
        socket.set_unicast_hops_v6(hops.into())
    } else {
        socket.set_ttl_v4(hops.into())
    }
}
