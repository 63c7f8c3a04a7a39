//! A broker whose store takes long to open: its port is open, checks say so, and polls of x0 pages are held.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::common::*;

/// A broker whose store is not opened until `sync-hangs` is cleared.
async fn starting(faults: &Faults, store: &Path, args: &[&str]) -> TestServer {
    faults.set("sync-hangs", "");
    faults.starting(store, args).await
}

#[tokio::test]
async fn checks_say_that_the_broker_is_starting_and_polls_of_x0_pages_wait_for_its_store() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = starting(&faults, dir.path(), &["--poll-timeout", "1h"]).await;
    let (health, ready) = (server.get("/healthz").await, server.get("/readyz").await);
    assert_eq!((health.status, ready.status), (200, 503));
    for reply in [&health, &ready] {
        assert_eq!(reply.json()["status"], "starting");
        assert_eq!((reply.json()["durability"].clone(), reply.json().get("epoch")), (json!("fsync"), None));
    }
    let at = server.address.to_string();
    assert!(command(&["health", "--server", &at]).unwrap().contains("starting"));
    assert!(command(&["health", "--ready", "--server", &at]).unwrap_err().contains("503"));
    let mut http = server.http().await;
    let preflight = http.request("OPTIONS", &x0_target(), &[], "").await;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, "*"));
    let poll = tokio::spawn(async move { http.x0("A").await });
    let mut http = server.http().await;
    let send =
        tokio::spawn(async move { http.post(&x0_target(), x0_set("B", "A", &json!({ "n": 1 }))).await });
    let refused = server.get("/v1/messages?session=A&wait=0").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"), "{}", refused.body);
    assert_eq!(refused.header("retry-after"), "1");
    let handshake = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let refused = server.http().await.request("GET", "/ws?session=A", &handshake, "").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "unavailable"), "{}", refused.body);
    assert!(!poll.is_finished() && !send.is_finished());

    let log = server.log_from_here();
    faults.clear("sync-hangs");
    log.contains("\"ready\"").await;
    let sent = soon(send).await.unwrap();
    assert_eq!(sent.json(), json!({ "messages": null, "status": "ok" }), "it is stored now");
    assert_eq!(soon(poll).await.unwrap(), [json!({ "n": 1 })]);
    assert_eq!(server.get("/readyz").await.json()["status"], "ok");
    server.stop().await;
}

#[tokio::test]
async fn a_poll_of_an_x0_page_is_answered_when_its_time_is_over_and_a_send_fails_then() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = starting(&faults, dir.path(), &["--poll-timeout", "500ms"]).await;
    let (mut http, begun) = (server.http().await, Instant::now());
    assert_eq!(http.x0("A").await, NOTHING);
    assert!(begun.elapsed() >= Duration::from_millis(500), "it is not answered at once");
    let failed = http.post(&x0_target(), x0_set("B", "A", &json!({}))).await;
    assert_eq!((failed.status, &failed.json()["error"]), (200, &Value::Bool(true)), "{}", failed.body);
    assert!(failed.body.contains("starting"), "{}", failed.body);
    faults.clear("sync-hangs");
    soon(async { while server.get("/readyz").await.status != 200 {} }).await;
    server.stop().await;
}

/// The status of the first answer that is not a refusal of a broker that starts.
async fn first_answer(mut http: Http) -> u16 {
    loop {
        let status = http.get("/v1/messages?session=A&wait=0").await.status;
        if status != 503 {
            return status;
        }
    }
}

#[tokio::test]
async fn a_request_that_waits_for_the_store_is_answered_by_the_broker() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = starting(&faults, dir.path(), &[]).await;
    // The host is checked then too.
    let stream = TcpStream::connect(server.address).await.unwrap();
    let host = tokio::spawn(first_answer(Http::on(stream, "rebind.example").await));
    let native = tokio::spawn(first_answer(server.http().await));
    assert_eq!(server.get("/healthz").await.json()["status"], "starting");
    faults.clear("sync-hangs");
    assert_eq!(soon(native).await.unwrap(), 200);
    assert_eq!(soon(host).await.unwrap(), 421);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_during_the_start_answers_who_waits_and_closes_the_store_once_it_is_open() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = starting(&faults, dir.path(), &["--poll-timeout", "1h"]).await;
    let mut http = server.http().await;
    let poll = tokio::spawn(async move { http.x0("A").await });
    assert_eq!(server.get("/healthz").await.json()["status"], "starting");
    let log = server.log_from_here();
    server.signal(15);
    log.contains("\"stopping\"").await;
    assert_eq!(soon(poll).await.unwrap(), NOTHING);
    faults.clear("sync-hangs");
    let log = server.stopped().await;
    assert!(!log.contains("\"ready\"") && log.contains("\"stopped\""), "{log}");
    TestServer::at(dir.path(), &[]).await.stop().await;
}

#[tokio::test]
async fn a_second_signal_during_the_start_does_not_wait_for_the_store() {
    let (faults, dir) = (Faults::new(), tempfile::tempdir().unwrap());
    let server = starting(&faults, dir.path(), &[]).await;
    let log = server.log_from_here();
    server.signal(15);
    log.contains("\"stopping\"").await;
    server.signal(15);
    let log = server.stopped().await;
    assert!(log.contains("the store was not opened yet"), "{log}");
    faults.clear("sync-hangs");
    TestServer::at(dir.path(), &[]).await.stop().await;
}
