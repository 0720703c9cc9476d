//! Questions about the rest of the world go to the host's resolvers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

/// Questions of all taps that are under way at a time; more fail at once.
const MAX_IN_FLIGHT: usize = 512;

/// How long one resolver has.
const PATIENCE: Duration = Duration::from_secs(2);

/// Resolvers that are tried, as the C library does.
const MAX_RESOLVERS: usize = 3;

/// How long what the file said is held for true.
const FRESH: Duration = Duration::from_secs(5);

/// Largest answer by UDP.
const MAX_ANSWER: usize = 4096;

/// How a question came, and how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// Passes questions on.
pub struct Forwarder {
    file: PathBuf,
    known: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
    room: Semaphore,
}

impl Forwarder {
    /// With the resolvers that a file such as `/etc/resolv.conf` names.
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            known: Mutex::new(None),
            room: Semaphore::new(MAX_IN_FLIGHT),
        }
    }

    /// A resolver's answer to a question; `None` when there is none. `question` has one question.
    pub async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _place = self.room.try_acquire().ok()?;
        let asked = question_section(question)?;
        for resolver in self.resolvers() {
            let answer = async {
                // Another number than the guest's: nobody else can guess it.
                let mut id = [0; 2];
                getrandom::fill(&mut id).map_err(io::Error::other)?;
                let mut question = question.to_vec();
                question[..2].copy_from_slice(&id);
                match transport {
                    Transport::Udp => by_udp(resolver, &question, asked).await,
                    Transport::Tcp => by_tcp(resolver, &question, asked).await,
                }
            };
            if let Ok(Ok(mut answer)) = timeout(PATIENCE, answer).await {
                answer[..2].copy_from_slice(&question[..2]);
                return Some(answer);
            }
        }
        None
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((read, resolvers)) if read.elapsed() < FRESH => resolvers.clone(),
            _ => {
                let text = std::fs::read_to_string(&self.file).unwrap_or_default();
                let resolvers = parse(&text);
                *known = Some((Instant::now(), resolvers.clone()));
                resolvers
            }
        }
    }
}

/// The resolvers of a `resolv.conf`.
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            let word = words.next()?;
            // `[address]:port` is no part of the file's format, and harmless.
            if let Ok(address) = word.parse() {
                return Some(address);
            }
            let (address, scope) = word.split_once('%').unwrap_or((word, ""));
            match address.parse().ok()? {
                IpAddr::V6(address) if !scope.is_empty() => {
                    let index = scope_index(scope)?;
                    Some(SocketAddrV6::new(address, 53, 0, index).into())
                }
                address => Some(SocketAddr::new(address, 53)),
            }
        })
        .take(MAX_RESOLVERS)
        .collect()
}

fn scope_index(scope: &str) -> Option<u32> {
    let path = format!("/sys/class/net/{scope}/ifindex");
    let name_is_one = !scope.contains('/');
    let text = name_is_one
        .then(|| std::fs::read_to_string(path).ok())
        .flatten();
    text.and_then(|text| text.trim().parse().ok())
        .or_else(|| scope.parse().ok())
}

/// Name, type and class of a message's only question.
fn question_section(message: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    loop {
        let length = *message.get(at)?;
        // No pointers: there is nothing before the first name.
        if length > 63 {
            return None;
        }
        at += usize::from(length) + 1;
        if length == 0 {
            return message.get(12..at + 4);
        }
    }
}

/// Whether a message is the answer to this very question.
fn answers(message: &[u8], id: &[u8], asked: &[u8]) -> bool {
    message.len() >= 12
        && message[..2] == id[..2]
        && message[2] & 0x80 != 0
        && question_section(message).is_some_and(|section| section.eq_ignore_ascii_case(asked))
}

async fn by_udp(resolver: SocketAddr, question: &[u8], asked: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match resolver {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A new port each time.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(&answer[..length], question, asked) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn by_tcp(resolver: SocketAddr, question: &[u8], asked: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let framed = [&length.to_be_bytes(), question].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, question, asked) {
        Ok(answer)
    } else {
        Err(io::Error::other("another answer"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_does() {
        let text = "# comment\nsearch x\nnameserver 127.0.0.53\n  nameserver\tfd00::1 \n\
            nameserver nonsense\nnameserver fe80::1%1\nnameserver 192.0.2.9\n";
        let found: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[fd00::1]:53", "[fe80::1%1]:53"]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn only_the_answer_to_the_very_question_counts() {
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        let asked = question_section(question).expect("one");
        assert_eq!(asked, b"\x01a\0\0\x01\0\x01");
        let mut answer = question.to_vec();
        assert!(!answers(&answer, question, asked), "a question");
        answer[2] |= 0x80;
        assert!(answers(&answer, question, asked));
        let mut other = answer.clone();
        other[0] ^= 1;
        assert!(!answers(&other, question, asked), "another number");
        let mut other = answer.clone();
        other[13] = b'b';
        assert!(!answers(&other, question, asked), "another name");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = question_section(&bytes);
            let _ = answers(&bytes, b"ab", b"");
        }
    }
}
