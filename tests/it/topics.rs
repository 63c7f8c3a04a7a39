//! Topics: live messages, history, volatile messages, and gaps.

use serde_json::json;

use crate::common::*;
use crate::guarded::*;

async fn publish(server: &TestServer, topic: &str, payload: serde_json::Value) -> u64 {
    let body = json!({ "to": { "topic": topic }, "payload": payload });
    server.post("/v1/messages?session=P", body).await.json()["seq"].as_u64().unwrap()
}

#[tokio::test]
async fn everyone_who_subscribes_gets_what_comes_from_then_on() {
    let server = TestServer::start().await;
    let old = publish(&server, "news", json!("old")).await;
    let mut readers = Vec::new();
    for n in 0..5 {
        let mut reader = server.session(&format!("R{n}")).await;
        reader.send(json!({ "type": "subscribe", "topic": "news" })).await;
        let subscribed = json!({ "type": "subscribed", "topic": "news", "seq": old, "recovered": true });
        assert_eq!(reader.recv().await, subscribed);
        readers.push(reader);
    }
    let new = publish(&server, "news", json!("new")).await;
    publish(&server, "other", json!("not for them")).await;
    for reader in &mut readers {
        let message = reader.message().await;
        assert_eq!((&message["topic"], &message["seq"]), (&json!("news"), &json!(new)));
        assert_eq!((&message["from"], &message["payload"]), (&json!("P"), &json!("new")));
        reader.ping().await;
    }
}

#[tokio::test]
async fn after_reads_the_history_and_reports_a_gap() {
    let server = TestServer::with(&["--topic-messages", "3"]).await;
    let mut seqs = Vec::new();
    for n in 0..5 {
        seqs.push(publish(&server, "news", json!(n)).await);
    }
    let mut reader = server.session("R").await;
    reader
        .send(json!({ "type": "subscribe", "topic": "news", "after": seqs[1], "epoch": reader.epoch }))
        .await;
    assert_eq!(reader.recv().await["recovered"], true);
    for n in 2..5 {
        assert_eq!(reader.payload().await, n);
    }
    let mut late = server.session("L").await;
    late.send(json!({ "type": "subscribe", "topic": "news", "after": seqs[0] })).await;
    assert_eq!(late.recv().await["recovered"], false);
    let gap = json!({ "type": "gap", "topic": "news", "from": seqs[0], "to": seqs[1], "reason": "expired" });
    assert_eq!(late.recv().await, gap);
    for n in 2..5 {
        assert_eq!(late.payload().await, n);
    }
    let mut foreign = server.session("F").await;
    foreign.send(json!({ "type": "subscribe", "topic": "news", "after": seqs[4], "epoch": "another" })).await;
    assert_eq!(foreign.recv().await["recovered"], false);
    assert_eq!(foreign.recv().await["reason"], "epoch");
    assert_eq!(foreign.payload().await, 2);
}

#[tokio::test]
async fn unsubscribe_ends_it_and_subscribing_again_works() {
    let server = TestServer::start().await;
    let mut reader = server.session("R").await;
    for topic in ["a", "b"] {
        reader.send(json!({ "type": "subscribe", "topic": topic })).await;
        assert_eq!(reader.recv().await["type"], "subscribed");
    }
    reader.send(json!({ "type": "unsubscribe", "topic": "a" })).await;
    assert_eq!(reader.recv().await, json!({ "type": "unsubscribed", "topic": "a" }));
    publish(&server, "a", json!(1)).await;
    publish(&server, "b", json!(2)).await;
    assert_eq!(reader.message().await["topic"], "b");
    reader.ping().await;
    reader.send(json!({ "type": "unsubscribe", "topic": "a" })).await;
    assert_eq!(reader.error().await, "not_found");
    reader.send(json!({ "type": "subscribe", "topic": "a" })).await;
    assert_eq!(reader.recv().await["type"], "subscribed");
    publish(&server, "a", json!(3)).await;
    assert_eq!(reader.payload().await, 3);
}

#[tokio::test]
async fn topics_of_one_connection_are_limited() {
    let server = TestServer::with(&["--max-topics", "2"]).await;
    let mut reader = server.session("R").await;
    for topic in ["a", "b", "b"] {
        reader.send(json!({ "type": "subscribe", "topic": topic })).await;
        assert_eq!(reader.recv().await["type"], "subscribed");
    }
    reader.send(json!({ "type": "subscribe", "topic": "c" })).await;
    assert_eq!(reader.error().await, "forbidden");
    let reply = server.get("/v1/messages?session=R&topic=a&topic=b&topic=c&wait=0").await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
}

