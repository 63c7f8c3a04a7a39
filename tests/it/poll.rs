//! The native long-poll: the cursor of the next poll acknowledges.

use serde_json::{Value, json};

use crate::common::*;
use crate::guarded::*;

#[tokio::test]
async fn a_waiting_poll_is_answered_when_a_message_comes() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    let poll = tokio::spawn(async move { http.get("/v1/messages?session=B&wait=20").await });
    let seq = server.send("A", "B", json!({ "n": 1 })).await;
    let reply = soon(poll).await.unwrap();
    let body = reply.json();
    assert_eq!(body["seq"], seq);
    assert_eq!(body["messages"][0]["from"], "A");
    assert_eq!(body["messages"][0]["type"], "message");
    assert_eq!(reply.header("cache-control"), "no-store");
}

#[tokio::test]
async fn the_next_cursor_acknowledges_and_a_repeated_one_repeats() {
    let server = TestServer::start().await;
    for n in 1..=3 {
        server.send("A", "B", json!(n)).await;
    }
    let mut http = server.http().await;
    let first = http.get("/v1/messages?session=B&wait=0").await;
    assert_eq!(first.payloads(), [1, 2, 3]);
    let second = first.json()["messages"][1]["seq"].as_u64().unwrap();
    for _ in 0..2 {
        let reply = http.get(&format!("/v1/messages?session=B&after={second}&wait=0")).await;
        assert_eq!(reply.payloads(), [3]);
    }
    let last = first.json()["seq"].as_u64().unwrap();
    let reply = http.get(&format!("/v1/messages?session=B&after={last}&wait=0")).await;
    assert_eq!((reply.payloads().len(), reply.json()["seq"].as_u64()), (0, Some(last)));
    // The cursor acknowledged them: they do not come again.
    assert_eq!(server.get("/v1/messages?session=B&wait=0").await.payloads().len(), 0);
}

#[tokio::test]
async fn a_foreign_cursor_acknowledges_nothing() {
    let server = TestServer::start().await;
    let seq = server.send("A", "B", json!(1)).await;
    for query in [format!("after={seq}&epoch=another"), format!("after={}", seq + 1_000_000)] {
        let reply = server.get(&format!("/v1/messages?session=B&{query}&wait=0")).await;
        assert_eq!(reply.payloads(), [1]);
        assert_eq!(reply.json()["gaps"][0]["reason"], "epoch");
    }
}

#[tokio::test]
async fn many_messages_come_in_limited_answers() {
    let server = TestServer::start().await;
    let sends: Vec<_> = (0..250).map(|n| json!({ "to": { "session": "B" }, "payload": n })).collect();
    server.post("/v1/messages", json!(sends)).await;
    let (mut after, mut got, mut answers) = (0, Vec::new(), 0);
    while got.len() < 250 {
        let reply = server.get(&format!("/v1/messages?session=B&after={after}&wait=0")).await;
        assert!(reply.payloads().len() <= 100);
        got.extend(reply.payloads());
        after = reply.json()["seq"].as_u64().unwrap();
        answers += 1;
    }
    assert_eq!(got, (0..250).map(|n| json!(n)).collect::<Vec<_>>());
    assert!(answers >= 3);
}

#[tokio::test]
async fn topics_are_polled_with_their_own_cursors() {
    let server = TestServer::start().await;
    let publish = async |n: i32| {
        server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": n })).await;
    };
    publish(0).await;
    let mut http = server.http().await;
    let first = http.get("/v1/messages?session=B&topic=news&wait=0").await;
    assert_eq!(first.payloads().len(), 0, "from now on");
    // Two messages between two polls, one of them volatile.
    publish(1).await;
    server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": 2, "volatile": true })).await;
    let at = first.json()["topics"]["news"].as_u64().unwrap();
    let second = http.get(&format!("/v1/messages?session=B&topic=news&after.news={at}&wait=0")).await;
    assert!(second.payloads().contains(&json!(1)), "{}", second.body);
    assert_eq!(second.json()["messages"][0]["topic"], "news");
    // A poll with the same cursor repeats a lost answer.
    let again = server.get(&format!("/v1/messages?session=B&topic=news&after.news={at}&wait=0")).await;
    assert_eq!(again.payloads(), [json!(1)]);
}

#[tokio::test]
async fn volatile_messages_wait_between_two_polls() {
    let server = TestServer::start().await;
    let mut http = server.http().await;
    server.send("A", "B", json!(1)).await;
    let first = http.get("/v1/messages?session=B&wait=0").await;
    let volatile = json!({ "to": { "session": "B" }, "payload": "v", "volatile": true });
    server.post("/v1/messages", volatile).await;
    let seq = &first.json()["seq"];
    let reply = http.get(&format!("/v1/messages?session=B&after={seq}&wait=0")).await;
    assert_eq!(reply.payloads(), ["v"]);
}

