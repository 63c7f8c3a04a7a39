//! Requests, and the one answer that each allows: at every door, in both modes.

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

fn ask(id: &str, to: &Value) -> Value {
    json!({ "type": "send", "id": id, "to": to, "payload": { "question": id }, "request": true })
}

fn answer(reply_to: &Value, payload: &Value) -> Value {
    json!({ "type": "send", "to": { "reply": reply_to }, "payload": payload })
}

/// The request in a poll of this session, with its `reply_to`.
async fn asked(server: &TestServer, session: &str) -> Value {
    let polled = server.get(&format!("/v1/messages?session={session}&wait=5")).await.json();
    let message = polled["messages"][0].clone();
    assert!(message["reply_to"].is_string(), "{polled}");
    message
}

/// Sends as this session, over HTTP.
async fn post(server: &TestServer, session: &str, send: &Value) -> Reply {
    server.post(&format!("/v1/messages?session={session}"), send).await
}

fn assert_reply(frame: &Value, id: &str, payload: &Value) {
    assert!(frame["seq"].is_u64() && frame["ts"].is_u64(), "{frame}");
    assert_eq!((&frame["type"], &frame["id"], &frame["payload"]), (&json!("reply"), &json!(id), payload));
}

#[tokio::test]
async fn a_request_is_answered_over_each_door() {
    let server = TestServer::start().await;
    let mut requester = server.session("A").await;
    let mut events = Events::open(&server, "?session=A", None).await;
    assert_eq!(events.next().await.name, "welcome");
    let mut answerer = server.session("B").await;
    requester.send(ask("over-ws", &json!({ "session": "B" }))).await;
    assert_eq!(requester.recv().await["type"], "sent");
    let request = answerer.message().await;
    assert_eq!((&request["from"], &request["payload"]), (&json!("A"), &json!({ "question": "over-ws" })));
    answerer.send(answer(&request["reply_to"], &json!("by ws"))).await;
    assert_eq!(answerer.recv().await["type"], "sent");
    let reply = requester.recv().await;
    assert_reply(&reply, "over-ws", &json!("by ws"));
    assert_eq!(reply["from"], "B");
    let event = events.next().await;
    assert_eq!((event.name.as_str(), event.id, &event.data), ("reply", reply["seq"].as_u64(), &reply));
    answerer.ack(request["seq"].as_u64().unwrap()).await;
    answerer.ping().await;

    // Asked and answered in bodies.
    let sent = post(&server, "A", &ask("over-http", &json!({ "session": "C" }))).await;
    assert_eq!(sent.status, 200, "{}", sent.body);
    let request = asked(&server, "C").await;
    let mut reply = answer(&request["reply_to"], &json!([1]));
    reply["session"] = json!("C");
    let replied = server.post("/v1/messages", reply).await;
    assert_eq!(replied.status, 200, "{}", replied.body);
    let reply = requester.recv().await;
    assert_reply(&reply, "over-http", &json!([1]));
    assert_eq!(replied.json()["seq"], reply["seq"]);
    let polled = server.post("/v1/messages/poll", json!({ "session": "A", "wait": 0 })).await.json();
    assert_eq!(polled["messages"][1], reply, "a poll has the same frames");

    // An event stream has the request.
    let mut events = Events::open(&server, "?session=D", None).await;
    assert_eq!(events.next().await.name, "welcome");
    requester.send(ask("by-sse", &json!({ "session": "D" }))).await;
    assert_eq!(requester.recv().await["type"], "sent");
    let request = events.next().await.data;
    assert_eq!(post(&server, "D", &answer(&request["reply_to"], &json!(2))).await.status, 200);
    assert_reply(&requester.recv().await, "by-sse", &json!(2));
}

