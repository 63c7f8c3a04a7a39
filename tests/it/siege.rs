//! The memory budget under attack: many large bodies, frames and answers at once. Each attack goes on while other clients work.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;

use crate::common::*;
use crate::guarded::*;
use crate::tls::{certificate, tls};

const BUDGET: [&str; 2] = ["--memory-budget", "8MiB"];

/// Most memory above that at rest, in KiB: the budget, and what connections and the allocator need. Each attack takes more than
/// twice as much without a budget.
const MOST: u64 = 8 * 1024 + 32 * 1024;

/// The line of the log that says that the attack had its effect.
const SPENT: &str = "the memory budget is spent";

/// A field of `/proc/PID/status`, in KiB.
fn memory(server: &TestServer, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn at_rest(server: &TestServer) -> u64 {
    memory(server, "VmRSS:")
}

/// Asserts that the peak since the start is within bounds.
fn assert_bounded(server: &TestServer, rest: u64) {
    let peak = memory(server, "VmHWM:").saturating_sub(rest);
    assert!(peak < MOST, "{peak} KiB more than at rest");
}

/// Clients that send and read small messages get all of them.
async fn others_go_on(server: &TestServer) {
    let mut reader = server.session("good-reader").await;
    for n in 0..50 {
        server.send("good-sender", "good-reader", json!(n)).await;
        assert_eq!(reader.payload().await, n);
    }
}

/// Writes in the background, as much as the server takes. The connection stays open until the task is dropped.
fn pour(mut stream: impl AsyncWrite + Send + Unpin + 'static, bytes: Vec<u8>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        _ = stream.write_all(&bytes).await;
        std::future::pending::<()>().await;
        drop(stream);
    })
}

/// Opens WebSockets with these queries, and pours the same bytes into each.
async fn pour_frames(
    server: &TestServer,
    queries: impl Iterator<Item = String>,
    bytes: &[u8],
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut attackers = Vec::new();
    for query in queries {
        let stream = TcpStream::connect(server.address).await.unwrap();
        attackers.push(pour(upgrade(stream, &query, "").await, bytes.to_vec()));
    }
    attackers
}

