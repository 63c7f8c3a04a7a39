//! Fair shares: one author cannot take what all others need.

use std::time::Duration;

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// Settings without rates, and a store of 4 MiB.
const SMALL_STORE: [&str; 6] = ["--store-limit", "4MiB", "--send-rate", "0", "--send-bytes-rate", "0"];

/// A token of this user that may send to every topic and user.
fn sender(user: &str) -> String {
    token_with(user, &format!("of {user}"), json!({ "send": ["*"] }))
}

/// The body of a send of so many bytes.
fn of_size(to: Value, bytes: usize) -> Value {
    json!({ "to": to, "payload": "x".repeat(bytes) })
}

/// Sends to new topics until one is refused; how many were stored, and the refusal.
async fn fill(server: &Guarded, bearer: &str, prefix: &str) -> (usize, Reply) {
    for n in 0..1000 {
        let send = of_size(json!({ "topic": format!("{prefix}/{n}") }), 60_000);
        let reply = server.call("POST", "/v1/messages", bearer, send).await;
        if reply.status != 200 {
            return (n, reply);
        }
    }
    panic!("nothing is refused");
}

#[tokio::test]
async fn an_author_that_fills_the_store_leaves_room_to_others_and_a_full_store_is_told() {
    let server = Guarded::with(&SMALL_STORE).await;
    let (stored, refusal) = fill(&server, &sender("ann"), "ann").await;
    assert!((30..36).contains(&stored), "half of 4 MiB, not {stored} messages");
    assert_eq!((refusal.status, refusal.code()), (429, "quota_exceeded".to_owned()));
    let text = &refusal.body;
    assert!(text.contains("your share of the store is 256 KiB") && text.contains("--store-limit"), "{text}");
    // Its other sessions are the same author.
    let other = token_with("ann", "another", json!({ "send": ["*"] }));
    assert_eq!(fill(&server, &other, "other").await.0, 0);
    // Others, and backends, go on.
    let (of_others, refusal) = fill(&server, &sender("bob"), "bob").await;
    assert!((3..5).contains(&of_others), "a share is 256 KiB, not {of_others} messages");
    assert_eq!(refusal.code(), "quota_exceeded");
    let health = server.get("/healthz").await.json();
    assert_eq!(health["status"], "ok", "{health}");
    let (of_backends, refusal) = fill(&server, KEY, "shop").await;
    assert!(of_backends > 20);
    assert_eq!((refusal.status, refusal.code()), (503, "unavailable".to_owned()));
    let health = server.get("/healthz").await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")), "{}", health.body);
    assert!(health.json()["failing"][0].as_str().unwrap().contains("--store-limit"), "{}", health.body);
    // A share counts over restarts.
    let server = server.restart().await;
    assert_eq!(fill(&server, &sender("ann"), "later").await.1.code(), "quota_exceeded");
    let log = server.stop().await;
    assert!(!log.contains("messages are refused: your share"), "shares of one author are no news: {log}");
}

#[tokio::test]
async fn a_full_store_is_logged_once() {
    let server = TestServer::with(&["--store-limit", "64KiB", "--durability", "memory"]).await;
    let large = of_size(json!({ "session": "B" }), 30_000);
    for status in [200, 200, 503, 503, 503] {
        assert_eq!(server.post("/v1/messages?session=A", &large).await.status, status);
    }
    assert_eq!(server.get("/healthz").await.json()["status"], "degraded");
    let seq = server.read_all("B").await.messages.into_keys().next_back().unwrap();
    server.post("/v1/ack", json!({ "session": "B", "seq": seq })).await;
    assert_eq!(server.get("/healthz").await.json()["status"], "ok");
    let log = server.stop().await;
    assert_eq!(log.matches("messages are refused: the store is full").count(), 1, "{log}");
}

#[tokio::test]
async fn an_author_has_messages_in_a_thousand_topics_at_most() {
    let server = Guarded::with(&["--send-rate", "0"]).await;
    let send = |n: usize| json!({ "to": { "topic": format!("t{n}") }, "payload": n });
    let array = json!((0..1000).map(send).collect::<Vec<_>>());
    let reply = server.call("POST", "/v1/messages", &sender("ann"), array).await;
    assert!(reply.json().as_array().unwrap().iter().all(|answer| answer["seq"].is_u64()), "{}", reply.body);
    let refused = server.call("POST", "/v1/messages", &sender("ann"), send(1000)).await;
    assert_eq!((refused.status, refused.code()), (429, "quota_exceeded".to_owned()), "{}", refused.body);
    // The topics that it has go on, and so do others.
    for (bearer, n) in [(sender("ann"), 999), (sender("bob"), 1000), (KEY.to_owned(), 2000)] {
        assert_eq!(server.call("POST", "/v1/messages", &bearer, send(n)).await.status, 200, "{n}");
    }
}