#[tokio::test]
async fn volatile_topic_messages_leave_no_history() {
    let server = TestServer::start().await;
    let mut reader = server.session("R").await;
    reader.send(json!({ "type": "subscribe", "topic": "who" })).await;
    reader.recv().await;
    let body = json!({ "to": { "topic": "who" }, "payload": 1, "volatile": true });
    assert_eq!(server.post("/v1/messages", body).await.json(), json!({}));
    let message = reader.message().await;
    assert_eq!((message.get("seq"), &message["topic"]), (None, &json!("who")));
    let mut late = server.session("L").await;
    late.send(json!({ "type": "subscribe", "topic": "who", "after": 0 })).await;
    assert_eq!(late.recv().await["type"], "subscribed");
    late.ping().await;
}

/// A reader can resume with the cursor of a topic without messages.
#[tokio::test]
async fn the_cursor_of_an_empty_topic_loses_nothing() {
    let server = TestServer::start().await;
    let mut reader = server.session("R").await;
    reader.send(json!({ "type": "subscribe", "topic": "new" })).await;
    let seq = reader.recv().await["seq"].clone();
    drop(reader);
    let polled = server.get("/v1/messages?session=P&topic=new&wait=0").await.json();
    publish(&server, "new", json!(1)).await;
    let mut reader = server.session("R").await;
    reader.send(json!({ "type": "subscribe", "topic": "new", "after": seq })).await;
    assert_eq!(reader.recv().await["recovered"], true);
    assert_eq!(reader.payload().await, 1);
    let (after, topic) = (&polled["seq"], &polled["topics"]["new"]);
    let target = format!("/v1/messages?session=P&after={after}&topic=new&after.new={topic}&wait=0");
    assert_eq!(server.get(&target).await.payloads(), [1]);
    // From the very beginning.
    assert_eq!(server.get("/v1/messages?session=Q&topic=new&after.new=0&wait=0").await.payloads(), [1]);
}

#[tokio::test]
async fn topics_are_read_without_a_session_in_open_mode() {
    let server = TestServer::start().await;
    let first = publish(&server, "news", json!(1)).await;
    let answer = server.get("/v1/messages?topic=news&wait=0").await.json();
    assert_eq!((&answer["topics"]["news"], &answer["messages"]), (&json!(first), &json!([])));
    let mut http = server.http().await;
    let target = format!("/v1/messages?topic=news&after.news={first}&wait=20");
    let waiting = tokio::spawn(async move { http.get(&target).await });
    let mut events = Events::open(&server, &format!("?topic=news&after.news={first}"), None).await;
    let welcome = events.next().await;
    assert_eq!((welcome.name.as_str(), &welcome.data["session"]), ("welcome", &json!(null)));
    assert_eq!(events.next().await.name, "subscribed");
    let second = publish(&server, "news", json!(2)).await;
    let reply = soon(waiting).await.unwrap();
    assert_eq!((reply.payloads(), &reply.json()["topics"]["news"]), (vec![json!(2)], &json!(second)));
    let message = events.next().await;
    assert_eq!((&message.data["topic"], &message.data["payload"]), (&json!("news"), &json!(2)));
    // A poll that does not wait gets what is stored.
    let reply = server.get("/v1/messages?topic=news&after.news=0&wait=0").await;
    assert_eq!(reply.payloads(), [1, 2]);
    for target in ["/v1/messages?wait=0", "/v1/events"] {
        let refused = server.get(target).await;
        assert_eq!((refused.status, refused.code().as_str()), (401, "unauthorized"), "{target}");
    }
}

#[tokio::test]
async fn an_api_key_reads_the_topics_that_it_may_read() {
    let server = Guarded::start().await;
    let poll = async |bearer: &str, query: &str| {
        server.call("GET", &format!("/v1/messages?wait=0{query}"), bearer, "").await
    };
    let mut events = Events::with_bearer(server.address, "?topic=news", TOPICS_ONLY).await;
    assert_eq!(events.next().await.name, "welcome");
    assert_eq!(events.next().await.name, "subscribed");
    let cursor = poll(KEY, "&topic=news").await.json()["topics"]["news"].clone();
    let body = json!({ "to": { "topic": "news" }, "payload": 1 }).to_string();
    assert_eq!(server.call("POST", "/v1/messages", KEY, body).await.status, 200);
    assert_eq!(poll(KEY, &format!("&topic=news&after.news={cursor}")).await.payloads(), [1]);
    assert_eq!(events.next().await.data["payload"], 1);
    for (bearer, query, status) in [
        (SEND_ONLY, "&topic=news", 403),
        ("", "&topic=news", 401),
        (KEY, "", 401),
        (KEY, "&topic=news&session=A", 403),
    ] {
        assert_eq!(poll(bearer, query).await.status, status, "{query}");
    }
}
