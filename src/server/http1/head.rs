//! The head of a request that the loop answers. It takes less than hyper does, and what it takes means the same to both.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::edge::{Headers, text};
use crate::link::Link;
use crate::server::direct::{Door, doors};
use crate::server::head;
use crate::transport::websocket::{Offer, Opening};

/// Most bytes of a head, and of a body.
pub(super) const MOST: usize = 8 * 1024;

/// Most headers.
const HEADERS: usize = 64;

/// What the bytes of a connection begin with. `A` is what answers a request that is not looked at any further.
#[derive(Debug)]
pub(super) enum Begin<A> {
    /// A request that is being answered. Its body has come with it.
    Answering(A, Plain),
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
    pub(super) plain: Plain,
}

/// How a request is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plain {
    /// Bytes of the head.
    pub(super) len: usize,
    /// Bytes of the body.
    pub(super) body: usize,
    /// Whether the connection ends after the answer.
    pub(super) closes: bool,
}

/// A request as it came, with all of its body.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawRequest<'a> {
    pub(super) query: &'a str,
    pub(super) headers: Headers<'a>,
    pub(super) body: &'a [u8],
}

/// Looks at the bytes that came first. A whole request is offered to `answer`: to take it from there is cheaper.
pub(super) fn parse<A>(
    bytes: &[u8],
    link: &Arc<Link>,
    answer: impl FnOnce(Door, RawRequest<'_>) -> Option<A>,
) -> Begin<A> {
    match door_of(bytes) {
        Some((method, Some(door))) => parse_head(bytes, (method, door), link, answer),
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
    let space = bytes.iter().position(|byte| *byte == b' ').unwrap_or(bytes.len());
    let (method, rest) = bytes.split_at(space);
    // The end of the path, if it has come.
    let end = rest.iter().skip(1).position(|byte| matches!(byte, b' ' | b'?'));
    let path = &rest[rest.len().min(1)..end.map_or(rest.len(), |end| end + 1)];
    doors().find_map(|(known, door_path, door)| {
        let (known_method, known_path) = (known.as_str().as_bytes(), door_path.as_bytes());
        match end {
            Some(_) => (path == known_path && method == known_method).then_some((known, Some(door))),
            None if rest.is_empty() => known_method.starts_with(method).then_some((known, None)),
            None => (method == known_method && known_path.starts_with(path)).then_some((known, None)),
        }
    })
}

fn parse_head<A>(
    bytes: &[u8],
    (method, door): (Method, Door),
    link: &Arc<Link>,
    answer: impl FnOnce(Door, RawRequest<'_>) -> Option<A>,
) -> Begin<A> {
    let mut headers = [MaybeUninit::uninit(); HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(len)) if len <= MOST => len,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Begin::Part,
        _ => return Begin::Other,
    };
    let names_host = head::check(Version::HTTP_11, None, Headers::Raw(request.headers)).is_ok();
    if request.version != Some(1) || !names_host {
        return Begin::Other;
    }
    if door == Door::Socket {
        return opening(bytes, len, &request, link).unwrap_or(Begin::Other);
    }
    let Some(plain) = plain(len, &request, &method) else { return Begin::Other };
    if let Some(raw) = raw_request(bytes, &request, plain)
        && let Some(answering) = answer(door, raw)
    {
        return Begin::Answering(answering, plain);
    }
    match parsed(bytes, len, &request, |_| true) {
        Some((uri, headers)) => {
            let (mut parts, ()) = Request::new(()).into_parts();
            (parts.method, parts.uri, parts.headers) = (method, uri, headers);
            Begin::Head(Box::new(Head { parts, door, plain }))
        }
        None => Begin::Other,
    }
}

/// A handshake in its plain form.
fn opening<A>(
    bytes: &[u8],
    len: usize,
    request: &httparse::Request<'_, '_>,
    link: &Arc<Link>,
) -> Option<Begin<A>> {
    let offer = Offer::read(request.headers.iter().map(|header| (header.name, header.value)))?;
    let (uri, headers) = parsed(bytes, len, request, |name| !Offer::reads(name))?;
    let opening = Opening { offer, uri, headers, link: Arc::clone(link) };
    Some(Begin::Opening(Box::new(opening), len))
}

/// The framing of a request without anything that hyper treats in its own way.
fn plain(len: usize, request: &httparse::Request<'_, '_>, method: &Method) -> Option<Plain> {
    let headers = Headers::Raw(request.headers);
    let (body, closes) = (body_length(headers, method)?, closes(headers)?);
    Some(Plain { len, body, closes })
}

/// The request as it is, if all of it has come and nobody can take its address for another one.
fn raw_request<'a, 'b: 'a>(
    bytes: &'b [u8],
    request: &'a httparse::Request<'_, 'b>,
    Plain { len, body, .. }: Plain,
) -> Option<RawRequest<'a>> {
    let body = bytes.get(len..len + body)?;
    let query = request.path?.split_once('?').map_or("", |(_, query)| query);
    let headers = Headers::Raw(request.headers);
    query.bytes().all(is_plain_in_query).then_some(RawRequest { query, headers, body })
}

