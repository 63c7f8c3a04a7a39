//! A store that is moved to NATS: every client gets there what it would have got.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

mod interrupted;
mod unready;

/// The lines of what `migrate` prints, by their names: what was to be moved, and what NATS holds.
fn counts(said: &str) -> BTreeMap<String, (u64, u64)> {
    let line = |line: &str| {
        let (name, numbers) = line.split_at_checked(16)?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
        (numbers.len() == 2).then(|| (name.trim().to_owned(), (numbers[0], numbers[1])))
    };
    said.lines().filter_map(line).collect()
}

/// The files of a store, but for what SQLite makes anew from the others.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| !path.to_string_lossy().ends_with("-shm"));
    files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect()
}

/// The time of day passes this moment. Nothing tells when it does.
async fn passes(seconds: u64) {
    while now() <= seconds {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All payloads that wait for the holder of this token, after a cursor of an earlier epoch.
async fn resumed(server: &Guarded, token: &str, after: u64, epoch: &str) -> (Ws, Value) {
    let mut ws = server.ws("").await;
    ws.send(json!({ "type": "hello", "token": token, "after": after, "epoch": epoch })).await;
    let welcome = ws.recv().await;
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (ws, welcome)
}

#[tokio::test]
async fn every_client_finds_its_mailbox_its_name_and_its_rights() {
    let nats = NatsServer::start().await;
    let server = Guarded::start().await;
    for (session, user) in [("a1", "ann"), ("a2", "ann"), ("b1", "bob"), ("gone", "bob")] {
        server.register(session, json!({ "user": user, "ttl": 600 })).await;
    }
    let bobs_token = token_with("bob", "b1", json!({ "send": ["*"], "topics": ["*"] }));
    let (mut ann, welcome) = server.hello(&token("ann", "a1")).await;
    let epoch = welcome["epoch"].as_str().unwrap().to_owned();
    let mut bob = server.welcomed(&bobs_token).await;
    let mut last = 0;
    for n in 0..4 {
        let send = json!({ "type": "send", "id": n.to_string(), "to": { "user": "ann" }, "payload": n });
        bob.send(send).await;
        assert_eq!(bob.recv().await["sessions"], 2);
        let message = ann.message().await;
        assert_eq!(message["payload"], n);
        last = message["seq"].as_u64().unwrap();
        if n == 0 {
            ann.ack(last).await;
        }
    }
    let look_up = async |server: &Guarded, session: &str| {
        let reply = server.call("GET", &format!("/v1/sessions/{session}"), KEY, "").await.json();
        json!([reply["handle"], reply["user"], reply["expires"]])
    };
    let registered = [look_up(&server, "a2").await, look_up(&server, "b1").await];
    // With a receipt; a request; to a backend; to a topic; one that expires while no server runs.
    let to = json!({ "session": look_up(&server, "a1").await[0] });
    for send in [
        json!({ "type": "send", "id": "r", "to": to, "payload": "r", "receipt": true }),
        json!({ "type": "send", "id": "q", "to": to, "payload": "q", "request": true }),
        json!({ "type": "send", "id": "s", "to": { "backend": "shop" }, "payload": "s" }),
        json!({ "type": "send", "id": "t", "to": { "topic": "news" }, "payload": "t" }),
        json!({ "type": "send", "id": "x", "to": to, "payload": "x", "ttl": 1, "receipt": true }),
    ] {
        bob.send(send).await;
        let sent = bob.recv().await;
        assert_eq!(sent["type"], "sent", "{sent}");
    }
    server.register("old", json!({ "user": "bob", "ttl": 1 })).await;
    let body = json!({ "to": { "session": "old" }, "payload": "for bob" });
    assert_eq!(server.call("POST", "/v1/messages", KEY, body).await.status, 200);
    let expires = now() + 1;
    assert_eq!(server.call("DELETE", "/v1/sessions/gone", KEY, "").await.status, 204);
    drop((ann, bob));
    let (server, said) = server.moved_to(&nats, passes(expires)).await;
    let counts = counts(&said);
    assert!(counts.values().all(|(wanted, found)| wanted == found), "{said}");
    assert_eq!(counts["topics"], (1, 1), "{said}");
    assert_eq!(counts["registrations"], (5, 5), "{said}");

    // Names and rights.
    assert_eq!([look_up(&server, "a2").await, look_up(&server, "b1").await], registered);
    let (_, refused) = server.hello(&token("bob", "gone")).await;
    assert_eq!(refused["code"], "unauthorized", "{refused}");
    let register = json!({ "user": "eve" });
    assert_eq!(server.call("PUT", "/v1/sessions/a1", KEY, register).await.status, 403);

    // What waits for a user whose registration has expired is not for the next one.
    server.register("old", json!({ "user": "carl" })).await;
    let (mut next, _) = server.hello(&token("carl", "old")).await;
    next.ping().await;

    // The cursor is of another epoch: reading begins at the acknowledgement.
    let (mut ann, welcome) = resumed(&server, &token("ann", "a1"), last, &epoch).await;
    assert_ne!(welcome["epoch"], epoch, "{welcome}");
    let gap = ann.recv().await;
    assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("epoch")), "{gap}");
    let mut request = Value::Null;
    for payload in [json!(1), json!(2), json!(3), json!("r"), json!("q")] {
        request = ann.message().await;
        assert_eq!((&request["payload"], &request["from"]), (&payload, &json!("bob")));
    }
    ann.ping().await;

    // A retry is known, in a mailbox where the message waits and where it is gone; another message with the id is refused.
    let (mut bob, _) = server.hello(&bobs_token).await;
    let receipt = bob.recv().await;
    assert_eq!((&receipt["id"], &receipt["state"]), (&json!("x"), &json!("expired")), "{receipt}");
    for n in [0, 3] {
        let send = json!({ "type": "send", "id": n.to_string(), "to": { "user": "ann" }, "payload": n });
        bob.send(send).await;
        assert_eq!(bob.recv().await["sessions"], 2);
    }
    bob.send(json!({ "type": "send", "id": "q", "to": to, "payload": "other" })).await;
    assert_eq!(bob.error().await, "bad_request");
    ann.ping().await;

    // An answer to the request, and the receipt for what is acknowledged now.
    ann.send(json!({ "type": "send", "to": { "reply": request["reply_to"] }, "payload": "answer" })).await;
    assert_eq!(ann.recv().await["type"], "sent");
    let reply = bob.recv().await;
    assert_eq!(
        (&reply["type"], &reply["id"], &reply["payload"]),
        (&json!("reply"), &json!("q"), &json!("answer"))
    );
    ann.ack(request["seq"].as_u64().unwrap()).await;
    let receipt = bob.recv().await;
    assert_eq!((&receipt["id"], &receipt["state"]), (&json!("r"), &json!("acknowledged")), "{receipt}");

    // The other session of the user, the backend, and the topic.
    let (mut other, _) = server.hello(&token("ann", "a2")).await;
    for n in 0..4 {
        assert_eq!(other.payload().await, n);
    }
    assert_eq!(server.welcomed(SHOP).await.payload().await, "s");
    bob.send(json!({ "type": "subscribe", "topic": "news", "after": 1, "epoch": epoch })).await;
    let subscribed = bob.recv().await;
    assert_eq!(
        (&subscribed["type"], &subscribed["recovered"]),
        (&json!("subscribed"), &json!(false)),
        "{subscribed}"
    );
    let mut message = bob.recv().await;
    while message["type"] != "message" {
        assert_eq!(message["reason"], "epoch", "{message}");
        message = bob.recv().await;
    }
    assert_eq!((&message["topic"], &message["payload"]), (&json!("news"), &json!("t")), "{message}");
}

