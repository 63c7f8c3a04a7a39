//! The machine's clock is set while the broker runs, or between two runs: nothing that is stored ends early, or late.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::common::*;

/// The seconds that a clock is behind which shows a quarter of an hour past midnight of the first of January 1970.
fn behind_in_1970() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    (now - 900).to_string()
}

fn retry() -> Value {
    json!({ "id": "c-1", "to": { "session": "A" }, "payload": "sent then", "receipt": true })
}

/// Sends to mailbox A, with an id and a receipt, and to topic `news`; registers session `of-ann`. Returns the seq.
async fn fill(server: &TestServer) -> Value {
    let news = json!({ "to": { "topic": "news" }, "payload": "news of then" });
    assert_eq!(server.post("/v1/messages", news).await.status, 200);
    let registered =
        server.http().await.request("PUT", "/v1/sessions/of-ann", &[], r#"{"user":"ann"}"#).await;
    assert_eq!(registered.status, 200, "{}", registered.body);
    let sent = server.post("/v1/messages?session=S", retry()).await;
    assert_eq!(sent.status, 200, "{}", sent.body);
    sent.json()["seq"].clone()
}

/// Everything that [`fill`] stored is there, at each door.
async fn assert_filled(server: &TestServer, seq: &Value, when: &str) {
    let polled = server.get("/v1/messages?session=A&wait=0").await;
    assert_eq!(polled.payloads(), ["sent then"], "{when}");
    let history = server.get("/v1/messages?topic=news&after.news=0&wait=0").await;
    assert!(history.body.contains("news of then"), "{when}: {}", history.body);
    let mut socket = server.session("A").await;
    assert_eq!(socket.payload().await, "sent then", "{when}");
    let mut events = Events::open(server, "?session=A", None).await;
    assert_eq!(
        (events.next().await.name, events.next().await.data["payload"].clone()),
        ("welcome".into(), json!("sent then"))
    );
    let again = server.post("/v1/messages?session=S", retry()).await.json();
    assert_eq!(again["seq"], *seq, "{when}: a retry is stored once");
    assert_eq!(server.get("/v1/sessions/of-ann").await.json()["user"], "ann", "{when}");
}

/// A board without a battery: its clock shows 1970 until the network tells the time.
#[tokio::test]
async fn what_was_stored_in_1970_is_there_when_the_clock_is_set() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    faults.set("clock", &behind_in_1970());
    let server = faults.server(dir.path(), &[]).await;
    let seq = fill(&server).await;
    faults.clear("clock");
    assert_filled(&server, &seq, "the clock was set").await;
    let expires = server.get("/v1/sessions/of-ann").await.json()["expires"].as_u64().unwrap();
    assert!(expires > 1_767_225_600_000, "told as the clock is now: {expires}");
    server.kill().await;
    let server = faults.server(dir.path(), &[]).await;
    assert_filled(&server, &seq, "after a crash").await;
    server.stop().await;
    faults.set("clock", &behind_in_1970());
    let server = faults.server(dir.path(), &[]).await;
    assert_filled(&server, &seq, "the machine starts in 1970 again").await;
    server.kill().await;
    faults.clear("clock");
    let server = faults.server(dir.path(), &[]).await;
    assert_filled(&server, &seq, "the clock is set while no broker runs").await;
    server.get(&format!("/v1/messages?session=A&after={seq}&wait=0")).await;
    let receipts = server.get("/v1/messages?session=S&wait=10").await.json();
    assert_eq!(receipts["messages"][0]["state"], "acknowledged");
}

#[tokio::test]
async fn a_clock_that_is_set_forward_or_back_ends_nothing_early_nor_late() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    faults.set("clock", "100000000");
    let mut server = faults.server(dir.path(), &["--ttl", "1h", "--session-ttl", "1h"]).await;
    let seq = fill(&server).await;
    // Years forward, and two hours back.
    for behind in ["0", "7200"] {
        faults.set("clock", behind);
        assert_filled(&server, &seq, behind).await;
        // The clock is noted with the next commit.
        server.send("S", "other", json!(1)).await;
        server.kill().await;
        server = faults.server(dir.path(), &["--ttl", "1h", "--session-ttl", "1h"]).await;
        assert_filled(&server, &seq, &format!("{behind}, after a crash")).await;
    }
    let short = json!({ "to": { "session": "short" }, "payload": 1, "ttl": 1 });
    assert_eq!(server.post("/v1/messages", short).await.status, 200);
    faults.set("clock", "14400");
    let mut http = server.http().await;
    soon(async { while http.get("/v1/messages?session=short&wait=0").await.payloads() == [1] {} }).await;
}
