//! Stores of older formats.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use serde_json::json;

use crate::common::*;

/// Makes the store of an older format, as an older version left it.
pub fn make(dir: &Path, format: usize) {
    let connection = Connection::open(dir.join("store.db")).unwrap();
    let sql = [include_str!("format_1.sql"), include_str!("format_2.sql")][format - 1];
    connection.execute_batch(sql).unwrap();
    connection.close().unwrap();
    std::fs::write(dir.join("format"), format!("x0-msg-server store, format {format}\n")).unwrap();
}

#[tokio::test]
async fn a_store_of_format_1_is_converted() {
    is_converted(1).await;
}

#[tokio::test]
async fn a_store_of_format_2_is_converted() {
    is_converted(2).await;
}

/// Messages, ids, registrations and receipts to come are there, and the store has the new format afterwards.
async fn is_converted(format: usize) {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), format);
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
        let other = json!({ "id": "c-1", "to": { "session": "A" }, "payload": 7 });
        if format > 1 {
            assert_eq!(server.post("/v1/messages?session=S", other).await.code(), "bad_request");
        }
        server.stop().await;
        let marker = std::fs::read_to_string(dir.path().join("format")).unwrap();
        assert_eq!(marker, "x0-msg-server store, format 3\n");
    }
    // An older version goes on with the copy.
    let copy = dir.path().join(format!("store.format-{format}.db"));
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let copy = Connection::open(copy).unwrap();
    let number = |sql| copy.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(number("PRAGMA user_version"), i64::try_from(format).unwrap());
    assert!(number("SELECT count(*) FROM message") >= 2);
    drop(copy);
    let server = TestServer::at(dir.path(), &[]).await;
    let seq = server.get("/v1/messages?session=A&wait=0").await.json()["seq"].clone();
    server.get(&format!("/v1/messages?session=A&after={seq}&wait=0")).await;
    let receipts = server.get("/v1/messages?session=S&wait=5").await.json();
    assert_eq!(receipts["messages"][0]["id"], "c-2");
}
