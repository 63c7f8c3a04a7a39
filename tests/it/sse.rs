//! Server-Sent Events: the id is the seq, `Last-Event-ID` resumes and acknowledges.

use std::net::SocketAddr;

use futures::StreamExt;
use http_body_util::{BodyStream, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::common::*;

/// One event as a browser would see it.
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

    /// With a token, or an API key.
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
        let mut request = hyper::Request::get(format!("/v1/events{query}")).header("host", "x");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        if let Some(bearer) = bearer {
            request = request.header("authorization", bearer);
        }
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self { body: BodyStream::new(response.into_body()), text: String::new() })
    }

    pub async fn next(&mut self) -> Event {
        soon(self.try_next()).await.expect("open")
    }

    /// The next event, or `None` when the connection is gone.
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

#[tokio::test]
async fn messages_are_events_and_the_last_id_resumes() {
    let server = TestServer::start().await;
    let seqs = [server.send("A", "B", json!(1)).await, server.send("A", "B", json!(2)).await];
    let mut events = Events::open(&server, "?session=B", None).await;
    let welcome = events.next().await;
    assert_eq!((welcome.name.as_str(), welcome.id, &welcome.data["session"]), ("welcome", None, &json!("B")));
    for (seq, n) in seqs.into_iter().zip(1..) {
        let event = events.next().await;
        assert_eq!((event.name.as_str(), event.id), ("message", Some(seq)));
        assert_eq!((&event.data["payload"], &event.data["from"]), (&json!(n), &json!("A")));
    }
    let live = server.send("A", "B", json!(3)).await;
    assert_eq!(events.next().await.id, Some(live));
    drop(events);
    let mut events = Events::open(&server, "?session=B", Some(seqs[1])).await;
    assert_eq!(events.next().await.data["seq"], seqs[1], "the last id is an acknowledgement");
    assert_eq!(events.next().await.data["payload"], 3);
}

#[tokio::test]
async fn a_payload_over_several_lines_arrives_whole() {
    let server = TestServer::start().await;
    let body = "{\"to\":{\"session\":\"B\"},\"payload\":{\r\n\"a\":\n1,\r\"b\":2}}";
    assert_eq!(server.post("/v1/messages", body).await.status, 200);
    let mut events = Events::open(&server, "?session=B", None).await;
    events.next().await;
    assert_eq!(events.next().await.data["payload"], json!({ "a": 1, "b": 2 }));
}

#[tokio::test]
async fn topics_come_without_an_id_so_that_they_acknowledge_nothing() {
    let server = TestServer::start().await;
    let mut events = Events::open(&server, "?session=B&topic=news", None).await;
    assert_eq!(events.next().await.name, "welcome");
    assert_eq!(events.next().await.name, "subscribed");
    server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": 1 })).await;
    let event = events.next().await;
    assert_eq!((event.name.as_str(), event.id, &event.data["topic"]), ("message", None, &json!("news")));
}

#[tokio::test]
async fn a_gap_is_an_event_of_its_own() {
    let server = TestServer::start().await;
    let seqs = [server.send("A", "B", json!(1)).await, server.send("A", "B", json!(2)).await];
    server.post("/v1/ack", json!({ "session": "B", "seq": seqs[1] })).await;
    let mut events = Events::open(&server, &format!("?session=B&after={}", seqs[0]), None).await;
    events.next().await;
    let gap = events.next().await;
    assert_eq!(
        (gap.name.as_str(), gap.id, &gap.data["reason"]),
        ("gap", Some(seqs[1]), &json!("acknowledged"))
    );
}
