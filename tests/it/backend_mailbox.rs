//! The mailbox of a backend: sent to by browsers, read with an API key, over every transport.

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

/// A token that may send to the backend `shop`.
fn buyer(session: &str) -> String {
    token_with("ann", session, json!({ "send": ["backend:shop", "user:*"] }))
}

fn to_shop(payload: &Value) -> Value {
    json!({ "type": "send", "to": { "backend": "shop" }, "payload": payload })
}

/// Sends to the backend with this bearer; the seq.
async fn send(server: &Guarded, bearer: &str, payload: Value) -> u64 {
    let reply = server.call("POST", "/v1/messages", bearer, to_shop(&payload)).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["seq"].as_u64().unwrap()
}

/// The answer to a poll of the backend.
async fn poll(server: &Guarded, query: &str) -> Reply {
    let reply = server.call("GET", &format!("/v1/messages?{query}"), SHOP, "").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply
}

/// A socket of the backend that resumes, after its welcome.
async fn resumed(server: &Guarded, key: &str, after: u64, epoch: &Value) -> (Ws, Value) {
    let mut ws = server.ws("").await;
    ws.send(json!({ "type": "hello", "token": key, "after": after, "epoch": epoch })).await;
    let welcome = ws.recv().await;
    assert_eq!((&welcome["type"], &welcome["backend"]), (&json!("welcome"), &json!("shop")), "{welcome}");
    (ws, welcome)
}

#[tokio::test]
async fn a_browser_sends_to_a_backend_which_reads_and_answers_over_a_websocket() {
    let server = Guarded::start().await;
    let mut ann = server.welcomed(&buyer("a")).await;
    let (mut shop, welcome) = server.hello(SHOP).await;
    assert_eq!((&welcome["backend"], &welcome["seq"]), (&json!("shop"), &json!(0)), "{welcome}");
    assert_eq!((welcome.get("session"), welcome.get("user")), (None, None), "{welcome}");
    ann.send(to_shop(&json!({ "order": 1 }))).await;
    let sent = ann.recv().await;
    let message = shop.message().await;
    assert_eq!((&message["seq"], &message["payload"]), (&sent["seq"], &json!({ "order": 1 })));
    let answer = json!({ "type": "send", "to": { "user": message["from"] }, "payload": "thanks" });
    shop.send(answer).await;
    assert_eq!(shop.recv().await["type"], "sent");
    // The name of the backend is what an answer to it needs.
    let answered = ann.message().await;
    assert_eq!((&answered["from"], &answered["backend"]), (&json!("shop"), &json!(true)));
    shop.ack(message["seq"].as_u64().unwrap()).await;
    shop.ping().await;
    let (_, welcome) = server.hello(SHOP).await;
    assert_eq!(welcome["seq"], message["seq"], "the ack floor");
}

#[tokio::test]
async fn what_waits_for_a_backend_outlives_a_crash_and_is_read_on_every_transport() {
    let server = Guarded::start().await;
    let first = send(&server, &buyer("a"), json!(1)).await;
    let second = send(&server, &buyer("a"), json!(2)).await;
    let server = server.restart().await;
    let answer = poll(&server, "wait=0").await;
    assert_eq!(answer.payloads(), [json!(1), json!(2)]);
    let epoch = answer.json()["epoch"].clone();
    // The cursor of a GET, of a stream and of a POST acknowledges.
    assert_eq!(poll(&server, &format!("after={first}&wait=0")).await.payloads(), [json!(2)]);
    let mut events = Events::with_bearer(server.address, "", SHOP).await;
    let welcome = events.next().await;
    assert_eq!((welcome.name.as_str(), &welcome.data["backend"]), ("welcome", &json!("shop")));
    let event = events.next().await;
    assert_eq!((event.id, &event.data["payload"]), (Some(second), &json!(2)));
    let ack = server.call("POST", "/v1/ack", SHOP, json!({ "seq": second, "epoch": epoch })).await;
    assert_eq!(ack.json(), json!({ "backend": "shop", "seq": second }));
    let third = send(&server, &buyer("a"), json!(3)).await;
    assert_eq!(events.next().await.id, Some(third));
    let body = json!({ "token": SHOP_READER, "after": third, "epoch": epoch, "wait": 0 });
    let answer = server.call("POST", "/v1/messages/poll", "", body).await;
    assert_eq!(answer.payloads(), NOTHING);
    // A crash may forget an acknowledgement, but no cursor is lost by it.
    let server = server.restart().await;
    let query = format!("after={third}&epoch={}&wait=0", epoch.as_str().unwrap());
    assert_eq!(poll(&server, &query).await.payloads(), NOTHING);
    // A repeat of what was stored before the crash is stored once.
    let with_id = json!({ "id": "o-1", "to": { "backend": "shop" }, "payload": 4 });
    let stored = server.call("POST", "/v1/messages", &buyer("a"), &with_id).await.json();
    let server = server.restart().await;
    assert_eq!(server.call("POST", "/v1/messages", &buyer("a"), &with_id).await.json(), stored);
    assert_eq!(poll(&server, &query).await.payloads(), [json!(4)]);
}

