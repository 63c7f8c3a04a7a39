//! The requests that skip the routes, as they came and as hyper and the routes answer them.

use std::net::Ipv4Addr;

use super::*;
use crate::clock::Clock;
use crate::config::{Config, Level};
use crate::server::Server;
use crate::server::router::HostCheck;

/// A broker that checks hosts, with these origins of x0 pages.
fn broker(legacy_origins: &[&str]) -> Server {
    let mut config =
        Config { durability: Level::Memory, poll_timeout: Duration::from_millis(1), ..Config::default() };
    (config.access.send_rate, config.access.send_bytes_rate) = (Some(0), Some(0));
    config.access.allow_origin = vec!["https://app.example".to_owned()];
    config.access.legacy_allow_origin = legacy_origins.iter().map(|&origin| origin.to_owned()).collect();
    let server = Server::new(config, Clock::Wall).unwrap();
    server.open_routes(HostCheck::new(&server.gateway, Ipv4Addr::LOCALHOST.into()));
    server
}

/// The answer to a request after which the connection ends: of the loop, or of hyper and the routes.
async fn answer(server: &Server, by_hyper: bool, request: &str) -> String {
    let connections = &server.entrance.acceptor.connection_server;
    let ((mut peer, stream), link) = (duplex(1 << 20), Link::new());
    let serving = match by_hyper {
        true => tokio::spawn(connections.http1(stream, link, HeadTimer::default())),
        false => tokio::spawn(connections.http1_cleartext(stream, link)),
    };
    peer.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    peer.read_to_string(&mut text).await.unwrap();
    serving.await.unwrap();
    text
}

/// An answer without its date, and with its headers in the order of their names: routes set the length earlier.
fn in_order(answer: &str) -> (Vec<&str>, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.split("\r\n").filter(|line| !line.starts_with("date: ")).collect();
    lines[1..].sort_unstable();
    (lines, body)
}

