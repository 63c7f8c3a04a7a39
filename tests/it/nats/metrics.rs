//! What a node on NATS counts.

use serde_json::json;

use crate::common::*;
use crate::metrics::{Scrape, until};

#[tokio::test]
async fn a_node_counts_what_it_stores_and_what_leaves() {
    let nats = NatsServer::start().await;
    let node = nats.node_with(&["--dedup-window", "1s"]).await;
    let mut reader = node.session("R").await;
    let mut seqs = Vec::new();
    for n in 0..3 {
        seqs.push(node.send("S", "R", json!(n)).await);
    }
    reader.ack(seqs[1]).await;
    until(&node, "x0_msg_messages_acknowledged_total", 2.0).await;
    // As NATS tells at the next check.
    until(&node, "x0_msg_stored_messages{kind=\"mailbox\"}", 1.0).await;
    let scrape = Scrape::new(&node).await;
    let figures = ["x0_msg_append_commit_seconds_count", "x0_msg_mailboxes", "x0_msg_append_queue_messages"];
    assert_eq!(figures.map(|name| scrape.value(name)), [3.0, 1.0, 0.0]);
    assert!(scrape.value("x0_msg_append_commit_seconds_sum") > 0.0);
    let (bytes, limit) = (scrape.value("x0_msg_stored_bytes"), scrape.value("x0_msg_store_limit_bytes"));
    assert!(bytes > 0.0 && limit == 67_108_864.0, "{bytes} of {limit}");
    assert!(!scrape.names().contains("x0_msg_oldest_unread_seconds"));
}

#[tokio::test]
async fn what_expires_to_make_room_is_counted() {
    let nats = NatsServer::start().await;
    let node = nats.node_with(&["--mailbox-messages", "2"]).await;
    let send = async |ttl: &str| {
        let body = format!(r#"{{"to":{{"session":"R"}},"payload":1{ttl}}}"#);
        node.http().await.request("POST", "/v1/messages?session=S", &[], body).await.status
    };
    assert_eq!([send(r#","ttl":1"#).await, send(r#","ttl":1"#).await], [200; 2]);
    // The second one may expire a moment later than the first.
    for _ in 0..2 {
        soon(async { while send("").await != 200 {} }).await;
    }
    assert_eq!(Scrape::new(&node).await.value("x0_msg_messages_expired_total"), 2.0);
}