#[tokio::test]
async fn one_answer_is_delivered() {
    let server = TestServer::start().await;
    let mut requester = server.session("A").await;
    requester.send(ask("q", &json!({ "session": "B" }))).await;
    assert_eq!(requester.recv().await["type"], "sent");
    let reply_to = asked(&server, "B").await["reply_to"].clone();
    let first = post(&server, "B", &answer(&reply_to, &json!("yes"))).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let again = post(&server, "B", &answer(&reply_to, &json!("yes"))).await;
    assert_eq!(again.json()["seq"], first.json()["seq"], "a repeat");
    let mut other = server.session("B").await;
    other.message().await;
    other.send(answer(&reply_to, &json!("no"))).await;
    let refused = other.recv().await;
    assert_eq!(refused["code"], "forbidden");
    assert!(refused["message"].as_str().unwrap().contains("has been answered"), "{refused}");
    assert_reply(&requester.recv().await, "q", &json!("yes"));
    requester.ping().await;
    // A retry of the request finds it sent, and asks nobody again.
    let retried = post(&server, "A", &ask("q", &json!({ "session": "B" }))).await;
    assert_eq!(retried.status, 200);
    other.ping().await;
}

#[tokio::test]
async fn only_who_was_asked_may_answer_and_nothing_else_opens() {
    let server = TestServer::start().await;
    assert_eq!(post(&server, "A", &ask("q", &json!({ "session": "B" }))).await.status, 200);
    let reply_to = asked(&server, "B").await["reply_to"].as_str().unwrap().to_owned();
    for (session, text) in [("A", "answer as its session"), ("C", "answer as its session")] {
        let refused = post(&server, session, &answer(&json!(reply_to), &json!(1))).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"), "{session}");
        assert!(refused.body.contains(text), "{}", refused.body);
    }
    let nobody = server.post("/v1/messages", answer(&json!(reply_to), &json!(1))).await;
    assert_eq!(nobody.code(), "forbidden");
    let flipped = if reply_to.starts_with('A') { "B" } else { "A" };
    let altered = [
        format!("{flipped}{}", &reply_to[1..]),
        reply_to[..reply_to.len() - 1].to_owned(),
        format!("{reply_to}A"),
        "forged".to_owned(),
    ];
    for altered in altered {
        let refused = post(&server, "B", &answer(&json!(altered), &json!(1))).await;
        assert_eq!(refused.code(), "forbidden", "{altered}");
    }
    let long = post(&server, "B", &answer(&json!("x".repeat(3000)), &json!(1))).await;
    assert_eq!(long.code(), "bad_request");
    // Another broker's.
    let other = TestServer::start().await;
    assert_eq!(post(&other, "B", &answer(&json!(reply_to), &json!(1))).await.code(), "forbidden");
    assert_eq!(post(&server, "B", &answer(&json!(reply_to), &json!(1))).await.status, 200);
}

#[tokio::test]
async fn a_request_outlives_a_restart_and_ends_with_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::at(dir.path(), &[]).await;
    assert_eq!(post(&server, "A", &ask("q", &json!({ "session": "B" }))).await.status, 200);
    let mut short = ask("short", &json!({ "session": "C" }));
    short["ttl"] = json!(0.5);
    short["volatile"] = json!(true);
    let mut reader = server.session("C").await;
    assert_eq!(post(&server, "A", &short).await.status, 200);
    let late = reader.recv().await["reply_to"].clone();
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    let reply_to = asked(&server, "B").await["reply_to"].clone();
    assert_eq!(post(&server, "B", &answer(&reply_to, &json!(1))).await.status, 200);
    server.kill().await;
    let server = TestServer::at(dir.path(), &[]).await;
    let second = post(&server, "B", &answer(&reply_to, &json!(2))).await;
    assert_eq!(second.code(), "forbidden", "the answer is remembered");
    let polled = server.get("/v1/messages?session=A&wait=0").await.json();
    assert_reply(&polled["messages"][0], "q", &json!(1));
    let expired = soon(async {
        loop {
            let reply = post(&server, "C", &answer(&late, &json!(1))).await;
            if reply.status != 200 {
                return reply;
            }
        }
    })
    .await;
    assert_eq!((expired.status, expired.code().as_str()), (404, "not_found"));
    assert!(expired.body.contains("is over"), "{}", expired.body);
}

