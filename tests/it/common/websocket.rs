//! A client of the native protocol over a WebSocket.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::soon;

/// A TCP connection whose system buffers few bytes that were not read yet.
pub fn connect_with_small_buffer(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    TcpStream::from_std(socket.into()).unwrap()
}

/// The opening handshake of a WebSocket by hand, for a client that sends what a library does not send. Each of
/// `headers` ends with CRLF.
pub async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, query: &str, headers: &str) -> S {
    let request = format!(
        "GET /ws{query} HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n{headers}\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

/// One WebSocket.
pub struct Ws<S = MaybeTlsStream<TcpStream>> {
    pub socket: WebSocketStream<S>,
    pub epoch: String,
}

impl Ws {
    pub async fn connect(address: SocketAddr, query: &str) -> Self {
        Self::with_headers(address, query, &[]).await
    }

    pub async fn with_headers(address: SocketAddr, query: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://{address}/ws{query}").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        let (socket, _) = soon(connect_async(request)).await.unwrap();
        Self { socket, epoch: String::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Ws<S> {
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub async fn send_text(&mut self, frame: &str) {
        soon(self.socket.send(Message::text(frame))).await.unwrap();
    }

    /// The next text frame.
    pub async fn recv(&mut self) -> Value {
        serde_json::from_str(&self.recv_text().await).unwrap()
    }

    pub async fn recv_text(&mut self) -> String {
        // Pings do not extend the deadline.
        soon(async {
            loop {
                match self.socket.next().await.expect("open").unwrap() {
                    Message::Text(text) => return text.as_str().to_owned(),
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("expected a text frame, got {other:?}"),
                }
            }
        })
        .await
    }

    /// The next `message` frame.
    pub async fn message(&mut self) -> Value {
        let frame = self.recv().await;
        assert_eq!(frame["type"], "message", "{frame}");
        frame
    }

    pub async fn payload(&mut self) -> Value {
        self.message().await["payload"].clone()
    }

    /// The next frame, which must be an error; its code.
    pub async fn error(&mut self) -> String {
        let frame = self.recv().await;
        assert_eq!(frame["type"], "error", "{frame}");
        assert!(frame["message"].as_str().is_some_and(|text| text.len() > 10), "{frame}");
        frame["code"].as_str().unwrap().to_owned()
    }

    /// Waits until every earlier frame was handled. Fails if another frame comes.
    pub async fn ping(&mut self) {
        self.send(json!({ "type": "ping" })).await;
        let frame = self.recv().await;
        assert_eq!(frame["type"], "pong", "{frame}");
    }

    /// Waits until every earlier frame was handled, and skips all frames that come.
    pub async fn ping_among_messages(&mut self) {
        self.send(json!({ "type": "ping" })).await;
        while self.recv().await["type"] != "pong" {}
    }

    /// Waits for the close frame; its code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match soon(self.socket.next()).await.expect("a close frame comes first").unwrap() {
                Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.as_str().to_owned()),
                Message::Close(None) => panic!("closed without a code"),
                _ => {}
            }
        }
    }

    pub async fn ack(&mut self, seq: u64) {
        self.send(json!({ "type": "ack", "seq": seq })).await;
    }

    /// Sends and waits until it is stored; the seq.
    pub async fn send_to(&mut self, session: &str, payload: Value) -> u64 {
        self.send(json!({ "type": "send", "to": { "session": session }, "payload": payload })).await;
        let sent = self.recv().await;
        assert_eq!(sent["type"], "sent", "{sent}");
        sent["seq"].as_u64().unwrap()
    }
}
