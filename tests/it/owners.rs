//! A mailbox belongs to the user that its session was registered for.

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// Looks a session up until `found` says that it is as expected.
async fn look_up(server: &TestServer, key: &str, session: &str, found: impl Fn(&Value) -> bool) {
    let target = format!("/v1/sessions/{session}");
    let bearer = format!("Bearer {key}");
    let mut http = server.http().await;
    soon(async {
        while !found(&http.request("GET", &target, &[("authorization", bearer.as_str())], "").await.json()) {}
    })
    .await;
}

async fn unregistered(server: &TestServer, key: &str, session: &str) {
    look_up(server, key, session, |found| found.get("expires").is_none()).await;
}

/// Registers a session for a moment, and waits until that is over.
async fn expire(server: &TestServer, session: &str, user: &str) {
    put(server, session, json!({ "user": user, "ttl": 0.5 })).await;
    unregistered(server, "", session).await;
}

async fn put(server: &TestServer, session: &str, body: Value) {
    let target = format!("/v1/sessions/{session}");
    let reply = server.http().await.request("PUT", &target, &[], body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

async fn polled(server: &TestServer, session: &str) -> Vec<Value> {
    server.get(&format!("/v1/messages?session={session}&wait=0")).await.payloads()
}

#[tokio::test]
async fn the_next_user_of_a_name_does_not_get_what_waits_for_the_last_one() {
    for restart in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = TestServer::at(dir.path(), &[]).await;
        for (session, user) in [("kiosk", "u1"), ("other", "u1")] {
            put(&server, session, json!({ "user": user })).await;
        }
        let to_user = json!({ "to": { "user": "u1" }, "payload": "for u1" });
        assert_eq!(server.post("/v1/messages", to_user).await.json(), json!({ "sessions": 2 }));
        let to_session = json!({ "id": "c-1", "to": { "session": "kiosk" }, "payload": 2, "receipt": true });
        server.post("/v1/messages?session=S", to_session).await;
        expire(&server, "kiosk", "u1").await;
        expire(&server, "other", "u1").await;
        if restart {
            server.kill().await;
            server = TestServer::at(dir.path(), &[]).await;
        }
        put(&server, "kiosk", json!({ "user": "u2" })).await;
        put(&server, "other", json!({ "user": "u1" })).await;
        assert_eq!(polled(&server, "kiosk").await, NOTHING, "restart: {restart}");
        assert_eq!(polled(&server, "other").await, ["for u1"], "the same user finds it");
        let receipts = server.get("/v1/messages?session=S&wait=10").await.json();
        assert_eq!(receipts["messages"][0]["state"], "expired");
        // What comes from here on is for u2, after a crash too.
        server.send("S", "kiosk", json!("for u2")).await;
        server.kill().await;
        let server = TestServer::at(dir.path(), &[]).await;
        assert_eq!(polled(&server, "kiosk").await, ["for u2"], "restart: {restart}");
    }
}

#[tokio::test]
async fn in_open_mode_the_next_user_gets_what_came_while_nobody_was_registered() {
    let server = TestServer::start().await;
    server.send("S", "kiosk", json!(1)).await;
    put(&server, "kiosk", json!({ "user": "u1" })).await;
    assert_eq!(polled(&server, "kiosk").await, [1]);
    server.send("S", "kiosk", json!(2)).await;
    expire(&server, "kiosk", "u1").await;
    server.send("S", "kiosk", json!(3)).await;
    put(&server, "kiosk", json!({ "user": "u2" })).await;
    assert_eq!(polled(&server, "kiosk").await, [3]);
    // Nobody owned this one.
    put(&server, "nobody", json!({})).await;
    server.send("S", "nobody", json!(4)).await;
    put(&server, "nobody", json!({ "ttl": 0.5 })).await;
    unregistered(&server, "", "nobody").await;
    put(&server, "nobody", json!({ "user": "u2" })).await;
    assert_eq!(polled(&server, "nobody").await, [4]);
}

/// A token of `user` for session `kiosk`.
fn kiosk(user: &str) -> String {
    token(user, "kiosk")
}

/// Shortens the registration of `kiosk`, and waits until it is over.
async fn expire_kiosk(server: &Guarded, body: Value) {
    server.register("kiosk", body).await;
    unregistered(server, KEY, "kiosk").await;
}

async fn send(server: &Guarded, to: Value, payload: &str) {
    let reply = server.call("POST", "/v1/messages", KEY, json!({ "to": to, "payload": payload })).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[tokio::test]
async fn the_token_of_another_user_does_not_get_what_waits() {
    let server = Guarded::start().await;
    drop(server.welcomed(&kiosk("u1")).await);
    send(&server, json!({ "user": "u1" }), "for u1").await;
    expire_kiosk(&server, json!({ "user": "u1", "ttl": 0.5 })).await;
    send(&server, json!({ "session": "kiosk" }), "for whoever comes").await;
    let reply = server.call("GET", "/v1/messages?wait=0", &kiosk("u2"), "").await;
    assert_eq!(reply.payloads(), ["for whoever comes"]);
    assert_eq!(server.call("GET", "/v1/messages?wait=0", &kiosk("u1"), "").await.code(), "forbidden");
}

/// A client reached a session without a user by its handle: the next user is somebody else.
#[tokio::test]
async fn in_token_mode_a_user_does_not_get_what_came_for_a_session_without_one() {
    let server = Guarded::start().await;
    let handle = server.register("kiosk", json!({})).await["handle"].as_str().unwrap().to_owned();
    let mut eve = server.welcomed(&token("eve", "e")).await;
    eve.send_to(&handle, json!("for the visitor")).await;
    expire_kiosk(&server, json!({ "ttl": 0.5 })).await;
    assert_eq!(server.call("GET", "/v1/messages?wait=0", &kiosk("u2"), "").await.payloads(), NOTHING);
}

/// On every transport the readers of the last user end, and read nothing more of the mailbox nor of topics.
#[tokio::test]
async fn the_readers_of_the_last_user_end() {
    let server = Guarded::start().await;
    let topics = |user: &str| token_with(user, "kiosk", json!({ "topics": ["news"] }));
    let mut socket = server.welcomed(&topics("u1")).await;
    socket.send(json!({ "type": "subscribe", "topic": "news" })).await;
    assert_eq!(socket.recv().await["type"], "subscribed");
    let mut events = Events::with_bearer(server.address, "?topic=news", &topics("u1")).await;
    assert_eq!(events.next().await.name, "welcome");
    assert_eq!(events.next().await.name, "subscribed");
    let bearer = format!("Bearer {}", topics("u1"));
    let mut http = server.http().await;
    let poll = tokio::spawn(async move {
        http.request("GET", "/v1/messages?wait=60&topic=news", &[("authorization", bearer.as_str())], "")
            .await
    });
    let all = json!({ "websocket": 1, "sse": 1, "poll": 1, "legacy": 0 });
    look_up(&server, KEY, "kiosk", |found| found["connections"] == all).await;
    expire_kiosk(&server, json!({ "user": "u1", "ttl": 0.5 })).await;
    server.register("kiosk", json!({ "user": "u2" })).await;
    send(&server, json!({ "topic": "news" }), "to readers of topics").await;
    send(&server, json!({ "session": "kiosk" }), "for u2").await;
    assert_eq!(socket.closed().await.0, 4004);
    assert!(soon(events.try_next()).await.is_none());
    let reply = soon(poll).await.unwrap();
    assert_eq!((reply.status, reply.payloads()), (200, NOTHING.to_vec()));
    let (mut again, answer) = server.hello(&topics("u1")).await;
    assert_eq!(answer["code"], "forbidden");
    assert_eq!(again.closed().await.0, 4501);
    let mut u2 = server.welcomed(&topics("u2")).await;
    assert_eq!(u2.payload().await, "for u2");
}

/// What a poll of the last user has left behind on the server is not for the next one.
#[tokio::test]
async fn nothing_is_left_in_a_reader_between_two_polls() {
    let server = TestServer::with(&["--poll-timeout", "100ms"]).await;
    put(&server, "kiosk", json!({ "user": "u1" })).await;
    let mut http = server.http().await;
    assert_eq!(http.x0("kiosk").await, NOTHING);
    assert_eq!(polled(&server, "kiosk").await, NOTHING);
    for volatile in [false, true] {
        let body = json!({ "to": { "user": "u1" }, "payload": { "for": "u1" }, "volatile": volatile });
        assert_eq!(server.post("/v1/messages", body).await.status, 200);
    }
    expire(&server, "kiosk", "u1").await;
    put(&server, "kiosk", json!({ "user": "u2" })).await;
    assert_eq!(polled(&server, "kiosk").await, NOTHING);
    assert_eq!(http.x0("kiosk").await, NOTHING);
}

/// The bar of an ended session lasts as long as a token of it that was seen.
#[tokio::test]
async fn an_ended_session_does_not_come_back_with_a_longer_token() {
    let server = Guarded::with(&["--session-ttl", "1s", "--dedup-window", "1s"]).await;
    let _connected = server.welcomed(&kiosk("u1")).await;
    assert_eq!(server.call("DELETE", "/v1/sessions/kiosk", KEY, "").await.status, 204);
    // Other sessions, whose tokens were not seen, tell when --session-ttl is over, twice.
    for unseen in ["1", "2"] {
        assert_eq!(server.call("DELETE", &format!("/v1/sessions/{unseen}"), KEY, "").await.status, 204);
        soon(async { while server.hello(&token("u1", unseen)).await.1["type"] != "welcome" {} }).await;
    }
    assert_eq!(server.hello(&kiosk("u1")).await.1["code"], "unauthorized");
    let server = server.restart().await;
    assert_eq!(server.hello(&kiosk("u1")).await.1["code"], "unauthorized");
}