#[tokio::test]
async fn volatile_requests_and_replies_reach_whoever_listens() {
    let server = TestServer::start().await;
    let (mut requester, mut answerer) = (server.session("A").await, server.session("B").await);
    let mut request = ask("v", &json!({ "session": "B" }));
    request["volatile"] = json!(true);
    requester.send(request).await;
    assert_eq!(requester.recv().await, json!({ "type": "sent", "id": "v" }));
    let request = answerer.recv().await;
    assert!(request.get("seq").is_none() && request["reply_to"].is_string(), "{request}");
    let mut reply = answer(&request["reply_to"], &json!(7));
    reply["volatile"] = json!(true);
    answerer.send(reply).await;
    assert_eq!(answerer.recv().await["type"], "sent");
    let reply = requester.recv().await;
    assert!(reply.get("seq").is_none(), "{reply}");
    assert_eq!((&reply["type"], &reply["id"], &reply["payload"]), (&json!("reply"), &json!("v"), &json!(7)));
}

#[tokio::test]
async fn what_cannot_be_a_request_is_refused() {
    let server = TestServer::start().await;
    let to = json!({ "session": "B" });
    for (request, text) in [
        (ask("q", &json!({ "topic": "news" })), "a topic"),
        (ask("q", &json!({ "reply": "x" })), "replies"),
        (json!({ "to": to, "payload": 1, "request": true }), "needs an `id`"),
        (json!({ "to": to, "payload": 1, "id": "q", "request": "yes" }), "`request` must be true or false"),
    ] {
        let refused = post(&server, "A", &request).await;
        assert_eq!(refused.code(), "bad_request", "{request}");
        assert!(refused.body.contains(text), "{}", refused.body);
    }
    let nobody = server.post("/v1/messages", ask("q", &to)).await;
    assert_eq!(nobody.code(), "unauthorized");
    assert!(nobody.body.contains("needs a mailbox"), "{}", nobody.body);
}

/// Ids of sessions are in nothing that another one gets, and a `send` list does not forbid an answer.
#[tokio::test]
async fn users_answer_with_tokens_and_learn_no_ids() {
    let server = Guarded::start().await;
    let (requester_id, answerer_id) = ("secret-of-ann", "secret-of-bob");
    let ann = token("ann", requester_id);
    let bob = token_with("bob", answerer_id, json!({ "send": [] }));
    let (mut requester, mut answerer) = (server.welcomed(&ann).await, server.welcomed(&bob).await);
    let mut second = server.welcomed(&token("bob", "second-of-bob")).await;
    let eve = token("eve", "e");
    server.welcomed(&eve).await;
    requester.send(ask("q", &json!({ "user": "bob" }))).await;
    assert_eq!(requester.recv().await, json!({ "type": "sent", "id": "q", "sessions": 2 }));
    let (request, other) = (answerer.message().await, second.message().await);
    assert_eq!(request["from"], "ann");
    assert!(!request.to_string().contains("secret"), "{request}");
    for thief in [&eve, &ann, KEY] {
        let stolen =
            server.call("POST", "/v1/messages", thief, answer(&request["reply_to"], &json!(1))).await;
        assert_eq!(stolen.code(), "forbidden", "{thief}");
    }
    // Each session has a `reply_to` of its own; the first answer counts.
    let crossed = server.call("POST", "/v1/messages", &bob, answer(&other["reply_to"], &json!(1))).await;
    assert_eq!(crossed.code(), "forbidden");
    answerer.send(answer(&request["reply_to"], &json!("first"))).await;
    assert_eq!(answerer.recv().await["type"], "sent");
    second.send(answer(&other["reply_to"], &json!("second"))).await;
    assert_eq!(second.recv().await["code"], "forbidden");
    let reply = requester.recv().await;
    assert_reply(&reply, "q", &json!("first"));
    assert_eq!(reply["from"], "bob");
    assert!(!reply.to_string().contains("secret"), "{reply}");
    // This backend has no mailbox for a reply.
    let backend = server.call("POST", "/v1/messages", KEY, ask("q", &json!({ "user": "bob" }))).await;
    assert_eq!(backend.code(), "unauthorized");
}

