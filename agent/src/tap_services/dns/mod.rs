//! The DNS server of a tap: names of instances of the same network by [`local`], all others from
//! the host's resolvers by [`forward`]. It is reached by the tap only, so that it serves nobody
//! else.

pub mod forward;
mod local;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use self::{
    forward::Transport,
    local::{Verdict, classify, respond},
};
use super::{Service, Tap, rate::Rate, sockets};
use crate::db::{self, DbResult, tap_services::NetworkFacts};

const PORT: u16 = 53;

/// Questions of one tap that are being answered at a time, for each family; more are dropped.
const MAX_IN_FLIGHT: usize = 64;

/// Connections of one tap at a time, for each family; more are closed.
const MAX_CONNECTIONS: usize = 16;

/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(10);

/// Largest answer by UDP that is not cut in pieces on the way (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

/// Largest question by UDP.
const MAX_QUESTION: usize = 4096;

/// On the gateway's IPv4 address.
pub struct DnsV4;

/// On the gateway's IPv6 address.
pub struct DnsV6;

/// Both transports' sockets.
pub struct Sockets(UdpSocket, TcpListener);

fn open(tap: &Tap, gateway: IpAddr) -> io::Result<Sockets> {
    let address = SocketAddr::new(gateway, PORT);
    Ok(Sockets(
        sockets::udp(&tap.config.tap, address)?,
        sockets::tcp(&tap.config.tap, address)?,
    ))
}

impl Service for DnsV4 {
    const NAME: &'static str = "DNS";
    type Socket = Sockets;

    fn open(tap: &Tap) -> io::Result<Sockets> {
        open(tap, tap.config.ipv4_gateway.into())
    }

    async fn serve(tap: Arc<Tap>, sockets: Sockets) -> io::Error {
        serve(tap, sockets).await
    }
}

impl Service for DnsV6 {
    const NAME: &'static str = "DNS (IPv6)";
    type Socket = Sockets;

    fn open(tap: &Tap) -> io::Result<Sockets> {
        let ipv6 = tap.config.ipv6.as_ref();
        let gateway = ipv6.ok_or_else(|| io::Error::other("no IPv6"))?.gateway;
        open(tap, gateway.into())
    }

    async fn serve(tap: Arc<Tap>, sockets: Sockets) -> io::Error {
        serve(tap, sockets).await
    }
}

async fn serve(tap: Arc<Tap>, Sockets(udp, tcp): Sockets) -> io::Error {
    let udp = Arc::new(udp);
    let rate = Arc::new(Rate::default());
    let questions = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // They end with the tap.
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; MAX_QUESTION];
    loop {
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            received = udp.recv_from(&mut buffer) => {
                let (length, from) = match received {
                    Ok(received) => received,
                    Err(error) => return error,
                };
                let Ok(place) = questions.clone().try_acquire_owned() else { continue };
                if !rate.allows() {
                    continue;
                }
                let (tap, udp, question) = (tap.clone(), udp.clone(), buffer[..length].to_vec());
                tasks.spawn(async move {
                    if let Some(answer) = answer(&tap, &question, Transport::Udp).await {
                        // Who asked asks again for what is lost.
                        let _ = udp.send_to(&answer, from).await;
                    }
                    drop(place);
                });
            }
            accepted = tcp.accept() => {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(place) = connections.clone().try_acquire_owned() else { continue };
                let (tap, rate) = (tap.clone(), rate.clone());
                tasks.spawn(async move {
                    // Whatever goes wrong with a connection is the guest's affair.
                    let _ = converse(&tap, &rate, stream).await;
                    drop(place);
                });
            }
        }
    }
}

/// Questions and answers on a connection, each with its length before it (RFC 1035 section 4.2.2).
async fn converse(tap: &Tap, rate: &Rate, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let question = timeout(IDLE, async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, io::Error>(question)
        })
        .await??;
        if !rate.allows() {
            return Ok(());
        }
        let Some(answer) = answer(tap, &question, Transport::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), &answer[..]].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// The answer to a question, if it gets one.
async fn answer(tap: &Tap, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let request = match Message::from_vec(question) {
        Ok(request) => request,
        Err(_) => return unreadable(question),
    };
    if request.metadata.message_type != MessageType::Query {
        return None;
    }
    let reply = match check(&request) {
        Err(code) => local::failure(&request, code),
        Ok(()) => match resolve(tap, &request, question, transport).await {
            Ok(Resolved::Here(message)) => message,
            Ok(Resolved::There(bytes)) if fits(bytes.len(), &request, transport) => {
                return Some(bytes);
            }
            Ok(Resolved::There(_)) => local::failure(&request, ResponseCode::NoError).truncate(),
            Err(error) => {
                tracing::error!("DNS on {}: {error}", tap.config.tap);
                local::failure(&request, ResponseCode::ServFail)
            }
        },
    };
    let bytes = reply.to_vec().ok()?;
    if fits(bytes.len(), &request, transport) {
        return Some(bytes);
    }
    reply.truncate().to_vec().ok()
}

fn fits(length: usize, request: &Message, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => length <= usize::from(u16::MAX),
        Transport::Udp => length <= usize::from(request.max_payload().clamp(512, MAX_UDP)),
    }
}

/// Where an answer comes from.
enum Resolved {
    Here(Message),
    There(Vec<u8>),
}

async fn resolve(
    tap: &Tap,
    request: &Message,
    question: &[u8],
    transport: Transport,
) -> DbResult<Resolved> {
    let Some(network) = network(tap).await? else {
        return Ok(Resolved::Here(local::failure(
            request,
            ResponseCode::ServFail,
        )));
    };
    let message = match classify(&request.queries[0], &network) {
        Verdict::Refused => local::failure(request, ResponseCode::Refused),
        Verdict::Local(lookup) => {
            let hosts = match lookup.key.clone() {
                None => Vec::new(),
                Some(key) => {
                    let id = network.id.clone();
                    let read = move |connection: &rusqlite::Connection| {
                        db::tap_services::hosts(connection, &id, &key)
                    };
                    tap.shared.db.read(read).await?
                }
            };
            respond(request, &network, &lookup, &hosts)
        }
        Verdict::Forward => {
            let forwarded = tap.shared.forwarder.ask(question, transport).await;
            return Ok(match forwarded {
                Some(bytes) => Resolved::There(bytes),
                None => Resolved::Here(local::failure(request, ResponseCode::ServFail)),
            });
        }
    };
    Ok(Resolved::Here(message))
}

async fn network(tap: &Tap) -> DbResult<Option<NetworkFacts>> {
    let id = tap.config.interface_id.clone();
    tap.shared
        .db
        .read(move |connection| db::tap_services::network(connection, &id))
        .await
}

/// What is not a question that this server can be asked.
fn check(request: &Message) -> Result<(), ResponseCode> {
    if request.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if request.queries.len() != 1 {
        return Err(ResponseCode::FormErr);
    }
    if request.version() > 0 {
        return Err(ResponseCode::BADVERS);
    }
    Ok(())
}

/// The answer to what is no message, if it has at least a header and is no answer itself.
fn unreadable(question: &[u8]) -> Option<Vec<u8>> {
    let [a, b, flags, ..] = *question.first_chunk::<12>()?;
    if flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([a, b]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .ok()
}
