//! A client of Server-Sent Events.

use std::net::SocketAddr;

use futures::StreamExt;
use http_body_util::{BodyStream, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{TestServer, soon};

/// One event as a browser sees it.
#[derive(Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub id: Option<u64>,
    pub data: Value,
}

pub struct Events {
    body: BodyStream<Incoming>,
    text: String,
}

impl Events {
    pub async fn open(server: &TestServer, query: &str, last: Option<u64>) -> Self {
        soon(Self::try_open(server.address, query, last)).await.unwrap()
    }

    pub async fn try_open(address: SocketAddr, query: &str, last: Option<u64>) -> anyhow::Result<Self> {
        Self::on(TcpStream::connect(address).await?, query, last).await
    }

    /// Opens a stream with a token or an API key.
    pub async fn with_bearer(address: SocketAddr, query: &str, bearer: &str) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        let bearer = Some(format!("Bearer {bearer}"));
        soon(Self::open_on(stream, query, None, bearer.as_deref())).await.unwrap()
    }

    pub async fn on(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        query: &str,
        last: Option<u64>,
    ) -> anyhow::Result<Self> {
        Self::open_on(stream, query, last, None).await
    }

    async fn open_on(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
        query: &str,
        last: Option<u64>,
        bearer: Option<&str>,
    ) -> anyhow::Result<Self> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = hyper::Request::get(format!("/v1/events{query}")).header("host", "localhost");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        if let Some(bearer) = bearer {
            request = request.header("authorization", bearer);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let status = response.status();
        anyhow::ensure!(response.headers()["content-type"] == "text/event-stream", "refused: {status}");
        Ok(Self { body: BodyStream::new(response.into_body()), text: String::new() })
    }

    pub async fn next(&mut self) -> Event {
        soon(self.try_next()).await.expect("open")
    }

    /// The next event; `None` if the connection has ended.
    pub async fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                if !event.starts_with(':') {
                    return Some(parse(&event));
                }
                continue;
            }
            let frame = self.body.next().await?.ok()?;
            self.text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
        }
    }
}

fn parse(text: &str) -> Event {
    let field = |name: &str| {
        let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    };
    Event {
        name: field("event: ").unwrap_or_else(|| "message".to_owned()),
        id: field("id: ").map(|id| id.parse().unwrap()),
        data: serde_json::from_str(&field("data: ").unwrap()).unwrap(),
    }
}
