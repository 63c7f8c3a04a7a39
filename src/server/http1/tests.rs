use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::twin::{Fate, compare, fates, server};
use super::*;
use crate::server::routes::OpenRoutes;

mod direct;
mod owed;

const POLL: &str = "GET /v1/messages?wait=0 HTTP/1.1\r\nhost: x\r\n\r\n";
const SEND: &str = "POST /set?a__=1 HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbody";

/// A GET of a poll with these headers besides the host.
fn get(headers: &str) -> String {
    format!("GET /v1/messages HTTP/1.1\r\nhost: x\r\n{headers}\r\n")
}

/// A POST to an address of the x0 client with these headers besides the host, and this body.
fn post(headers: &str, body: &str) -> String {
    format!("POST /python/MsgHandler.py HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}")
}

/// Requests, the status of the first answer, and whether the connection ends. Without an answer the status is 0.
fn requests() -> Vec<(String, u16, bool)> {
    let long = "x".repeat(20_000);
    vec![
        // Taken by the loop.
        (POLL.to_owned(), 200, false),
        (SEND.to_owned(), 200, false),
        (format!("{POLL}{SEND}{POLL}"), 200, false),
        (format!("{POLL}GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n{POLL}"), 200, false),
        (get("connection: close\r\n"), 200, true),
        (get("connection: keep-alive\r\n"), 200, false),
        (get("Cookie: a\r\nCOOKIE: b\r\nx:\t1 2 \r\ny:\r\nz: \u{e4}\r\n"), 200, false),
        (get("te: trailers\r\nkeep-alive: 5\r\n"), 200, false),
        (post("content-length: 2\r\nconnection: CLOSE\r\n", "{}"), 200, true),
        (post("content-length: 002\r\n", "{}"), 200, false),
        (SEND.replace("\r\n", "\n"), 200, false),
        // Ways to say where a body ends, and more than one.
        (post("", "{}"), 200, true),
        (post("content-length: 0\r\n", ""), 200, false),
        (post("content-length: +2\r\n", "{}"), 400, true),
        (post("content-length: -2\r\n", "{}"), 400, true),
        (post("content-length: 0x2\r\n", "{}"), 400, true),
        (post("content-length: 2, 2\r\n", "{}"), 400, true),
        (post("content-length:\r\n", "{}"), 400, true),
        (post("content-length: 99999999999999999999\r\n", "{}"), 400, true),
        (post("content-length: 2\r\ncontent-length: 2\r\n", "{}"), 200, false),
        (post("content-length: 2\r\ncontent-length: 3\r\n", "{}"), 400, true),
        (post("transfer-encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"), 200, false),
        (post("transfer-encoding: chunked\r\ncontent-length: 2\r\n", "2\r\n{}\r\n0\r\n\r\n"), 200, true),
        (post("transfer-encoding: gzip\r\n", "{}"), 400, true),
        (post("transfer-encoding: chunked, chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"), 400, true),
        (get("content-length: 2\r\n") + "{}", 200, false),
        (get("content-length: 0\r\n"), 200, false),
        (post("content-length: 2\r\nexpect: 100-continue\r\n", "{}"), 100, false),
        (post(&format!("content-length: {}\r\n", long.len()), &long), 200, false),
        // Hosts.
        (POLL.replace("host: x\r\n", ""), 400, true),
        (get("host: x\r\n"), 400, true),
        (POLL.replace("host: x", "host: a b"), 400, true),
        (POLL.replace("host: x", "host: u@x"), 400, true),
        // Heads that are not plain, or no heads.
        (format!("\r\n{POLL}"), 200, false),
        (POLL.replace("HTTP/1.1", "HTTP/1.0"), 200, true),
        (POLL.replace("HTTP/1.1", "HTTP/1.2"), 400, true),
        (POLL.replace("HTTP/1.1", "http/1.1"), 400, true),
        (POLL.replace("GET ", "GET  "), 400, true),
        (POLL.replace("GET", "get"), 200, false),
        (POLL.replace("/v1", "http://x/v1"), 200, false),
        (POLL.replace("/v1/messages", "*"), 400, true),
        (POLL.replace("wait=0", "wait=\u{1}"), 400, true),
        (POLL.replace("wait=0", "wait=0#f"), 200, false),
        (POLL.replace("wait=0", &long), 200, false),
        (POLL.replace("wait=0", &"x".repeat(70_000)), 414, true),
        (get("x : 1\r\n"), 400, true),
        (get(" x: 1\r\n"), 400, true),
        (get("x: 1\r\n y\r\n"), 400, true),
        (get("x\r\n"), 400, true),
        (get("x: \u{0}\r\n"), 400, true),
        (get("x: a\rb\r\n"), 400, true),
        (get("connection: close, keep-alive\r\n"), 200, true),
        (get("connection: keep-alive\r\nconnection: close\r\n"), 200, true),
        (get("upgrade: websocket\r\nconnection: upgrade\r\n"), 200, false),
        (get(&"x: 1\r\n".repeat(90)), 200, false),
        (get(&"x: 1\r\n".repeat(110)), 431, true),
        (get(&format!("x: {long}\r\n")), 200, false),
        (get(&format!("x: {}\r\n", "x".repeat(400_000))), 431, true),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 0, true),
        ("no HTTP\r\n\r\n".to_owned(), 400, true),
        // Not whole.
        ("GET /v1/mess".to_owned(), 0, false),
        (post("content-length: 4\r\n", "{}"), 0, false),
    ]
}

