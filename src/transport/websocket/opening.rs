//! A handshake over a connection of HTTP/1.1 that the server has for itself: without TLS, and without hyper.

use std::sync::Arc;

use axum::http::{HeaderMap, Uri};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::edge::{Gateway, RequestHead};
use crate::link::Link;
use crate::protocol::SUBPROTOCOL;
use crate::transport::websocket::socket::{Frame, Output, Socket};
use crate::transport::websocket::{connection, handshake, is_valid_key};

/// What only a handshake says, in its plain form (RFC 6455 section 4.2.1).
#[derive(Debug)]
pub(crate) struct Offer {
    /// The proof that the key was read.
    accept: String,
    /// Whether the subprotocol is offered.
    subprotocol: bool,
}

/// A handshake that is valid.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) offer: Offer,
    pub(crate) uri: Uri,
    /// The headers besides those of the offer.
    pub(crate) headers: HeaderMap,
    pub(crate) link: Arc<Link>,
}

/// The part of a connection that is read already, and the rest of it.
pub(crate) struct Opened<S> {
    pub(crate) stream: S,
    /// What came after the handshake.
    pub(crate) input: Vec<u8>,
    /// The answer to the handshake. It is written together with the first frames.
    pub(crate) answer: Vec<u8>,
}

impl Offer {
    /// Whether this reads the header of this name. Nobody else needs it then.
    pub(crate) fn reads(name: &str) -> bool {
        Field::of(name).is_some()
    }

    /// Reads the headers of a GET. `None` if it is anything else than a plain handshake: that is for hyper and the routes,
    /// which say what is wrong.
    pub(crate) fn read<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Option<Self> {
        let (mut connection, mut upgrade, mut version, mut key) = (None, None, None, None);
        let mut subprotocol = false;
        for (name, value) in headers {
            let once = match Field::of(name) {
                Some(Field::Connection) => &mut connection,
                Some(Field::Upgrade) => &mut upgrade,
                Some(Field::Version) => &mut version,
                Some(Field::Key) => &mut key,
                Some(Field::Protocol) => {
                    subprotocol |= items(value).any(|name| name == SUBPROTOCOL.as_bytes());
                    continue;
                }
                // None is agreed on.
                Some(Field::Extensions) => continue,
                None if BODY.iter().any(|body| body.eq_ignore_ascii_case(name)) => return None,
                None => continue,
            };
            if once.replace(value).is_some() {
                return None;
            }
        }
        let key = key.filter(|key| is_valid_key(key))?;
        let is_plain =
            upgrades(connection?) && upgrade?.eq_ignore_ascii_case(b"websocket") && version? == b"13";
        is_plain.then(|| Self { accept: derive_accept_key(key), subprotocol })
    }

    /// Appends the headers of the answer (RFC 6455 section 4.2.2).
    pub(crate) fn write_headers(&self, answer: &mut Vec<u8>) {
        answer.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ");
        answer.extend_from_slice(self.accept.as_bytes());
        if self.subprotocol {
            answer.extend_from_slice(b"\r\nsec-websocket-protocol: ");
            answer.extend_from_slice(SUBPROTOCOL.as_bytes());
        }
        answer.extend_from_slice(b"\r\n");
    }
}

impl Opening {
    /// What is checked of the request.
    pub(crate) fn request(&self) -> RequestHead<'_> {
        let query = self.uri.query().unwrap_or_default();
        RequestHead::over_http1(query, (&self.headers).into(), &self.link)
    }

    /// Checks who connects. What is returned answers, and serves the socket until it ends.
    pub(crate) async fn accept<S>(self, gateway: Arc<Gateway>, opened: Opened<S>) -> BoxFuture<'static, ()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let running = gateway.tasks.token();
        let handshake = handshake::check(&gateway, self.request()).await;
        let Opened { stream, input, answer } = opened;
        let socket = Socket::with_input(stream, input, &gateway.budget);
        let mut output = Output::default();
        output.push(Frame::preamble(answer));
        Box::pin(connection::serve(gateway, socket, output, handshake, running))
    }
}

/// A header that only a handshake has.
enum Field {
    Connection,
    Upgrade,
    Version,
    Key,
    Protocol,
    Extensions,
}

impl Field {
    fn of(name: &str) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        Some(match name.len() {
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            17 if is("sec-websocket-key") => Self::Key,
            21 if is("sec-websocket-version") => Self::Version,
            22 if is("sec-websocket-protocol") => Self::Protocol,
            24 if is("sec-websocket-extensions") => Self::Extensions,
            _ => return None,
        })
    }
}

/// Headers of a request with a body.
const BODY: [&str; 3] = ["content-length", "transfer-encoding", "expect"];

/// The items of a list.
fn items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether `Connection` names the upgrade, and nothing else that counts.
fn upgrades(value: &[u8]) -> bool {
    let is_upgrade = |option: &[u8]| option.eq_ignore_ascii_case(b"upgrade");
    items(value).any(is_upgrade)
        && items(value).all(|option| is_upgrade(option) || option.eq_ignore_ascii_case(b"keep-alive"))
}
