//! What attackers put on the wire.

use std::convert::Infallible;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::broker::{Broker, Stream};

/// The address of attackers.
pub(crate) const ADDRESS: &str = "127.0.0.3";

/// A payload of so many bytes, as JSON.
pub(crate) fn payload(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

/// Writes as much as the broker takes, reads nothing, and keeps the connection.
pub(crate) fn pour(attackers: &mut JoinSet<()>, mut stream: impl Stream + 'static, bytes: Bytes) {
    attackers.spawn(async move {
        _ = stream.write_all(&bytes).await;
        std::future::pending::<()>().await;
        drop(stream);
    });
}

/// The opening handshake of a WebSocket.
pub(crate) async fn upgrade<S: Stream>(mut stream: S, query: &str, bearer: Option<&str>) -> Result<S> {
    let bearer = bearer.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "GET /ws{query} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n{bearer}\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// The body of a request over HTTP/2.
pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn no_body() -> Body {
    Empty::new().boxed()
}

/// A body that begins with this and does not end.
pub(crate) fn endless(start: Bytes) -> Body {
    let parts = stream::iter([Ok(Frame::data(start))]).chain(stream::pending());
    BodyExt::boxed(StreamBody::new(parts))
}

/// A connection of HTTP/2 that lets so many bytes of each response come.
pub(crate) async fn http_2(
    broker: &Broker,
    attackers: &mut JoinSet<()>,
    window: Option<u32>,
) -> Result<SendRequest<Body>> {
    let stream = broker.connect(ADDRESS, "h2").await?;
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await?;
    attackers.spawn(async move { _ = connection.await });
    Ok(sender)
}

/// Sends a request, and keeps its response without reading it.
pub(crate) fn request(
    attackers: &mut JoinSet<()>,
    sender: &SendRequest<Body>,
    (method, target): (&str, &str),
    body: Body,
) -> Result<()> {
    let request = Request::builder().method(method).uri(format!("https://localhost{target}")).body(body)?;
    let mut sender = sender.clone();
    attackers.spawn(async move {
        let response: Option<Response<hyper::body::Incoming>> = match sender.ready().await {
            Ok(()) => sender.send_request(request).await.ok(),
            Err(_) => None,
        };
        std::future::pending::<()>().await;
        drop(response);
    });
    Ok(())
}
