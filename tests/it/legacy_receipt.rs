//! The x0 client has no acknowledgements: when its next poll counts as one, and when it does not.

use serde_json::json;
use socket2::Socket;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::*;

/// The number of messages that wait for a session. They are not acknowledged.
async fn waiting(server: &TestServer, session: &str) -> usize {
    server.get(&format!("/v1/messages?session={session}&wait=0")).await.payloads().len()
}

async fn short_polls() -> TestServer {
    TestServer::with(&["--poll-timeout", "300ms"]).await
}

#[tokio::test]
async fn the_next_poll_on_the_same_connection_is_the_receipt() {
    let server = short_polls().await;
    server.send("A", "B", json!({ "n": 1 })).await;
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })]);
    assert_eq!(waiting(&server, "B").await, 1, "handed out is not received");
    assert_eq!(page.x0("B").await, NOTHING);
    assert_eq!(waiting(&server, "B").await, 0);
}

#[tokio::test]
async fn the_next_poll_on_another_connection_is_the_receipt_if_the_answer_arrived() {
    let server = short_polls().await;
    server.send("A", "B", json!({ "n": 1 })).await;
    let mut first = server.http().await;
    assert_eq!(first.x0("B").await, [json!({ "n": 1 })]);
    assert_eq!(server.http().await.x0("B").await, NOTHING, "while the first is still open");
    server.send("A", "B", json!({ "n": 2 })).await;
    assert_eq!(first.x0("B").await, [json!({ "n": 2 })]);
    drop(first);
    assert_eq!(server.http().await.x0("B").await, NOTHING, "after the first was closed");
    assert_eq!(waiting(&server, "B").await, 0);
}

/// A poll on a plain TCP connection, which can be cut at any moment.
async fn raw_poll(server: &TestServer, session: &str) -> TcpStream {
    let mut stream = connect_with_small_buffer(server.address);
    let body = x0_poll(session).to_string();
    let head =
        format!("POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", x0_target(), body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

/// The browser's TCP receives an answer after its page was closed. A browser then closes the connection; it keeps the
/// connections of open pages.
#[tokio::test]
async fn an_answer_to_a_tab_that_was_closed_meanwhile_is_repeated() {
    let server = short_polls().await;
    server.send("A", "B", json!({ "n": 1 })).await;
    let mut tab = server.http().await;
    let headers = [("origin", "http://x0-app.x0.localnet")];
    let reply = tab.request("POST", &x0_target(), &headers, x0_poll("B").to_string()).await;
    assert_eq!(x0_messages(&reply), [json!({ "n": 1 })]);
    tab.close().await;
    let mut next = server.http().await;
    // The next poll may overtake the close. The server waits a moment for the close.
    assert_eq!(next.x0("B").await, [json!({ "n": 1 })]);
    assert_eq!(next.x0("B").await, NOTHING);
}

/// Closes the connection with a reset.
fn reset(stream: TcpStream) {
    let socket = Socket::from(stream.into_std().unwrap());
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn an_answer_that_was_lost_before_it_was_read_is_repeated() {
    let server = short_polls().await;
    // More than the receive buffer of the client: TCP does not acknowledge the rest.
    let large = json!({ "n": "x".repeat(900_000) });
    server.send("A", "B", large.clone()).await;
    for round in 1..=2 {
        let mut lost = raw_poll(&server, "B").await;
        let mut start = [0; 16];
        soon(lost.read_exact(&mut start)).await.unwrap();
        assert_eq!(&start[..15], b"HTTP/1.1 200 OK", "{round}");
        reset(lost);
    }
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [large]);
    assert_eq!(page.x0("B").await, NOTHING);
}

#[tokio::test]
async fn repeats_without_evidence_of_loss_are_limited() {
    let server = short_polls().await;
    server.send("A", "B", json!({ "n": "x".repeat(900_000) })).await;
    for _ in 0..4 {
        let mut lost = raw_poll(&server, "B").await;
        soon(lost.read_exact(&mut [0; 16])).await.unwrap();
        reset(lost);
    }
    assert_eq!(server.http().await.x0("B").await, NOTHING, "handed out once and repeated three times");
}

#[tokio::test]
async fn a_poll_cut_while_it_waits_loses_nothing() {
    let server = TestServer::start().await;
    for end in [drop as fn(TcpStream), reset] {
        let cut = raw_poll(&server, "B").await;
        end(cut);
        server.send("A", "B", json!({ "n": 1 })).await;
        let mut page = server.http().await;
        assert_eq!(page.x0("B").await, [json!({ "n": 1 })]);
        // Acknowledges the last message before the next round.
        page.post(&x0_target(), json!({ "type": "DEL", "session_src": "B" })).await;
    }
}

#[tokio::test]
async fn a_poll_sent_again_by_the_browser_got_no_answer() {
    let server = short_polls().await;
    server.send("A", "B", json!({ "n": 1 })).await;
    let target = x0_target();
    let mut first = server.http().await;
    assert_eq!(x0_messages(&first.post(&target, x0_poll("B")).await), [json!({ "n": 1 })]);
    let mut second = server.http().await;
    assert_eq!(x0_messages(&second.post(&target, x0_poll("B")).await), [json!({ "n": 1 })]);
    assert_eq!(second.x0("B").await, NOTHING);
}

#[tokio::test]
async fn an_explicit_ack_overrides_the_evidence_of_the_connection() {
    let server = short_polls().await;
    for n in 1..=2 {
        server.send("A", "B", json!({ "n": n })).await;
    }
    let mut page = server.http().await;
    let first = page.post(&x0_target(), x0_poll("B")).await.json();
    let seq = first["seq"].as_u64().unwrap();
    let with_ack = |seq: u64| json!({ "type": "GET", "session_src": "B", "ack": seq });
    // It acknowledges nothing, although it polls on the same connection.
    let again = page.post(&x0_target(), with_ack(seq - 1)).await.json();
    assert_eq!(again["messages"], first["messages"]);
    let second = page.post(&x0_target(), with_ack(seq)).await;
    assert_eq!(x0_messages(&second), [json!({ "n": 2 })]);
    assert_eq!(waiting(&server, "B").await, 1);
    // An `ack` above the newest seq is ignored.
    let reply = page.post(&x0_target(), with_ack(9_007_199_254_740_991)).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn del_acknowledges_what_was_delivered() {
    let server = short_polls().await;
    for n in 1..=2 {
        server.send("A", "B", json!({ "n": n })).await;
    }
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })]);
    let reply = server.post(&x0_target(), json!({ "type": "DEL", "session_src": "B" })).await;
    assert_eq!(reply.json(), json!({ "messages": null }));
    assert_eq!(waiting(&server, "B").await, 1);
    assert_eq!(server.http().await.x0("B").await, [json!({ "n": 2 })]);
}

