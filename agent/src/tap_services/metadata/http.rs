//! Requests and their answers.

use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, SERVER},
    http::request::Parts,
};

use super::{content, token, tree::Node};
use crate::{
    db::tap_services::Facts,
    tap_services::{Shared, shared::KEY_BYTES},
    time::Millis,
};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// EC2's versions; all have the same content here.
const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "latest",
];

/// What goes back.
pub struct Answer {
    pub response: Response<Full<Bytes>>,
    /// How far the answer may go, if not as far as any.
    pub hop_limit: Option<u8>,
}

impl From<Response<Full<Bytes>>> for Answer {
    fn from(response: Response<Full<Bytes>>) -> Self {
        Self {
            response,
            hop_limit: None,
        }
    }
}

/// What the service knows besides the instance.
pub struct Service<'a> {
    pub token_key: &'a [u8; KEY_BYTES],
    pub region: &'a str,
}

impl<'a> From<&'a Shared> for Service<'a> {
    fn from(shared: &'a Shared) -> Self {
        Self {
            token_key: &shared.token_key,
            region: &shared.region,
        }
    }
}

/// Answers one request.
pub fn answer(service: &Service<'_>, facts: &Facts, request: &Parts, now: Millis) -> Answer {
    let options = &facts.instance.metadata_options;
    if !options.enabled {
        return status(StatusCode::FORBIDDEN).into();
    }
    let Some(path) = segments(request.uri.path()) else {
        return status(StatusCode::BAD_REQUEST).into();
    };
    let is_token = matches!(&path[..], [version, api, token]
        if VERSIONS.contains(&version.as_str()) && api == "api" && token == "token");
    match request.method {
        Method::PUT if is_token => {
            return match new_token(service, facts, &request.headers, now) {
                Ok(response) => Answer {
                    response,
                    hop_limit: Some(options.hop_limit),
                },
                Err(code) => status(code).into(),
            };
        }
        Method::GET | Method::HEAD if !is_token => {}
        _ => return status(StatusCode::METHOD_NOT_ALLOWED).into(),
    }
    let left = match request.headers.get(TOKEN) {
        None if options.tokens_required => return status(StatusCode::UNAUTHORIZED).into(),
        None => None,
        Some(given) => {
            let id = &facts.instance.id;
            let left = given
                .to_str()
                .ok()
                .and_then(|given| token::seconds_left(service.token_key, id, given, now));
            match left {
                None => return status(StatusCode::UNAUTHORIZED).into(),
                left => left,
            }
        }
    };
    let mut response = match find(service, facts, &path) {
        Some((kind, body)) => ok(kind, body),
        None => status(StatusCode::NOT_FOUND),
    };
    if let Some(left) = left {
        response.headers_mut().insert(TOKEN_TTL, left.into());
    }
    response.into()
}

/// A token, or why there is none.
fn new_token(
    service: &Service<'_>,
    facts: &Facts,
    headers: &HeaderMap,
    now: Millis,
) -> Result<Response<Full<Bytes>>, StatusCode> {
    // A proxy that can be talked into passing requests on is what tokens are there against.
    if headers.contains_key(FORWARDED_FOR) {
        return Err(StatusCode::FORBIDDEN);
    }
    let mut given = headers.get_all(TOKEN_TTL).iter();
    let (Some(ttl), None) = (given.next(), given.next()) else {
        return Err(StatusCode::BAD_REQUEST);
    };
    let ttl = ttl
        .to_str()
        .ok()
        .and_then(token::ttl)
        .ok_or(StatusCode::BAD_REQUEST)?;
    let token = token::make(service.token_key, &facts.instance.id, ttl, now).map_err(|error| {
        tracing::error!("no random numbers for a token: {error}");
        StatusCode::INTERNAL_SERVER_ERROR
    })?;
    let mut response = ok(TEXT, token.into_bytes());
    response.headers_mut().insert(TOKEN_TTL, ttl.into());
    Ok(response)
}

const TEXT: &str = "text/plain";
const BYTES: &str = "application/octet-stream";

/// The kind and the bytes of what is at a path.
fn find(service: &Service<'_>, facts: &Facts, path: &[String]) -> Option<(&'static str, Vec<u8>)> {
    let text = |node: &Node| (TEXT, node.text().into_bytes());
    let Some((version, rest)) = path.split_first() else {
        return Some((TEXT, VERSIONS.join("\n").into_bytes()));
    };
    if !VERSIONS.contains(&version.as_str()) {
        return None;
    }
    let user_data = facts.instance.user_data.as_bytes();
    let Some((section, rest)) = rest.split_first() else {
        let mut sections = vec!["dynamic", "meta-data"];
        if !user_data.is_empty() {
            sections.push("user-data");
        }
        return Some((TEXT, sections.join("\n").into_bytes()));
    };
    match section.as_str() {
        "meta-data" => content::meta_data(facts, service.region).at(rest).map(text),
        "dynamic" => content::dynamic(facts, service.region).at(rest).map(text),
        "user-data" if rest.is_empty() && !user_data.is_empty() => {
            Some((BYTES, user_data.to_vec()))
        }
        _ => None,
    }
}

/// The parts of a path, decoded; empty ones (a slash at the end, or two in a row) do not count.
/// `None` for what is not UTF-8.
fn segments(path: &str) -> Option<Vec<String>> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let mut bytes = Vec::with_capacity(part.len());
            let mut rest = part.as_bytes();
            while let Some((&first, after)) = rest.split_first() {
                rest = after;
                let hex = |byte: &u8| char::from(*byte).to_digit(16);
                match (first, after) {
                    (b'%', [high, low, after @ ..]) => {
                        bytes.push((hex(high)? * 16 + hex(low)?) as u8);
                        rest = after;
                    }
                    (b'%', _) => return None,
                    (byte, _) => bytes.push(byte),
                }
            }
            String::from_utf8(bytes).ok()
        })
        .collect()
}

fn ok(kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    response(StatusCode::OK, kind, body)
}

fn response(code: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(SERVER, HeaderValue::from_static("hearth"));
    response
}

fn status(code: StatusCode) -> Response<Full<Bytes>> {
    let words = code.canonical_reason().unwrap_or_default();
    response(
        code,
        TEXT,
        format!("{} {words}\n", code.as_str()).into_bytes(),
    )
}

/// More than an instance may ask.
pub fn busy() -> Response<Full<Bytes>> {
    status(StatusCode::SERVICE_UNAVAILABLE)
}

/// The instance is no more.
pub fn gone() -> Response<Full<Bytes>> {
    status(StatusCode::NOT_FOUND)
}

/// The agent's own fault.
pub fn failed() -> Response<Full<Bytes>> {
    status(StatusCode::INTERNAL_SERVER_ERROR)
}