/// The beginning of a fate.
fn short(fate: &Fate) -> String {
    fate.answers.chars().take(200).collect()
}

#[tokio::test]
async fn the_loop_and_hyper_answer_the_same() {
    for (request, status, ended) in requests() {
        let shown = &request[..request.len().min(200)];
        let bytes = request.as_bytes();
        let [ours, theirs] = fates(&[bytes], false).await;
        assert!(ours == theirs, "{shown}: {} {}", short(&ours), short(&theirs));
        let first = ours.answers.get(9..12).map_or(0, |status| status.parse().unwrap());
        assert_eq!((first, ours.ended), (status, ended), "{shown}: {}", short(&ours));
        // In two parts, and with an end after each. Of a longer head, hyper gets a larger part at once than it would read.
        for cut in [1, 20, bytes.len() / 2, bytes.len() - 1].into_iter().filter(|_| bytes.len() < MOST) {
            let cut = cut.min(bytes.len());
            for closes in [false, true] {
                let [ours, theirs] = fates(&[&bytes[..cut], &bytes[cut..]], closes).await;
                assert_eq!(ours, theirs, "{cut} {closes} {shown}");
            }
            let [ours, theirs] = fates(&[&bytes[..cut]], true).await;
            assert_eq!(ours, theirs, "{cut} {shown}");
        }
    }
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent() {
    let [Fate { answers, .. }, _] = fates(&[SEND.as_bytes()], false).await;
    assert!(
        answers.contains("POST") && answers.contains("/set?a__=1") && answers.ends_with(r#"b"body")"#),
        "{answers}"
    );
}

#[test]
fn a_comparison_takes_any_bytes() {
    compare(b"");
    compare(&[&[7], POLL.as_bytes()].concat());
}

#[tokio::test(start_paused = true)]
async fn the_time_of_a_head_is_not_longer_when_hyper_reads_the_rest() {
    let (server, begun) = (server(), Instant::now());
    let (mut peer, stream) = duplex(1024);
    let serving = tokio::spawn(server.http1_cleartext(stream, Link::new()));
    peer.write_all(b"GET ").await.unwrap();
    tokio::time::sleep(server.header_timeout - Duration::from_secs(1)).await;
    peer.write_all(b"/other HTTP/1.1\r\n").await.unwrap();
    serving.await.unwrap();
    assert_eq!(begun.elapsed(), server.header_timeout);
    // Each head has its own time.
    let (mut peer, stream) = duplex(1024);
    let serving = tokio::spawn(server.http1_cleartext(stream, Link::new()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    peer.write_all(POLL.as_bytes()).await.unwrap();
    peer.read_buf(&mut Vec::new()).await.unwrap();
    let begun = Instant::now();
    serving.await.unwrap();
    assert_eq!(begun.elapsed(), server.header_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_an_idle_connection_and_waits_for_a_head_that_has_begun() {
    let server = server();
    let (mut idle, stream) = duplex(1024);
    let serving = tokio::spawn(server.http1_cleartext(stream, Link::new()));
    let (mut begun, stream) = duplex(1024);
    let answering = tokio::spawn(server.http1_cleartext(stream, Link::new()));
    let (first, rest) = POLL.split_at(9);
    begun.write_all(first.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    server.shutdown.cancel();
    serving.await.unwrap();
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap(), 0);
    begun.write_all(rest.as_bytes()).await.unwrap();
    answering.await.unwrap();
    let mut text = String::new();
    begun.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close\r\n"), "{text}");
}

/// Bodies that come over time.
#[tokio::test]
async fn live_answers_are_the_same_as_those_of_hyper() {
    use axum::Router;
    use axum::routing::get;
    use futures::stream::{self, StreamExt};

    let parts = || {
        let sizes = [1, 0, 17, 5_000, 300_000];
        // Each part comes a turn later.
        stream::iter(sizes).then(|size| async move {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(Bytes::from("x".repeat(size)))
        })
    };
    let router = Router::new().route("/v1/events", get(move || async move { Body::from_stream(parts()) }));
    let server = super::twin::server_of(OpenRoutes { router, direct: None, sockets: None });
    let request = "GET /v1/events?topic=t HTTP/1.1\r\nhost: x\r\n\r\n";
    let closing = request.replace("host: x", "host: x\r\nconnection: close");
    for (bytes, answers, ends) in [
        (request.to_owned(), 1, false),
        (closing, 1, true),
        (request.repeat(2), 2, false),
        (request.replace("events", "other"), 1, false),
    ] {
        let [ours, theirs] = super::twin::fates_of(&server, &[bytes.as_bytes()], false).await;
        assert_eq!(ours, theirs, "{bytes}");
        assert_eq!((ours.answers.matches("HTTP/1.1 ").count(), ours.ended), (answers, ends), "{bytes}");
    }
}
