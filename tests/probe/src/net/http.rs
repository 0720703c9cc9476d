//! An HTTP/1.1 client for the metadata service.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use smoltcp::wire::IpEndpoint;

use super::{Stack, tcp};
use crate::command::Failure;

/// Largest answer.
const ANSWER_MAX: usize = 256 << 10;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// What is asked for.
pub struct Request<'a> {
    /// `http://address[:port]/path`; the address is numeric.
    pub url: &'a str,
    /// GET, PUT, ...
    pub method: &'a str,
    /// Lines of the head.
    pub headers: Vec<&'a str>,
    /// What is sent.
    pub body: &'a str,
    /// For connecting and for each piece of the answer, in nanoseconds.
    pub timeout_ns: u64,
}

/// What came back.
pub struct Answer {
    /// 200, ...
    pub status: u16,
    /// Name and value.
    pub headers: Vec<(String, String)>,
    /// Without chunks' headers.
    pub body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|header| header.0.eq_ignore_ascii_case(name));
        found.map(|header| header.1.as_str())
    }
}

/// Address, host and path of a URL.
fn split_url(url: &str) -> Result<(IpEndpoint, &str, &str), Failure> {
    let rest = url
        .strip_prefix("http://")
        .ok_or("the URL does not start with http://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    let socket = host.parse::<core::net::SocketAddr>().ok();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<core::net::IpAddr>().ok();
    let endpoint = socket
        .map(IpEndpoint::from)
        .or(address.map(|ip| IpEndpoint::new(ip.into(), 80)));
    let endpoint = endpoint.ok_or_else(|| format!("{host:?} is no numeric address"))?;
    Ok((endpoint, host, if path.is_empty() { "/" } else { path }))
}

/// Asks.
pub fn fetch(stack: &mut Stack, request: &Request<'_>) -> Result<Answer, Failure> {
    let (endpoint, host, path) = split_url(request.url)?;
    let mut head = format!(
        "{} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n",
        request.method
    );
    for header in &request.headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    if !request.body.is_empty() || request.method != "GET" {
        head.push_str(&format!("Content-Length: {}\r\n", request.body.len()));
    }
    head.push_str("\r\n");
    head.push_str(request.body);

    let socket = tcp::connect(stack, endpoint, request.timeout_ns)?;
    let bytes = head.as_bytes();
    let sent = tcp::send(
        stack,
        socket,
        bytes.len() as u64,
        request.timeout_ns,
        |offset, room| {
            room.copy_from_slice(&bytes[offset as usize..][..room.len()]);
        },
    );
    let mut data = Vec::new();
    let received = tcp::receive(stack, socket, request.timeout_ns, |piece| {
        data.extend_from_slice(piece);
        data.len() > ANSWER_MAX || complete(&data)
    });
    tcp::close(stack, socket);
    // A server may answer and close before it has read all.
    match parse(&data) {
        Some(answer) => Ok(answer),
        None => Err(sent
            .and(received.map(drop))
            .err()
            .unwrap_or_else(|| "no HTTP answer".into())),
    }
}

fn complete(data: &[u8]) -> bool {
    let Some((answer, rest)) = parse_head(data) else {
        return false;
    };
    match answer
        .header("content-length")
        .and_then(|text| text.parse::<usize>().ok())
    {
        Some(length) => rest.len() >= length,
        None => rest.ends_with(b"0\r\n\r\n") && is_chunked(&answer),
    }
}

fn is_chunked(answer: &Answer) -> bool {
    answer
        .header("transfer-encoding")
        .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
}

/// The answer without its body, and what is behind its head.
fn parse_head(data: &[u8]) -> Option<(Answer, &[u8])> {
    let end = data
        .windows(END_OF_HEAD.len())
        .position(|window| window == END_OF_HEAD)?;
    let text = core::str::from_utf8(&data[..end]).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_string(), value.trim().to_string()))
    };
    let headers = lines.filter_map(header).collect();
    Some((
        Answer {
            status,
            headers,
            body: Vec::new(),
        },
        &data[end + END_OF_HEAD.len()..],
    ))
}

fn parse(data: &[u8]) -> Option<Answer> {
    let (mut answer, rest) = parse_head(data)?;
    answer.body = if is_chunked(&answer) {
        join_chunks(rest)
    } else {
        rest.to_vec()
    };
    Some(answer)
}

fn join_chunks(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = core::str::from_utf8(&rest[..at]).unwrap_or("");
        let size = size.split(';').next().unwrap_or("").trim();
        let Ok(size) = usize::from_str_radix(size, 16) else {
            break;
        };
        let chunk = &rest[at + 2..];
        if size == 0 || chunk.len() < size {
            break;
        }
        body.extend_from_slice(&chunk[..size]);
        rest = chunk[size..].strip_prefix(b"\r\n").unwrap_or(&[]);
    }
    body
}
