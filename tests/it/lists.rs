//! Lists for operators, the history of a topic, and what a look-up tells.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// The items of all pages of a list, by pages of this size; and its scope.
async fn all(server: &Guarded, list: &str, key: &str, (query, limit): (&str, usize)) -> (Vec<Value>, String) {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let target = format!("/v1/{list}?limit={limit}{query}{cursor}");
        let reply = server.call("GET", &target, key, "").await;
        assert_eq!(reply.status, 200, "{target}: {}", reply.body);
        let page = reply.json();
        let found = page[list].as_array().unwrap().clone();
        assert!(found.len() <= limit, "{page}");
        items.extend(found);
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return (items, page["scope"].as_str().unwrap().to_owned()),
        }
    }
}

fn fields(items: &[Value], name: &str) -> Vec<String> {
    items.iter().map(|item| item[name].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn users_and_their_sessions_are_listed_by_pages_and_ids_stay_secret() {
    let server = Guarded::start().await;
    for n in 0..25 {
        let user = format!("user-{:02}", n / 2);
        server.register(&format!("secret-{n:02}"), json!({ "user": user, "ttl": 600 })).await;
    }
    server.register("secret-x", json!({ "user": "zoe" })).await;
    server.call("POST", "/v1/messages", KEY, r#"{"to":{"user":"zoe"},"payload":"hello"}"#).await;
    let _online = server.welcomed(&token("zoe", "secret-x")).await;
    let expected: Vec<String> = (0..13).map(|n| format!("user-{n:02}")).collect();
    for limit in [1, 4, 13, 1000] {
        let (users, scope) = all(&server, "users", OPS, ("&prefix=user-", limit)).await;
        assert_eq!((fields(&users, "user"), scope.as_str()), (expected.clone(), "node"));
        assert!(users[..12].iter().all(|user| user["sessions"] == 2) && users[12]["sessions"] == 1);
    }
    let (users, _) = all(&server, "users", OPS, ("&prefix=z", 10)).await;
    assert_eq!(users[0]["connections"]["websocket"], 1, "{users:?}");

    let (sessions, scope) = all(&server, "sessions", OPS, ("", 7)).await;
    assert_eq!((sessions.len(), scope.as_str()), (26, "node"));
    let handles: BTreeSet<String> = fields(&sessions, "handle").into_iter().collect();
    assert_eq!(handles.len(), 26);
    assert!(!format!("{sessions:?}").contains("secret-"), "{sessions:?}");
    let zoe = sessions.iter().find(|session| session["user"] == "zoe").unwrap();
    assert_eq!((&zoe["pending"], &zoe["connections"]["websocket"]), (&json!(1), &json!(1)));
    assert!(zoe["bytes"].as_u64().unwrap() > 7 && zoe["expires"].as_u64().unwrap() > now() * 1000);
}

#[tokio::test]
async fn lists_are_for_operators() {
    let server = Guarded::start().await;
    for list in ["/v1/users", "/v1/topics", "/v1/sessions"] {
        for bearer in [KEY, SEND_ONLY, token("ann", "a1").as_str()] {
            let reply = server.call("GET", list, bearer, "").await;
            assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{list}");
            assert!(reply.body.contains("ops = true"), "{}", reply.body);
        }
        assert_eq!(server.call("GET", list, "", "").await.status, 401, "{list}");
        assert_eq!(server.call("GET", list, OPS, "").await.status, 200, "{list}");
    }
    for (query, names) in [
        ("limit=0", "`limit`"),
        ("limit=1001", "`limit`"),
        ("limit=ten", "`limit`"),
        ("cursor=nothing", "`cursor`"),
        (&format!("cursor={}", "x".repeat(257)), "`cursor`"),
        ("limit=1&limit=2", "`limit`"),
    ] {
        let reply = server.call("GET", &format!("/v1/sessions?{query}"), OPS, "").await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{query}");
        assert!(reply.body.contains(names), "{query}: {}", reply.body);
    }
}

#[tokio::test]
async fn an_operator_looks_a_session_up_and_ends_it_by_its_handle() {
    let server = Guarded::start().await;
    let handle = server.register("secret-a", json!({ "user": "ann" })).await["handle"].clone();
    let handle = handle.as_str().unwrap();
    for n in 1..=3 {
        server.call("POST", "/v1/messages", KEY, format!(r#"{{"to":{{"user":"ann"}},"payload":{n}}}"#)).await;
    }
    let mut ann = server.welcomed(&token("ann", "secret-a")).await;
    let seqs = [ann.recv().await, ann.recv().await, ann.recv().await].map(|m| m["seq"].as_u64().unwrap());
    ann.send(json!({ "type": "ack", "seq": seqs[0] })).await;
    ann.ping().await;
    let target = format!("/v1/sessions/{handle}");
    let info = server.call("GET", &target, OPS, "").await.json();
    assert_eq!((&info["handle"], &info["user"], info.get("session")), (&json!(handle), &json!("ann"), None));
    assert_eq!(
        (&info["pending"], &info["acknowledged"], &info["newest"]),
        (&json!(2), &json!(seqs[0]), &json!(seqs[2]))
    );
    assert_eq!(info["readers"], json!([{ "transport": "websocket", "sent": seqs[2] }]));
    assert!(info["bytes"].as_u64().unwrap() > 2 && info["connections"]["websocket"] == 1, "{info}");
    // By its id it is found, and the answer does not show it to an operator. A backend that manages it knows it.
    let by_id = server.call("GET", "/v1/sessions/secret-a", OPS, "").await.json();
    assert_eq!((&by_id["handle"], by_id.get("session")), (&json!(handle), None));
    let of_backend = server.call("GET", "/v1/sessions/secret-a", KEY, "").await.json();
    assert_eq!(of_backend["session"], "secret-a");
    assert_eq!(server.call("GET", &target, KEY, "").await.json().get("session"), None);
    assert_eq!(server.call("GET", &target, SEND_ONLY, "").await.status, 403);

    assert_eq!(server.call("DELETE", &target, KEY, "").await.status, 204);
    assert_eq!(ann.closed().await.0, 4502);
    assert_eq!(server.call("GET", &target, OPS, "").await.status, 404);
    assert_eq!(server.call("DELETE", &target, KEY, "").await.code(), "not_found");
}

/// The lines of the audit log in a log.
fn audit(log: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "audit").collect()
}

#[tokio::test]
async fn what_an_operator_does_is_in_the_audit_log() {
    let server = Guarded::start().await;
    let handle = server.register("secret-a", json!({ "user": "ann" })).await["handle"].clone();
    let mut ann = server.welcomed(&token("ann", "secret-a")).await;
    let send = async |to: Value, key| {
        server.call("POST", "/v1/ops/messages", key, json!({ "to": to, "payload": "a secret test" })).await
    };
    for to in [json!({ "session": handle }), json!({ "session": "secret-a" }), json!({ "user": "ann" })] {
        assert_eq!(send(to, OPERATOR).await.status, 200);
        assert_eq!(ann.recv().await["payload"], "a secret test");
    }
    assert_eq!(send(json!({ "topic": "news" }), OPERATOR).await.status, 200);
    assert_eq!(send(json!({ "user": "nobody" }), OPERATOR).await.code(), "not_found");
    let target = format!("/v1/ops/sessions/{}", handle.as_str().unwrap());
    let own = token("ann", "secret-a");
    for key in [KEY, SESSIONS_ONLY, &own] {
        assert_eq!(send(json!({ "user": "ann" }), key).await.code(), "forbidden");
        assert_eq!(server.call("DELETE", &target, key, "").await.code(), "forbidden");
    }
    // A key that only sees.
    assert_eq!(send(json!({ "user": "ann" }), OPS).await.code(), "forbidden");
    assert_eq!(server.call("DELETE", &target, OPS, "").await.code(), "forbidden");
    assert_eq!(server.call("DELETE", &target, OPERATOR, "").await.status, 204);
    assert_eq!(ann.closed().await.0, 4502);
    let log = server.stop().await;
    let said: Vec<String> = audit(&log)
        .iter()
        .map(|line| format!("{} {} {}{}", line["key"], line["message"], line["to"], line["session"]))
        .collect();
    let handle = handle.as_str().unwrap();
    assert_eq!(
        said,
        [
            format!(r#""operator" "test message sent" "session {handle}"null"#),
            format!(r#""operator" "test message sent" "session {handle}"null"#),
            r#""operator" "test message sent" "user ann"null"#.to_owned(),
            r#""operator" "test message sent" "topic news"null"#.to_owned(),
            format!(r#""operator" "session ended" null"{handle}""#),
        ]
    );
    assert!(!log.contains("secret-a") && !log.contains("a secret test"), "{log}");
}

#[tokio::test]
async fn in_open_mode_sessions_are_listed_by_their_ids() {
    let server = TestServer::start().await;
    let _online = server.session("b").await;
    server.send("x", "c", json!("waits")).await;
    let reply = server.http().await.request("PUT", "/v1/sessions/a", &[], r#"{"user":"ann"}"#).await;
    assert_eq!(reply.status, 200);
    let page = server.get("/v1/sessions?limit=2").await.json();
    assert_eq!(
        (fields(page["sessions"].as_array().unwrap(), "session"), &page["next"]),
        (vec!["a".into(), "b".into()], &json!("b"))
    );
    assert_eq!(
        (&page["sessions"][0]["user"], &page["sessions"][1]["connections"]["websocket"]),
        (&json!("ann"), &json!(1))
    );
    let page = server.get("/v1/sessions?limit=2&cursor=b").await.json();
    assert_eq!(
        (&page["sessions"][0]["session"], &page["sessions"][0]["pending"], page.get("next")),
        (&json!("c"), &json!(1), None)
    );
}

#[tokio::test]
async fn topics_are_listed_whether_they_are_read_or_stored() {
    let server = TestServer::start().await;
    let mut reader = server.session("A").await;
    for topic in ["read", "both"] {
        reader.send(json!({ "type": "subscribe", "topic": topic })).await;
        assert_eq!(reader.recv().await["type"], "subscribed");
    }
    for topic in ["stored", "both"] {
        server.post("/v1/messages", json!({ "to": { "topic": topic }, "payload": "news" })).await;
    }
    let list = server.get("/v1/topics").await.json();
    let topics = list["topics"].as_array().unwrap();
    assert_eq!(fields(topics, "topic"), ["both", "read", "stored"]);
    let numbers: Vec<_> =
        topics.iter().map(|t| (t["connections"]["websocket"].as_u64(), t["stored"].as_u64())).collect();
    assert_eq!(numbers, [(Some(1), Some(1)), (Some(1), Some(0)), (Some(0), Some(1))]);
    let page = server.get("/v1/topics?prefix=r").await.json();
    assert_eq!(fields(page["topics"].as_array().unwrap(), "topic"), ["read"]);
    let info = server.get("/v1/topics/both").await.json();
    let seq = server.get("/v1/topics/both/messages").await.json()["messages"][0]["seq"].clone();
    assert_eq!(
        (&info["stored"], &info["seq"], &info["connections"]["websocket"]),
        (&json!(1), &seq, &json!(1))
    );
    assert!(info["bytes"].as_u64().unwrap() > 6 && info["epoch"].is_string(), "{info}");
    let nothing = server.get("/v1/topics/nobody").await.json();
    assert_eq!((&nothing["stored"], &nothing["bytes"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn the_history_of_a_topic_is_read_by_pages_and_says_what_is_gone() {
    let server = TestServer::with(&["--topic-messages", "10"]).await;
    for n in 0..12 {
        server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": n })).await;
    }
    let read = async |query: &str| server.get(&format!("/v1/topics/news/messages?limit=4{query}")).await;
    let (mut payloads, mut query) = (Vec::new(), String::new());
    loop {
        let reply = read(&query).await;
        payloads.extend(reply.payloads());
        let page = reply.json();
        assert_eq!(page.get("gaps"), None, "a reader without a cursor misses nothing");
        let (seq, epoch) = (page["seq"].as_u64().unwrap(), page["epoch"].as_str().unwrap());
        query = format!("&after={seq}&epoch={epoch}");
        if page["more"] == false {
            break;
        }
    }
    assert_eq!(payloads, (2..12).map(Value::from).collect::<Vec<_>>());
    assert_eq!(read(&query).await.payloads(), NOTHING);
    let first = read("").await.json()["messages"][0]["seq"].as_u64().unwrap();
    let gap = read(&format!("&after={}", first - 2)).await.json()["gaps"][0].clone();
    assert_eq!((&gap["reason"], gap["to"].as_u64()), (&json!("expired"), Some(first - 1)));
    let other = read(&format!("&after={first}&epoch=another")).await.json();
    assert_eq!((&other["gaps"][0]["reason"], &other["messages"][0]["payload"]), (&json!("epoch"), &json!(2)));
    let none = server.get("/v1/topics/nobody/messages").await.json();
    assert_eq!((&none["messages"], &none["more"]), (&json!([]), &json!(false)));
}

#[tokio::test]
async fn a_page_of_a_history_ends_after_a_mebibyte() {
    let server = TestServer::start().await;
    for n in 0..3 {
        let payload = format!("{n}{}", "x".repeat(700_000));
        let reply =
            server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": payload })).await;
        assert_eq!(reply.status, 200);
    }
    let first = server.get("/v1/topics/news/messages").await;
    assert_eq!((first.payloads().len(), &first.json()["more"]), (2, &json!(true)));
    let after = first.json()["seq"].clone();
    let second = server.get(&format!("/v1/topics/news/messages?after={after}")).await;
    assert_eq!((second.payloads().len(), &second.json()["more"]), (1, &json!(false)));
}

#[tokio::test]
async fn a_history_is_for_those_who_may_read_the_topic() {
    let server = Guarded::start().await;
    let reader = token_with("ann", "a1", json!({ "topics": ["news"] }));
    let (target, other) = ("/v1/topics/news/messages", "/v1/topics/other/messages");
    assert_eq!(server.call("GET", target, &reader, "").await.status, 200);
    assert_eq!(server.call("GET", other, &reader, "").await.code(), "forbidden");
    assert_eq!(server.call("GET", target, SEND_ONLY, "").await.code(), "forbidden");
    assert_eq!(server.call("GET", target, KEY, "").await.status, 200);
    assert_eq!(server.call("GET", target, "", "").await.status, 401);
    // Figures of a topic are for operators, and for those who may see who reads it.
    assert_eq!(server.call("GET", "/v1/topics/news", &reader, "").await.code(), "forbidden");
    let watcher = token_with("bob", "b1", json!({ "presence": ["news"] }));
    for bearer in [watcher.as_str(), OPS, KEY] {
        assert_eq!(server.call("GET", "/v1/topics/news", bearer, "").await.status, 200);
    }
}
