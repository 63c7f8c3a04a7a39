//! Bad input on every transport: the error is clear, the server goes on, and nothing stored is lost.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::common::*;

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

/// Text that every JSON interface refuses, and a word that the refusal must contain.
fn bad_sends() -> Vec<(String, &'static str)> {
    let mut bad: Vec<(String, &str)> = [
        ("", "object"),
        ("hello", "object"),
        ("null", "object"),
        ("[1]", "object"),
        (r#"{"type":"send","to":{"session":"B"}"#, "JSON"),
        (r#"{"type":"send"}"#, "to"),
        (r#"{"type":"send","payload":1}"#, "to"),
        (r#"{"type":"send","to":"B","payload":1}"#, "to"),
        (r#"{"type":"send","to":{},"payload":1}"#, "to"),
        (r#"{"type":"send","to":{"session":7},"payload":1}"#, "to.session"),
        (r#"{"type":"send","to":{"session":"a\u0000"},"payload":1}"#, "to.session"),
        (r#"{"type":"send","to":{"session":"B"}}"#, "payload"),
        (r#"{"type":"send","to":{"session":"B"},"payload":1,"ttl":"x"}"#, "ttl"),
        (r#"{"type":"send","to":{"session":"B"},"payload":1,"ttl":1e9}"#, "ttl"),
        (r#"{"type":"send","to":{"session":"B"},"payload":1,"volatile":1}"#, "volatile"),
        (r#"{"type":"send","to":{"session":"B"},"payload":1,"id":5}"#, "id"),
        (r#"{"type":"send","to":{"session":"B"},"payload":1,"to":{"session":"B"}}"#, "to"),
    ]
    .map(|(text, names)| (text.to_owned(), names))
    .into();
    let long = "x".repeat(257);
    bad.push((format!(r#"{{"type":"send","to":{{"session":"{long}"}},"payload":1}}"#), "257 bytes"));
    bad.push((format!(r#"{{"type":"send","to":{{"session":"B"}},"payload":{}}}"#, nested(10_000)), "128"));
    bad
}

async fn nothing_was_lost(server: &TestServer) {
    let reply = server.get("/v1/messages?session=keep&wait=0").await;
    assert_eq!(reply.payloads(), [json!("stored")]);
}

#[tokio::test]
async fn bad_frames_are_answered_and_the_socket_stays_open() {
    let server = TestServer::start().await;
    server.send("A", "keep", json!("stored")).await;
    let mut ws = server.session("A").await;
    let mut frames = bad_sends();
    frames.extend(
        [
            (r#"{"type":"nonsense"}"#, "nonsense"),
            (r#"{"type":5}"#, "type"),
            (r#"{}"#, "type"),
            (r#"{"type":"ack"}"#, "seq"),
            (r#"{"type":"ack","seq":"1"}"#, "seq"),
            (r#"{"type":"ack","seq":1.5}"#, "seq"),
            (r#"{"type":"subscribe"}"#, "topic"),
            (r#"{"type":"subscribe","topic":""}"#, "topic"),
            (r#"{"type":"subscribe","topic":"t","after":-1}"#, "after"),
            (r#"{"type":"subscribe","topic":"t","epoch":1}"#, "epoch"),
            (r#"{"type":"unsubscribe","topic":[]}"#, "topic"),
        ]
        .map(|(text, names)| (text.to_owned(), names)),
    );
    for (text, names) in frames {
        ws.send_text(&text).await;
        let answer = ws.recv().await;
        assert_eq!(
            (&answer["type"], &answer["code"]),
            (&json!("error"), &json!("bad_request")),
            "{text:.80}"
        );
        assert!(answer["message"].as_str().unwrap().contains(names), "{answer} for {text:.80}");
    }
    ws.socket.send(Message::binary(vec![0, 255])).await.unwrap();
    assert_eq!(ws.error().await, "bad_request");
    ws.send_text(&format!(r#"{{"type":"send","to":{{"session":"C"}},"payload":{}}}"#, nested(30))).await;
    assert_eq!(ws.recv().await["type"], "sent");
    server.session("C").await.message().await;
    ws.ping().await;
    nothing_was_lost(&server).await;
}

#[tokio::test]
async fn a_payload_over_the_limit_is_refused_and_a_frame_far_over_it_closes() {
    let server = TestServer::with(&["--max-payload", "10000"]).await;
    let mut ws = server.session("A").await;
    let send = |size: usize| {
        let payload = format!("\"{}\"", "x".repeat(size - 2));
        format!(r#"{{"type":"send","id":"big","to":{{"session":"C"}},"payload":{payload}}}"#)
    };
    ws.send_text(&send(10_000)).await;
    assert_eq!(ws.recv().await["type"], "sent");
    assert_eq!(server.session("C").await.payload().await.as_str().unwrap().len(), 9_998);
    ws.send_text(&send(10_001)).await;
    let refused = ws.recv().await;
    assert_eq!((&refused["code"], &refused["id"]), (&json!("too_large"), &json!("big")));
    assert!(refused["message"].as_str().unwrap().contains("at most 10000"), "{refused}");
    ws.send_text(&send(20_000)).await;
    let (code, reason) = ws.closed().await;
    assert_eq!(code, 1009, "{reason}");
    let mut ws = server.session("C").await;
    assert_eq!(ws.payload().await.as_str().unwrap().len(), 9_998, "what was stored is still there");
}

/// Reads frames up to the close frame; its code.
async fn close_code(stream: &mut TcpStream) -> u16 {
    loop {
        let head = soon(stream.read_u8()).await.unwrap();
        let length = match soon(stream.read_u8()).await.unwrap() {
            126 => usize::from(soon(stream.read_u16()).await.unwrap()),
            127 => panic!("no frame here is that long"),
            length => usize::from(length),
        };
        let mut data = vec![0; length];
        soon(stream.read_exact(&mut data)).await.unwrap();
        if head & 0x0f == 8 {
            return u16::from_be_bytes([data[0], data[1]]);
        }
    }
}

#[tokio::test]
async fn frames_that_break_the_websocket_protocol_close_with_their_code() {
    let server = TestServer::start().await;
    server.send("A", "keep", json!("stored")).await;
    let cases: [(&[u8], u16); 4] = [
        // A text frame of two bytes that are not UTF-8.
        (&[0x81, 0x82, 0, 0, 0, 0, 0xff, 0xfe], 1007),
        // An opcode that does not exist.
        (&[0x83, 0x80, 0, 0, 0, 0], 1002),
        // A frame without a mask, which clients must use.
        (&[0x81, 0x01, b'x'], 1002),
        // A frame that announces 2^40 bytes. The server does not allocate them.
        (&[0x81, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
    ];
    for (frame, code) in cases {
        let mut stream = upgrade(TcpStream::connect(server.address).await.unwrap(), "?session=A", "").await;
        stream.write_all(frame).await.unwrap();
        assert_eq!(close_code(&mut stream).await, code, "{frame:x?}");
    }
    nothing_was_lost(&server).await;
}

#[tokio::test]
async fn bad_http_sends_are_refused() {
    let server = TestServer::start().await;
    server.send("A", "keep", json!("stored")).await;
    let mut http = server.http().await;
    for (text, names) in bad_sends() {
        if text.starts_with('[') {
            continue; // An array is the other form of this call.
        }
        let reply = http.post("/v1/messages", &text).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{text:.80}");
        assert!(reply.body.contains(names), "{} for {text:.80}", reply.body);
    }
    let reply = http.request("POST", "/v1/messages", &[], vec![b'"', 0xff, b'"']).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"));
    let large = format!("\"{}\"", "x".repeat(3_000_000));
    let reply = http.post("/v1/messages", format!(r#"{{"to":{{"session":"B"}},"payload":{large}}}"#)).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    assert_eq!(http.get("/healthz").await.status, 200, "the same connection goes on");
    for (target, names) in [
        ("/v1/messages", "session"),
        ("/v1/messages?session=", "session"),
        ("/v1/messages?session=A&after=x", "after"),
        ("/v1/messages?session=A&wait=x", "wait"),
        ("/v1/messages?session=A&wait=61", "60"),
        ("/v1/messages?session=A&topic=", "topic"),
        ("/v1/messages?session=A&topic=t&after.t=x", "after.t"),
        ("/v1/events", "session"),
        ("/v1/events?session=A&after=-1", "after"),
        ("/nowhere", "nothing"),
    ] {
        let reply = http.get(target).await;
        assert!((400..500).contains(&reply.status), "{target}: {}", reply.status);
        reply.code();
        assert!(reply.body.contains(names), "{target}: {}", reply.body);
    }
    for body in
        ["", "x", "{}", r#"{"session":"A"}"#, r#"{"session":"A","seq":"1"}"#, r#"{"session":"","seq":1}"#]
    {
        let reply = http.post("/v1/ack", body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{body}");
    }
    assert_eq!(http.request("PUT", "/v1/ack", &[], "").await.status, 405);
    nothing_was_lost(&server).await;
}

#[tokio::test]
async fn arrays_are_refused_item_by_item_and_limited() {
    let server = TestServer::start().await;
    let body = json!([
        { "id": "a", "to": { "session": "B" }, "payload": 1 },
        { "id": "b", "to": { "session": "B" } },
        { "id": "c", "to": { "session": "B" }, "payload": 3 },
        7,
    ]);
    let reply = server.post("/v1/messages", body).await;
    let answers = reply.json();
    assert_eq!(reply.status, 200);
    assert!(answers[0]["seq"].as_u64().unwrap() < answers[2]["seq"].as_u64().unwrap());
    assert_eq!(
        (&answers[1]["error"]["code"], &answers[3]["error"]["code"]),
        (&json!("bad_request"), &json!("bad_request"))
    );
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads(), [1, 3]);
    let many: Vec<Value> = (0..1001).map(|n| json!({ "to": { "session": "C" }, "payload": n })).collect();
    let reply = server.post("/v1/messages", json!(many)).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    assert_eq!(server.get("/v1/messages?session=C&wait=0").await.payloads().len(), 0);
}

#[tokio::test]
async fn bad_x0_requests_never_stop_a_page_that_polls() {
    let server = TestServer::with(&["--poll-timeout", "200ms"]).await;
    server.send("A", "keep", json!("stored")).await;
    let mut http = server.http().await;
    // A request that x0 does not send is refused at once, with CORS headers.
    for body in ["", "x", "null", "[]", "7", "{}", r#"{"type":"x"}"#, r#"{"type":7}"#] {
        let reply = http.post(&x0_target(), body).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (400, "*"), "{body}");
        reply.code();
    }
    let reply = http.request("POST", &x0_target(), &[], vec![b'{', 0xff]).await;
    assert_eq!(reply.status, 400);
    // Polls without a valid session wait until their timeout.
    let long = "x".repeat(257);
    for session in [json!(null), json!(""), json!(7), json!({}), json!("a\u{0}"), json!(long)] {
        let reply = http.post(&x0_target(), json!({ "type": "GET", "session_src": session })).await;
        assert_eq!((reply.status, reply.json()), (200, json!({ "messages": null })), "{session}");
    }
    // A failed send is answered 200 with an error, which the page shows.
    let deep: Value = serde_json::from_str(&nested(30)).unwrap();
    assert_eq!(
        http.post(&x0_target(), x0_set("A", "B", &json!({ "deep": deep }))).await.json()["status"],
        "ok"
    );
    let too_deep = format!(
        r#"{{"type":"SET","session_src":"A","session_dst":"B","payload":{{"d":{}}}}}"#,
        nested(10_000)
    );
    let too_large = x0_set("A", "B", &json!({ "x": "x".repeat(3_000_000) })).to_string();
    let few = [("A", long.as_str()), ("A", "")].map(|(from, to)| x0_set(from, to, &json!({})).to_string());
    for body in [too_deep, too_large].into_iter().chain(few) {
        let reply = http.post(&x0_target(), &body).await;
        assert_eq!((reply.status, &reply.json()["error"]), (200, &json!(true)), "{body:.80}");
        assert!(reply.json()["exception"].as_str().unwrap().len() > 10);
    }
    for query in ["Type=SET", "Type=SET&DestinationSession=B&Payload=x", "Type=SET&Payload=SYS__NET_EVENT-e"]
    {
        let reply = http.get(&format!("{HANDLER}?{query}")).await;
        assert_eq!((reply.status, &reply.json()["error"]), (200, &json!(true)), "{query}");
    }
    assert_eq!(http.get(&format!("{HANDLER}?Type=GET")).await.status, 400);
    nothing_was_lost(&server).await;
}

/// The server stops reading from a peer that sends and never reads. No other client waits for it.
#[tokio::test]
async fn a_peer_that_does_not_read_is_stopped_and_delays_no_other() {
    let server = TestServer::start().await;
    let mut greedy = server.session("A").await;
    let (mut sink, stream) = (&mut greedy.socket).split();
    let frame = Message::text(
        json!({ "type": "send", "to": { "session": "" }, "payload": "x".repeat(200) }).to_string(),
    );
    let flood = async {
        for _ in 0..2_000_000 {
            sink.send(frame.clone()).await.unwrap();
        }
    };
    // The server stops reading, so the writes block. Other clients are served.
    tokio::select! {
        () = flood => panic!("a server without bounds takes everything"),
        () = async {
            let mut others = server.session("C").await;
            for n in 0..200 {
                server.send("B", "C", json!(n)).await;
                assert_eq!(others.payload().await, n);
            }
        } => {}
    }
    drop(stream);
}

/// One reader of a busy session reads nothing. It costs its buffers, and is dropped after 30 s. No other client waits.
#[tokio::test]
async fn a_stuck_reader_is_dropped_and_a_thousand_others_get_everything_on_time() {
    const OTHERS: usize = 1000;
    let server = TestServer::with(&["--mailbox-messages", "75", "--heartbeat", "60s"]).await;
    let mut stuck = upgrade(connect_with_small_buffer(server.address), "?session=B", "").await;
    // More than the buffers of both sides: from here on the writes of the server block.
    let mut seq = 0;
    for _ in 0..12 {
        seq = server.send("A", "B", json!("x".repeat(1_000_000))).await;
    }
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        let mut other = server.ws(&format!("?session=B&after={seq}")).await;
        assert_eq!(other.recv().await["type"], "welcome");
        others.push(other);
    }
    let memory = |server: &TestServer| -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let payload = json!("x".repeat(1000));
    let begun = tokio::time::Instant::now();
    let mut before = 0;
    // For longer than the server waits for the stuck reader, each message reaches all others before the next one.
    for n in 0..70 {
        if n == 20 {
            before = memory(&server);
        }
        let seq = server.send("A", "B", payload.clone()).await;
        for other in &mut others {
            assert_eq!(other.message().await["seq"], seq);
        }
        others[n % OTHERS].ack(seq).await;
        // Paced, so that the write timeout of the stuck reader passes.
        tokio::time::sleep_until(begun + Duration::from_millis(n as u64 * 500)).await;
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 40_000, "{grown} KiB more for a reader that takes nothing");
    // Its connection is closed, without a close frame.
    let mut rest = Vec::new();
    let end = soon(stuck.read_to_end(&mut rest)).await;
    assert!(end.is_err() || !rest.is_empty());
    // What all others acknowledged is deleted, so the mailbox has room.
    for _ in 0..20 {
        server.send("A", "B", json!(1)).await;
    }
}

/// The queue of the disk is bounded. Further sends are refused at once, and every confirmed message is there.
#[tokio::test]
async fn more_than_the_disk_can_take_is_refused_as_overloaded() {
    let server = TestServer::with(&["--append-queue", "1"]).await;
    let sends: Vec<_> = (0..1000).map(|n| json!({ "to": { "session": "B" }, "payload": n })).collect();
    let reply = server.post("/v1/messages", json!(sends)).await;
    assert_eq!(reply.status, 200);
    let answers = reply.json().as_array().unwrap().clone();
    let mut confirmed = Vec::new();
    for (n, answer) in answers.iter().enumerate() {
        match answer["seq"].as_u64() {
            Some(_) => confirmed.push(json!(n)),
            None => {
                assert_eq!(answer["error"]["code"], "overloaded", "{answer}");
                assert!(answer["error"]["message"].as_str().unwrap().contains("try again in a moment"));
            }
        }
    }
    assert!((1..1000).contains(&confirmed.len()), "{} were taken", confirmed.len());
    // Later sends succeed.
    server.send("A", "B", json!("later")).await;
    confirmed.push(json!("later"));
    let mut reader = server.session("B").await;
    for expected in confirmed {
        assert_eq!(reader.payload().await, expected);
    }
}

#[tokio::test]
async fn stored_messages_are_read_when_no_descriptor_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    let seq = server.send("A", "B", json!("stored")).await;
    server.stop().await;
    // Nothing is in memory after a restart.
    let server = TestServer::at(dir.path(), &[]).await;
    let mut http = server.http().await;
    assert_eq!(http.get("/healthz").await.status, 200);
    let pid = server.child.id().unwrap().to_string();
    output_of("prlimit", &["--pid", &pid, "--nofile=1:1"]).unwrap();
    let answer = http.get("/v1/messages?session=B&wait=0").await.json();
    assert_eq!(answer["messages"][0]["seq"], seq, "{answer}");
}
