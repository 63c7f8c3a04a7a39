//! Stores of older formats.

use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use crate::common::*;

/// Makes the store of format 1, as an older version left it.
fn make_format_1(dir: &Path) {
    let connection = Connection::open(dir.join("store.db")).unwrap();
    connection.execute_batch(include_str!("format_1.sql")).unwrap();
    connection.close().unwrap();
    std::fs::write(dir.join("format"), "x0-msg-server store, format 1\n").unwrap();
}

/// A store of format 2 has the same tables.
#[tokio::test]
async fn a_store_of_format_2_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    server.send("S", "A", json!(1)).await;
    server.stop().await;
    let connection = Connection::open(dir.path().join("store.db")).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    connection.close().unwrap();
    std::fs::write(dir.path().join("format"), "x0-msg-server store, format 2\n").unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.payloads(), [json!(1)]);
    server.stop().await;
    let marker = std::fs::read_to_string(dir.path().join("format")).unwrap();
    assert_eq!(marker, "x0-msg-server store, format 3\n");
    let connection = Connection::open(dir.path().join("store.db")).unwrap();
    let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(format, 3);
}

/// Messages, ids, registrations and receipts to come are there, and the store has the new format afterwards.
#[tokio::test]
async fn a_store_of_format_1_is_converted() {
    let dir = tempfile::tempdir().unwrap();
    make_format_1(dir.path());
    let mut check = std::process::Command::new(BINARY);
    let checked = check.arg("check").arg("--data-dir").arg(dir.path()).output().unwrap();
    assert!(checked.status.success(), "`check` reads it as it is: {checked:?}");
    for round in 0..2 {
        let server = TestServer::at(dir.path(), &[]).await;
        let polled = server.get("/v1/messages?session=A&wait=0").await;
        assert_eq!(polled.payloads(), [json!({ "n": 1 }), json!({ "n": 2 })], "round {round}");
        assert_eq!(server.get("/v1/sessions/A").await.json()["user"], "ann");
        let seq = &polled.json()["messages"][0]["seq"];
        let retry = json!({ "id": "c-1", "to": { "session": "A" }, "payload": { "n": 1 } });
        assert_eq!(server.post("/v1/messages?session=S", retry).await.json()["seq"], *seq);
        server.stop().await;
        let marker = std::fs::read_to_string(dir.path().join("format")).unwrap();
        assert_eq!(marker, "x0-msg-server store, format 3\n");
    }
    let server = TestServer::at(dir.path(), &[]).await;
    let seq = server.get("/v1/messages?session=A&wait=0").await.json()["seq"].clone();
    server.get(&format!("/v1/messages?session=A&after={seq}&wait=0")).await;
    let receipts = server.get("/v1/messages?session=S&wait=5").await.json();
    assert_eq!(receipts["messages"][0]["id"], "c-2");
}
