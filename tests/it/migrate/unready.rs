//! Stores that are not moved as they are: damaged ones, and those of older formats. Nothing of them is moved.

use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::counts;
use crate::common::*;
use crate::formats::make;

/// Nothing but the empty record of the cluster was made.
async fn nothing_was_moved(nats: &NatsServer) {
    let streams = nats.ask("STREAM.NAMES", &Value::Null).await;
    assert!([json!(null), json!(["x0_SETUP"])].contains(&streams["streams"]), "{streams}");
    if !streams["streams"].is_null() {
        let info = nats.ask("STREAM.INFO.x0_SETUP", &Value::Null).await;
        assert_eq!(info["state"]["messages"], 0, "{info}");
    }
}

#[tokio::test]
async fn a_damaged_store_is_refused_before_anything_is_moved() {
    let nats = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    for n in 0..5 {
        server.send("S", "R", json!(n)).await;
    }
    server.stop().await;
    let change = |dir: &Path, sql: &str| {
        let connection = Connection::open(dir.join("store.db")).unwrap();
        connection.execute_batch(sql).unwrap();
        connection.close().unwrap();
    };
    let intact = std::fs::read(dir.path().join("store.db")).unwrap();
    for (sql, text) in [
        (
            "UPDATE message SET payload = '7' WHERE seq = (SELECT max(seq) FROM message)",
            "is damaged: message ",
        ),
        (
            "DELETE FROM message WHERE seq = (SELECT max(seq) FROM message)",
            "(4 rows, 5 were counted) is damaged",
        ),
        ("UPDATE state SET newest = 1", "the row of table `state` is damaged"),
        ("PRAGMA user_version = 77", "has format 77, and this version knows up to 3"),
    ] {
        change(dir.path(), sql);
        let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
        assert!(log.contains(text), "{sql}: {log}");
        nothing_was_moved(&nats).await;
        std::fs::write(dir.path().join("store.db"), &intact).unwrap();
    }
    std::fs::write(dir.path().join("store.db"), &intact[..intact.len() / 2]).unwrap();
    let log = nats.migrate(dir.path(), &[]).await.unwrap_err();
    assert!(log.contains("store.db is damaged"), "{log}");
    nothing_was_moved(&nats).await;
    std::fs::write(dir.path().join("store.db"), &intact).unwrap();
    let said = nats.migrate(dir.path(), &[]).await.unwrap();
    assert_eq!(counts(&said)["messages"], (5, 5), "{said}");
}

#[tokio::test]
async fn a_store_of_an_older_format_is_moved_when_a_server_has_converted_it() {
    let nats = NatsServer::start().await;
    for format in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), format);
        let prefix = format!("p{format}");
        let flags = ["--nats-prefix", prefix.as_str()];
        let log = nats.migrate(dir.path(), &flags).await.unwrap_err();
        let text = format!(
            "it has format {format}, and a server converts it to 3; start `x0-msg-server serve` on it"
        );
        assert!(log.contains(&text), "{log}");
        TestServer::at(dir.path(), &[]).await.stop().await;
        // These stores say for how long: longer than a new one would.
        let flags = [flags[0], flags[1], "--max-ttl", "36500d"];
        let said = nats.migrate(dir.path(), &flags).await.unwrap();
        assert!(counts(&said).values().all(|(wanted, found)| wanted == found), "{said}");
        let node = nats.node_with(&flags).await;
        let polled = node.get("/v1/messages?session=A&wait=0").await;
        assert_eq!(polled.payloads(), [json!({ "n": 1 }), json!({ "n": 2 })]);
        assert_eq!(node.get("/v1/sessions/A").await.json()["user"], "ann");
        let seq = polled.json()["seq"].clone();
        node.get(&format!("/v1/messages?session=A&after={seq}&wait=0")).await;
        let receipts = node.get("/v1/messages?session=S&wait=5").await.json();
        assert_eq!(receipts["messages"][0]["id"], "c-2", "{receipts}");
    }
}
