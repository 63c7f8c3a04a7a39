//! `/openapi.json` and `/asyncapi.json` are true: real answers and real frames are checked against them.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// A schema of a document, resolved against the document's other schemas.
fn validator(document: &Value, schema: &Value) -> Validator {
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    jsonschema::draft202012::new(&whole).unwrap()
}

fn check(document: &Value, schema: &Value, value: &Value) {
    let errors: Vec<String> =
        validator(document, schema).iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{value}: {errors:?}");
}

/// Frames that clients may send. Each must match the description, and the server must accept it.
fn client_frames() -> Vec<Value> {
    vec![
        json!({ "type": "ping" }),
        json!({ "type": "send", "id": "c-1", "to": { "session": "A" }, "payload": { "any": ["thing"] }, "ttl": 60, "receipt": true }),
        json!({ "type": "send", "to": { "user": "ann" }, "payload": null, "volatile": true }),
        json!({ "type": "send", "to": { "topic": "news" }, "payload": 1 }),
        json!({ "type": "send", "id": "c-2", "to": { "session": "A" }, "payload": 1, "request": true }),
        json!({ "type": "send", "to": { "backend": "shop" }, "payload": 1 }),
        json!({ "type": "subscribe", "topic": "news", "after": 1, "epoch": "another" }),
        json!({ "type": "unsubscribe", "topic": "news" }),
        json!({ "type": "subscribe", "topic": "room", "presence": true }),
        json!({ "type": "ack", "seq": 0 }),
        json!({ "type": "hello", "session": "A", "token": token_with("ann", "A", json!({ "topics": ["*"], "send": ["*"], "presence": ["*"] })) }),
    ]
}

