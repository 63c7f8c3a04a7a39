//! Several nodes on NATS: any node serves any session.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::common::*;

mod chaos;
mod faults;
mod haproxy;
mod metrics;
mod partition;
mod sessions;
mod two_nodes;

/// Waits until this call answers so.
async fn becomes(node: &TestServer, target: &str, status: u16) -> Value {
    soon(async {
        loop {
            let reply = node.get(target).await;
            if reply.status == status {
                return reply.json();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_session_moves_between_nodes_without_loss() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut sender = one.session("S").await;
    let mut reader = two.session("R").await;
    let mut seqs = Vec::new();
    for n in 0..20 {
        seqs.push(sender.send_to("R", json!(n)).await);
    }
    assert!(seqs.is_sorted_by(|one, next| one < next), "{seqs:?}");
    for (n, seq) in seqs.iter().enumerate() {
        let message = reader.message().await;
        assert_eq!((&message["payload"], &message["seq"]), (&json!(n), &json!(seq)));
    }
    reader.ack(seqs[9]).await;
    reader.ping().await;
    let epoch = reader.epoch.clone();
    drop(reader);
    // At the other node: everything after the last acknowledgement, which is known there soon.
    let target = format!("/v1/messages?session=R&after={}&epoch={epoch}&wait=0", seqs[9]);
    let answer = one.get(&target).await.json();
    let payloads: Vec<Value> =
        answer["messages"].as_array().unwrap().iter().map(|message| message["payload"].clone()).collect();
    assert_eq!(payloads, (10..20).map(Value::from).collect::<Vec<_>>());
    assert_eq!(floor_becomes(&one, "R", seqs[9]).await["durability"], "unreplicated");
}

/// Waits until a node knows that a session has acknowledged so far. Returns what it welcomes it with.
async fn floor_becomes(node: &TestServer, session: &str, floor: u64) -> Value {
    soon(async {
        loop {
            let mut ws = node.ws("").await;
            ws.send(json!({ "type": "hello", "session": session })).await;
            let welcome = ws.recv().await;
            if welcome["seq"] == floor {
                return welcome;
            }
        }
    })
    .await
}

#[tokio::test]
async fn topics_volatile_messages_and_presence_cross_nodes() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut reader = two.session("R").await;
    reader.send(json!({ "type": "subscribe", "topic": "news" })).await;
    assert_eq!(reader.recv().await["type"], "subscribed");
    let body = json!({ "to": { "topic": "news" }, "payload": 1 });
    assert_eq!(one.post("/v1/messages?session=P", body).await.status, 200);
    let message = reader.message().await;
    assert_eq!((&message["topic"], &message["payload"]), (&json!("news"), &json!(1)));
    let body = json!({ "to": { "session": "R" }, "payload": 2, "volatile": true });
    assert_eq!(one.post("/v1/messages?session=P", body).await.status, 200);
    let message = reader.message().await;
    assert_eq!((&message["payload"], &message["seq"]), (&json!(2), &Value::Null));
    one.attached("R", 1).await;
    // Its end at one node closes its socket at the other.
    let mut http = one.http().await;
    let ended = http.request("DELETE", "/v1/sessions/R", &[], "").await;
    assert_eq!(ended.status, 204, "{}", ended.body);
    assert_eq!(reader.closed().await.0, 4502);
}

#[tokio::test]
async fn a_node_logs_in_with_what_stands_in_an_address() {
    let nats = NatsServer::guarded("x0", "p:w").await;
    let log = nats.refused(&[]).await;
    assert!(log.contains("authorization violation"), "{log}");
    let with_login = nats.url().replace("nats://", "nats://x0:p%3Aw@");
    let node = node_with(&with_login, 1, &["--nats-node", "first"]).await;
    let mut reader = node.ws("?session=R").await;
    assert_eq!(reader.recv().await["node"], "first");
}

#[tokio::test]
async fn a_node_logs_in_with_the_token_in_a_file() {
    let nats = NatsServer::with_token("t0k:en").await;
    let log = nats.refused(&[]).await;
    assert!(log.contains("authorization violation"), "{log}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let flags = ["--nats-token-file", path.to_str().unwrap()];
    std::fs::write(&path, "another\n").unwrap();
    let log = nats.refused(&flags).await;
    assert!(log.contains("authorization violation") && log.contains("check --nats-url"), "{log}");
    assert!(!log.contains("another"), "{log}");
    std::fs::write(&path, "t0k:en\n").unwrap();
    let node = nats.node_with(&flags).await;
    node.send("S", "R", json!(1)).await;
    assert_eq!(node.read_all("R").await.messages.len(), 1);
}

#[tokio::test]
async fn a_retry_at_another_node_is_stored_once() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let send = |payload: u64| json!({ "id": "c-1", "to": { "session": "R" }, "payload": payload });
    let first = one.post("/v1/messages?session=S", send(1)).await.json();
    assert_eq!(two.post("/v1/messages?session=S", send(1)).await.json(), first);
    assert_eq!(two.post("/v1/messages?session=S", send(2)).await.code(), "bad_request");
    assert_eq!(two.read_all("R").await.messages.len(), 1);
}

#[tokio::test]
async fn settings_that_do_not_fit_are_refused_with_what_to_change() {
    let nats = NatsServer::start().await;
    drop(nats.node().await);
    let log = nats.refused(&["--mailbox-messages", "7"]).await;
    assert!(
        log.contains("stream x0_M0 has `max_msgs_per_subject` 10000") && log.contains("ask for 7"),
        "{log}"
    );
    let log = nats.refused(&["--nats-prefix", "other", "--nats-replicas", "3"]).await;
    assert!(log.contains("make stream other_SETUP") && log.contains("replicas"), "{log}");
    let log = nats.refused(&["--max-payload", "1048576"]).await;
    assert!(log.contains("`max_payload` of the NATS servers is 1048576"), "{log}");
    let log = nats.refused(&["--nats-url", "nats://127.77.0.1:1"]).await;
    assert!(log.contains("cannot connect to NATS at nats://127.77.0.1:1"), "{log}");
}

#[tokio::test]
async fn without_nats_a_node_says_so_and_goes_on_afterwards() {
    let mut nats = NatsServer::start().await;
    let node = nats.node().await;
    let mut reader = node.session("R").await;
    let first = node.send("S", "R", json!(1)).await;
    assert_eq!(reader.message().await["seq"], first);
    let metrics = node.get("/metrics").await.body;
    assert!(
        metrics.contains("\nx0_msg_nats_up 1\n") && metrics.contains("\nx0_msg_nats_connects_total 1\n"),
        "{metrics}"
    );
    let page = include_str!("../../web/docs/operating.md");
    let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let of_nats: Vec<_> =
        documented.map(|(name, _)| name).filter(|name| name.starts_with("x0_msg_nats_")).collect();
    assert_eq!(metrics.matches("# TYPE x0_msg_nats_").count(), of_nats.len());
    assert!(of_nats.iter().all(|name| metrics.contains(&format!("# TYPE {name} "))), "{of_nats:?}");
    nats.kill().await;
    let state = becomes(&node, "/readyz", 503).await;
    assert_eq!(state["status"], "degraded", "{state}");
    assert!(node.get("/metrics").await.body.contains("\nx0_msg_nats_up 0\n"));
    assert_eq!(node.get("/healthz").await.status, 200);
    let body = json!({ "id": "c", "to": { "session": "R" }, "payload": 2 });
    assert_eq!(node.post("/v1/messages?session=S", &body).await.code(), "unavailable");
    nats.restart().await;
    becomes(&node, "/readyz", 200).await;
    let sent = soon(async {
        loop {
            let reply = node.post("/v1/messages?session=S", &body).await;
            if reply.status == 200 {
                return reply.json();
            }
        }
    });
    // The reader does nothing, and gets it.
    let sent = sent.await;
    let message = reader.message().await;
    assert_eq!((&message["payload"], &message["seq"]), (&json!(2), &sent["seq"]));
    assert!(message["seq"].as_u64() > Some(first));
}

/// Sends numbered messages, each with an id until it is stored.
async fn send_to(node: &TestServer, to: &str, count: u64) -> Vec<u64> {
    let mut seqs = Vec::new();
    for n in 0..count {
        let body = json!({ "id": n.to_string(), "to": { "session": to }, "payload": n });
        let seq = soon(async {
            loop {
                let reply = node.post("/v1/messages?session=S", &body).await;
                if reply.status == 200 {
                    return reply.json()["seq"].as_u64().unwrap();
                }
            }
        });
        seqs.push(seq.await);
    }
    seqs
}

/// Reads so many numbered messages and acknowledges each. Returns their seqs and numbers.
async fn read_and_ack(reader: &mut Ws, count: u64) -> Vec<(u64, u64)> {
    let mut read = Vec::new();
    for _ in 0..count {
        let message = reader.message().await;
        let seq = message["seq"].as_u64().unwrap();
        read.push((seq, message["payload"].as_u64().unwrap()));
        reader.ack(seq).await;
    }
    read
}

#[tokio::test]
async fn a_server_that_is_killed_again_and_again_loses_and_repeats_nothing() {
    const MESSAGES: u64 = 400;
    const KILLS: usize = 4;
    let mut nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut reader = two.session("R").await;
    let reading = read_and_ack(&mut reader, MESSAGES);
    let killing = async {
        for _ in 0..KILLS {
            // Some messages come through between two kills.
            let mut others = two.session("O").await;
            for n in 0..20 {
                two.send("P", "O", json!(n)).await;
                let seq = others.message().await["seq"].as_u64().unwrap();
                others.ack(seq).await;
            }
            nats.kill().await;
            becomes(&one, "/readyz", 503).await;
            nats.restart().await;
            becomes(&one, "/readyz", 200).await;
            becomes(&two, "/readyz", 200).await;
        }
    };
    let (seqs, read, ()) = futures::join!(send_to(&one, "R", MESSAGES), reading, killing);
    let sent: Vec<(u64, u64)> = seqs.into_iter().zip(0..MESSAGES).collect();
    assert_eq!(read, sent);
    assert!(one.read_all("R").await.messages.keys().all(|seq| *seq <= sent.last().unwrap().0));
}

#[tokio::test]
async fn a_node_that_is_killed_takes_nothing_with_it() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let sent: Vec<u64> = send_to(&one, "R", 10).await;
    let mut reader = one.session("R").await;
    for seq in &sent[..5] {
        assert_eq!(reader.message().await["seq"], *seq);
    }
    one.kill().await;
    assert_eq!(send_to(&two, "R", 11).await[..10], sent, "the ids are known at the other node");
    let mailbox = two.read_all("R").await;
    assert_eq!(
        mailbox.messages.values().cloned().collect::<Vec<_>>(),
        (0..11).map(Value::from).collect::<Vec<_>>()
    );
    assert!(mailbox.gaps.is_empty());
}

#[tokio::test]
async fn each_of_three_servers_may_be_killed_in_turn() {
    const MESSAGES: u64 = 200;
    let mut servers = NatsServer::cluster::<3>().await;
    // The servers elect a leader first.
    let start = async || loop {
        if let Ok(node) = node_on(&servers).await {
            return node;
        }
    };
    let (one, two) = (soon(start()).await, soon(start()).await);
    let mut reader = two.session("R").await;
    let reading = read_and_ack(&mut reader, MESSAGES);
    let killing = async {
        for (round, server) in servers.iter_mut().enumerate() {
            server.kill().await;
            // The others go on.
            send_to(&two, &format!("killed{round}"), 10).await;
            server.restart().await;
            send_to(&two, &format!("started{round}"), 10).await;
        }
    };
    let (seqs, read, ()) = futures::join!(send_to(&one, "R", MESSAGES), reading, killing);
    assert_eq!(read, seqs.into_iter().zip(0..MESSAGES).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_missed_until_it_is_made_anew() {
    let nats = NatsServer::start().await;
    let node = nats.node().await;
    let mut reader = node.session("R").await;
    node.send("S", "R", json!(1)).await;
    assert_eq!(reader.message().await["payload"], 1);
    for shard in 0..8 {
        nats.delete_stream(&format!("x0_M{shard}")).await;
    }
    let state = becomes(&node, "/readyz", 503).await;
    assert!(state["failing"][0].as_str().unwrap().contains("stream x0_M0 is missing"), "{state}");
    let body = json!({ "to": { "session": "R" }, "payload": 2 });
    assert_eq!(node.post("/v1/messages?session=S", &body).await.code(), "unavailable");
    let log = nats.refused(&[]).await;
    assert!(log.contains("stream x0_M0 is missing, though this cluster was set up before"), "{log}");
    let other = nats.node_with(&["--nats-create"]).await;
    becomes(&node, "/readyz", 200).await;
    let gap = reader.recv().await;
    assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("epoch")));
    let seq = other.send("S", "R", json!(3)).await;
    let message = reader.message().await;
    assert_eq!((&message["payload"], &message["seq"]), (&json!(3), &json!(seq)));
}

#[tokio::test]
async fn unanswered_sends_to_one_mailbox_keep_their_order_over_kills() {
    const MESSAGES: u64 = 600;
    let mut nats = NatsServer::start().await;
    let node = nats.node().await;
    let mut sender = node.session("S").await;
    for n in 0..MESSAGES {
        let id = n.to_string();
        sender.send(json!({ "type": "send", "id": id, "to": { "session": "R" }, "payload": n })).await;
        if n % 200 == 150 {
            nats.kill().await;
            nats.restart().await;
        }
    }
    let mut sent = Vec::new();
    for _ in 0..MESSAGES {
        let answer = sender.recv().await;
        let id: u64 = answer["id"].as_str().unwrap().parse().unwrap();
        match answer["type"].as_str() {
            Some("sent") => sent.push((answer["seq"].as_u64().unwrap(), id)),
            _ => assert_eq!(answer["code"], "unavailable", "{answer}"),
        }
    }
    sent.sort_unstable();
    let ids: Vec<u64> = sent.iter().map(|(_, id)| *id).collect();
    assert!(ids.len() > 100 && ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    becomes(&node, "/readyz", 200).await;
    let stored = node.read_all("R").await.messages;
    let payloads: Vec<u64> = stored.values().map(|payload| payload.as_u64().unwrap()).collect();
    assert!(payloads.is_sorted_by(|one, next| one < next), "{payloads:?}");
    assert!(sent.iter().all(|(seq, id)| stored.get(seq) == Some(&json!(id))));
}

#[tokio::test]
async fn a_receipt_comes_for_what_expires_where_nobody_reads() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut sender = one.session("S").await;
    let send = |id: &str, ttl: u64| {
        json!({
            "type": "send", "id": id, "to": { "session": "R" }, "payload": 1, "ttl": ttl, "receipt": true,
        })
    };
    sender.send(send("short", 1)).await;
    let sent = sender.recv().await;
    assert_eq!(sent["type"], "sent", "{sent}");
    sender.send(send("long", 3600)).await;
    let long = sender.recv().await["seq"].clone();
    let receipt = sender.recv().await;
    assert_eq!((&receipt["type"], &receipt["id"]), (&json!("receipt"), &json!("short")), "{receipt}");
    assert_eq!(receipt["state"], "expired");
    // It is gone, and not told once more.
    let mut reader = two.session("R").await;
    assert_eq!(reader.message().await["seq"], long);
    reader.ack(long.as_u64().unwrap()).await;
    let receipt = sender.recv().await;
    assert_eq!((&receipt["id"], &receipt["state"]), (&json!("long"), &json!("acknowledged")), "{receipt}");
}

#[tokio::test]
async fn a_retry_does_not_change_when_a_message_expires_and_makes_its_schedule_again() {
    let nats = NatsServer::start().await;
    let node = nats.node().await;
    let send = async |ttl: u64| {
        let body = json!({ "id": "1", "to": { "session": "R" }, "payload": 1, "ttl": ttl, "receipt": true });
        let reply = node.post("/v1/messages?session=S", body).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    };
    let scheduled = async || {
        let found = nats.ask("STREAM.MSG.GET.x0_S", &json!({ "last_by_subj": "x0.s.>" })).await;
        let headers = found["message"]["hdrs"].as_str().unwrap_or_else(|| panic!("{found}"));
        let headers = String::from_utf8(STANDARD.decode(headers).unwrap()).unwrap();
        headers.lines().find(|line| line.starts_with("Nats-Schedule: @at ")).unwrap().to_owned()
    };
    send(3600).await;
    let first = scheduled().await;
    send(7200).await;
    assert_eq!(scheduled().await, first);
    // As if the first node had ended before it scheduled it.
    let purged = nats.ask("STREAM.PURGE.x0_S", &json!({})).await;
    assert_eq!(purged["purged"], 1, "{purged}");
    send(7200).await;
    assert_eq!(scheduled().await, first);
}

#[tokio::test]
async fn what_is_acknowledged_just_before_the_end_of_a_node_stays_so() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut reader = one.session("R").await;
    let seq = one.send("S", "R", json!(1)).await;
    assert_eq!(reader.message().await["seq"], seq);
    reader.ack(seq).await;
    reader.ping().await;
    one.stop().await;
    assert!(two.read_all("R").await.messages.is_empty());
}

#[tokio::test]
async fn a_full_mailbox_says_how_many_messages_it_has_and_ids_are_known_for_two_minutes() {
    let nats = NatsServer::start().await;
    let node = nats.node_with(&["--mailbox-messages", "2"]).await;
    assert_eq!(node.get("/v1/messages?session=R&wait=0").await.json()["dedup_window"], 120);
    for n in 0..2 {
        node.send("S", "R", json!(n)).await;
    }
    let refused =
        node.post("/v1/messages?session=S", json!({ "to": { "session": "R" }, "payload": 3 })).await;
    assert_eq!(refused.code(), "mailbox_full");
    assert!(refused.body.contains("(2 messages waiting; at most 2 messages)"), "{}", refused.body);
}
