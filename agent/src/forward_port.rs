//! ForwardPort: a TCP connection of the agent's to a port of a guest, with one caller's bytes in
//! it.
//!
//! It is the owner's way in, as the console is, so that it does not ask the security groups: its
//! packets carry [`FORWARD_MARK`], which the firewall lets pass to guests and which no packet
//! from the network can carry.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, params};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};

use crate::{
    context::Context,
    db::{self, DbError, DbResult},
    error::{ApiError, ApiResult, Reason},
    firewall::FORWARD_MARK,
    ids::Kind,
    instances::state::InstanceState,
};

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Largest piece, in bytes.
const PIECE: usize = 64 << 10;

/// What the caller sends.
#[derive(Debug)]
pub enum Sent {
    Data(Vec<u8>),
    /// No more will come.
    End,
}

/// Connects to a port of a running instance. The caller's right to it is checked already.
///
/// # Errors
/// `IncorrectInstanceState`, `InvalidNetworkInterfaceID.NotFound`, and `ConnectionFailed` with
/// what the guest answered.
pub async fn connect(
    context: &Context,
    instance_id: &str,
    device_index: u32,
    port: u16,
) -> ApiResult<TcpStream> {
    let id = instance_id.to_owned();
    let (instance, address) = context
        .db
        .read(move |c| {
            Ok::<_, DbError>((
                db::instances::get(c, &id)?,
                address_of(c, &id, device_index)?,
            ))
        })
        .await?;
    let instance = instance.ok_or_else(|| Kind::Instance.missing(instance_id, "instance_id"))?;
    if !matches!(
        instance.state,
        InstanceState::Running | InstanceState::Stopping
    ) {
        return Err(ApiError::new(
            Reason::IncorrectInstanceState,
            format!(
                "{instance_id} is {}: nothing in it can be reached",
                instance.state.word()
            ),
        )
        .with("resource_id", instance_id)
        .with("state", instance.state.word()));
    }
    let address = address.ok_or_else(|| {
        ApiError::field(
            Reason::NetworkInterfaceNotFound,
            "device_index",
            format!("{instance_id} has no interface {device_index} in a network"),
        )
    })?;
    let address = SocketAddr::new(address, port);
    let failed = |why: String| {
        ApiError::new(
            Reason::ConnectionFailed,
            format!("{instance_id}, port {port}: {why}"),
        )
        .with("resource_id", instance_id)
    };
    match timeout(PATIENCE, marked(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(failed("nothing in the guest listens there".to_owned()))
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!(
            "no answer in {} s; the guest may still be booting",
            PATIENCE.as_secs()
        ))),
    }
}

/// The private address of one of an instance's interfaces.
fn address_of(c: &Connection, instance_id: &str, index: u32) -> DbResult<Option<IpAddr>> {
    let text: Option<String> = c
        .prepare_cached(
            "SELECT ipv4 FROM network_interfaces WHERE instance_id = ?1 AND device_index = ?2",
        )?
        .query_row(params![instance_id, index], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| text.parse().ok()))
}

async fn marked(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_mark(FORWARD_MARK)?;
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Carries bytes both ways until the guest closes its half, or the caller is gone.
///
/// # Errors
/// When the connection breaks.
pub async fn relay(
    stream: TcpStream,
    mut sent: mpsc::Receiver<Sent>,
    received: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let to_guest = async move {
        while let Some(piece) = sent.recv().await {
            match piece {
                Sent::Data(data) => to_guest.write_all(&data).await?,
                Sent::End => break,
            }
        }
        to_guest.shutdown().await
    };
    let from_guest = async {
        let mut buffer = vec![0u8; PIECE];
        loop {
            let count = tokio::select! {
                count = from_guest.read(&mut buffer) => count?,
                () = received.closed() => return Ok(()),
            };
            if count == 0 || received.send(buffer[..count].to_vec()).await.is_err() {
                return Ok(());
            }
        }
    };
    let (mut to_guest, mut from_guest) = (std::pin::pin!(to_guest), std::pin::pin!(from_guest));
    tokio::select! {
        // The guest's end is the end: whatever is still sent to it goes nowhere.
        result = &mut from_guest => result,
        result = &mut to_guest => {
            result?;
            from_guest.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_each_half_ends_by_itself() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let address = listener.local_addr().expect("address");
        let guest = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut all = Vec::new();
            // Ends only when the caller's half has.
            stream.read_to_end(&mut all).await.expect("read");
            stream.write_all(b"you said ").await.expect("write");
            stream.write_all(&all).await.expect("write");
        });
        let stream = TcpStream::connect(address).await.expect("connect");
        let (send, sent) = mpsc::channel(4);
        let (receive, mut received) = mpsc::channel(4);
        let relay = tokio::spawn(relay(stream, sent, receive));
        send.send(Sent::Data(b"hello".to_vec()))
            .await
            .expect("send");
        send.send(Sent::End).await.expect("send");
        let mut answer = Vec::new();
        while let Some(piece) = received.recv().await {
            answer.extend(piece);
        }
        assert_eq!(answer, b"you said hello");
        relay.await.expect("no panic").expect("no error");
        guest.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_ends_the_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("bind");
        let stream = TcpStream::connect(listener.local_addr().expect("address"))
            .await
            .expect("connect");
        let (mut guest, _) = listener.accept().await.expect("accept");
        let (send, sent) = mpsc::channel(4);
        let (receive, received) = mpsc::channel(4);
        let relay = tokio::spawn(relay(stream, sent, receive));
        drop((send, received));
        relay.await.expect("no panic").expect("no error");
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.expect("the end");
        assert!(rest.is_empty());
    }
}
