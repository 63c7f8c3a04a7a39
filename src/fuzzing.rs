//! What fuzzers call: each takes bytes from outside apart, and checks what must hold whatever they are.

use axum::http::Uri;
use serde_json::Value;

use crate::edge::Query;
use crate::identity::verify_with_secret;
use crate::message::{Address, Handle, Kind, Message, Publication, SenderName, Seq};
use crate::protocol::{AckBody, ClientFrame, SendRequest, SessionBody, To};
use crate::transport::legacy::shape::{self, LegacyError, LegacyPath, LegacyRequest};
use crate::transport::legacy::with_sender;

/// A text frame of a WebSocket client, and the bodies of `/v1`.
pub fn native_frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // What is wrong is said in words that can be sent.
    let told = |reason: String| assert!(!reason.is_empty() && reason.len() < 4096, "{reason}");
    match ClientFrame::decode(text) {
        Ok(ClientFrame::Send(send)) => stored(send),
        Ok(_) => {}
        Err(bad) => told(bad.reason.to_string()),
    }
    match SendRequest::decode(text) {
        Ok(send) => stored(send),
        Err(bad) => told(bad.reason.to_string()),
    }
    _ = AckBody::decode(text).map_err(|reason| told(reason.to_string()));
    _ = SessionBody::decode(text).map_err(|reason| told(reason.to_string()));
    _ = Handle::parse(text).map(|handle| assert_eq!(handle.to_string(), text));
}

/// What is accepted is a frame that its receivers can read, with the payload byte for byte.
fn stored(send: SendRequest) {
    let address = match send.to {
        To::Session(session) | To::Peer(session) => Address::Session(session),
        To::Topic(topic) => Address::Topic(topic),
        To::User(user) => {
            let session = crate::message::SessionId::new(user.as_str()).expect("names follow the same rules");
            Address::Session(session)
        }
    };
    let payload = send.payload.get().to_owned();
    let message = Message { kind: Kind::Message, from: None, payload: send.payload, ts: 0 };
    let publication = Publication::encode(&address, Some(Seq(1)), &message);
    assert_eq!(publication.payload(), payload);
    let frame: &serde_json::value::RawValue =
        serde_json::from_str(publication.frame().as_str()).expect("a frame is JSON");
    assert_eq!(frame.get(), publication.frame().as_str());
    delivered_to_x0(&payload);
}

/// A POST of today's x0 client, at each of its addresses.
pub fn legacy_body(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in [LegacyPath::Handler, LegacyPath::Get, LegacyPath::Set] {
        asked(shape::body(path, text));
    }
}

/// The query of a GET of today's x0 client.
pub fn legacy_query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(uri) = format!("/python/MsgHandler.py?{text}").parse::<Uri>() else { return };
    if let Some(result) = shape::query(&Query::of(&uri)) {
        asked(result);
    }
}

fn asked(asked: Result<LegacyRequest, LegacyError>) {
    if let Ok(LegacyRequest::Send { payload, .. }) = asked {
        assert!(payload.get().starts_with('{'), "x0 pages send objects");
        delivered_to_x0(payload.get());
    }
}

/// An x0 page gets an object that names its sender, once, whatever the payload said.
fn delivered_to_x0(payload: &str) {
    let sender = SenderName::new("the \"sender\"").expect("a name");
    let object = with_sender(payload, Some(&sender));
    // What JSON allows and Rust's strings do not hold, a browser takes all the same.
    if let Ok(object) = serde_json::from_str::<Value>(&object) {
        assert_eq!(object["session_src"], sender.as_str(), "{payload}");
    }
    let twice = with_sender(&object, Some(&sender));
    assert_eq!(twice, object, "the sender is set once");
}

/// A token against a secret that the fuzzer does not know.
pub fn token(bytes: &[u8]) {
    const SECRET: &[u8] = b"a secret that no fuzzer finds out";
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(claims) = verify_with_secret(SECRET, text) {
        panic!("a token was taken that nobody signed: {claims:?}");
    }
}
