//! A disk that cannot be read, or that does not answer: deadlines and stops win, and `/healthz` says what fails.

use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::common::*;

/// A message that no other page of the database holds.
fn payload() -> Value {
    json!("x".repeat(20_000))
}

/// A server whose stored messages are on the disk only: mailbox A and topic `news` have one each.
async fn on_disk(faults: &Faults, dir: &std::path::Path, args: &[&str]) -> TestServer {
    let server = TestServer::at(dir, &[]).await;
    server.send("B", "A", payload()).await;
    let news = json!({ "to": { "topic": "news" }, "payload": payload() });
    assert_eq!(server.post("/v1/messages", news).await.status, 200);
    server.stop().await;
    faults.server(dir, args).await
}

async fn failing(server: &TestServer) -> String {
    server.get("/healthz").await.json()["failing"].to_string()
}

#[tokio::test]
async fn a_poll_that_cannot_be_read_is_refused_and_health_says_so_until_it_can() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = on_disk(&faults, dir.path(), &[]).await;
    faults.set("read-fails", "");
    for target in [
        "/v1/messages?session=A&wait=0",
        "/v1/messages?session=A&wait=60",
        "/v1/messages?topic=news&after.news=0&wait=0",
        "/v1/messages?session=C&topic=news&after.news=0&wait=60",
    ] {
        let refused = server.get(target).await;
        assert_eq!(refused.status, 503, "{target}: {}", refused.body);
        assert_eq!(
            (refused.code().as_str(), refused.header("retry-after")),
            ("unavailable", "1"),
            "{target}"
        );
        assert!(refused.body.contains("cannot be read"), "{}", refused.body);
    }
    assert!(failing(&server).await.contains("stored messages cannot be read"));
    assert_eq!(server.get("/healthz").await.json()["status"], "degraded");
    assert_eq!(server.get("/readyz").await.status, 200);
    // What needs no disk goes on, and a socket and a stream that wait for the disk stay.
    let mut socket = server.session("A").await;
    let told = socket.recv().await;
    assert_eq!((&told["type"], &told["code"]), (&json!("error"), &json!("unavailable")), "{told}");
    assert!(told["message"].as_str().unwrap().contains("the messages follow"), "{told}");
    socket.ping().await;
    let mut events = Events::open(&server, "?session=A", None).await;
    assert_eq!(events.next().await.name, "welcome");
    let told = events.next().await;
    assert_eq!((told.name.as_str(), &told.data["code"]), ("failure", &json!("unavailable")), "{}", told.data);
    faults.clear("read-fails");
    assert_eq!(socket.payload().await, payload());
    assert_eq!(events.next().await.data["payload"], payload());
    soon(async { while failing(&server).await != "null" {} }).await;
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.payloads(), [payload()]);
    drop((socket, events));
    let log = server.stop().await;
    let lines = |text| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!((lines("cannot be read now"), lines("can be read again")), (1, 1), "{log}");
}

