//! A handshake over a connection of HTTP/1.1 that the server has for itself: without TLS, and without hyper.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::edge::{Gateway, RequestHead};
use crate::link::Link;
use crate::protocol::SUBPROTOCOL;
use crate::transport::websocket::socket::{Frame, Output, Socket};
use crate::transport::websocket::{connection, handshake, has_valid_key};

/// A valid handshake in its plain form (RFC 6455 section 4.2.1).
#[derive(Debug)]
pub(crate) struct Opening {
    uri: Uri,
    headers: HeaderMap,
    link: Arc<Link>,
}

/// The part of a connection that is read already, and the rest of it.
pub(crate) struct Opened<S> {
    pub(crate) stream: S,
    /// What came after the handshake.
    pub(crate) input: Vec<u8>,
    /// The answer to the handshake. It is written together with the first frames.
    pub(crate) answer: Vec<u8>,
}

impl Opening {
    /// A GET with these headers, over this connection. `None` if it is anything else than a plain handshake: that is for
    /// hyper and the routes, which say what is wrong.
    pub(crate) fn new(uri: Uri, headers: HeaderMap, link: &Arc<Link>) -> Option<Self> {
        let has_body = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::EXPECT]
            .iter()
            .any(|name| headers.contains_key(name));
        let is_plain = !has_body
            && only(&headers, &header::CONNECTION).is_some_and(upgrades)
            && only(&headers, &header::UPGRADE).is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"))
            && only(&headers, &header::SEC_WEBSOCKET_VERSION) == Some(b"13")
            && has_valid_key(&headers);
        is_plain.then(|| Self { uri, headers, link: Arc::clone(link) })
    }

    /// What is checked of the request.
    pub(crate) fn request(&self) -> RequestHead<'_> {
        let query = self.uri.query().unwrap_or_default();
        RequestHead::over_http1(query, (&self.headers).into(), &self.link)
    }

    /// Appends the headers of the answer (RFC 6455 section 4.2.2).
    pub(crate) fn write_headers(&self, answer: &mut Vec<u8>) {
        let key = self.headers.get(header::SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
        answer.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ");
        answer.extend_from_slice(derive_accept_key(key).as_bytes());
        answer.extend_from_slice(b"\r\n");
        if self.offers_subprotocol() {
            answer.extend_from_slice(b"sec-websocket-protocol: ");
            answer.extend_from_slice(SUBPROTOCOL.as_bytes());
            answer.extend_from_slice(b"\r\n");
        }
    }

    fn offers_subprotocol(&self) -> bool {
        let values = self.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let mut offered = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        offered.any(|name| name.trim_ascii() == SUBPROTOCOL.as_bytes())
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
        Box::pin(connection::serve(gateway, socket, output, Box::new(handshake), running))
    }
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        _ => None,
    }
}

/// Whether `Connection` names the upgrade, and nothing else that counts.
fn upgrades(value: &[u8]) -> bool {
    let is = |option: &[u8], name: &str| option.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
    let options = || value.split(|byte| *byte == b',');
    options().any(|option| is(option, "upgrade"))
        && options().all(|option| is(option, "upgrade") || is(option, "keep-alive"))
}