#[tokio::test]
async fn half_bodies_are_bounded_together() {
    let server = TestServer::with(&BUDGET).await;
    let (rest, log) = (at_rest(&server), server.log_from_here());
    let mut attackers = Vec::new();
    for target in ["/v1/messages?session=A", HANDLER].repeat(50) {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n");
        attackers.push(pour(stream, [head.into_bytes(), vec![b' '; 900_000]].concat()));
    }
    log.contains(SPENT).await;
    others_go_on(&server).await;
    assert_bounded(&server, rest);
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn unfinished_frames_are_bounded_together() {
    let server = TestServer::with(&BUDGET).await;
    let (rest, log) = (at_rest(&server), server.log_from_here());
    let header = [&[0x81, 0xff][..], &1_000_000_u64.to_be_bytes(), &[0; 4]].concat();
    let queries = (0..100).map(|n| format!("?session=attacker-{n}"));
    let attackers = pour_frames(&server, queries, &[header, vec![b' '; 900_000]].concat()).await;
    log.contains(SPENT).await;
    others_go_on(&server).await;
    assert_bounded(&server, rest);
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Before `hello` a message has 64 KiB at most, and all of them get half of the budget.
#[tokio::test]
async fn unfinished_frames_before_hello_leave_half_of_the_budget() {
    let server = TestServer::with(&BUDGET).await;
    let log = server.log_from_here();
    let header = [&[0x81, 0xfe][..], &65_000_u16.to_be_bytes(), &[0; 4]].concat();
    let queries = (0..120).map(|_| String::new());
    let attackers = pour_frames(&server, queries, &[header, vec![b' '; 60_000]].concat()).await;
    log.contains(SPENT).await;
    // A large message of a session finds room in the other half.
    let large = json!({ "to": { "session": "B" }, "payload": "x".repeat(1_000_000) });
    let mut ws = server.session("A").await;
    ws.send(json!({ "type": "send", "id": "1", "to": large["to"], "payload": large["payload"] })).await;
    assert_eq!(ws.recv().await["type"], "sent");
    others_go_on(&server).await;
    attackers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn volatile_messages_to_readers_that_read_nothing_share_their_bytes_and_are_bounded() {
    let server = Guarded::with(&[&BUDGET[..], &["--send-rate", "0"]].concat()).await;
    let mut stuck = Vec::new();
    for n in 0..40 {
        let headers =
            [("authorization", format!("Bearer {}", token(&format!("bob{}", n % 4), &format!("s{n}"))))];
        let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(
            format!("ws://{}/ws", server.address),
        )
        .unwrap();
        request.headers_mut().insert(headers[0].0, headers[0].1.parse().unwrap());
        let (socket, _) =
            soon(client_async(request, connect_with_small_buffer(server.address))).await.unwrap();
        let mut ws = Ws { socket, epoch: String::new() };
        assert_eq!(ws.recv().await["type"], "welcome");
        stuck.push(ws);
    }
    let rest = at_rest(&server);
    let volatile = |n: usize| json!({ "to": { "user": format!("bob{}", n % 4) }, "payload": "x".repeat(1_000_000), "volatile": true });
    let mut refused = 0;
    for n in 0..20 {
        let reply = server.call("POST", "/v1/messages", KEY, volatile(n)).await;
        match reply.status {
            200 => {}
            503 => {
                assert!(
                    reply.body.contains("--memory-budget") && reply.code() == "overloaded",
                    "{}",
                    reply.body
                );
                refused += 1;
            }
            status => panic!("{status}: {}", reply.body),
        }
    }
    assert!(refused > 0, "each user's readers hold four of 1 MB or more");
    // Small ones go on.
    let mut reader = server.welcomed(&token("carl", "C")).await;
    let small = json!({ "to": { "user": "carl" }, "payload": "small", "volatile": true });
    assert_eq!(server.call("POST", "/v1/messages", KEY, small).await.status, 200);
    assert_eq!(reader.payload().await, "small");
    assert_bounded(&server, rest);
}

/// Polls over HTTP/2 with a window of 0: their answers are never taken.
#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_together_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let trusted = certificate(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let server = TestServer::with(&[&BUDGET[..], &["--tls-cert", &cert, "--tls-key", &key]].concat()).await;
    let mut good =
        Http::on(soon(tls(server.address, &trusted, "http/1.1")).await.unwrap(), "localhost").await;
    let large = |n: usize| json!({ "to": { "session": format!("s{n}") }, "payload": "x".repeat(1_000_000) });
    for n in 0..60 {
        assert_eq!(good.post("/v1/messages?session=A", large(n)).await.status, 200);
    }
    let (rest, log) = (at_rest(&server), server.log_from_here());
    let stream = soon(tls(server.address, &trusted, "h2")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut stuck = Vec::new();
    for n in 0..60 {
        let uri = format!("https://localhost/v1/messages?session=s{n}&wait=60");
        let poll = sender.send_request(hyper::Request::get(uri).body(Empty::<Bytes>::new()).unwrap());
        stuck.push(tokio::spawn(poll));
    }
    log.contains(SPENT).await;
    // Others go on, and a poll that finds no room in memory is answered when its time is over, without an error.
    for n in 0..50 {
        let small = json!({ "to": { "session": "B" }, "payload": n });
        assert_eq!(good.post("/v1/messages?session=A", small).await.status, 200);
    }
    let (mut got, mut after) = (0, String::new());
    while got < 50 {
        let reply = good.get(&format!("/v1/messages?session=B&wait=60{after}")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        got += reply.payloads().len();
        after = format!("&after={}", reply.json()["seq"]);
    }
    assert_bounded(&server, rest);
    // What nobody took is still there.
    drop((sender, stuck));
    let found = soon(async {
        loop {
            let reply = good.get("/v1/messages?session=s59&wait=1").await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            if let [Value::String(text)] = &reply.payloads()[..] {
                return text.len();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert_eq!(found.await, 1_000_000);
}

/// Each read takes as much of the budget as its messages have, not as much as any read may have.
#[tokio::test]
async fn small_mailboxes_that_are_read_at_once_do_not_spend_the_budget() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &["--memory-budget", "64MiB"]).await;
    for n in 0..200 {
        let send = |_| json!({ "to": { "session": format!("s{n}") }, "payload": "x".repeat(6_000) });
        let sends = (0..3).map(send).collect::<Vec<_>>();
        assert_eq!(server.post("/v1/messages?session=A", json!(sends)).await.status, 200);
    }
    server.stop().await;
    // After a restart all messages are on the disk only.
    let server = TestServer::at(dir.path(), &["--memory-budget", "64MiB"]).await;
    let mut readers = Vec::new();
    for _ in 0..200 {
        readers.push(server.http().await);
    }
    let polls = readers.iter_mut().enumerate().map(async |(n, http)| {
        let reply = http.get(&format!("/v1/messages?session=s{n}&wait=10")).await;
        assert_eq!(reply.payloads().len(), 3, "all that waits comes at once");
    });
    futures::future::join_all(polls).await;
    let log = server.stop().await;
    assert!(!log.contains(SPENT), "{log}");
}