#[tokio::test]
async fn what_does_not_fit_or_is_taken_is_refused_before_anything_is_stored() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("there is no store in"), "{log}");
    let server = TestServer::at(dir.path(), &[]).await;
    for n in 0..5 {
        server.send("S", "R", json!("x".repeat(n))).await;
    }
    let body = json!({ "to": { "session": "T" }, "payload": 1, "ttl": 864_000 });
    assert_eq!(server.post("/v1/messages?session=S", body).await.status, 200);
    server.stop().await;
    for (flags, text) in [
        (["--mailbox-messages", "4"], "the fullest mailbox holds 5 messages, and --mailbox-messages is 4"),
        (["--max-ttl", "8d"], "a message is to be kept for 9days"),
        (["--durability", "memory"], "has no store to move"),
        (["--nats-url", "nats://127.77.0.1:1"], "cannot connect to NATS"),
    ] {
        let log = nats.migrate(dir.path(), &flags).await.unwrap_err();
        assert!(log.contains(text), "{log}");
    }
    // Streams that are empty and that nobody uses are taken.
    let node = nats.node().await;
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("1 nodes run on the streams of --nats-prefix x0"), "{log}");
    node.stop().await;
    let said = nats.migrate(dir.path(), &[]).await.unwrap();
    assert_eq!(counts(&said)["messages"], (6, 6), "{said}");
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("messages already; choose another --nats-prefix"), "{log}");
}