#[tokio::test]
async fn a_backend_resumes_from_one_transport_to_another() {
    let server = Guarded::start().await;
    let (mut shop, welcome) = resumed(&server, SHOP, 0, &Value::Null).await;
    let epoch = welcome["epoch"].clone();
    let first = send(&server, &buyer("a"), json!(1)).await;
    let second = send(&server, &buyer("a"), json!(2)).await;
    assert_eq!((shop.payload().await, shop.payload().await), (json!(1), json!(2)));
    drop(shop);
    // Nothing was acknowledged: a cursor says what the backend has.
    let query = format!("after={first}&epoch={}&wait=0", epoch.as_str().unwrap());
    assert_eq!(poll(&server, &query).await.payloads(), [json!(2)]);
    let (mut shop, welcome) = resumed(&server, SHOP, second, &epoch).await;
    assert_eq!(welcome["seq"], first, "the poll acknowledged");
    shop.ping().await;
    let (mut behind, _) = resumed(&server, SHOP, first - 1, &epoch).await;
    let gap = behind.recv().await;
    assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("acknowledged")), "{gap}");
    assert_eq!(behind.payload().await, json!(2));
}

#[tokio::test]
async fn readers_of_a_backend_share_one_cursor_and_each_sees_every_message() {
    let server = Guarded::start().await;
    let mut fast = server.welcomed(SHOP).await;
    // Another key of the same name reads the same mailbox.
    let mut slow = server.welcomed(SHOP_READER).await;
    for n in 0..3 {
        send(&server, &buyer("a"), json!(n)).await;
    }
    for n in 0..3 {
        let message = fast.message().await;
        assert_eq!(message["payload"], n);
        fast.ack(message["seq"].as_u64().unwrap()).await;
    }
    fast.ping().await;
    for n in 0..3 {
        assert_eq!(slow.payload().await, n, "the slower one gets it too");
    }
    let (mut third, _) = server.hello(SHOP).await;
    third.ping().await;
    // A topic of the same name is another place.
    let news = json!({ "to": { "topic": "shop" }, "payload": 9 });
    assert_eq!(server.call("POST", "/v1/messages", KEY, news).await.status, 200);
    let session = json!({ "to": { "session": "shop" }, "payload": 9 });
    assert_eq!(server.call("POST", "/v1/messages", KEY, session).await.status, 200);
    slow.ping().await;
}

