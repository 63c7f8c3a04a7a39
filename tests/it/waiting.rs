//! Timeouts, on paused time: none fires a millisecond early, and ten seconds take no time.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::client_async;
use tower::ServiceExt;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::{Config, Level};
use x0_msg_server::link::{Link, MonitoredStream};
use x0_msg_server::server::Server;

use crate::common::*;

fn server() -> Server {
    Server::new(Config { durability: Level::Memory, ..Config::default() }, Clock::follow_tokio()).unwrap()
}

/// A request without a socket.
async fn call(server: &Server, method: &str, target: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = axum::http::Request::builder().method(method).uri(target).body(body).unwrap();
    let response = server.router().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn send(server: &Server, to: &str, payload: Value, ttl: Option<u64>) -> u64 {
    let body = json!({ "to": { "session": to }, "payload": payload, "ttl": ttl });
    call(server, "POST", "/v1/messages", body).await.1["seq"].as_u64().unwrap()
}

/// A connection in memory, which follows the paused clock.
fn connect(server: &Server) -> tokio::io::DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let link = Link::new();
    tokio::spawn(server.connection(MonitoredStream::opaque(theirs, Arc::clone(&link)), link));
    ours
}

async fn socket(server: &Server, query: &str) -> Ws<tokio::io::DuplexStream> {
    let (socket, _) = client_async(format!("ws://x/ws{query}"), connect(server)).await.unwrap();
    Ws { socket, epoch: String::new() }
}

/// The duration of an event in milliseconds, and its value.
async fn took<T>(event: impl Future<Output = T>) -> (u64, T) {
    let start = Instant::now();
    let value = event.await;
    (start.elapsed().as_millis() as u64, value)
}

/// The timers of tokio fire within the millisecond after their time.
fn assert_about(found: u64, expected: u64) {
    assert!((expected..=expected + 2).contains(&found), "{found} ms instead of {expected} ms");
}