/// Whether a byte stands for itself in a query (RFC 3986 section 3.4).
fn is_plain_in_query(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

/// The address of a request, and those of its headers that are needed, as hyper has them.
fn parsed(
    bytes: &[u8],
    len: usize,
    request: &httparse::Request<'_, '_>,
    is_needed: impl Fn(&str) -> bool,
) -> Option<(Uri, HeaderMap)> {
    // One copy, of which all values are slices: they go with the last of them.
    let copy = Bytes::copy_from_slice(&bytes[..len]);
    let shared = |part: &[u8]| copy.slice(range_in(bytes, part));
    let uri = Uri::from_maybe_shared(shared(request.path?.as_bytes())).ok()?;
    let mut headers = HeaderMap::with_capacity(request.headers.len());
    for header in request.headers.iter().filter(|header| is_needed(header.name)) {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(shared(header.value)).ok()?);
    }
    Some((uri, headers))
}

/// Where a part of the bytes is.
fn range_in(bytes: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Bytes of the body. `None` if they are not plainly told, or more than the loop takes.
fn body_length(headers: Headers<'_>, method: &Method) -> Option<usize> {
    if ["transfer-encoding", "expect", "upgrade"].iter().any(|name| headers.contains(name)) {
        return None;
    }
    let mut lengths = headers.all("content-length");
    match (lengths.next(), lengths.next()) {
        (None, _) if *method == Method::GET => Some(0),
        (Some(length), None) if *method == Method::POST => {
            let digits = text(length).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
            digits.parse().ok().filter(|length| (1..=MOST).contains(length))
        }
        _ => None,
    }
}

/// Whether the client wants the connection to end. `None` if it says something unusual about it.
fn closes(headers: Headers<'_>) -> Option<bool> {
    let mut values = headers.all("connection");
    match (values.next(), values.next()) {
        (None, _) => Some(false),
        (Some(value), None) if value.eq_ignore_ascii_case(b"keep-alive") => Some(false),
        (Some(value), None) if value.eq_ignore_ascii_case(b"close") => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the bytes begin with, where nobody takes a request as it came.
    fn parse(bytes: &[u8]) -> Begin<()> {
        super::parse(bytes, &Link::new(), |_, _| None)
    }

    const POLL: &str = "GET /v1/messages?session=A HTTP/1.1\r\nhost: x\r\nx: 1\r\n\r\n";

    #[test]
    fn a_plain_request_is_taken_as_it_is() {
        let Begin::Head(head) = parse(POLL.as_bytes()) else { panic!("not taken") };
        let Head { parts, door, plain: Plain { len, body, closes } } = *head;
        assert_eq!((parts.method, parts.uri.to_string()), (Method::GET, "/v1/messages?session=A".to_owned()));
        assert_eq!((parts.headers["host"].as_bytes(), parts.headers["x"].as_bytes()), (&b"x"[..], &b"1"[..]));
        assert_eq!((door, len, body, closes), (Door::Poll, POLL.len(), 0, false));
        let post = "POST /set?a__=1 HTTP/1.1\r\nHost: x\r\nConnection: Close\r\nContent-Length: 2\r\n\r\n{}";
        let Begin::Head(head) = parse(post.as_bytes()) else { panic!("not taken") };
        assert_eq!(head.plain, Plain { len: post.len() - 2, body: 2, closes: true });
    }

    #[test]
    fn a_whole_request_is_offered_as_it_came() {
        let post = "POST /set?a__=1 HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n{}rest";
        let taken = |bytes: &str| match super::parse(
            bytes.as_bytes(),
            &Link::new(),
            |door, RawRequest { query, headers, body }| {
                Some((door, query.to_owned(), headers.text("host").unwrap().to_owned(), body.to_vec()))
            },
        ) {
            Begin::Answering(taken, _) => Some(taken),
            _ => None,
        };
        let set = Door::X0(crate::transport::legacy::LegacyPath::Set);
        assert_eq!(taken(post), Some((set, "a__=1".to_owned(), "x".to_owned(), b"{}".to_vec())));
        assert_eq!(taken(POLL), Some((Door::Poll, "session=A".to_owned(), "x".to_owned(), Vec::new())));
        // A part of the body is missing, or the address has to be parsed.
        assert_eq!(taken(&post[..post.len() - 5]), None);
        for query in ["session=\u{e4}", "session=A#f", "session=\"A\""] {
            assert_eq!(taken(&POLL.replace("session=A", query)), None, "{query}");
        }
    }

    #[test]
    fn a_handshake_is_taken_as_it_is() {
        let head = "GET /ws?session=A HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let Begin::Opening(opening, len) = parse((head.to_owned() + "more").as_bytes()) else {
            panic!("not taken")
        };
        assert_eq!((opening.uri.to_string(), len), ("/ws?session=A".to_owned(), head.len()));
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
