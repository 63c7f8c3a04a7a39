//! The head of a request that the loop answers. It takes less than hyper does, and what it takes means the same to both.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header};

use crate::link::Link;
use crate::server::direct::{Door, doors};
use crate::server::head;
use crate::transport::websocket::Opening;

/// Most bytes of a head, and of a body.
pub(super) const MOST: usize = 8 * 1024;

/// Most headers.
const HEADERS: usize = 64;

/// What the bytes of a connection begin with.
#[derive(Debug)]
pub(super) enum Begin {
    /// A request that the loop answers.
    Head(Box<Head>),
    /// A handshake of a WebSocket, in so many bytes.
    Opening(Box<Opening>, usize),
    /// The first part of one.
    Part,
    /// Something else.
    Other,
}

/// The head of a request that the loop answers.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) parts: Parts,
    pub(super) door: Door,
    /// Bytes of the head.
    pub(super) len: usize,
    /// Bytes of the body.
    pub(super) body: usize,
    /// Whether the connection ends after the answer.
    pub(super) closes: bool,
}

/// Looks at the bytes that came first.
pub(super) fn parse(bytes: &[u8], link: &Arc<Link>) -> Begin {
    match door_of(bytes) {
        Some((method, Some(door))) => parse_head(bytes, (method, door), link),
        Some((_, None)) if bytes.len() < MOST => Begin::Part,
        _ => Begin::Other,
    }
}

/// Whether a head that has come in parts may be whole now. `seen` bytes of it were looked at before.
pub(super) fn may_end(bytes: &[u8], seen: usize) -> bool {
    let end = &bytes[seen.saturating_sub(3)..];
    end.windows(2).any(|pair| pair == b"\n\n") || end.windows(3).any(|three| three == b"\n\r\n")
}

/// The method and the door that the bytes begin with. Without a door it is not known yet.
fn door_of(bytes: &[u8]) -> Option<(Method, Option<Door>)> {
    doors().find_map(|(method, path, door)| {
        let begin = [method.as_str(), " ", path];
        let begin = begin.iter().flat_map(|part| part.bytes());
        if begin.zip(bytes).any(|(expected, byte)| expected != *byte) {
            return None;
        }
        match bytes.get(method.as_str().len() + 1 + path.len()) {
            Some(b' ' | b'?') => Some((method, Some(door))),
            Some(_) => None,
            None => Some((method, None)),
        }
    })
}

fn parse_head(bytes: &[u8], (method, door): (Method, Door), link: &Arc<Link>) -> Begin {
    let mut headers = [MaybeUninit::uninit(); HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(len)) if len <= MOST => len,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Begin::Part,
        _ => return Begin::Other,
    };
    let begin = match door {
        Door::Socket => opening(bytes, len, &request, link),
        _ => plain_head(bytes, len, &request, (method, door)).map(|head| Begin::Head(Box::new(head))),
    };
    begin.unwrap_or(Begin::Other)
}

/// A handshake in its plain form.
fn opening(bytes: &[u8], len: usize, request: &httparse::Request<'_, '_>, link: &Arc<Link>) -> Option<Begin> {
    let (uri, headers) = address_and_headers(bytes, len, request)?;
    let opening = Opening::new(uri, headers, link)?;
    Some(Begin::Opening(Box::new(opening), len))
}

/// A head without anything that hyper treats in its own way.
fn plain_head(
    bytes: &[u8],
    len: usize,
    request: &httparse::Request<'_, '_>,
    (method, door): (Method, Door),
) -> Option<Head> {
    let (uri, headers) = address_and_headers(bytes, len, request)?;
    let body = body_length(&headers, &method)?;
    let closes = closes(&headers)?;
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.headers) = (method, uri, headers);
    Some(Head { parts, door, len, body, closes })
}

/// Address and headers of a head of HTTP/1.1 that names its host.
fn address_and_headers(
    bytes: &[u8],
    len: usize,
    request: &httparse::Request<'_, '_>,
) -> Option<(Uri, HeaderMap)> {
    if request.version != Some(1) {
        return None;
    }
    // One copy, of which all values are slices: they go with the last of them.
    let copy = Bytes::copy_from_slice(&bytes[..len]);
    let shared = |part: &[u8]| copy.slice(range_in(bytes, part));
    let uri = Uri::from_maybe_shared(shared(request.path?.as_bytes())).ok()?;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for header in request.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(shared(header.value)).ok()?);
    }
    head::check(Version::HTTP_11, &uri, &headers).ok()?;
    Some((uri, headers))
}