#[tokio::test]
async fn an_author_does_not_block_the_mailbox_of_an_absent_user_at_any_door() {
    let settings = ["--mailbox-bytes", "1MiB", "--max-payload", "64KiB"];
    let server =
        Guarded::with(&[&settings[..], &["--send-rate", "0", "--send-bytes-rate", "0"]].concat()).await;
    server.register("desk", json!({ "user": "bob", "ttl": 3600 })).await;
    server.register("ann-page", json!({ "user": "ann", "ttl": 3600 })).await;
    let to_bob = |bytes| of_size(json!({ "user": "bob" }), bytes);
    let mut stored = 0;
    let refusal = loop {
        let reply = server.call("POST", "/v1/messages", &sender("ann"), to_bob(60_000)).await;
        if reply.status != 200 {
            break reply;
        }
        stored += 1;
    };
    assert!((7..10).contains(&stored), "half of 1 MiB, not {stored} messages");
    assert_eq!((refusal.status, refusal.code()), (429, "quota_exceeded".to_owned()), "{}", refusal.body);
    assert!(
        refusal.body.contains("your share of this mailbox is 2500 messages and 256 KiB"),
        "{}",
        refusal.body
    );
    // In an array, over WebSocket, and at the door of x0.
    let answers = server.call("POST", "/v1/messages", &sender("ann"), json!([to_bob(60_000)])).await.json();
    assert_eq!(answers[0]["error"]["code"], "quota_exceeded", "{answers}");
    let mut ws = server.welcomed(&sender("ann")).await;
    ws.send(json!({ "type": "send", "id": "1", "to": { "user": "bob" }, "payload": "x".repeat(60_000) }))
        .await;
    let answer = ws.recv().await;
    assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!("quota_exceeded")), "{answer}");
    let page = x0_set("ann-page", "bob", &json!({ "x": "x".repeat(60_000) }));
    let answer = server.post(&x0_target(), page).await;
    assert_eq!((answer.status, &answer.json()["error"]), (200, &json!(true)), "{}", answer.body);
    assert!(answer.body.contains("your share of this mailbox"), "{}", answer.body);
    // Others, and backends, reach it.
    for bearer in [&sender("carl"), KEY] {
        assert_eq!(server.call("POST", "/v1/messages", bearer, to_bob(60_000)).await.status, 200);
    }
}

#[tokio::test]
async fn bytes_count_in_the_rate_and_every_door_pays_for_each_mailbox() {
    let rate =
        ["--send-bytes-rate", "1KiB", "--send-rate", "1", "--send-burst", "60", "--poll-timeout", "500ms"];
    let server = Guarded::with(&rate).await;
    let of_bytes = |bytes| of_size(json!({ "topic": "t" }), bytes);
    assert_eq!(server.call("POST", "/v1/messages", &sender("ann"), of_bytes(9_000)).await.status, 200);
    let refused = server.call("POST", "/v1/messages", &sender("ann"), of_bytes(9_000)).await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited".to_owned()), "{}", refused.body);
    assert!(refused.body.contains("--send-bytes-rate"), "{}", refused.body);
    // A page of x0 pays for each of the mailboxes of a user, as all others do.
    for n in 0..50 {
        server.register(&format!("bob-{n}"), json!({ "user": "bob", "ttl": 3600 })).await;
    }
    server.register("page", json!({ "user": "carl", "ttl": 3600 })).await;
    let mut http = server.http().await;
    let send = |n: u64| x0_set("page", "bob", &json!({ "n": n }));
    let first = http.post(&x0_target(), send(1)).await;
    assert_eq!(first.json()["status"], "ok", "{}", first.body);
    let second = http.post(&x0_target(), send(2)).await;
    assert_eq!((second.status, &second.json()["error"]), (200, &json!(true)), "{}", second.body);
}

/// While the disk does not answer, what one author sends to its 100 sessions takes its share of the queue. All others are stored
/// as soon as the disk goes on.
#[tokio::test]
async fn an_author_that_fills_the_queue_leaves_room_to_others() {
    let faults = Faults::new();
    let rates = ["--send-rate", "0", "--send-bytes-rate", "0", "--memory-budget", "64MiB"];
    let server = Guarded::with_faults(&faults, &rates).await;
    for n in 0..100 {
        server.register(&format!("ann-{n}"), json!({ "user": "ann", "ttl": 3600 })).await;
    }
    let mut others = Vec::new();
    for n in 0..100 {
        others.push(server.welcomed(&sender(&format!("user-{n}"))).await);
    }
    let bearer = token_with("ann", "ann-0", json!({ "send": ["*"] }));
    let mut ann = server.welcomed(&bearer).await;
    faults.set("sync-hangs", "");
    let large = "x".repeat(1_000_000);
    ann.send(json!({ "type": "send", "id": "1", "to": { "user": "ann" }, "payload": large })).await;
    // A send that finds the share of the author taken is refused at once; one before that waits for the disk.
    let refusal = soon(async {
        loop {
            let send = of_size(json!({ "topic": "ann" }), 10);
            let call = server.call("POST", "/v1/messages", &bearer, send);
            if let Ok(reply) = tokio::time::timeout(Duration::from_millis(100), call).await {
                return reply;
            }
        }
    });
    let refusal = refusal.await;
    assert_eq!((refusal.status, refusal.code()), (429, "quota_exceeded".to_owned()), "{}", refusal.body);
    assert!(refusal.body.contains("--append-queue"), "{}", refusal.body);
    for (n, other) in others.iter_mut().enumerate() {
        let to = json!({ "topic": format!("t{n}") });
        other.send(json!({ "type": "send", "id": "1", "to": to, "payload": n })).await;
        // The send is taken and not refused when the answer comes.
        other.ping().await;
    }
    faults.clear("sync-hangs");
    for other in &mut others {
        let answer = other.recv().await;
        assert_eq!(answer["type"], "sent", "{answer}");
    }
}
