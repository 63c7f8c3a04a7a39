//! Server-Sent Events: the id is the seq, `Last-Event-ID` resumes and acknowledges.

use serde_json::json;

use crate::common::*;

#[tokio::test]
async fn messages_are_events_and_the_last_id_resumes() {
    let server = TestServer::start().await;
    let seqs = [server.send("A", "B", json!(1)).await, server.send("A", "B", json!(2)).await];
    let mut events = Events::open(&server, "?session=B", None).await;
    let welcome = events.next().await;
    assert_eq!((welcome.name.as_str(), welcome.id, &welcome.data["session"]), ("welcome", None, &json!("B")));
    for (seq, n) in seqs.into_iter().zip(1..) {
        let event = events.next().await;
        assert_eq!((event.name.as_str(), event.id), ("message", Some(seq)));
        assert_eq!((&event.data["payload"], &event.data["from"]), (&json!(n), &json!("A")));
    }
    let live = server.send("A", "B", json!(3)).await;
    assert_eq!(events.next().await.id, Some(live));
    drop(events);
    let mut events = Events::open(&server, "?session=B", Some(seqs[1])).await;
    assert_eq!(events.next().await.data["seq"], seqs[1], "the last id is an acknowledgement");
    assert_eq!(events.next().await.data["payload"], 3);
}

#[tokio::test]
async fn a_payload_over_several_lines_arrives_whole() {
    let server = TestServer::start().await;
    let body = "{\"to\":{\"session\":\"B\"},\"payload\":{\r\n\"a\":\n1,\r\"b\":2}}";
    assert_eq!(server.post("/v1/messages", body).await.status, 200);
    let mut events = Events::open(&server, "?session=B", None).await;
    events.next().await;
    assert_eq!(events.next().await.data["payload"], json!({ "a": 1, "b": 2 }));
}

#[tokio::test]
async fn topics_come_without_an_id_so_that_they_acknowledge_nothing() {
    let server = TestServer::start().await;
    let mut events = Events::open(&server, "?session=B&topic=news", None).await;
    assert_eq!(events.next().await.name, "welcome");
    assert_eq!(events.next().await.name, "subscribed");
    server.post("/v1/messages", json!({ "to": { "topic": "news" }, "payload": 1 })).await;
    let event = events.next().await;
    assert_eq!((event.name.as_str(), event.id, &event.data["topic"]), ("message", None, &json!("news")));
}

#[tokio::test]
async fn a_gap_is_an_event_of_its_own() {
    let server = TestServer::start().await;
    let seqs = [server.send("A", "B", json!(1)).await, server.send("A", "B", json!(2)).await];
    server.post("/v1/ack", json!({ "session": "B", "seq": seqs[1] })).await;
    let mut events = Events::open(&server, &format!("?session=B&after={}", seqs[0]), None).await;
    events.next().await;
    let gap = events.next().await;
    assert_eq!(
        (gap.name.as_str(), gap.id, &gap.data["reason"]),
        ("gap", Some(seqs[1]), &json!("acknowledged"))
    );
}