/// The session of the requester passes to another user: the answer reaches nobody.
#[tokio::test]
async fn an_answer_is_for_the_user_who_asked() {
    let server = Guarded::start().await;
    for (session, body) in
        [("of-ann", json!({ "user": "ann" })), ("of-none", json!({})), ("of-bob", json!({ "user": "bob" }))]
    {
        server.register(session, body).await;
    }
    let bob = token("bob", "of-bob");
    let mut answerer = server.welcomed(&bob).await;
    // x0 pages hold a session by its id: here a token for the session of ann.
    let ann = token("ann", "of-ann");
    let asked = server.call("POST", "/v1/messages", &ann, ask("q", &json!({ "user": "bob" }))).await;
    assert_eq!(asked.status, 200, "{}", asked.body);
    let reply_to = answerer.message().await["reply_to"].clone();
    assert_eq!(server.call("DELETE", "/v1/sessions/of-ann", KEY, "").await.status, 204);
    let mut volatile = answer(&reply_to, &json!(1));
    volatile["volatile"] = json!(true);
    let answers = [answer(&reply_to, &json!(1)), volatile];
    for answer in &answers {
        let ended = server.call("POST", "/v1/messages", &bob, answer.clone()).await;
        assert_eq!(ended.code(), "not_found");
    }
    server.register("of-ann", json!({ "user": "eve" })).await;
    for answer in &answers {
        let passed = server.call("POST", "/v1/messages", &bob, answer.clone()).await;
        assert_eq!(passed.code(), "not_found");
    }
}

#[tokio::test]
async fn an_x0_page_gets_a_request_as_a_message_and_no_replies() {
    let server = TestServer::start().await;
    assert_eq!(post(&server, "A", &ask("q", &json!({ "session": "B" }))).await.status, 200);
    let reply_to = asked(&server, "B").await["reply_to"].clone();
    assert_eq!(post(&server, "B", &answer(&reply_to, &json!(1))).await.status, 200);
    assert_eq!(server.http().await.x0("B").await, [json!({ "question": "q" })]);
    server.send("B", "A", json!({ "n": 1 })).await;
    assert_eq!(server.http().await.x0("A").await, [json!({ "n": 1 })], "the reply before it is left out");
}

#[tokio::test]
async fn a_full_mailbox_refuses_a_reply_which_can_be_repeated() {
    let server = TestServer::with(&["--mailbox-messages", "2"]).await;
    assert_eq!(post(&server, "A", &ask("q", &json!({ "session": "B" }))).await.status, 200);
    let reply_to = asked(&server, "B").await["reply_to"].clone();
    server.send("B", "A", json!(1)).await;
    let newest = server.send("B", "A", json!(2)).await;
    let full = post(&server, "B", &answer(&reply_to, &json!(1))).await;
    assert_eq!(full.code(), "mailbox_full");
    server.post("/v1/ack", json!({ "session": "A", "seq": newest })).await;
    assert_eq!(post(&server, "B", &answer(&reply_to, &json!(1))).await.status, 200);
    let polled = server.get("/v1/messages?session=A&wait=0").await.json();
    assert_reply(&polled["messages"][0], "q", &json!(1));
}