#[tokio::test]
async fn a_token_needs_a_pattern_to_send_to_a_backend() {
    let server = Guarded::start().await;
    let call = async |claims: Value, to: &str| {
        let body = json!({ "to": { "backend": to }, "payload": 1 });
        let reply = server.call("POST", "/v1/messages", &token_with("ann", "a", claims), body).await;
        if reply.status == 200 { "ok".to_owned() } else { reply.body }
    };
    let without = call(json!({}), "shop").await;
    assert!(without.contains("forbidden") && without.contains("`backend:shop`"), "{without}");
    assert_eq!(call(json!({ "send": ["backend:shop"] }), "shop").await, "ok");
    assert_eq!(call(json!({ "send": ["backend:*"] }), "shop").await, "ok");
    assert_eq!(call(json!({ "send": ["*"] }), "shop").await, "ok");
    for other in ["user:shop", "topic:shop", "session:shop", "backend:bank"] {
        assert!(call(json!({ "send": [other] }), "shop").await.contains("forbidden"), "{other}");
    }
    // A key without a mailbox is no receiver, nor is a name that nobody has.
    for unknown in ["all", "nobody"] {
        let refused = call(json!({ "send": ["backend:*"] }), unknown).await;
        assert!(refused.contains("not_found") && refused.contains("mailbox = true"), "{refused}");
        assert!(call(json!({}), unknown).await.contains("forbidden"), "who may not send learns no name");
    }
    // Over a socket, and from a backend.
    let mut ann = server.welcomed(&token("ann", "a")).await;
    ann.send(to_shop(&json!(1))).await;
    assert_eq!(ann.error().await, "forbidden");
    assert_eq!(server.call("POST", "/v1/messages", KEY, to_shop(&json!(1))).await.status, 200);
    assert_eq!(server.call("POST", "/v1/messages", SHOP_READER, to_shop(&json!(1))).await.status, 403);
}

#[tokio::test]
async fn a_key_without_a_mailbox_reads_none() {
    let server = Guarded::start().await;
    for reply in [
        server.call("GET", "/v1/messages?wait=0", KEY, "").await,
        server.call("GET", "/v1/events", KEY, "").await,
        server.call("POST", "/v1/ack", KEY, json!({ "seq": 1 })).await,
        server.call("POST", "/v1/messages/poll", KEY, json!({ "wait": 0 })).await,
    ] {
        assert_eq!(reply.status, 401, "{}", reply.body);
        assert!(reply.body.contains("mailbox = true"), "{}", reply.body);
    }
    let (mut ws, welcome) = server.hello(KEY).await;
    assert_eq!(welcome.get("backend"), None, "{welcome}");
    ws.ack(1).await;
    assert_eq!(ws.error().await, "unauthorized");
    // A token, and a session of this name, read another mailbox.
    send(&server, &buyer("a"), json!(1)).await;
    let own = server.call("GET", "/v1/messages?wait=0", &token("shop", "shop"), "").await;
    assert_eq!(own.payloads(), NOTHING);
}

#[tokio::test]
async fn an_open_broker_has_mailboxes_of_backends_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    std::fs::write(&path, key_file()).unwrap();
    let server = TestServer::with(&["--api-key-file", path.to_str().unwrap()]).await;
    let mut page = server.session("A").await;
    page.send(to_shop(&json!(1))).await;
    assert_eq!(page.recv().await["type"], "sent");
    let bearer = format!("Bearer {SHOP}");
    let mut shop = Ws::with_headers(server.address, "", &[("authorization", &bearer)]).await;
    assert_eq!(shop.recv().await["backend"], "shop");
    let message = shop.message().await;
    assert_eq!(message["from"], "A");
    shop.send(json!({ "type": "send", "to": { "session": message["from"] }, "payload": 2 })).await;
    assert_eq!(shop.recv().await["type"], "sent");
    assert_eq!(page.payload().await, 2);
    page.send(json!({ "type": "send", "to": { "backend": "all" }, "payload": 1 })).await;
    assert_eq!(page.error().await, "not_found");
    // Without keys there are no backends.
    let server = TestServer::start().await;
    let reply = server.post("/v1/messages?session=A", to_shop(&json!(1))).await;
    assert_eq!((reply.status, reply.code()), (404, "not_found".to_owned()));
}