/// Where a part of the bytes is.
fn range_in(bytes: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Bytes of the body. `None` if they are not plainly told, or more than the loop takes.
fn body_length(headers: &HeaderMap, method: &Method) -> Option<usize> {
    if [header::TRANSFER_ENCODING, header::EXPECT, header::UPGRADE]
        .iter()
        .any(|name| headers.contains_key(name))
    {
        return None;
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) if *method == Method::GET => Some(0),
        (Some(length), None) if *method == Method::POST => {
            let text = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
            text.parse().ok().filter(|length| (1..=MOST).contains(length))
        }
        _ => None,
    }
}

/// Whether the client wants the connection to end. `None` if it says something unusual about it.
fn closes(headers: &HeaderMap) -> Option<bool> {
    let mut values = headers.get_all(header::CONNECTION).iter();
    match (values.next().map(HeaderValue::as_bytes), values.next()) {
        (None, _) => Some(false),
        (Some(value), None) if value.eq_ignore_ascii_case(b"keep-alive") => Some(false),
        (Some(value), None) if value.eq_ignore_ascii_case(b"close") => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Begin {
        super::parse(bytes, &Link::new())
    }

    const POLL: &str = "GET /v1/messages?session=A HTTP/1.1\r\nhost: x\r\nx: 1\r\n\r\n";

    #[test]
    fn a_plain_request_is_taken_as_it_is() {
        let Begin::Head(head) = parse(POLL.as_bytes()) else { panic!("not taken") };
        let Head { parts, door, len, body, closes } = *head;
        assert_eq!((parts.method, parts.uri.to_string()), (Method::GET, "/v1/messages?session=A".to_owned()));
        assert_eq!((parts.headers["host"].as_bytes(), parts.headers["x"].as_bytes()), (&b"x"[..], &b"1"[..]));
        assert_eq!((door, len, body, closes), (Door::Poll, POLL.len(), 0, false));
        let post = "POST /set?a__=1 HTTP/1.1\r\nHost: x\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}";
        let Begin::Head(head) = parse(post.as_bytes()) else { panic!("not taken") };
        assert_eq!((head.len, head.body, head.closes), (post.len() - 2, 2, true));
    }

    #[test]
    fn each_part_of_it_is_waited_for() {
        for end in 0..POLL.len() {
            assert!(matches!(parse(&POLL.as_bytes()[..end]), Begin::Part), "{end}");
            assert!(!may_end(&POLL.as_bytes()[..end], end.saturating_sub(1)), "{end}");
        }
        assert!(
            may_end(POLL.as_bytes(), POLL.len() - 1)
                && may_end(b"GET /\nhost: x\n\n", 14)
                && may_end(b"x: 1\n\r\n", 5)
        );
    }

    #[test]
    fn everything_else_is_for_hyper() {
        let with = |headers: &str| format!("GET /v1/messages HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        let post = |headers: &str| format!("POST /get HTTP/1.1\r\nhost: x\r\n{headers}\r\n{{}}");
        for other in [
            "X".to_owned(),
            "\r\n".to_owned() + POLL,
            POLL.replace("/v1/messages", "/v1/messages/A"),
            POLL.replace("/v1/messages", "/ws"),
            POLL.replace("/v1/messages", "/v1/mess%61ges"),
            POLL.replace("GET", "HEAD"),
            POLL.replace("1.1", "1.0"),
            POLL.replace("host: x", "host : x"),
            POLL.replace("host: x", "host: a b"),
            POLL.replace("x: 1", "x: \u{1}"),
            with("host: x\r\n"),
            with("upgrade: websocket\r\n"),
            with("content-length: 0\r\n"),
            with("connection: keep-alive, te\r\n"),
            with("transfer-encoding: chunked\r\n"),
            with(&"x: 1\r\n".repeat(HEADERS)),
            with(&format!("x: {}\r\n", "x".repeat(MOST))),
            format!("GET /v1/messages?{}", "x".repeat(MOST)),
            post(""),
            post("content-length: 0\r\n"),
            post("content-length: +2\r\n"),
            post("content-length: 2\r\ncontent-length: 2\r\n"),
            post("content-length: 99999999999999999999999\r\n"),
            post(&format!("content-length: {}\r\n", MOST + 1)),
            post("content-length: 2\r\nexpect: 100-continue\r\n"),
        ] {
            assert!(matches!(parse(other.as_bytes()), Begin::Other), "{other}");
        }
    }
}