/// A client that works on a message reads its reply, which is behind it, and acknowledges neither.
#[tokio::test]
async fn a_poll_reads_on_without_acknowledging() {
    let server = TestServer::start().await;
    let seq = server.send("S", "A", json!(1)).await;
    let poll = |after: u64, ack: bool, wait: u64| {
        let poll = json!({ "session": "A", "after": after, "ack": ack, "wait": wait });
        server.post("/v1/messages/poll", poll)
    };
    assert_eq!(poll(seq, false, 0).await.payloads(), NOTHING);
    let (waiting, second) = tokio::join!(poll(seq, false, 5), server.send("S", "A", json!(2)));
    assert_eq!(waiting.payloads(), [json!(2)]);
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.payloads(), [json!(1), json!(2)]);
    assert_eq!(poll(second, true, 0).await.payloads(), NOTHING);
    assert_eq!(server.get("/v1/messages?session=A&wait=0").await.payloads(), NOTHING);
}

/// Over WebSocket and over HTTP, in both directions.
#[tokio::test]
async fn a_backend_with_a_mailbox_answers_and_asks() {
    let server = Guarded::start().await;
    let ann = token_with("ann", "a", json!({ "send": ["backend:shop"] }));
    let mut page = server.welcomed(&ann).await;
    let mut shop = server.welcomed(SHOP).await;
    for (id, over_http) in [("over-ws", false), ("over-http", true)] {
        page.send(ask(id, &json!({ "backend": "shop" }))).await;
        assert_eq!(page.recv().await["type"], "sent");
        let request = shop.message().await;
        let answer = answer(&request["reply_to"], &json!({ "for": id }));
        for other in [KEY, &ann] {
            let refused = server.call("POST", "/v1/messages", other, &answer).await;
            assert_eq!(refused.code(), "forbidden");
        }
        if over_http {
            let polled = server.call("GET", "/v1/messages?wait=5", SHOP, "").await.json();
            assert_eq!(polled["messages"][1]["reply_to"], request["reply_to"]);
            assert_eq!(server.call("POST", "/v1/messages", SHOP, &answer).await.status, 200);
        } else {
            shop.send(answer).await;
            assert_eq!(shop.recv().await["type"], "sent");
        }
        let reply = page.recv().await;
        assert_reply(&reply, id, &json!({ "for": id }));
        assert_eq!((&reply["from"], &reply["backend"]), (&json!("shop"), &json!(true)));
    }
    let asked = server.call("POST", "/v1/messages", SHOP, ask("of-shop", &json!({ "user": "ann" }))).await;
    assert_eq!(asked.status, 200, "{}", asked.body);
    let request = page.message().await;
    assert_eq!(request["backend"], true);
    page.send(answer(&request["reply_to"], &json!("ok"))).await;
    assert_eq!(page.recv().await["type"], "sent");
    let reply = shop.recv().await;
    assert_reply(&reply, "of-shop", &json!("ok"));
    assert_eq!(reply["from"], "ann");
}

#[tokio::test]
async fn the_command_line_asks_and_answers() {
    let server = TestServer::start().await;
    let url = format!("http://{}", server.address);
    let mut answerer = server.session("B").await;
    let asking = tokio::task::spawn_blocking({
        let url = url.clone();
        move || command(&["send", "--request", "--to", "B", r#"{"n":1}"#, "--server", &url])
    });
    let request = answerer.message().await;
    assert_eq!(request["payload"], json!({ "n": 1 }));
    let reply_to = request["reply_to"].as_str().unwrap().to_owned();
    let told = tokio::task::spawn_blocking({
        let url = url.clone();
        move || command(&["send", "--reply", &reply_to, "--from", "B", r#"{"ok":true}"#, "--server", &url])
    });
    assert!(told.await.unwrap().unwrap().starts_with("sent, seq "));
    assert_eq!(asking.await.unwrap().unwrap(), "{\"ok\":true}\n");
    let nobody = tokio::task::spawn_blocking(move || {
        command(&["send", "--request", "--to", "C", "1", "--ttl", "0.2", "--server", &url])
    });
    assert!(nobody.await.unwrap().unwrap_err().contains("no reply within 0.2 s"));
}