#[tokio::test]
async fn a_backend_gets_receipts_and_volatile_messages_in_its_mailbox() {
    let server = Guarded::start().await;
    let mut shop = server.welcomed(SHOP).await;
    let mut ann = server.welcomed(&buyer("a")).await;
    shop.send(
        json!({ "type": "send", "id": "c-1", "to": { "session": "a" }, "payload": 1, "receipt": true }),
    )
    .await;
    assert_eq!(shop.recv().await["type"], "sent");
    let seq = ann.message().await["seq"].as_u64().unwrap();
    ann.ack(seq).await;
    let receipt = shop.recv().await;
    assert_eq!((&receipt["type"], &receipt["id"]), (&json!("receipt"), &json!("c-1")), "{receipt}");
    // A browser is told what became of a message to a backend.
    let mut asked = to_shop(&json!(2));
    asked["id"] = json!("o-1");
    asked["receipt"] = json!(true);
    ann.send(asked).await;
    assert_eq!(ann.recv().await["type"], "sent");
    let order = shop.message().await;
    shop.ack(order["seq"].as_u64().unwrap()).await;
    let receipt = ann.recv().await;
    assert_eq!((&receipt["type"], &receipt["state"]), (&json!("receipt"), &json!("acknowledged")));
    let mut volatile = to_shop(&json!(3));
    volatile["volatile"] = json!(true);
    ann.send(volatile).await;
    assert_eq!(ann.recv().await, json!({ "type": "sent" }));
    let message = shop.message().await;
    assert_eq!((message.get("seq"), &message["payload"]), (None, &json!(3)));
    // A key without a mailbox has no place for receipts.
    let body = json!({ "id": "c-1", "to": { "session": "a" }, "payload": 1, "receipt": true });
    let refused = server.call("POST", "/v1/messages", KEY, body).await;
    assert!(refused.status == 401 && refused.body.contains("mailbox = true"), "{}", refused.body);
}

#[tokio::test]
async fn receipts_of_a_backend_outlive_a_crash() {
    let server = Guarded::start().await;
    let body = json!({ "id": "c-1", "to": { "session": "a" }, "payload": 1, "receipt": true });
    assert_eq!(server.call("POST", "/v1/messages", SHOP, body).await.status, 200);
    let server = server.restart().await;
    let mut ann = server.welcomed(&buyer("a")).await;
    let seq = ann.message().await["seq"].as_u64().unwrap();
    ann.ack(seq).await;
    ann.ping().await;
    let receipt = poll(&server, "wait=20").await.json()["messages"][0].clone();
    assert_eq!((&receipt["type"], &receipt["id"]), (&json!("receipt"), &json!("c-1")), "{receipt}");
}

#[tokio::test]
async fn a_full_mailbox_of_a_backend_refuses_its_senders_and_messages_expire() {
    let server = Guarded::with(&["--mailbox-messages", "2"]).await;
    let mut expiring = to_shop(&json!(0));
    expiring["ttl"] = json!(0.001);
    assert_eq!(server.call("POST", "/v1/messages", KEY, expiring).await.status, 200);
    // What has expired makes room.
    for n in 1..3 {
        until_stored(&server, &json!(n)).await;
    }
    let full = server.call("POST", "/v1/messages", KEY, to_shop(&json!(3))).await;
    assert_eq!((full.status, full.code()), (507, "mailbox_full".to_owned()));
    assert_eq!(poll(&server, "wait=0").await.payloads(), [json!(1), json!(2)]);
}

/// Sends until there is room.
async fn until_stored(server: &Guarded, payload: &Value) {
    soon(async { while server.call("POST", "/v1/messages", KEY, to_shop(payload)).await.status != 200 {} })
        .await;
}