/// A request with these headers and this body.
fn request(line: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut head = format!("{line} HTTP/1.1\r\n");
    let is_named = headers.iter().any(|(name, _)| *name == "host");
    let host = [("host", "localhost")];
    for (name, value) in host.iter().filter(|_| !is_named).chain(headers) {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if line.starts_with("POST") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    format!("{head}connection: close\r\n\r\n{body}")
}

/// Headers of requests, most of which change the answer.
const HEADERS: [&[(&str, &str)]; 14] = [
    &[],
    &[("origin", "https://app.example")],
    &[("Origin", "http://localhost")],
    &[("origin", "https://other.example")],
    &[("origin", "https://app.example"), ("origin", "https://other.example")],
    &[("origin", "null")],
    &[("origin", "\u{e4}")],
    &[("sec-fetch-site", "cross-site")],
    &[("host", "other.example")],
    &[("host", "LOCALHOST.:8080"), ("x-forwarded-host", "other.example")],
    &[("authorization", "Basic eDp5")],
    &[("authorization", "Bearer unknown")],
    &[("accept", "image/png"), ("cookie", "a=1"), ("x-forwarded-for", "1.2.3.4")],
    &[("content-type", "text/plain"), ("referer", "http://localhost/page")],
];

/// Polls, sends and requests of the x0 client.
fn calls() -> Vec<(&'static str, String)> {
    let send = |to: &str| format!(r#"{{"id":"i-{}","to":{to},"payload":{{"n":1}}}}"#, to.len());
    let mut calls = vec![];
    for query in [
        "?session=A&wait=0",
        "?session=A&wait=0&after=1",
        "?session=A&wait=0&after=1&epoch=other",
        "?session=A%20b&wait=0&topic=t&topic=u&after.t=0",
        "?session=A&wait=0&presence=t",
        "?wait=0",
        "",
        "?session=A&wait=61",
        "?session=A&wait=0&after=x",
        "?session=&wait=0",
        "?session=%FF&wait=0",
        "?session=A&session=B&wait=0",
        "?session=\u{e4}&wait=0",
        "?session=A&wait=0#f",
    ] {
        calls.push((&*format!("GET /v1/messages{query}").leak(), String::new()));
    }
    for body in [
        send(r#"{"session":"B"}"#),
        send(r#"{"topic":"t"}"#),
        send(r#"{"user":"nobody"}"#),
        send(r#"{"session":""}"#),
        send("[]"),
        send(r#"{"session":"B"}"#).replace("i-", "o-").replace("payload", "receipt\":true,\"payload"),
        send(r#"{"session":"B"}"#).replace("i-", "s-").replace("payload", "session\":\"C\",\"payload"),
        send(r#"{"session":"B"}"#).replace("i-", "t-").replace("payload", "token\":\"x\",\"payload"),
        format!("[{}]", send(r#"{"session":"B"}"#)),
        "{}".to_owned(),
        "no JSON".to_owned(),
        format!(r#"{{"id":"large","to":{{"session":"B"}},"payload":"{}"}}"#, "x".repeat(6_000)),
    ] {
        calls.extend(["?session=S", "", "?session="].map(|query| {
            let line: &str = format!("POST /v1/messages{query}").leak();
            (line, body.clone())
        }));
    }
    for body in [
        r#"{"session":"A","wait":0}"#,
        r#"{"session":"A","wait":0,"after":1,"epoch":"other"}"#,
        r#"{"session":"A","wait":0,"topics":[{"topic":"t","after":0},{"topic":"u"}]}"#,
        r#"{"session":"A","wait":5,"topics":[{"topic":""}]}"#,
        r#"{"wait":0}"#,
        r#"{"topics":[{"topic":"t"}],"wait":0}"#,
        r#"{"session":"A","token":"x","wait":0}"#,
        r#"{"session":"A","wait":61}"#,
        r#"{"session":"","wait":0}"#,
        r#"[{"session":"A","wait":0},{"session":"B","wait":5}]"#,
        r#" [{"session":"A","token":"x"},{"session":"","wait":5},{"session":"B","wait":5}]"#,
        "[]",
        "[1]",
        "[no JSON",
        "no JSON",
        "",
    ] {
        calls.push(("POST /v1/messages/poll", body.to_owned()));
    }
    for body in [
        r#"{"session":"A","seq":0}"#,
        r#"{"session":"A","seq":9}"#,
        r#"{"session":"A","seq":0,"epoch":"other"}"#,
        r#"{"seq":0}"#,
        r#"{"session":"A","token":"x","seq":0}"#,
        r#"{"session":"","seq":0}"#,
        "no JSON",
        "[]",
    ] {
        calls.push(("POST /v1/ack", body.to_owned()));
    }
    for body in [
        r#"{"type":"GET","session_src":"X"}"#,
        r#"{"type":"GET","session_src":null}"#,
        r#"{"type":"SET","session_src":"X","session_dst":"Y","payload":{"n":1}}"#,
        r#"{"type":"SET","session_src":"X","session_dst":"","payload":{"n":1}}"#,
        r#"{"type":"DEL","session_src":"X"}"#,
        r#"{"type":"PUT"}"#,
        "no JSON",
        "[]",
    ] {
        for line in ["POST /python/MsgHandler.py?a__=17", "POST /get", "POST /set?a__=%C3"] {
            calls.push((line, body.to_owned()));
        }
    }
    calls
}

#[tokio::test]
async fn what_skips_the_routes_is_answered_as_by_hyper_and_the_routes() {
    for legacy_origins in [&["*"][..], &["https://app.example"]] {
        let server = broker(legacy_origins);
        for (line, body) in calls() {
            for headers in HEADERS {
                let request = request(line, headers, &body);
                let theirs = answer(&server, true, &request).await;
                let ours = answer(&server, false, &request).await;
                assert_eq!(in_order(&ours), in_order(&theirs), "{request}");
                assert!(ours.starts_with("HTTP/1.1 "), "{request} {ours}");
            }
        }
    }
}

#[tokio::test]
async fn several_requests_at_once_are_answered_in_order() {
    let server = broker(&["*"]);
    let send = |n: usize| {
        let body = format!(r#"{{"to":{{"session":"B"}},"payload":{n}}}"#);
        request("POST /v1/messages?session=A", &[], &body).replace("connection: close\r\n", "")
    };
    let poll = request("GET /v1/messages?session=B&wait=10", &[], "");
    let all = (0..20).map(send).collect::<String>() + &poll;
    let text = answer(&server, false, &all).await;
    let answers: Vec<&str> = text.split("HTTP/1.1 200 OK").skip(1).collect();
    assert_eq!(answers.len(), 21, "{text}");
    let seqs = |text: &str| -> Vec<u64> {
        let parts = text.split("\"seq\":").skip(1);
        parts.map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()).collect()
    };
    let sent: Vec<u64> = answers[..20].iter().flat_map(|answer| seqs(answer)).collect();
    assert!(sent.len() == 20 && sent.is_sorted(), "{sent:?}");
    assert!(seqs(answers[20]).starts_with(&sent), "{}", answers[20]);
}
