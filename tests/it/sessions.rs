//! Sessions and users: registered by backends or by tokens, looked up, and ended.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::*;
use crate::guarded::*;

async fn connections(server: &Guarded, target: &str) -> Value {
    let reply = server.call("GET", target, KEY, "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["connections"].clone()
}

/// Waits until a look-up shows these connections.
async fn wait_for_connections(server: &Guarded, target: &str, wanted: Value) {
    soon(async { while connections(server, target).await != wanted {} }).await;
}

#[tokio::test]
async fn a_user_is_reached_in_all_sessions_offline_ones_included() {
    let server = Guarded::start().await;
    for (session, user) in [("a1", "ann"), ("a2", "ann"), ("b1", "bob")] {
        let before = now() * 1000;
        let registered = server.register(session, json!({ "user": user, "ttl": 60 })).await;
        assert_eq!((&registered["session"], &registered["user"]), (&json!(session), &json!(user)));
        let expires = registered["expires"].as_u64().unwrap();
        assert!((before + 60_000..=now() * 1000 + 61_000).contains(&expires), "{registered}");
    }
    let mut online = server.welcomed(&token("ann", "a1")).await;
    let mut bob = server.welcomed(&token("bob", "b1")).await;
    // A third session, registered by its token.
    let mut carried = server.welcomed(&token("ann", "a3")).await;
    bob.send(json!({ "type": "send", "id": "c-1", "to": { "user": "ann" }, "payload": "hello" })).await;
    let sent = bob.recv().await;
    assert_eq!((&sent["id"], &sent["sessions"], sent.get("seq")), (&json!("c-1"), &json!(3), None), "{sent}");
    for socket in [&mut online, &mut carried] {
        let message = socket.message().await;
        assert_eq!((&message["from"], &message["payload"]), (&json!("bob"), &json!("hello")));
    }
    // A retry is stored once in each session.
    bob.send(json!({ "type": "send", "id": "c-1", "to": { "user": "ann" }, "payload": "hello" })).await;
    assert_eq!(bob.recv().await["sessions"], 3);
    let mut offline = server.welcomed(&token("ann", "a2")).await;
    assert_eq!(offline.payload().await, "hello");
    for socket in [&mut online, &mut carried, &mut offline] {
        socket.ping().await;
    }
    // Volatile: to connected sessions only.
    bob.send(json!({ "type": "send", "to": { "user": "ann" }, "payload": "now", "volatile": true })).await;
    assert_eq!(bob.recv().await["sessions"], 3);
    assert_eq!(online.payload().await, "now");
    let receipt =
        json!({ "type": "send", "id": "c-2", "to": { "user": "ann" }, "payload": 1, "receipt": true });
    bob.send(receipt).await;
    assert_eq!(bob.error().await, "bad_request");
    let users = server.call("GET", "/v1/users/ann", KEY, "").await.json();
    let names: Vec<&Value> =
        users["sessions"].as_array().unwrap().iter().map(|one| &one["session"]).collect();
    assert_eq!(names, ["a1", "a2", "a3"]);
    assert_eq!(users["connections"]["websocket"], 3);
    assert_eq!(server.call("GET", "/v1/users/nobody", KEY, "").await.code(), "not_found");
}

#[tokio::test]
async fn one_full_mailbox_does_not_keep_a_message_from_the_users_other_sessions() {
    let server = Guarded::with(&["--mailbox-messages", "2"]).await;
    for session in ["a1", "a2"] {
        server.register(session, json!({ "user": "ann" })).await;
    }
    let send = |to: Value| {
        let body = json!({ "to": to, "payload": 1 });
        server.call("POST", "/v1/messages", KEY, body)
    };
    for _ in 0..2 {
        assert_eq!(send(json!({ "session": "a1" })).await.status, 200);
    }
    assert_eq!(send(json!({ "user": "ann" })).await.json(), json!({ "sessions": 1 }));
    assert_eq!(send(json!({ "user": "ann" })).await.json(), json!({ "sessions": 1 }));
    let reply = send(json!({ "user": "ann" })).await;
    assert_eq!((reply.status, reply.code().as_str()), (507, "mailbox_full"));
}

#[tokio::test]
async fn registrations_survive_a_crash_and_end_in_time() {
    let server = Guarded::start().await;
    let handle = server.register("a1", json!({ "user": "ann" })).await["handle"].clone();
    server.register("short", json!({ "user": "ann", "ttl": 0.5 })).await;
    server.register("ended", json!({ "user": "ann" })).await;
    assert_eq!(server.call("DELETE", "/v1/sessions/ended", KEY, "").await.status, 204);
    let server = server.restart().await;
    // The short registration expires soon.
    soon(async {
        while server.call("GET", "/v1/users/ann", KEY, "").await.json()["sessions"].as_array().unwrap().len()
            > 1
        {}
    })
    .await;
    let session = server.call("GET", "/v1/sessions/a1", KEY, "").await.json();
    assert_eq!((&session["user"], &session["handle"]), (&json!("ann"), &handle));
    let mut eve = server.welcomed(&token("eve", "e1")).await;
    let sent = eve.send_to(handle.as_str().unwrap(), json!("by handle")).await;
    let mut ann = server.welcomed(&token("ann", "a1")).await;
    let message = ann.message().await;
    assert_eq!((&message["seq"], &message["payload"]), (&json!(sent), &json!("by handle")));
    // An ended session stays ended for tokens until a backend registers it again.
    let (mut ws, answer) = server.hello(&token("ann", "ended")).await;
    assert_eq!(answer["code"], "unauthorized", "{answer}");
    assert_eq!(ws.closed().await.0, 4502);
    assert_eq!(server.call("GET", "/v1/messages?wait=0", &token("ann", "ended"), "").await.status, 401);
    server.register("ended", json!({ "user": "ann" })).await;
    server.welcomed(&token("ann", "ended")).await;
}

#[tokio::test]
async fn a_session_does_not_change_hands() {
    let server = Guarded::start().await;
    server.register("s", json!({})).await;
    // A user logs in.
    assert_eq!(server.register("s", json!({ "user": "ann" })).await["user"], "ann");
    // A registration without a user keeps the user.
    assert_eq!(server.register("s", json!({ "ttl": 60 })).await["user"], "ann");
    let reply = server.call("PUT", "/v1/sessions/s", KEY, json!({ "user": "eve" })).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    assert!(reply.body.contains("DELETE"), "{}", reply.body);
    let (mut ws, answer) = server.hello(&token("eve", "s")).await;
    assert_eq!(answer["code"], "forbidden");
    assert_eq!(ws.closed().await.0, 4501);
    // After its end, nothing of the session is left for its next user.
    server.call("POST", "/v1/messages", KEY, json!({ "to": { "session": "s" }, "payload": "for ann" })).await;
    assert_eq!(server.call("DELETE", "/v1/sessions/s", KEY, "").await.status, 204);
    server.register("s", json!({ "user": "eve" })).await;
    let mut eve = server.welcomed(&token("eve", "s")).await;
    eve.ping().await;
}

#[tokio::test]
async fn bad_registrations_name_the_field_and_the_limit() {
    let server = Guarded::with(&["--sessions-per-user", "2", "--max-ttl", "1h", "--ttl", "1h"]).await;
    for (body, names) in [
        ("x", "JSON"),
        ("[]", "object"),
        (r#"{"user":7}"#, "user"),
        (r#"{"user":""}"#, "user"),
        (r#"{"ttl":0}"#, "ttl"),
        (r#"{"ttl":"1"}"#, "ttl"),
        (r#"{"ttl":3601}"#, "3600"),
    ] {
        let reply = server.call("PUT", "/v1/sessions/A", KEY, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{body}");
        assert!(reply.body.contains(names), "{body}: {}", reply.body);
    }
    let long = "x".repeat(257);
    for id in ["a%0Ab", long.as_str(), "%FF"] {
        for method in ["PUT", "GET", "DELETE"] {
            let reply = server.call(method, &format!("/v1/sessions/{id}"), KEY, "{\"ttl\":60}").await;
            assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"), "{method} {id}");
        }
    }
    // An id may hold any character that is allowed in a name.
    let odd = server.call("PUT", "/v1/sessions/a%2Fb%20%C3%A4", KEY, "{\"ttl\":60}").await;
    assert_eq!(odd.json()["session"], "a/b ä");
    for session in ["1", "2"] {
        let body = json!({ "user": "ann", "ttl": 60 });
        assert_eq!(server.call("PUT", &format!("/v1/sessions/{session}"), KEY, body).await.status, 200);
    }
    let reply = server.call("PUT", "/v1/sessions/3", KEY, json!({ "user": "ann", "ttl": 60 })).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    assert!(reply.body.contains("--sessions-per-user"), "{}", reply.body);
    let (_, answer) = server.hello(&token("ann", "4")).await;
    assert_eq!(answer["code"], "forbidden", "what a backend has registered stays: {answer}");
    // A page without storage makes new sessions again and again. A session without connections is replaced.
    let sessions = async || {
        let users = server.call("GET", "/v1/users/bob", KEY, "").await.json();
        let sessions = users["sessions"].as_array().unwrap().iter();
        sessions.map(|one| one["session"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let connected = server.welcomed(&token_with("bob", "b1", json!({ "exp": now() + 10 }))).await;
    drop(server.welcomed(&token("bob", "b2")).await);
    soon(async { while server.hello(&token("bob", "b3")).await.1["type"] != "welcome" {} }).await;
    assert_eq!(sessions().await, ["b1", "b3"]);
    // A registration by a backend replaces it too.
    soon(async {
        while server.call("PUT", "/v1/sessions/b4", KEY, json!({ "user": "bob", "ttl": 60 })).await.status
            != 200
        {}
    })
    .await;
    assert_eq!(sessions().await, ["b1", "b4"]);
    drop(connected);
}

/// A registration lasts as long as the longest of its tokens.
#[tokio::test]
async fn a_session_that_is_connected_stays_reachable() {
    let server = Guarded::start().await;
    let first = token_with("ann", "a", json!({ "exp": now() + 600 }));
    let later = token_with("ann", "a", json!({ "exp": now() + 660 }));
    for proof in [first, later] {
        server.welcomed(&proof).await;
    }
    let session = server.call("GET", "/v1/sessions/a", KEY, "").await.json();
    assert!(session["expires"].as_u64().unwrap() >= (now() + 660) * 1000, "{session}");
}

/// The receipts of an ended session are not delivered to the next session of the same name.
#[tokio::test]
async fn nothing_is_left_of_a_session_that_was_ended() {
    let server = Guarded::start().await;
    for (session, user) in [("a", "ann"), ("b", "bob")] {
        server.register(session, json!({ "user": user })).await;
    }
    let mut ann = server.welcomed(&token("ann", "a")).await;
    let handle = server.call("GET", "/v1/sessions/b", KEY, "").await.json()["handle"].clone();
    for (id, to) in [("c-1", json!("a")), ("c-2", handle)] {
        ann.send(json!({ "type": "send", "id": id, "to": { "session": to }, "payload": 1, "receipt": true }))
            .await;
    }
    let mut bob = server.welcomed(&token("bob", "b")).await;
    let seq = bob.message().await["seq"].as_u64().unwrap();
    assert_eq!(server.call("DELETE", "/v1/sessions/a", KEY, "").await.status, 204);
    assert_eq!(server.call("GET", "/v1/sessions/a", KEY, "").await.status, 404, "no receipt waits for it");
    bob.ack(seq).await;
    bob.ping().await;
    let server = server.restart().await;
    assert_eq!(server.call("GET", "/v1/sessions/a", KEY, "").await.status, 404, "nor does one come later");
    server.register("a", json!({ "user": "eve" })).await;
    assert_eq!(server.call("GET", "/v1/messages?wait=0", &token("eve", "a"), "").await.payloads(), NOTHING);
}

/// The end of a session closes its sockets, answers its polls on both protocols, ends its event streams and deletes its
/// mailbox.
#[tokio::test]
async fn ending_a_session_ends_everything_of_it() {
    let server = Guarded::with(&["--poll-timeout", "60s"]).await;
    server.register("s", json!({ "user": "ann" })).await;
    let proof = token("ann", "s");
    let mut sockets = vec![server.welcomed(&proof).await, server.welcomed(&proof).await];
    let mut other = server.welcomed(&token("ann", "other")).await;
    let mut events = Events::with_bearer(server.address, "", &proof).await;
    assert_eq!(events.next().await.name, "welcome");
    let bearer = format!("Bearer {proof}");
    let mut http = server.http().await;
    let poll = tokio::spawn(async move {
        http.request("GET", "/v1/messages?wait=60", &[("authorization", bearer.as_str())], "").await
    });
    let mut http = server.http().await;
    let legacy = tokio::spawn(async move { http.post(&x0_target(), x0_poll("s")).await });
    let all = json!({ "websocket": 2, "sse": 1, "poll": 1, "legacy": 1 });
    wait_for_connections(&server, "/v1/sessions/s", all).await;
    // A message waits for a session without a reader.
    server.register("away", json!({ "user": "ann" })).await;
    server.call("POST", "/v1/messages", KEY, json!({ "to": { "session": "away" }, "payload": 1 })).await;
    assert_eq!(server.call("GET", "/v1/sessions/away", KEY, "").await.json()["pending"], 1);
    for session in ["s", "away"] {
        assert_eq!(server.call("DELETE", &format!("/v1/sessions/{session}"), KEY, "").await.status, 204);
    }
    for socket in &mut sockets {
        let (code, reason) = socket.closed().await;
        assert_eq!(code, 4502);
        assert!(reason.contains("ended"), "{reason}");
    }
    assert!(soon(events.try_next()).await.is_none());
    let reply = soon(poll).await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (401, "unauthorized"));
    let reply = soon(legacy).await.unwrap();
    assert_eq!((reply.status, reply.json()), (200, json!({ "messages": null })));
    for session in ["s", "away"] {
        assert_eq!(server.call("GET", &format!("/v1/sessions/{session}"), KEY, "").await.code(), "not_found");
    }
    // A second end succeeds, and the other session of the user is unchanged.
    assert_eq!(server.call("DELETE", "/v1/sessions/s", KEY, "").await.status, 204);
    other.ping().await;
    server.register("away", json!({ "user": "bob" })).await;
    assert_eq!(
        server.call("GET", "/v1/messages?wait=0", &token("bob", "away"), "").await.payloads(),
        NOTHING
    );
}

/// A socket whose peer does not read cannot send for a session after its end.
#[tokio::test]
async fn a_socket_that_does_not_read_ends_with_its_session() {
    let server = Guarded::start().await;
    let bearer = format!("authorization: Bearer {}\r\n", token("ann", "s"));
    let mut stuck = upgrade(connect_with_small_buffer(server.address), "", &bearer).await;
    let here = json!({ "websocket": 1, "sse": 0, "poll": 0, "legacy": 0 });
    soon(async { while server.call("GET", "/v1/sessions/s", KEY, "").await.status != 200 {} }).await;
    wait_for_connections(&server, "/v1/sessions/s", here).await;
    // More than the buffers of both sides: from here on a write of the server blocks.
    for _ in 0..12 {
        let body = json!({ "to": { "session": "s" }, "payload": "x".repeat(1_000_000) });
        assert_eq!(server.call("POST", "/v1/messages", KEY, body).await.status, 200);
    }
    let mut bob = server.welcomed(&token("bob", "b")).await;
    assert_eq!(server.call("DELETE", "/v1/sessions/s", KEY, "").await.status, 204);
    let send = r#"{"type":"send","to":{"user":"bob"},"payload":"from beyond"}"#;
    let mut frame = vec![0x81, 0x80 | u8::try_from(send.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(send.as_bytes());
    _ = stuck.write_all(&frame).await;
    // The client reads what was sent to it, then the connection ends. Its send had no effect.
    let mut rest = Vec::new();
    _ = soon(stuck.read_to_end(&mut rest)).await;
    bob.ping().await;
}

/// A session that polls is connected between its polls too, until some time after the last one.
#[tokio::test]
async fn a_session_stays_connected_between_its_polls() {
    let server = Guarded::with(&["--poll-timeout", "100ms"]).await;
    server.register("s", json!({ "user": "ann" })).await;
    let proof = token("ann", "s");
    let mut http = server.http().await;
    let bearer = format!("Bearer {proof}");
    let mut after = 0;
    for _ in 0..3 {
        http.x0("s").await;
        let target = format!("/v1/messages?wait=0.05&after={after}");
        let polled = http.request("GET", &target, &[("authorization", bearer.as_str())], "").await;
        after = polled.json()["seq"].as_u64().unwrap();
        let here = json!({ "websocket": 0, "sse": 0, "poll": 1, "legacy": 1 });
        assert_eq!(connections(&server, "/v1/sessions/s").await, here);
        assert_eq!(connections(&server, "/v1/users/ann").await, here);
    }
    let begun = Instant::now();
    let nobody = json!({ "websocket": 0, "sse": 0, "poll": 0, "legacy": 0 });
    wait_for_connections(&server, "/v1/sessions/s", nobody).await;
    assert!(begun.elapsed() >= Duration::from_secs(10), "left after {:?}", begun.elapsed());
}

/// A message that is sent to a session while it is ended is gone afterwards, also after a crash.
#[tokio::test]
async fn a_message_to_a_session_that_ends_is_deleted_with_it() {
    let server = Guarded::with(&["--sessions-per-user", "1000"]).await;
    for round in 0..20 {
        let session = format!("s{round}");
        server.register(&session, json!({ "user": "ann" })).await;
        let sends: Vec<Value> =
            (0..200).map(|n| json!({ "to": { "session": session }, "payload": n })).collect();
        let target = format!("/v1/sessions/{session}");
        let (sent, ended) = tokio::join!(
            server.call("POST", "/v1/messages", KEY, json!(sends)),
            server.call("DELETE", &target, KEY, "")
        );
        assert_eq!((sent.status, ended.status), (200, 204));
    }
    // A message after the end waits for the next registration. A second end deletes it here.
    for round in 0..20 {
        assert_eq!(server.call("DELETE", &format!("/v1/sessions/s{round}"), KEY, "").await.status, 204);
    }
    let server = server.restart().await;
    for round in 0..20 {
        let reply = server.call("GET", &format!("/v1/sessions/s{round}"), KEY, "").await;
        assert_eq!(reply.status, 404, "{}", reply.body);
        server.register(&format!("s{round}"), json!({ "user": "bob" })).await;
        let proof = token("bob", &format!("s{round}"));
        assert_eq!(server.call("GET", "/v1/messages?wait=0", &proof, "").await.payloads(), NOTHING);
    }
}

/// In `open` mode no call needs a key, and sessions work with and without a registration.
#[tokio::test]
async fn in_open_mode_everybody_manages_sessions() {
    let server = TestServer::start().await;
    let mut b = server.session("B").await;
    let reply = server.http().await.request("PUT", "/v1/sessions/B", &[], r#"{"user":"bob"}"#).await;
    let handle = reply.json()["handle"].as_str().unwrap().to_owned();
    for to in [json!({ "session": "B" }), json!({ "session": handle }), json!({ "user": "bob" })] {
        let reply = server.post("/v1/messages?session=A", json!({ "to": to, "payload": 1 })).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(b.message().await["from"], "A");
    }
    assert_eq!(server.get("/v1/sessions/B").await.json()["connections"]["websocket"], 1);
    assert_eq!(server.http().await.request("DELETE", "/v1/sessions/B", &[], "").await.status, 204);
    assert_eq!(b.closed().await.0, 4502);
    // In `open` mode an ended session may come back.
    let mut again = server.session("B").await;
    again.ping().await;
}

/// A browser shows a proxy in front its password in the same header.
#[tokio::test]
async fn an_open_broker_without_keys_ignores_an_authorization_that_is_no_bearer() {
    let server = TestServer::start().await;
    for value in ["Basic eDow", "Digest x", "Bearer", ""] {
        let header = ("authorization", value);
        let mut http = server.http().await;
        for (method, target, body) in [
            ("PUT", "/v1/sessions/B", "{}"),
            ("POST", "/v1/messages", r#"{"to":{"session":"B"},"payload":1}"#),
            ("GET", "/v1/messages?session=B&wait=0", ""),
            ("POST", "/v1/ack", r#"{"session":"B","seq":0}"#),
        ] {
            let reply = http.request(method, target, &[header], body).await;
            assert!(reply.status < 300, "{value}: {method} {target}: {}", reply.body);
        }
        let mut ws = Ws::with_headers(server.address, "?session=A", &[header]).await;
        assert_eq!(ws.recv().await["type"], "welcome", "{value}");
    }
}

/// A user or a session that is named like a handle would pass for the session of that handle.
#[tokio::test]
async fn nobody_takes_a_name_of_the_shape_of_a_handle() {
    const HANDLE: &str = "h-BwcHBwcHBwcHBwcHBwcHBw";
    let guarded = Guarded::start().await;
    for (target, body) in [
        (format!("/v1/sessions/{HANDLE}"), "{}".to_owned()),
        ("/v1/sessions/A".to_owned(), json!({ "user": HANDLE }).to_string()),
    ] {
        let reply = guarded.call("PUT", &target, KEY, body).await;
        assert_eq!(reply.code(), "bad_request", "{target}");
        assert!(reply.body.contains("shape of a handle"), "{}", reply.body);
    }
    for proof in [token(HANDLE, "A"), token("ann", HANDLE)] {
        assert_eq!(guarded.hello(&proof).await.1["code"], "unauthorized");
    }
    let open = TestServer::with(&["--poll-timeout", "100ms"]).await;
    let reply = open.get(&format!("/v1/messages?session={HANDLE}&wait=0")).await;
    assert_eq!(reply.code(), "bad_request");
    let body = json!({ "to": { "session": "B" }, "payload": 1 });
    assert_eq!(open.post(&format!("/v1/messages?session={HANDLE}"), body).await.code(), "bad_request");
    let mut ws = open.ws("").await;
    ws.send(json!({ "type": "hello", "session": HANDLE })).await;
    assert_eq!(ws.error().await, "bad_request");
    assert_eq!(ws.closed().await.0, 4500);
    // The x0 client gets an error of its send, and its poll is held.
    let mut x0 = open.http().await;
    let reply = x0.post(&x0_target(), x0_set(HANDLE, "B", &json!({}))).await;
    assert!(reply.status == 200 && reply.body.contains("shape of a handle"), "{}", reply.body);
    open.send("A", HANDLE, json!({ "n": 1 })).await;
    assert_eq!(x0.x0(HANDLE).await, NOTHING);
}

/// In `open` mode with API keys, the calls of backends need a key. All other calls do not.
#[tokio::test]
async fn api_keys_protect_the_calls_of_backends_in_open_mode_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    std::fs::write(&path, key_file()).unwrap();
    let server = TestServer::with(&["--api-key-file", path.to_str().unwrap()]).await;
    let mut http = server.http().await;
    let bearer = |key: &str| format!("Bearer {key}");
    let mut put = async |key: &str| {
        let bearer = bearer(key);
        let headers = [("authorization", bearer.as_str())];
        let headers: &[_] = if key.is_empty() { &[] } else { &headers };
        of(http.request("PUT", "/v1/sessions/A", headers, "{}").await)
    };
    assert_eq!(put("").await, "forbidden");
    assert_eq!(put("wrong").await, "unauthorized");
    assert_eq!(put(SEND_ONLY).await, "forbidden");
    assert_eq!(put(KEY).await, "ok");
    server.send("X", "A", json!(1)).await;
    let mut a = server.session("A").await;
    assert_eq!(a.payload().await, 1);
    // The configured name of the backend.
    let headers = [("authorization", bearer(KEY))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    http.request("POST", "/v1/messages", &headers, r#"{"to":{"session":"A"},"payload":2}"#).await;
    assert_eq!(a.message().await["from"], "the shop");
}

fn of(reply: Reply) -> String {
    if reply.status < 300 { "ok".to_owned() } else { reply.code() }
}

/// On every native transport, live, stored and after a restart.
#[tokio::test]
async fn a_backend_is_told_from_a_user_of_the_same_name() {
    let server = Guarded::start().await;
    let ann = token("ann", "a");
    let mut live = server.welcomed(&ann).await;
    let mut events = Events::with_bearer(server.address, "", &ann).await;
    assert_eq!(events.next().await.name, "welcome");
    let mut user = server.welcomed(&token("the shop", "u")).await;
    let (by_user, by_backend) = (json!({ "by": "user" }), json!({ "by": "backend" }));
    for volatile in [true, false] {
        let to = json!({ "user": "ann" });
        user.send(json!({ "type": "send", "to": to, "payload": by_user, "volatile": volatile })).await;
        assert_eq!(user.recv().await["type"], "sent");
        let body = json!({ "to": to, "payload": by_backend, "volatile": volatile });
        assert_eq!(server.call("POST", "/v1/messages", KEY, body).await.status, 200);
    }
    let check = |message: &Value| {
        assert_eq!(message["from"], "the shop");
        let expected = (message["payload"] == by_backend).then_some(&Value::Bool(true));
        assert_eq!(message.get("backend"), expected, "{message}");
    };
    for _ in 0..4 {
        check(&live.message().await);
        check(&events.next().await.data);
    }
    let server = server.restart().await;
    let polled = server.call("GET", "/v1/messages?wait=0", &ann, "").await.json();
    let messages = polled["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 2);
    messages.iter().for_each(check);
}