#[tokio::test]
async fn the_mailbox_of_a_backend_is_looked_up_and_counted() {
    let server = Guarded::start().await;
    let look_up = async |name: &str, key: &str| {
        let reply = server.call("GET", &format!("/v1/backends/{name}"), key, "").await;
        if reply.status == 200 { reply.json() } else { json!(reply.code()) }
    };
    for n in 0..2 {
        send(&server, &buyer("a"), json!(n)).await;
    }
    let _shop = server.welcomed(SHOP).await;
    let none = json!({ "websocket": 0, "sse": 0, "poll": 0, "legacy": 0 });
    let state = look_up("shop", SHOP_READER).await;
    assert_eq!((&state["backend"], &state["pending"]), (&json!("shop"), &json!(2)), "{state}");
    assert!(state["connections"]["websocket"] == 1 && state["connections"] != none, "{state}");
    assert_eq!(look_up("shop", SESSIONS_ONLY).await, state, "a key that manages sessions");
    assert_eq!(look_up("shop", SEND_ONLY).await, "forbidden");
    assert_eq!(look_up("shop", &buyer("a")).await, "forbidden");
    assert_eq!(look_up("all", KEY).await, "not_found");
    // `check` counts it as a mailbox.
    let report = check_json(&server.path("store"));
    assert_eq!((&report["intact"], &report["mailboxes"]), (&json!(true), &json!(1)), "{report}");
    assert_eq!((&report["topics"], &report["messages"]), (&json!(0), &json!(2)), "{report}");
}

#[tokio::test]
async fn readers_of_a_backend_end_with_its_key() {
    let server = Guarded::with(&["--heartbeat", "1s"]).await;
    let mut shop = server.welcomed(SHOP).await;
    let mut events = Events::with_bearer(server.address, "", SHOP).await;
    assert_eq!(events.next().await.name, "welcome");
    send(&server, KEY, json!(1)).await;
    let seq = shop.message().await["seq"].clone();
    assert_eq!(events.next().await.data["payload"], 1);
    let ann = token("ann", "asked");
    let mut asked = server.welcomed(&ann).await;
    let ask = json!({ "id": "q", "to": { "user": "ann" }, "payload": 1, "request": true });
    assert_eq!(server.call("POST", "/v1/messages", SHOP, ask).await.status, 200);
    let answer = json!({ "to": { "reply": asked.message().await["reply_to"] }, "payload": "late" });
    let key_files = key_file();
    let target = format!("/v1/messages?after={seq}&wait=20");
    let waiting = server.call("GET", &target, SHOP, "");
    let removed = async {
        // The poll has acknowledged when it waits.
        soon(async { while server.hello(SHOP_READER).await.1["seq"] != seq {} }).await;
        let kept = key_files.replace(SHOP, "another-key-0123456789abcdef0123456789abcdef");
        std::fs::write(server.path("keys.toml"), kept).unwrap();
        server.signal(1);
        soon(async { while server.call("GET", "/v1/messages?wait=0", SHOP, "").await.status != 401 {} })
            .await;
        // Another key of the same name keeps the mailbox. What comes is not for the removed one.
        send(&server, KEY, json!(2)).await;
    };
    let (refused, ()) = tokio::join!(waiting, removed);
    assert_eq!((refused.status, refused.code()), (401, "unauthorized".to_owned()), "{}", refused.body);
    assert_eq!(shop.closed().await.0, 4501);
    soon(async { while events.try_next().await.is_some() {} }).await;
    let mut other = server.welcomed(SHOP_READER).await;
    assert_eq!(other.payload().await, 2);
    // Without any key of this name the mailbox is gone for senders, and comes back with the key.
    std::fs::write(server.path("keys.toml"), key_files.replace("mailbox = true", "")).unwrap();
    server.signal(1);
    let mut volatile = to_shop(&json!(3));
    volatile["volatile"] = json!(true);
    let refused = soon(async {
        loop {
            let reply = server.call("POST", "/v1/messages", KEY, &volatile).await;
            if reply.status != 200 {
                return reply;
            }
        }
    })
    .await;
    assert_eq!((refused.status, refused.code()), (404, "not_found".to_owned()));
    let refused = server.call("POST", "/v1/messages", &ann, answer).await;
    assert_eq!(refused.code(), "not_found", "an answer needs the mailbox too");
    assert_eq!(other.closed().await.0, 4501);
    std::fs::write(server.path("keys.toml"), key_files).unwrap();
    server.signal(1);
    soon(async { while server.call("POST", "/v1/messages", KEY, to_shop(&json!(4))).await.status != 200 {} })
        .await;
    assert_eq!(poll(&server, "wait=0").await.payloads(), [json!(2), json!(4)]);
}
