//! A store that cannot go on: who waits is answered, and the process ends with a clear last line and its own exit code.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::*;

/// The exit code after a failure of the store.
const STORE_FAILED: i32 = 74;

/// A server on a store of which one file is removed while clients wait, and what it says at its end.
async fn remove(file: &str, dir: &Path) {
    let server = TestServer::at(dir, &[]).await;
    server.send("A", "kept", json!("before")).await;
    let mut socket = server.session("B").await;
    let mut x0 = server.http().await;
    let x0 = tokio::spawn(async move { x0.x0("C").await });
    let mut native = server.http().await;
    let native = tokio::spawn(async move { native.get("/v1/messages?session=D&wait=60").await });
    let mut events = Events::open(&server, "?session=E", None).await;
    assert_eq!(events.next().await.name, "welcome");
    for session in ["B", "C", "D", "E"] {
        server.attached(session, 1).await;
    }
    let mut http = server.http().await;
    std::fs::remove_file(dir.join(file)).unwrap();

    // The message is not confirmed, since it would not be there after a restart. The broker may have ended by itself.
    let send = json!({ "to": { "session": "A" }, "payload": 1 });
    let sent = http.try_request("POST", "/v1/messages", &[], send.to_string());
    if let Ok(refused) = soon(sent).await {
        assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"));
    }
    assert_eq!(soon(x0).await.unwrap(), NOTHING);
    let native = soon(native).await.unwrap();
    assert_eq!((native.status, native.payloads()), (200, NOTHING.to_vec()));
    assert_eq!(socket.closed().await.0, 1001);
    assert!(soon(events.try_next()).await.is_none(), "the stream ends");
    drop((socket, events, http));
    let (code, log) = server.ended().await;
    assert_eq!(code, Some(STORE_FAILED), "{log}");
    let last = log.lines().last().unwrap();
    assert!(
        last.contains("the store has failed") && last.contains(file) && last.contains("removed"),
        "{log}"
    );
}

#[tokio::test]
async fn a_store_that_was_removed_answers_who_waits_and_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    remove("store.db", dir.path()).await;
    let log = TestServer::try_at(dir.path()).await.err().expect("it is not taken for a new store");
    assert!(log.contains("store.db is missing"), "{log}");
}

#[tokio::test]
async fn a_log_that_was_removed_ends_the_process_and_the_next_start_has_what_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    remove("store.db-wal", dir.path()).await;
    let server = TestServer::try_at(dir.path()).await.unwrap();
    assert_eq!(server.get("/v1/messages?session=kept&wait=0").await.payloads(), [json!("before")]);
    let log = server.stop().await;
    assert!(log.contains("a new epoch begins"), "{log}");
}

/// Nobody has to send anything for that.
#[tokio::test]
async fn an_idle_broker_notices_that_its_store_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    std::fs::rename(dir.path().join("store.db"), dir.path().join("moved")).unwrap();
    let (code, log) = server.ended().await;
    assert_eq!(code, Some(STORE_FAILED), "{log}");
}

#[tokio::test]
async fn damage_that_a_commit_meets_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    // Another program changes where a table is.
    let other = rusqlite::Connection::open(dir.path().join("store.db")).unwrap();
    let damage =
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 1000000 WHERE name = 'floors';
                  PRAGMA schema_version = 99";
    other.execute_batch(damage).unwrap();
    let refused = server.post("/v1/messages", json!({ "to": { "session": "A" }, "payload": 1 })).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"));
    let (code, log) = server.ended().await;
    assert_eq!(code, Some(STORE_FAILED), "{log}");
    assert!(log.lines().last().unwrap().contains("is damaged"), "{log}");
}

#[tokio::test]
async fn readiness_is_health_with_another_status() {
    let server = TestServer::start().await;
    let (health, ready) = (server.get("/healthz").await, server.get("/readyz").await);
    assert_eq!((health.status, ready.status), (200, 200));
    assert_eq!(health.json(), ready.json());
    assert_eq!(health.json()["status"], "ok");
    assert_eq!(health.json().get("failing"), None::<&Value>);
    let (at, json) = (format!("ws://{}", server.address), health.body.trim_end());
    for args in [&["health", "--server", &at][..], &["health", "--ready", "--server", &at]] {
        assert_eq!(command(args).unwrap().trim_end(), json);
    }
    server.stop().await;
}