#[tokio::test(start_paused = true)]
async fn an_empty_x0_poll_is_answered_after_ten_seconds() {
    let server = server();
    for body in [x0_poll("A"), json!({ "type": "GET", "session_src": null }), json!({ "type": "GET" })] {
        let (ms, reply) = took(call(&server, "POST", HANDLER, body)).await;
        assert_about(ms, 10_000);
        assert_eq!(reply, (200, json!({ "messages": null })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_ends_the_wait_at_once() {
    let server = server();
    let poll = call(&server, "POST", HANDLER, x0_poll("A"));
    let sender = async {
        sleep(Duration::from_millis(3_000)).await;
        send(&server, "A", json!({ "n": 1 }), None).await;
    };
    let (ms, ((_, reply), ())) = took(async { tokio::join!(poll, sender) }).await;
    assert_about(ms, 3_000);
    assert_eq!(reply["messages"][0]["n"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_native_poll_waits_as_long_as_it_says() {
    let server = server();
    for (query, expected) in [("", 10_000), ("&wait=0", 0), ("&wait=2.5", 2_500), ("&wait=60", 60_000)] {
        let target = format!("/v1/messages?session=A{query}");
        let (ms, (status, body)) = took(call(&server, "GET", &target, Value::Null)).await;
        assert_about(ms, expected);
        assert_eq!((status, &body["messages"]), (200, &json!([])));
    }
}

/// For 15 seconds after the last poll of a tab, the acknowledgement of another tab deletes nothing that it needs.
#[tokio::test(start_paused = true)]
async fn a_poller_that_is_away_is_waited_for_for_fifteen_seconds() {
    for (away, still_there) in [(14_000, true), (17_000, false)] {
        let server = server();
        let poll = json!({ "type": "GET", "session_src": "B" });
        // A first tab polls and is answered.
        let first = send(&server, "B", json!({ "n": 1 }), None).await;
        assert_eq!(call(&server, "POST", HANDLER, poll.clone()).await.1["messages"][0]["n"], 1);
        // Before its next poll, another reader acknowledges everything.
        let second = send(&server, "B", json!({ "n": 2 }), None).await;
        let ack = json!({ "session": "B", "seq": second });
        assert_eq!(call(&server, "POST", "/v1/ack", ack).await.0, 200);
        sleep(Duration::from_millis(away)).await;
        let ack = json!({ "type": "GET", "session_src": "B", "ack": first });
        let (_, reply) = call(&server, "POST", HANDLER, ack).await;
        let expected = if still_there { json!([{ "n": 2, "session_src": null }]) } else { json!(null) };
        assert_eq!(reply["messages"], expected, "away for {away} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_waits_a_moment_for_a_second_tab_to_poll_again_but_not_for_long() {
    let server = server();
    let poll = || call(&server, "POST", HANDLER, x0_poll("B"));
    // Two tabs poll and are answered together.
    let sender = async {
        sleep(Duration::from_secs(1)).await;
        send(&server, "B", json!({ "n": 1 }), None).await;
    };
    tokio::join!(poll(), poll(), sender);
    // One of them polls again, the other one does not.
    send(&server, "B", json!({ "n": 2 }), None).await;
    let ack = async || {
        let floor = call(&server, "GET", "/v1/messages?session=B&wait=0", Value::Null).await.1;
        floor["messages"][0]["seq"].as_u64().unwrap()
    };
    let first = ack().await;
    let body = json!({ "type": "GET", "session_src": "B", "ack": first });
    let (ms, (_, reply)) = took(call(&server, "POST", HANDLER, body)).await;
    assert_eq!(reply["messages"][0]["n"], 2);
    assert_about(ms, 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_does_not_say_hello_is_closed_after_ten_seconds() {
    let server = server();
    let mut ws = socket(&server, "").await;
    let (ms, (code, reason)) = took(ws.closed()).await;
    assert_about(ms, 10_000);
    assert_eq!((code, reason.as_str()), (4001, "no hello within 10 s"));
    // A socket with a hello stays open.
    let mut ws = socket(&server, "").await;
    ws.send(json!({ "type": "hello", "session": "A" })).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    assert!(timeout(Duration::from_secs(20), ws.closed()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_and_closed_after_two_heartbeats() {
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;
    use tokio_tungstenite::tungstenite::Message;

    let server = server();
    // A socket that answers pings stays open for an hour.
    let mut alive = socket(&server, "?session=A").await;
    let pings = async {
        let mut pings = 0;
        while let Some(Ok(frame)) = alive.socket.next().await {
            pings += usize::from(matches!(frame, Message::Ping(_)));
            assert!(!frame.is_close(), "{frame:?}");
        }
        pings
    };
    assert!(timeout(Duration::from_secs(3600), pings).await.is_err());
    // A socket that does not answer pings is closed.
    let mut mute = upgrade(connect(&server), "?session=A", "").await;
    let mut seen = Vec::new();
    let (ms, _) = took(async {
        let mut byte = [0; 256];
        while !seen.windows(2).any(|pair| pair == 4002_u16.to_be_bytes()) {
            let count = mute.read(&mut byte).await.unwrap();
            assert_ne!(count, 0, "closed without a close frame");
            seen.extend_from_slice(&byte[..count]);
        }
    })
    .await;
    assert_about(ms, 50_000);
    assert!(seen.windows(2).any(|pair| pair == [0x89, 0]), "it was pinged");
}

#[tokio::test(start_paused = true)]
async fn a_message_ends_with_its_ttl_and_a_reader_is_told() {
    let server = server();
    let first = send(&server, "B", json!(1), None).await;
    let short = send(&server, "B", json!(2), Some(60)).await;
    send(&server, "B", json!(3), None).await;
    let poll = async || call(&server, "GET", "/v1/messages?session=B&wait=0", Value::Null).await.1;
    sleep(Duration::from_millis(59_900)).await;
    assert_eq!(poll().await["messages"].as_array().unwrap().len(), 3);
    sleep(Duration::from_millis(100)).await;
    let body = poll().await;
    assert_eq!(body["messages"].as_array().unwrap().len(), 2);
    assert_eq!(body["gaps"], json!([{ "from": first, "to": short, "reason": "expired" }]));
    // The default is seven days.
    sleep(Duration::from_secs(7 * 24 * 3600)).await;
    assert_eq!(poll().await["messages"], json!([]));
}

/// A peer that reads nothing is dropped after 30 seconds. No other client waits for it.
#[tokio::test(start_paused = true)]
async fn a_reader_whose_socket_takes_nothing_is_dropped_after_thirty_seconds() {
    let server = server();
    let stuck = socket(&server, "?session=B").await;
    let mut good = socket(&server, "?session=B").await;
    assert_eq!(good.recv().await["type"], "welcome");
    let payload = json!("x".repeat(60_000));
    let mut last = 0;
    for _ in 0..5 {
        last = send(&server, "B", payload.clone(), None).await;
    }
    for _ in 0..5 {
        assert_eq!(good.payload().await, payload);
    }
    good.ack(last).await;
    good.ping().await;
    assert_eq!(server.broker().hubs(), 1);
    // The stuck reader keeps acknowledged messages for at most 30 seconds.
    let probe = async || call(&server, "GET", "/v1/messages?session=B&after=1&wait=0", Value::Null).await.1;
    let held = probe().await["messages"].as_array().unwrap().len();
    assert!(held > 0, "what the slow tab has not taken is still there for it");
    sleep(Duration::from_secs(31)).await;
    good.ping_among_messages().await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(probe().await["messages"], json!([]));
    drop(stuck);
}

/// A page that polls again on the same connection has received the last answer, even if its subscription has expired
/// meanwhile: the tab was frozen, or a dialog blocked it.
#[tokio::test(start_paused = true)]
async fn a_receipt_that_comes_late_still_counts() {
    let server = server();
    send(&server, "B", json!({ "n": 1 }), None).await;
    let mut page = Http::on(connect(&server), "x").await;
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })]);
    // Longer than the grace of 15 s, shorter than the idle timeout of a connection.
    sleep(Duration::from_secs(20)).await;
    assert_eq!(page.x0("B").await, NOTHING);
    // On another connection there is no evidence of arrival, so the message is repeated, up to a limit.
    send(&server, "B", json!({ "n": 2 }), None).await;
    let mut times = 0;
    while let Some(message) = Http::on(connect(&server), "x").await.x0("B").await.pop() {
        assert_eq!(message, json!({ "n": 2 }));
        times += 1;
        sleep(Duration::from_secs(20)).await;
    }
    assert_eq!(times, 4, "once, and three times again");
}
