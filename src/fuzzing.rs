//! The targets of fuzzers, and what benchmarks need. Each target parses bytes from outside, and checks what holds for all bytes.

use axum::http::Uri;
use serde_json::Value;

use crate::edge::Query;
use crate::identity::verify_with_secret;
use crate::message::{Address, Handle, Kind, Message, Publication, SenderName, Seq};
use crate::protocol::{AckBody, ClientFrame, SendRequest, SessionBody, To};
use crate::server;
use crate::transport::legacy::shape::{self, LegacyError, LegacyPath, LegacyRequest};
use crate::transport::legacy::with_sender;
use crate::transport::websocket::socket::{Decoder, ReadError, Received};

/// A text frame of a WebSocket client, and the bodies of `/v1`.
pub fn native_frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // An error text is short enough to be sent.
    let check_text = |reason: String| assert!(!reason.is_empty() && reason.len() < 4096, "{reason}");
    match ClientFrame::decode(text) {
        Ok(ClientFrame::Send(send)) => check_send(send),
        Ok(_) => {}
        Err(bad) => check_text(bad.reason.to_string()),
    }
    match SendRequest::decode(text) {
        Ok(send) => check_send(send),
        Err(bad) => check_text(bad.reason.to_string()),
    }
    _ = AckBody::decode(text).map_err(|reason| check_text(reason.to_string()));
    _ = SessionBody::decode(text).map_err(|reason| check_text(reason.to_string()));
    _ = Handle::parse(text).map(|handle| assert_eq!(handle.to_string(), text));
}

/// An accepted send becomes a frame that receivers can parse, with the payload byte for byte.
fn check_send(send: SendRequest) {
    let address = match send.to {
        To::Session(session) | To::Peer(session) => Address::Session(session),
        To::Topic(topic) => Address::Topic(topic),
        To::Backend(backend) => Address::Backend(backend),
        To::Reply(_) => Address::Session(crate::message::SessionId::new("A").expect("a name")),
        To::User(user) => {
            let session = crate::message::SessionId::new(user.as_str()).expect("names follow the same rules");
            Address::Session(session)
        }
    };
    let payload = send.payload.get().to_owned();
    let message = Message { kind: Kind::Message, from: None, payload: send.payload, ts: 0, reference: None };
    let publication = Publication::encode(&address, Some(Seq(1)), &message);
    assert_eq!(publication.payload(), payload);
    let frame: &serde_json::value::RawValue =
        serde_json::from_str(publication.frame().as_str()).expect("a frame is JSON");
    assert_eq!(frame.get(), publication.frame().as_str());
    check_x0_payload(&payload);
}

/// A POST of today's x0 client, on each of its paths.
pub fn legacy_body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in [LegacyPath::Handler, LegacyPath::Get, LegacyPath::Set] {
        check_legacy(shape::body(path, text));
    }
}

/// The query of a GET of today's x0 client.
pub fn legacy_query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(uri) = format!("/python/MsgHandler.py?{text}").parse::<Uri>() else { return };
    let Ok(query) = Query::parse(&uri) else { return };
    if let Some(result) = shape::query(&query) {
        check_legacy(result);
    }
}

fn check_legacy(request: Result<LegacyRequest, LegacyError>) {
    if let Ok(LegacyRequest::Send { payload, .. }) = request {
        assert!(payload.get().starts_with('{'), "x0 pages send objects");
        check_x0_payload(payload.get());
    }
}

/// An x0 page gets an object that names its sender once, whatever the payload said.
fn check_x0_payload(payload: &str) {
    let sender = SenderName::new("the \"sender\"").expect("a name");
    let object = with_sender(payload, Some(&sender));
    // Lone surrogates are valid JSON and no Rust strings. A browser accepts them.
    if let Ok(object) = serde_json::from_str::<Value>(&object) {
        assert_eq!(object["session_src"], sender.as_str(), "{payload}");
    }
    let twice = with_sender(&object, Some(&sender));
    assert_eq!(twice, object, "the sender is set once");
}

/// The object that an x0 page gets for a payload, for benchmarks.
#[must_use]
pub fn x0_object(payload: &str, from: Option<&SenderName>) -> String {
    with_sender(payload, from)
}

/// A token against a secret that the fuzzer does not know.
pub fn token(bytes: &[u8]) {
    const SECRET: &[u8] = b"a secret that no fuzzer finds out";
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(claims) = verify_with_secret(SECRET, text) {
        panic!("an unsigned token was accepted: {claims:?}");
    }
}

/// The bytes of a WebSocket client. They mean the same in whatever parts they come.
pub fn websocket(bytes: &[u8]) {
    let whole = decode(bytes, usize::MAX);
    for part in [1, 3, 64] {
        assert_eq!(decode(bytes, part), whole, "in parts of {part}");
    }
}

/// What is decoded from bytes that come in parts of this size.
fn decode(bytes: &[u8], part: usize) -> (Vec<Received>, Option<ReadError>) {
    const LIMIT: usize = 4096;
    let (mut decoder, mut received) = (Decoder::default(), Vec::new());
    for mut input in bytes.chunks(part) {
        loop {
            match decoder.decode(&mut input, LIMIT) {
                Ok(Some(Received::Text(text))) if text.len() > LIMIT => panic!("{} bytes", text.len()),
                Ok(Some(message)) => received.push(message),
                Ok(None) => break,
                Err(error) => return (received, Some(error)),
            }
        }
        assert!(input.is_empty(), "everything is taken");
    }
    (received, None)
}

/// A connection over HTTP/1.1: our loop and hyper do the same with it.
pub fn http1(bytes: &[u8]) {
    server::compare(bytes);
}