/// A reader that goes on with a topic needs the disk only when it has fallen behind.
#[tokio::test]
async fn a_poll_that_continues_a_topic_that_cannot_be_read_is_refused_and_loses_nothing() {
    /// More than the reader keeps while it is away.
    const MESSAGES: usize = 100;
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = faults.server(dir.path(), &[]).await;
    let mut http = server.http().await;
    let begin = http.get("/v1/messages?session=A&topic=news&wait=0").await.json();
    faults.set("read-fails", "");
    let news: Vec<Value> =
        (0..MESSAGES).map(|n| json!({ "to": { "topic": "news" }, "payload": [n, payload()] })).collect();
    for part in news.chunks(MESSAGES / 4) {
        assert_eq!(http.post("/v1/messages", json!(part)).await.status, 200);
    }
    // More than the newest messages that are kept in memory.
    for _ in 0..10 {
        server.send("B", "F", json!("x".repeat(1_000_000))).await;
    }
    // Each poll goes on where the first one was.
    let target = format!("/v1/messages?session=A&topic=news&after={}&wait=60", begin["seq"]);
    for _ in 0..2 {
        let refused = http.get(&target).await;
        assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"), "{}", refused.body);
    }
    faults.clear("read-fails");
    let (mut read, mut next) = (0, target.clone());
    while read < MESSAGES {
        let answer = http.get(&next).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        for payload in answer.payloads() {
            assert_eq!(payload[0], read, "none is left out");
            read += 1;
        }
        next = format!("{target}&after.news={}", answer.json()["topics"]["news"]);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_socket_and_a_stream_are_told_once_that_topics_cannot_be_read() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = TestServer::at(dir.path(), &[]).await;
    for topic in ["news", "other"] {
        let send = json!({ "to": { "topic": topic }, "payload": payload() });
        assert_eq!(server.post("/v1/messages", send).await.status, 200);
    }
    server.stop().await;
    let server = faults.server(dir.path(), &[]).await;
    faults.set("read-fails", "");
    let mut socket = server.session("C").await;
    for topic in ["news", "other"] {
        socket.send(json!({ "type": "subscribe", "topic": topic, "after": 0 })).await;
        assert_eq!(socket.recv().await["type"], "subscribed");
    }
    let told = socket.recv().await;
    assert_eq!((&told["type"], &told["code"]), (&json!("error"), &json!("unavailable")), "{told}");
    let mut events = Events::open(&server, "?topic=news&after.news=0&topic=other&after.other=0", None).await;
    for name in ["welcome", "subscribed", "subscribed", "failure"] {
        assert_eq!(events.next().await.name, name);
    }
    socket.ping().await;
    faults.clear("read-fails");
    for _ in 0..2 {
        assert_eq!(socket.payload().await, payload());
        assert_eq!(events.next().await.data["payload"], payload());
    }
    drop((socket, events));
    server.stop().await;
}

#[tokio::test]
async fn a_poll_of_an_x0_page_that_cannot_be_read_is_held() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = on_disk(&faults, dir.path(), &["--poll-timeout", "700ms"]).await;
    faults.set("read-fails", "");
    let mut http = server.http().await;
    let begun = Instant::now();
    assert_eq!(http.x0("A").await, NOTHING);
    assert!(begun.elapsed() >= Duration::from_millis(700), "it is not answered at once");
    faults.clear("read-fails");
    soon(async { while http.x0("A").await == NOTHING {} }).await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_disk_that_cannot_be_read() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = on_disk(&faults, dir.path(), &["--poll-timeout", "1h"]).await;
    faults.set("read-fails", "");
    let (mut http, mut socket) = (server.http().await, server.session("A").await);
    let x0 = tokio::spawn(async move { http.x0("A").await });
    let mut events = Events::open(&server, "?session=A", None).await;
    assert_eq!(events.next().await.name, "welcome");
    server.attached("A", 3).await;
    server.signal(15);
    assert_eq!(soon(x0).await.unwrap(), NOTHING);
    assert_eq!(socket.closed().await.0, 1001);
    assert!(soon(events.try_next()).await.is_none());
    drop((socket, events));
    server.stopped().await;
}

/// Nothing was confirmed that the next start does not have.
#[tokio::test]
async fn a_disk_that_does_not_answer_is_told_and_does_not_keep_a_stop_waiting() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = faults.server(dir.path(), &[]).await;
    let sent = server.send("B", "A", json!(1)).await;
    faults.set("sync-hangs", "");
    let mut http = server.http().await;
    let hanging = tokio::spawn(async move {
        let send = json!({ "to": { "session": "A" }, "payload": 2 }).to_string();
        http.try_request("POST", "/v1/messages", &[], send).await.map(|reply| reply.status)
    });
    soon(async { while !failing(&server).await.contains("does not answer") {} }).await;
    // What is stored can still be read.
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.json()["messages"][0]["seq"], sent);
    let log = server.log_from_here();
    server.signal(15);
    log.contains("\"stopping\"").await;
    server.signal(15);
    let (code, log) = server.ended().await;
    assert_eq!(code, Some(74), "{log}");
    assert!(log.lines().last().unwrap().contains("does not answer"), "{log}");
    assert_ne!(soon(hanging).await.unwrap().ok(), Some(200));
    let server = TestServer::at(dir.path(), &[]).await;
    assert!(server.get("/v1/messages?session=A&wait=0").await.payloads().starts_with(&[json!(1)]));
    server.stop().await;
}

/// SQLite reports such a disk as damage. It is not: nothing is given up.
#[tokio::test]
async fn a_start_on_a_disk_that_cannot_be_read_is_refused_and_gives_up_nothing() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    on_disk(&faults, dir.path(), &[]).await.kill().await;
    faults.set("read-fails", "");
    let log = faults.try_server(dir.path()).await.err().expect("it does not start");
    assert!(log.contains("cannot") && log.contains("store.db") && !log.contains("is damaged"), "{log}");
    faults.clear("read-fails");
    let server = faults.try_server(dir.path()).await.unwrap();
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.payloads(), [payload()]);
    let log = server.stop().await;
    assert!(!log.contains("a new epoch begins"), "{log}");
}
