//! Delivery receipts: sent to the sender on request, on every transport, and kept while the sender is away.

use serde_json::{Value, json};

use crate::common::*;

fn ask(id: &str, to: &str) -> Value {
    json!({ "type": "send", "id": id, "to": { "session": to }, "payload": 1, "receipt": true })
}

fn is_receipt(frame: &Value, id: &str, state: &str) -> bool {
    assert!(frame["seq"].is_u64() && frame["ts"].is_u64(), "{frame}");
    (&frame["type"], &frame["id"], &frame["state"]) == (&json!("receipt"), &json!(id), &json!(state))
}

#[tokio::test]
async fn a_sender_is_told_that_its_message_was_acknowledged() {
    let server = TestServer::start().await;
    let mut sender = server.session("S").await;
    sender.send(ask("c-1", "R")).await;
    assert_eq!(sender.recv().await["type"], "sent");
    let mut receiver = server.session("R").await;
    let message = receiver.message().await;
    sender.ping().await;
    receiver.ack(message["seq"].as_u64().unwrap()).await;
    let receipt = sender.recv().await;
    assert!(is_receipt(&receipt, "c-1", "acknowledged"), "{receipt}");
    // A receipt is acknowledged like a message, and does not come again.
    sender.ack(receipt["seq"].as_u64().unwrap()).await;
    sender.ping().await;
    assert_eq!(server.get("/v1/messages?session=S&wait=0").await.json()["messages"], json!([]));
}

#[tokio::test]
async fn receipts_wait_for_a_sender_that_is_away_on_every_transport_and_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    for id in ["c-1", "c-2", "c-3"] {
        let reply = server.post("/v1/messages?session=S", ask(id, "R")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    let seq = server.get("/v1/messages?session=R&wait=0").await.json()["seq"].clone();
    // The cursor of the next poll acknowledges.
    let reply = server.get(&format!("/v1/messages?session=R&after={seq}&wait=0")).await;
    assert_eq!(reply.payloads(), NOTHING);
    // The acknowledgements are written with their receipts, which the next commit stores at the latest.
    server.send("A", "B", json!(1)).await;
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    let answer = soon(async {
        loop {
            let answer = server.get("/v1/messages?session=S&wait=1").await.json();
            if answer["messages"].as_array().unwrap().len() == 3 {
                return answer;
            }
        }
    })
    .await;
    for (frame, id) in answer["messages"].as_array().unwrap().iter().zip(["c-1", "c-2", "c-3"]) {
        assert!(is_receipt(frame, id, "acknowledged"), "{frame}");
    }
    let mut events = Events::open(&server, "?session=S", None).await;
    assert_eq!(events.next().await.name, "welcome");
    for id in ["c-1", "c-2", "c-3"] {
        let event = events.next().await;
        assert_eq!((event.name.as_str(), &event.data["id"]), ("receipt", &json!(id)));
    }
    // The x0 client has no receipts: they are skipped.
    server.send("A", "S", json!({ "n": 1 })).await;
    assert_eq!(server.http().await.x0("S").await, [json!({ "n": 1 })]);
}

#[tokio::test]
async fn a_sender_is_told_that_its_message_expired() {
    let server = TestServer::start().await;
    let mut sender = server.session("S").await;
    let mut send = ask("c-1", "nobody");
    send["ttl"] = json!(0.05);
    sender.send(send).await;
    assert_eq!(sender.recv().await["type"], "sent");
    let receipt = sender.recv().await;
    assert!(is_receipt(&receipt, "c-1", "expired"), "{receipt}");
}

#[tokio::test]
async fn an_impossible_receipt_is_refused_with_the_reason() {
    let server = TestServer::start().await;
    let with = |key: &str, value: Value| {
        let mut send = ask("c-1", "R");
        send[key] = value;
        send
    };
    for (send, session, reason) in [
        (with("id", Value::Null), "?session=S", "needs an `id`"),
        (with("to", json!({ "topic": "t" })), "?session=S", "to a session"),
        (with("volatile", json!(true)), "?session=S", "exclude each other"),
        (with("receipt", json!(1)), "?session=S", "true or false"),
        (ask("c-1", "R"), "", "needs a mailbox"),
    ] {
        let reply = server.post(&format!("/v1/messages{session}"), &send).await;
        // Without a session the answer is 401; all other cases are bad requests of any session.
        let refused = if session.is_empty() { (401, "unauthorized") } else { (400, "bad_request") };
        assert_eq!((reply.status, reply.code().as_str()), refused, "{send}");
        assert!(reply.body.contains("`receipt`") && reply.body.contains(reason), "{}", reply.body);
    }
}
