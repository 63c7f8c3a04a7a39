//! The WebSocket transport: every frame, both ways to say hello, and every way in which a socket ends.

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::common::*;

#[tokio::test]
async fn hello_is_welcomed_with_everything_a_client_needs_to_know() {
    let server = TestServer::start().await;
    let mut ws = server.ws("").await;
    ws.send(json!({ "type": "hello", "session": "A" })).await;
    let welcome = ws.recv().await;
    assert_eq!(welcome["session"], "A");
    assert_eq!(welcome["durability"], "fsync");
    assert_eq!((welcome["heartbeat"].as_u64(), welcome["max_payload"].as_u64()), (Some(25), Some(1_048_576)));
    assert_eq!(welcome["server"], concat!("x0-msg-server/", env!("CARGO_PKG_VERSION")));
    assert!(welcome["epoch"].as_str().unwrap().len() >= 8);
    assert!(welcome["seq"].is_u64());
}

#[tokio::test]
async fn the_query_identifies_too() {
    let server = TestServer::start().await;
    let seq = server.send("B", "A", json!(1)).await;
    let mut ws = server.ws("?session=A").await;
    assert_eq!(ws.recv().await["type"], "welcome");
    assert_eq!(ws.message().await["seq"], seq);
    let mut resumed = server.ws(&format!("?session=A&after={seq}")).await;
    assert_eq!(resumed.recv().await["type"], "welcome");
    resumed.ping().await;
}

#[tokio::test]
async fn a_burst_of_16_volatile_messages_reaches_a_waiting_reader() {
    let server = TestServer::start().await;
    let mut ws = server.ws("?session=A").await;
    assert_eq!(ws.recv().await["type"], "welcome");
    let burst: Vec<_> =
        (0..16).map(|n| json!({ "to": { "session": "A" }, "payload": n, "volatile": true })).collect();
    assert_eq!(server.post("/v1/messages?session=B", json!(burst)).await.status, 200);
    for n in 0..16 {
        assert_eq!(ws.payload().await, n);
    }
}

#[tokio::test]
async fn the_subprotocol_is_named_and_not_required() {
    let server = TestServer::start().await;
    let mut request = format!("ws://{}/ws", server.address).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "other, x0-msg.v1".parse().unwrap());
    let (_, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "x0-msg.v1");
    let (_, response) = connect_async(format!("ws://{}/ws", server.address)).await.unwrap();
    assert!(response.headers().get("sec-websocket-protocol").is_none());
}

