//! Topics with many readers: the broker writes to all connections that rest at once.

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::common::*;

/// More than it takes to write to connections that rest.
const READERS: usize = 12;

/// A reader of a topic, on a small buffer.
async fn reader(server: &TestServer, session: &str) -> Ws<TcpStream> {
    let stream = upgrade(connect_with_small_buffer(server.address), &format!("?session={session}"), "").await;
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let mut reader = Ws { socket, epoch: String::new() };
    assert_eq!(reader.recv().await["type"], "welcome");
    reader.send(json!({ "type": "subscribe", "topic": "news" })).await;
    assert_eq!(reader.recv().await["type"], "subscribed");
    reader
}

/// As many readers as these tests have.
async fn readers(server: &TestServer) -> Vec<Ws<TcpStream>> {
    let mut readers = Vec::new();
    for n in 0..READERS {
        readers.push(reader(server, &format!("R{n}")).await);
    }
    readers
}

async fn publish(http: &mut Http, payload: Value, volatile: bool) {
    let body = json!({ "to": { "topic": "news" }, "payload": payload, "volatile": volatile });
    assert_eq!(http.post("/v1/messages?session=P", body).await.status, 200);
}

#[tokio::test]
async fn every_reader_gets_everything_once_and_in_order_whatever_it_does() {
    const MESSAGES: u64 = 400;
    let server = TestServer::start().await;
    let readers = readers(&server).await;
    let (published, publishing) = watch::channel(0);
    let reading: Vec<_> = readers
        .into_iter()
        .enumerate()
        .map(|(n, mut reader)| {
            let mut publishing = publishing.clone();
            tokio::spawn(async move {
                let (mut next, mut pings, mut pongs) = (0, 0, 0);
                while next < MESSAGES || pongs < pings {
                    let frame = reader.recv().await;
                    match frame["type"].as_str() {
                        Some("pong") => pongs += 1,
                        Some("message") if frame.get("topic").is_some() => {
                            assert_eq!(frame["payload"]["n"], next, "reader {n}");
                            next += 1;
                            // Some say something now and then, and some read nothing for a while.
                            if n % 3 == 0 && next % 7 == 0 {
                                reader.send(json!({ "type": "ping" })).await;
                                pings += 1;
                            }
                            if n % 4 == 1 && next % 100 == 0 {
                                let later = MESSAGES.min(next + 80);
                                publishing.wait_for(|published| *published >= later).await.unwrap();
                            }
                        }
                        _ => panic!("reader {n}: {frame}"),
                    }
                }
            })
        })
        .collect();
    let mut http = server.http().await;
    for n in 0..MESSAGES {
        // Some are large, and some are too large to be held until all readers have them.
        let size = match n % 50 {
            20 => 6_000,
            40 => 70_000,
            _ => 100,
        };
        publish(&mut http, json!({ "n": n, "text": "x".repeat(size) }), false).await;
        published.send_replace(n + 1);
    }
    for reader in reading {
        soon(reader).await.unwrap();
    }
}

#[tokio::test]
async fn volatile_messages_reach_readers_that_rest() {
    let server = TestServer::start().await;
    let mut readers = readers(&server).await;
    let mut http = server.http().await;
    for n in 0..20 {
        publish(&mut http, json!(n), true).await;
        for reader in &mut readers {
            assert_eq!(reader.payload().await, n);
        }
    }
}

#[tokio::test]
async fn an_ended_session_and_an_unsubscribed_topic_bring_nothing_more() {
    let server = TestServer::start().await;
    let mut readers = readers(&server).await;
    let mut http = server.http().await;
    publish(&mut http, json!(1), false).await;
    for reader in &mut readers {
        assert_eq!(reader.payload().await, 1);
    }
    readers[1].send(json!({ "type": "unsubscribe", "topic": "news" })).await;
    assert_eq!(readers[1].recv().await["type"], "unsubscribed");
    assert_eq!(http.request("DELETE", "/v1/sessions/R0", &[], "").await.status, 204);
    publish(&mut http, json!(2), false).await;
    // No message comes before the close frame.
    let frame = readers[0].socket.next().await;
    assert!(matches!(frame, Some(Ok(Message::Close(_)))), "{frame:?}");
    readers[1].ping().await;
    for reader in &mut readers[2..] {
        assert_eq!(reader.payload().await, 2);
    }
}

#[tokio::test]
async fn event_streams_get_everything_once_and_in_order_and_end_with_their_sessions() {
    const MESSAGES: u64 = 120;
    let server = TestServer::start().await;
    let mut streams = Vec::new();
    for n in 0..READERS {
        let mut events = Events::open(&server, &format!("?session=R{n}&topic=news"), None).await;
        assert_eq!(
            (events.next().await.name, events.next().await.name),
            ("welcome".into(), "subscribed".into())
        );
        streams.push(events);
    }
    let (mut http, mut read) = (server.http().await, 0);
    for n in 0..MESSAGES {
        // Something else is on its way to some of them.
        if n % 10 == 5 {
            server.send("P", &format!("R{}", n % READERS as u64), json!("mailbox")).await;
        }
        let size = if n % 40 == 20 { 70_000 } else { 100 };
        publish(&mut http, json!({ "n": n, "text": "x".repeat(size) }), n % 7 == 3).await;
        // Whoever rests is written to, one message at a time or several.
        if n % 3 == 0 {
            continue;
        }
        for events in &mut streams {
            for expected in read..=n {
                assert_eq!(next_of_topic(events).await, expected);
            }
        }
        read = n + 1;
    }
    assert_eq!(http.request("DELETE", "/v1/sessions/R0", &[], "").await.status, 204);
    publish(&mut http, json!({ "n": MESSAGES }), false).await;
    assert_eq!(streams[0].try_next().await, None);
    for events in &mut streams[1..] {
        assert_eq!(next_of_topic(events).await, MESSAGES);
    }
}

/// The number of the next message of the topic.
async fn next_of_topic(events: &mut Events) -> u64 {
    loop {
        let event = events.next().await;
        if event.data.get("topic").is_some() {
            return event.data["payload"]["n"].as_u64().unwrap();
        }
        assert_eq!(event.data["payload"], "mailbox");
    }
}
