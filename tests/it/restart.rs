//! Stops: waiting polls are answered, sockets are closed with a close frame of 1001, and a stop is quick.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::common::*;

#[tokio::test]
async fn a_stop_answers_every_poll_and_closes_every_socket() {
    for signal in [15, 2] {
        let server = TestServer::start().await;
        let mut sockets = vec![server.session("A").await, server.session("B").await, server.ws("").await];
        let mut polls = Vec::new();
        let mut http = server.http().await;
        polls.push(tokio::spawn(async move { http.post(&x0_target(), x0_poll("C")).await }));
        let mut http = server.http().await;
        polls.push(tokio::spawn(async move { http.post(&x0_target(), x0_poll("D")).await }));
        let mut http = server.http().await;
        polls.push(tokio::spawn(async move { http.get("/v1/messages?session=E&wait=60").await }));
        let mut events = TcpStream::connect(server.address).await.unwrap();
        use tokio::io::AsyncWriteExt;
        events.write_all(b"GET /v1/events?session=F HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(soon(events.read_u8()).await.unwrap(), b'H');
        for session in ["C", "D", "E"] {
            server.attached(session, 1).await;
        }
        server.signal(signal);
        for poll in polls {
            let reply = soon(poll).await.unwrap();
            assert_eq!(reply.status, 200);
            let messages = &reply.json()["messages"];
            assert!(messages.is_null() || *messages == json!([]), "{messages}");
        }
        for socket in &mut sockets {
            assert_eq!(socket.closed().await.0, 1001);
        }
        let mut rest = Vec::new();
        soon(events.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.ends_with(b"0\r\n\r\n"), "the event stream ends in order");
        drop(sockets);
        let log = server.stopped().await;
        assert!(log.contains("\"stopped\""), "{log}");
        assert!(!log.contains("did not finish in time"), "{log}");
    }
}

/// A stop waits no longer than the drain timeout for a peer that does not answer the close frame.
#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let server = TestServer::with(&["--drain-timeout", "1s"]).await;
    let stuck = server.session("A").await;
    server.stop().await;
    drop(stuck);
}

/// A second signal ends the wait for a peer that does not answer the close frame.
#[tokio::test]
async fn a_second_signal_hurries_a_stop() {
    for signal in [15, 2] {
        let server = TestServer::with(&["--drain-timeout", "1h"]).await;
        let stuck = server.session("A").await;
        let log = server.log_from_here();
        server.signal(15);
        log.contains("\"stopping\"").await;
        server.signal(signal);
        let log = server.stopped().await;
        assert!(log.contains("a second signal") && log.contains("\"stopped\""), "{log}");
        drop(stuck);
    }
}

#[tokio::test]
async fn sighup_without_a_file_of_settings_is_logged_and_ends_nothing() {
    let server = TestServer::start().await;
    let log = server.log_from_here();
    server.signal(1);
    log.contains("the settings were read again").await;
    assert_eq!(server.get("/healthz").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_log_names_the_address_and_the_level() {
    let log = TestServer::start().await.stop().await;
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_a_clear_error() {
    let server = TestServer::start().await;
    let output =
        tokio::process::Command::new(BINARY).args(["--listen", &server.address.to_string()]).output();
    let output = soon(output).await.unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("cannot listen on") && text.contains("--listen"), "{text}");
}