/// Two tabs share the connections of the browser, so the next poll of a tab may come on either connection. While
/// messages come in, both tabs must get each of them exactly once.
#[tokio::test]
async fn two_tabs_that_swap_connections_both_get_everything_once() {
    let server = TestServer::start().await;
    const MESSAGES: u64 = 60;
    let mut connections = vec![server.http().await, server.http().await];
    let mut polls = Vec::new();
    let (free, mut freed) = tokio::sync::mpsc::unbounded_channel();
    for tab in 0..2 {
        let mut http = connections.pop().unwrap();
        let free = free.clone();
        polls.push((
            tab,
            tokio::spawn(async move {
                _ = free.send((tab, http.x0("B").await, http));
            }),
        ));
    }
    // Both tabs wait before the first message.
    server.attached("B", 2).await;
    let sender = async {
        for n in 0..MESSAGES {
            server.send("A", "B", json!({ "n": n })).await;
        }
    };
    let tabs = async {
        let mut got = [Vec::new(), Vec::new()];
        let mut idle: Vec<Http> = Vec::new();
        let mut back = Vec::new();
        while got.iter().any(|got| (got.len() as u64) < MESSAGES) {
            let (tab, messages, http) = soon(freed.recv()).await.unwrap();
            got[tab as usize].extend(messages.iter().map(|message| message["n"].as_u64().unwrap()));
            idle.push(http);
            back.push(tab);
            // The tabs poll again in random order, each on a random free connection.
            fastrand::shuffle(&mut back);
            while let Some(tab) = back.pop() {
                let mut http = idle.swap_remove(fastrand::usize(..idle.len()));
                let free = free.clone();
                tokio::spawn(async move {
                    _ = free.send((tab, http.x0("B").await, http));
                });
            }
        }
        got
    };
    let ((), got) = tokio::join!(sender, tabs);
    let expected: Vec<u64> = (0..MESSAGES).collect();
    assert_eq!(got, [expected.clone(), expected]);
}

/// The old server kept everything in memory. Here a crash loses no message, and a repeated request is stored once. The
/// message that was not acknowledged before the crash comes again.
#[tokio::test]
async fn a_crash_loses_nothing_and_repeats_only_what_was_not_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let polls = ["--poll-timeout", "300ms"];
    let server = TestServer::at(dir.path(), &polls).await;
    let mut from = server.http().await;
    let targets = [x0_target(), x0_target(), x0_target()];
    for (n, target) in targets.iter().enumerate() {
        let reply = from.post(target, x0_set("A", "B", &json!({ "n": n }))).await;
        assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }));
    }
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [json!({ "n": 0 })]);
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })], "which confirms the first");
    server.acks_stored().await;
    server.kill().await;
    let server = TestServer::at(dir.path(), &polls).await;
    // The browser repeats the last request, since its connection died.
    let reply = server.post(&targets[2], x0_set("A", "B", &json!({ "n": 2 }))).await;
    assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }));
    let mut page = server.http().await;
    assert_eq!(page.x0("B").await, [json!({ "n": 1 })], "its receipt was not in");
    assert_eq!(page.x0("B").await, [json!({ "n": 2 })]);
    assert_eq!(page.x0("B").await, NOTHING, "and the repeated request was stored once");
}

/// The old server lost all three, because together they were too large for one answer.
#[tokio::test]
async fn messages_that_are_large_together_all_arrive() {
    let server = short_polls().await;
    let sent: Vec<_> = (0..3).map(|n| json!({ "n": n, "x": "x".repeat(1500) })).collect();
    for message in &sent {
        server.send("A", "B", message.clone()).await;
    }
    let mut page = server.http().await;
    for message in sent {
        assert_eq!(page.x0("B").await, [message]);
    }
    assert_eq!(page.x0("B").await, NOTHING);
}

/// A message that is sent some time after a poll was cut comes with the next poll.
#[tokio::test]
async fn a_poll_that_was_cut_loses_no_later_message() {
    let server = TestServer::start().await;
    for pause in [0, 200, 1_000] {
        let session = format!("B{pause}");
        let cut = raw_poll(&server, &session).await;
        server.attached(&session, 1).await;
        drop(cut);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.send("A", &session, json!({ "pause": pause })).await;
        assert_eq!(server.http().await.x0(&session).await, [json!({ "pause": pause })]);
    }
}