#[tokio::test]
async fn every_frame_is_as_asyncapi_describes_it() {
    let server = Guarded::start().await;
    let document = server.get("/asyncapi.json").await.json();
    assert_eq!(
        (&document["asyncapi"], &document["info"]["version"]),
        (&json!("3.0.0"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let messages = document["components"]["messages"].as_object().unwrap().clone();
    let payload = |kind: &str| &messages[kind]["payload"];
    let mut seen = BTreeSet::new();
    let mut ws = server.ws("").await;
    let mut frames = client_frames();
    frames.rotate_right(1);
    // An unknown frame is answered by an error frame.
    for frame in &frames {
        let kind = frame["type"].as_str().unwrap();
        seen.insert(kind.to_owned());
        check(&document, payload(kind), frame);
    }
    frames.push(json!({ "type": "bye" }));
    for frame in frames {
        let is_ping = frame["type"] == "ping";
        ws.send(frame).await;
        if !is_ping {
            ws.send(json!({ "type": "ping" })).await;
        }
        loop {
            let answer = ws.recv().await;
            let kind = answer["type"].as_str().unwrap();
            assert!(messages.contains_key(kind), "{kind} is not described");
            check(&document, payload(kind), &answer);
            // A frame has no field that is not described.
            let described = &payload(kind)["properties"];
            for field in answer.as_object().unwrap().keys() {
                assert!(described.get(field).is_some(), "{field} of {kind} is not described");
            }
            if let Some(reply_to) = answer["reply_to"].as_str() {
                ws.send(json!({ "type": "send", "to": { "reply": reply_to }, "payload": 1 })).await;
            }
            seen.insert(kind.to_owned());
            if let ("message", Some(seq)) = (kind, answer["seq"].as_u64()) {
                ws.ack(seq).await;
            }
            if kind == "pong" {
                break;
            }
        }
    }
    let mut other = server.welcomed(&token_with("bob", "B", json!({ "topics": ["room"] }))).await;
    other.send(json!({ "type": "subscribe", "topic": "room" })).await;
    // The receipt comes soon after the acknowledgement, the reply after the request, and presence within a second.
    while !["receipt", "reply", "presence"].iter().all(|kind| seen.contains(*kind)) {
        let answer = ws.recv().await;
        let kind = answer["type"].as_str().unwrap();
        check(&document, payload(kind), &answer);
        seen.insert(kind.to_owned());
    }
    let (_, welcome) = server.hello(SHOP).await;
    check(&document, payload("welcome"), &welcome);
    assert!(payload("welcome")["properties"].get("backend").is_some() && welcome["backend"] == "shop");
    let described: BTreeSet<String> = messages.keys().cloned().collect();
    assert_eq!(seen, described, "all that is described was seen, and the other way round");
}

/// The examples of the documentation: each is as described, and no frame, field or code is missing.
#[tokio::test]
async fn the_protocol_page_has_every_frame_and_every_field() {
    let server = TestServer::start().await;
    let document = server.get("/asyncapi.json").await.json();
    let messages = document["components"]["messages"].as_object().unwrap();
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/web/docs/protocol.md");
    let page = std::fs::read_to_string(page).unwrap();
    let examples = page.split("```json\n").skip(1).map(|rest| rest.split_once("```").unwrap().0);
    let mut shown = BTreeSet::new();
    for example in examples {
        let frame: Value = serde_json::from_str(example).unwrap();
        let kind = frame["type"].as_str().unwrap();
        check(&document, &messages[kind]["payload"], &frame);
        shown.insert(kind.to_owned());
    }
    assert_eq!(shown, messages.keys().cloned().collect());
    for (kind, message) in messages {
        for field in message["payload"]["properties"].as_object().unwrap().keys() {
            let named = [format!("`{field}`"), format!("\"{field}\":")];
            assert!(named.iter().any(|name| page.contains(name)), "{field} of {kind}");
        }
    }
    let codes = server.get("/openapi.json").await.json();
    let codes = codes["components"]["schemas"]["Code"]["enum"].as_array().unwrap().clone();
    assert!(codes.len() > 5, "{codes:?}");
    for code in codes {
        assert!(page.contains(&format!("| `{}` |", code.as_str().unwrap())), "{code}");
    }
}

/// The numbers of four digits in a text.
fn close_codes<'a>(text: impl IntoIterator<Item = &'a str>) -> BTreeSet<u16> {
    let words = text.into_iter().flat_map(|line| line.split(|c: char| !c.is_ascii_digit()));
    words.filter(|word| word.len() == 4).map(|word| word.parse().unwrap()).collect()
}

#[tokio::test]
async fn both_descriptions_have_the_same_close_codes() {
    let server = TestServer::start().await;
    let document = server.get("/asyncapi.json").await.json();
    let description = document["info"]["description"].as_str().unwrap();
    let described = close_codes(description.split_once("Close codes:").map(|(_, codes)| codes));
    let page = include_str!("../../web/docs/protocol.md");
    let (_, table) = page.split_once("## Close codes").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    assert_eq!(described, close_codes(rows));
    assert!(described.is_superset(&[1001, 1002, 1007, 1009, 4001, 4002, 4503].into()), "{described:?}");
    assert!(!described.contains(&4003), "no connection is closed with 4003");
}

#[tokio::test]
async fn every_answer_is_as_openapi_describes_it() {
    let server = Guarded::start().await;
    let document = server.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let proof = token_with("ann", "A", json!({ "topics": ["*"], "presence": ["news"] }));
    let send = json!({ "id": "c-1", "to": { "session": "A" }, "payload": [1], "receipt": true });
    let mut seen = BTreeSet::new();
    for (method, path, target, bearer, body) in [
        ("GET", "/healthz", "/healthz", "", json!(null)),
        ("GET", "/readyz", "/readyz", "", json!(null)),
        ("GET", "/metrics", "/metrics", OPS, json!(null)),
        ("GET", "/metrics", "/metrics", KEY, json!(null)),
        ("GET", "/metrics", "/metrics", "", json!(null)),
        ("PUT", "/v1/sessions/{id}", "/v1/sessions/A", KEY, json!({ "user": "ann", "ttl": 60 })),
        ("PUT", "/v1/sessions/{id}", "/v1/sessions/A", KEY, json!({ "user": 7 })),
        ("PUT", "/v1/sessions/{id}", "/v1/sessions/A", "", json!({})),
        ("PUT", "/v1/sessions/{id}", "/v1/sessions/A", &proof, json!({})),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/A", KEY, json!(null)),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/nobody", KEY, json!(null)),
        ("GET", "/v1/users/{id}", "/v1/users/ann", KEY, json!(null)),
        ("GET", "/v1/users/{id}", "/v1/users/nobody", KEY, json!(null)),
        ("POST", "/v1/messages", "/v1/messages", &proof, send.clone()),
        ("POST", "/v1/messages", "/v1/messages", &proof, json!([send, 7])),
        ("POST", "/v1/messages", "/v1/messages", KEY, json!({ "to": { "user": "ann" }, "payload": 1 })),
        (
            "POST",
            "/v1/messages",
            "/v1/messages",
            &proof,
            json!({ "id": "c-2", "to": { "user": "ann" }, "payload": 1, "request": true }),
        ),
        ("POST", "/v1/messages", "/v1/messages", KEY, json!({ "to": { "reply": "x" }, "payload": 1 })),
        ("POST", "/v1/messages", "/v1/messages", KEY, json!({ "to": { "user": "nobody" }, "payload": 1 })),
        ("GET", "/v1/messages", "/v1/messages?topic=news&wait=0", &proof, json!(null)),
        ("GET", "/v1/messages", "/v1/messages?topic=news&presence=news&wait=9", &proof, json!(null)),
        ("GET", "/v1/topics/{name}/presence", "/v1/topics/news/presence?limit=1", &proof, json!(null)),
        ("GET", "/v1/topics/{name}/presence", "/v1/topics/other/presence", &proof, json!(null)),
        ("GET", "/v1/topics/{name}/presence", "/v1/topics/news/presence?limit=0", KEY, json!(null)),
        ("GET", "/v1/messages", "/v1/messages?after=3&epoch=another&wait=0", &proof, json!(null)),
        ("GET", "/v1/messages", "/v1/messages?wait=61", &proof, json!(null)),
        ("POST", "/v1/messages/poll", "/v1/messages/poll", "", json!({ "token": proof, "wait": 0 })),
        ("POST", "/v1/messages/poll", "/v1/messages/poll", &proof, json!([{ "wait": 0 }, { "token": "x" }])),
        (
            "POST",
            "/v1/messages/poll",
            "/v1/messages/poll",
            &proof,
            json!({ "wait": 0, "topics": [{ "topic": "" }] }),
        ),
        ("POST", "/v1/messages/poll", "/v1/messages/poll", "", json!({ "wait": 0 })),
        (
            "POST",
            "/v1/messages",
            "/v1/messages",
            "",
            json!({ "token": proof, "to": { "topic": "t" }, "payload": 1 }),
        ),
        ("POST", "/v1/ack", "/v1/ack", "", json!({ "token": proof, "seq": 0 })),
        ("POST", "/v1/ack", "/v1/ack", &proof, json!({ "seq": 0 })),
        ("POST", "/v1/ack", "/v1/ack", &proof, json!({ "seq": 9_007_199_254_740_991_u64 })),
        ("GET", "/v1/backends/{name}", "/v1/backends/shop", SHOP, json!(null)),
        ("GET", "/v1/backends/{name}", "/v1/backends/nobody", KEY, json!(null)),
        ("POST", "/v1/ack", "/v1/ack", SHOP, json!({ "seq": 0 })),
        ("POST", "/v1/messages/poll", "/v1/messages/poll", SHOP, json!({ "wait": 0 })),
        ("GET", "/v1/events", "/v1/events?after=x", &proof, json!(null)),
        ("GET", "/v1/users", "/v1/users?prefix=a&limit=1", OPS, json!(null)),
        ("GET", "/v1/users", "/v1/users", KEY, json!(null)),
        ("GET", "/v1/sessions", "/v1/sessions?limit=1", OPS, json!(null)),
        ("GET", "/v1/sessions", "/v1/sessions?cursor=x", OPS, json!(null)),
        ("GET", "/v1/sessions/{id}", "/v1/sessions/A", OPS, json!(null)),
        ("GET", "/v1/topics", "/v1/topics?limit=1", OPS, json!(null)),
        ("GET", "/v1/topics/{name}", "/v1/topics/t", OPS, json!(null)),
        ("GET", "/v1/topics/{name}/messages", "/v1/topics/t/messages?limit=1", &proof, json!(null)),
        ("GET", "/v1/topics/{name}/messages", "/v1/topics/t/messages?after=1&epoch=x", KEY, json!(null)),
        (
            "POST",
            "/v1/ops/messages",
            "/v1/ops/messages",
            OPERATOR,
            json!({ "to": { "topic": "t" }, "payload": 1 }),
        ),
        (
            "POST",
            "/v1/ops/messages",
            "/v1/ops/messages",
            OPERATOR,
            json!({ "to": { "user": "x" }, "payload": 1 }),
        ),
        ("POST", "/v1/ops/messages", "/v1/ops/messages", KEY, json!({})),
        ("GET", "/v1/ops/stats", "/v1/ops/stats", OPS, json!(null)),
        ("GET", "/v1/ops/stats", "/v1/ops/stats", KEY, json!(null)),
        ("DELETE", "/v1/ops/sessions/{id}", "/v1/ops/sessions/nobody", OPERATOR, json!(null)),
        (
            "DELETE",
            "/v1/ops/sessions/{id}",
            "/v1/ops/sessions/h-BwcHBwcHBwcHBwcHBwcHBw",
            OPERATOR,
            json!(null),
        ),
        ("DELETE", "/v1/sessions/{id}", "/v1/sessions/A", KEY, json!(null)),
    ] {
        let operation = &document["paths"][path][method.to_lowercase()];
        assert_eq!(
            operation["security"],
            if ["/healthz", "/readyz"].contains(&path) { json!(null) } else { json!([{ "bearer": [] }]) }
        );
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = server.call(method, target, bearer, body).await;
        let answer = &operation["responses"][reply.status.to_string()];
        assert!(answer.is_object(), "{method} {target}: {} is not described", reply.status);
        seen.insert((method, path));
        if reply.status == 204 {
            assert!(reply.body.is_empty());
            continue;
        }
        let kind = reply.header("content-type");
        let content = &answer["content"][kind.split(';').next().unwrap()];
        assert!(content.is_object(), "{method} {target}: {kind} is not described");
        if path == "/metrics" && reply.status == 200 {
            continue;
        }
        assert_eq!(kind, "application/json");
        check(&document, &content["schema"], &reply.json());
    }
    let operations = document["paths"].as_object().unwrap().values();
    assert_eq!(seen.len(), operations.map(|path| path.as_object().unwrap().len()).sum::<usize>());
    // In `open` mode, the description asks for no credentials.
    let open = TestServer::start().await;
    assert!(!open.get("/openapi.json").await.body.contains("\"security\""));
}