#[tokio::test]
async fn head_changes_nothing_and_does_not_wait() {
    let server = Guarded::start().await;
    let proof = token("ann", "A");
    let head = async |target: &str, bearer: &str| {
        let reply = server.call("HEAD", target, bearer, "").await;
        assert_eq!(reply.body, "");
        reply
    };
    // A poll of an empty mailbox would wait for a minute.
    let poll = "/v1/messages?session=A&wait=60";
    assert_eq!(head(poll, &proof).await.header("content-type"), "application/json");
    assert_eq!(head("/v1/events?session=A", &proof).await.header("content-type"), "text/event-stream");
    // The token of a GET would have registered the session.
    assert_eq!(server.call("GET", "/v1/sessions/A", KEY, "").await.json()["user"], json!(null));
    let body = json!({ "user": "ann", "ttl": 60 }).to_string();
    assert_eq!(server.call("PUT", "/v1/sessions/A", KEY, body).await.status, 200);
    let body = json!({ "to": { "session": "A" }, "payload": 1 }).to_string();
    let seq = server.call("POST", "/v1/messages", KEY, body).await.json()["seq"].as_u64().unwrap();
    for target in ["/v1/messages?wait=0&after=", "/v1/events?after="] {
        assert_eq!(head(&format!("{target}{seq}"), &proof).await.status, 200);
    }
    let unread = server.call("GET", "/v1/messages?session=A&wait=0", &proof, "").await;
    assert_eq!(unread.payloads(), [1]);
    // What is refused is refused.
    for (target, bearer, status) in [
        (poll, "", 401),
        (poll, "wrong", 401),
        ("/v1/messages?wait=61", &*proof, 400),
        ("/v1/events", "", 401),
    ] {
        assert_eq!(head(target, bearer).await.status, status, "{target}");
    }
}

#[tokio::test]
async fn tabs_are_read_in_one_call_each_with_its_own_proof() {
    let server = Guarded::start().await;
    let (ann, bob) = (token("ann", "A"), token("bob", "B"));
    let call = |after: [&Value; 2], wait: u64| {
        let [a, b] = after;
        let ann = json!({ "session": "A", "token": ann, "after": a, "wait": wait, "topics": [{ "topic": "secret" }] });
        json!([ann, { "token": bob, "after": b, "wait": wait }, { "session": "A", "token": bob, "wait": wait }])
    };
    let first = server.call("POST", "/v1/messages/poll", "", call([&Value::Null; 2], 0)).await.json();
    assert_eq!(first[0]["errors"][0]["code"], "forbidden", "{first}");
    assert_eq!((&first[1]["session"], &first[1]["dedup_window"]), (&json!("B"), &json!(900)), "{first}");
    assert_eq!(first[2]["error"]["code"], "forbidden", "{first}");
    let sent = json!({ "token": ann, "to": { "user": "bob" }, "payload": 7 });
    assert_eq!(server.call("POST", "/v1/messages", "", sent).await.status, 200);
    let next = server
        .call("POST", "/v1/messages/poll", "", call([&first[0]["seq"], &first[1]["seq"]], 20))
        .await
        .json();
    assert_eq!(
        (&next[1]["messages"][0]["payload"], &next[1]["messages"][0]["from"]),
        (&json!(7), &json!("ann"))
    );
    assert_eq!(next[0]["messages"], json!([]));
}

#[tokio::test]
async fn a_page_polls_without_a_preflight() {
    let server = TestServer::with(&["--allow-origin", "http://app.test"]).await;
    server.send("A", "B", json!(1)).await;
    let mut http = server.http().await;
    let body = json!({ "session": "B", "wait": 0 }).to_string();
    let headers = |origin| [("content-type", "text/plain"), ("origin", origin)];
    let reply = http.request("POST", "/v1/messages/poll", &headers("http://app.test"), body.clone()).await;
    assert_eq!(
        (reply.payloads(), reply.header("access-control-allow-origin")),
        (vec![json!(1)], "http://app.test")
    );
    let reply = http.request("POST", "/v1/messages/poll", &headers("http://evil.test"), body).await;
    assert_eq!((reply.status, reply.code()), (403, "forbidden".to_owned()));
}

/// Each of several polls is a reader of its session: a call does not pass the limit.
#[tokio::test]
async fn several_polls_of_a_session_in_one_call_count_as_its_readers() {
    let server = TestServer::with(&["--connections-per-session", "4"]).await;
    let _ws = server.session("A").await;
    let polls: Value = (0..16).map(|_| json!({ "session": "A", "wait": 20 })).collect();
    let answers = server.post("/v1/messages/poll", polls).await.json();
    let refused = answers.as_array().unwrap().iter().filter(|answer| answer.get("error").is_some());
    let codes: Vec<_> = refused.map(|answer| answer["error"]["code"].clone()).collect();
    assert!(!codes.is_empty() && codes.iter().all(|code| *code == "rate_limited"), "{answers}");
    let connections = server.get("/v1/sessions/A").await.json()["connections"].clone();
    assert_eq!((&connections["websocket"], &connections["poll"]), (&json!(1), &json!(3)), "{connections}");
}