#[tokio::test]
async fn a_message_travels_with_its_sender_and_its_bytes() {
    let server = TestServer::start().await;
    let (mut a, mut b) = (server.session("A").await, server.session("B").await);
    let payload = r#"{ "n": 1e400, "deep": [[1]], "s": "\ud800 é" }"#;
    a.send_text(&format!(r#"{{"type":"send","id":"c-42","to":{{"session":"B"}},"payload":{payload}}}"#))
        .await;
    let sent = a.recv().await;
    assert_eq!((&sent["type"], &sent["id"]), (&json!("sent"), &json!("c-42")));
    let text = b.recv_text().await;
    let head = format!(r#"{{"type":"message","seq":{},"from":"A","ts":"#, sent["seq"]);
    assert!(text.starts_with(&head), "{text}");
    assert!(text.ends_with(&format!(r#","payload":{payload}}}"#)), "{text}");
}

#[tokio::test]
async fn sends_are_answered_in_their_order() {
    let server = TestServer::start().await;
    let (mut a, mut b) = (server.session("A").await, server.session("B").await);
    for n in 0..500 {
        let frame = json!({ "type": "send", "id": format!("c-{n}"), "to": { "session": "B" }, "payload": n });
        a.socket.feed(Message::text(frame.to_string())).await.unwrap();
    }
    a.socket.flush().await.unwrap();
    let mut last = 0;
    for n in 0..500 {
        let sent = a.recv().await;
        assert_eq!(sent["id"], format!("c-{n}"));
        assert!(sent["seq"].as_u64().unwrap() > last);
        last = sent["seq"].as_u64().unwrap();
        assert_eq!(b.payload().await, n);
    }
}

#[tokio::test]
async fn ping_is_answered_before_and_after_hello() {
    let server = TestServer::start().await;
    let mut ws = server.ws("").await;
    ws.ping().await;
    ws.send(json!({ "type": "hello", "session": "A" })).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    ws.ping().await;
    ws.socket.send(Message::Ping("abc".into())).await.unwrap();
    match soon(ws.socket.next()).await.unwrap().unwrap() {
        Message::Pong(data) => assert_eq!(&data[..], b"abc"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn everything_but_hello_and_ping_wants_a_hello_first() {
    let server = TestServer::start().await;
    let mut ws = server.ws("").await;
    ws.send(json!({ "type": "send", "id": "c-1", "to": { "session": "B" }, "payload": 1 })).await;
    let refused = ws.recv().await;
    assert_eq!((&refused["code"], &refused["id"]), (&json!("unauthorized"), &json!("c-1")));
    ws.send(json!({ "type": "ack", "seq": 1 })).await;
    assert_eq!(ws.error().await, "unauthorized");
    ws.send(json!({ "type": "hello", "session": "A" })).await;
    assert_eq!(ws.recv().await["type"], "welcome");
    ws.send(json!({ "type": "hello", "session": "B" })).await;
    assert_eq!(ws.error().await, "bad_request");
    ws.ping().await;
}

#[tokio::test]
async fn a_user_without_registered_sessions_is_not_found() {
    let server = TestServer::start().await;
    let mut a = server.session("A").await;
    a.send(json!({ "type": "send", "id": "u", "to": { "user": "alice" }, "payload": 1 })).await;
    assert_eq!(a.error().await, "not_found");
}

#[tokio::test]
async fn a_query_that_identifies_nobody_is_told_why_and_not_to_come_back() {
    let server = TestServer::start().await;
    for query in ["?session=", "?session=A&after=x", "?token=abc"] {
        let mut ws = server.ws(query).await;
        assert_eq!(ws.error().await, "bad_request", "{query}");
        let (code, reason) = ws.closed().await;
        assert_eq!(code, 4500);
        assert!(reason.len() > 10, "{reason}");
    }
}

#[tokio::test]
async fn a_close_is_answered() {
    let server = TestServer::start().await;
    let mut ws = server.session("A").await;
    ws.socket.close(None).await.unwrap();
    while let Some(frame) = soon(ws.socket.next()).await {
        assert!(matches!(frame.unwrap(), Message::Close(_)));
    }
}

#[tokio::test]
async fn plain_http_is_told_what_this_address_speaks() {
    let server = TestServer::start().await;
    let reply = server.get("/ws").await;
    assert_eq!(
        (reply.status, reply.header("upgrade"), reply.code().as_str()),
        (426, "websocket", "bad_request")
    );
    assert_eq!((reply.header("connection"), reply.header("sec-websocket-version")), ("upgrade", "13"));
    let headers = handshake_headers("8", "dGhlIHNhbXBsZSBub25jZQ==");
    let reply = server.http().await.request("GET", "/ws", &headers, "").await;
    assert_eq!((reply.status, reply.header("sec-websocket-version")), (426, "13"));
}

/// The headers of a handshake with this version and key.
fn handshake_headers<'a>(version: &'a str, key: &'a str) -> [(&'a str, &'a str); 4] {
    [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", version),
        ("sec-websocket-key", key),
    ]
}

#[tokio::test]
async fn a_handshake_without_a_key_of_16_bytes_is_refused() {
    let server = TestServer::start().await;
    let valid = "dGhlIHNhbXBsZSBub25jZQ==";
    for key in ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "c2hvcnQ=", "dGhlIHNhbXBsZSBub25jZSE="] {
        let headers = handshake_headers("13", key);
        let reply = server.http().await.request("GET", "/ws?session=A", &headers, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{key}");
        assert!(reply.body.contains("Sec-WebSocket-Key"), "{}", reply.body);
    }
    let [connection, upgrade, version, key] = handshake_headers("13", valid);
    for headers in [vec![connection, upgrade, version], vec![connection, upgrade, version, key, key]] {
        let reply = server.http().await.request("GET", "/ws", &headers, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{headers:?}");
    }
    let reply = server.http().await.request("GET", "/ws", &handshake_headers("13", valid), "").await;
    assert_eq!(reply.status, 101);
}

#[tokio::test]
async fn a_gap_to_another_epoch_says_where_to_go_on() {
    let server = TestServer::start().await;
    let seq = server.send("B", "A", json!(1)).await;
    let topic = json!({ "to": { "topic": "news" }, "payload": 2 });
    assert_eq!(server.post("/v1/messages", topic).await.status, 200);
    let mut ws = server.ws("?session=A&after=999&epoch=another").await;
    let epoch = ws.recv().await["epoch"].clone();
    let gap = ws.recv().await;
    assert_eq!((&gap["type"], &gap["reason"], &gap["epoch"]), (&json!("gap"), &json!("epoch"), &epoch));
    assert_eq!(gap["from"], 999);
    assert!(gap["to"].as_u64().unwrap() < seq, "{gap}");
    assert_eq!(ws.message().await["seq"], seq);
    ws.send(json!({ "type": "subscribe", "topic": "news", "after": 999, "epoch": "another" })).await;
    assert_eq!(ws.recv().await["recovered"], false);
    let gap = ws.recv().await;
    assert_eq!((&gap["topic"], &gap["reason"], &gap["epoch"]), (&json!("news"), &json!("epoch"), &epoch));
    assert_eq!(ws.message().await["payload"], 2);
    // Over Server-Sent Events as well.
    let mut events = Events::open(&server, "?session=A&after=999&epoch=another", None).await;
    assert_eq!(events.next().await.name, "welcome");
    let gap = events.next().await;
    assert_eq!((gap.name.as_str(), &gap.data["epoch"]), ("gap", &epoch));
    // A reader that goes on there is told no gap.
    let (to, epoch) = (&gap.data["to"], epoch.as_str().unwrap());
    let mut resumed = server.ws(&format!("?session=A&after={to}&epoch={epoch}")).await;
    assert_eq!(resumed.recv().await["type"], "welcome");
    assert_eq!(resumed.message().await["seq"], seq);
}

#[tokio::test]
async fn a_window_holds_messages_back_until_this_socket_acknowledges() {
    let server = TestServer::start().await;
    let mut seqs = Vec::new();
    for n in 0..4 {
        seqs.push(server.send("B", "A", json!(n)).await);
    }
    let (mut hello, mut query) = (server.ws("").await, server.ws("?session=A&window=2").await);
    hello.send(json!({ "type": "hello", "session": "A", "window": 2 })).await;
    for ws in [&mut hello, &mut query] {
        assert_eq!(ws.recv().await["type"], "welcome");
        assert_eq!((ws.payload().await, ws.payload().await), (json!(0), json!(1)));
        // The pong comes with no message before it.
        ws.ping().await;
    }
    for ws in [&mut hello, &mut query] {
        ws.send(json!({ "type": "ack", "seq": seqs[1] })).await;
        assert_eq!((ws.payload().await, ws.payload().await), (json!(2), json!(3)));
        ws.ping().await;
    }
    let mut plain = server.session("A").await;
    assert_eq!((plain.payload().await, plain.payload().await), (json!(2), json!(3)));
}

#[tokio::test]
async fn a_window_holds_no_receipt_no_topic_and_no_answer_back() {
    let server = TestServer::start().await;
    let mut b = server.session("B").await;
    let mut ws = server.ws("?session=A&window=1").await;
    assert_eq!(ws.recv().await["type"], "welcome");
    ws.send(json!({ "type": "subscribe", "topic": "t" })).await;
    assert_eq!(ws.recv().await["type"], "subscribed");
    server.send("B", "A", json!(1)).await;
    assert_eq!(ws.payload().await, 1);
    ws.send(json!({ "type": "send", "id": "c-1", "to": { "session": "B" }, "payload": 2, "receipt": true }))
        .await;
    assert_eq!(ws.recv().await["type"], "sent");
    let seq = b.message().await["seq"].clone();
    b.send(json!({ "type": "ack", "seq": seq })).await;
    assert_eq!(ws.recv().await["type"], "receipt");
    b.send(json!({ "type": "send", "to": { "topic": "t" }, "payload": 3 })).await;
    assert_eq!(ws.payload().await, 3);
}

/// A receipt does not wait behind messages for which the window has no room: its first copy has no seq.
#[tokio::test]
async fn a_receipt_and_a_volatile_message_pass_a_window_that_is_full() {
    let server = TestServer::start().await;
    let mut b = server.session("B").await;
    let mut ws = server.ws("?session=A&window=1").await;
    assert_eq!(ws.recv().await["type"], "welcome");
    for n in 1..=3 {
        server.send("B", "A", json!(n)).await;
    }
    let first = ws.message().await;
    assert_eq!(first["payload"], 1);
    ws.send(json!({ "type": "send", "id": "c-1", "to": { "session": "B" }, "payload": 4, "receipt": true }))
        .await;
    assert_eq!(ws.recv().await["type"], "sent");
    let seq = b.message().await["seq"].clone();
    b.send(json!({ "type": "ack", "seq": seq })).await;
    let early = ws.recv().await;
    assert_eq!(
        (&early["type"], &early["id"], &early["state"]),
        (&json!("receipt"), &json!("c-1"), &json!("acknowledged"))
    );
    assert!(early.get("seq").is_none(), "{early}");
    b.send(json!({ "type": "send", "to": { "session": "A" }, "payload": 5, "volatile": true })).await;
    assert_eq!(ws.payload().await, 5);
    ws.send(json!({ "type": "ack", "seq": first["seq"] })).await;
    let second = ws.message().await;
    ws.send(json!({ "type": "ack", "seq": second["seq"] })).await;
    let third = ws.message().await;
    assert_eq!((&second["payload"], &third["payload"]), (&json!(2), &json!(3)));
    let receipt = ws.recv().await;
    assert!(receipt["seq"].as_u64() > third["seq"].as_u64(), "{receipt}");
    assert_eq!((&receipt["type"], &receipt["ts"]), (&early["type"], &early["ts"]));
}

#[tokio::test]
async fn a_session_that_ends_closes_a_socket_whose_window_is_full() {
    let server = TestServer::start().await;
    let mut ws = server.ws("?session=A&window=1").await;
    assert_eq!(ws.recv().await["type"], "welcome");
    for n in 0..3 {
        server.send("B", "A", json!(n)).await;
    }
    assert_eq!(ws.payload().await, 0);
    ws.ping().await;
    server.http().await.request("DELETE", "/v1/sessions/A", &[], "").await;
    assert_eq!(ws.closed().await.0, 4502);
}

#[tokio::test]
async fn a_wrong_window_is_refused() {
    let server = TestServer::start().await;
    let mut ws = server.ws("").await;
    for window in [json!(0), json!(-1), json!("8"), json!(65_537)] {
        ws.send(json!({ "type": "hello", "session": "A", "window": window })).await;
        assert_eq!(ws.error().await, "bad_request", "{window}");
    }
    assert_eq!(server.ws("?session=A&window=x").await.error().await, "bad_request");
}
