//! Servers that hang, that are cut off, that go away and that restart, and a node that dies at the worst moment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{becomes, floor_becomes, read_and_ack, send_to};
use crate::common::*;

/// No reader waits longer for a stored message once all servers are well.
pub const WAIT: Duration = Duration::from_secs(10);

/// Signals that stop a process, and let it go on.
pub const STOP: i32 = 19;
pub const CONTINUE: i32 = 18;

pub fn is_long() -> bool {
    std::env::var_os("X0_MSG_LONG_TESTS").is_some()
}

/// Which of the servers leads the stream that holds the only mailbox.
pub async fn leader(servers: &[NatsServer]) -> usize {
    for shard in 0..8 {
        let info = servers[0].ask(&format!("STREAM.INFO.x0_M{shard}"), &Value::Null).await;
        if info["state"]["messages"] != 0 {
            let name = info["cluster"]["leader"].as_str().unwrap().to_owned();
            return name[1..].parse().unwrap();
        }
    }
    panic!("no stream holds a message")
}

/// An x0 page polls, and is answered when its poll ends: after ten seconds.
async fn poll_of_ten_seconds(page: &mut Http) {
    let began = Instant::now();
    assert_eq!(page.x0("page").await, NOTHING);
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_leader_that_hangs_loses_and_repeats_nothing() {
    const MESSAGES: u64 = 30;
    let servers = NatsServer::cluster::<3>().await;
    let urls = servers.each_ref().map(NatsServer::url).join(",");
    let (one, two) = (node_with(&urls, 3, &[]).await, node_with(&urls, 3, &[]).await);
    let mut reader = two.session("R").await;
    let first = send_to(&one, "R", 1).await;
    let leader = &servers[leader(&servers).await];
    let sending = async {
        leader.signal(STOP);
        let mut sent = send_to(&one, "R", MESSAGES / 2).await;
        if is_long() {
            let mut page = two.http().await;
            for _ in 0..3 {
                poll_of_ten_seconds(&mut page).await;
            }
        }
        leader.signal(CONTINUE);
        all_healthy(&servers).await;
        let all = send_to(&one, "R", MESSAGES).await;
        assert_eq!(all[..sent.len()], sent, "the ids are known");
        sent = all;
        sent
    };
    let (sent, read) = futures::join!(sending, read_and_ack(&mut reader, MESSAGES));
    assert_eq!(sent[0], first[0]);
    assert_eq!(read, sent.into_iter().zip(0..MESSAGES).collect::<Vec<_>>());
    reader.ping().await;
}

#[tokio::test]
async fn a_server_that_is_cut_off_stops_only_its_own_node() {
    const MESSAGES: u64 = 10;
    let (servers, proxies) = NatsServer::cluster_to_cut().await;
    let cut_off = node_with(&servers[0].url(), 3, &[]).await;
    let other = node_with(&servers[1].url(), 3, &[]).await;
    let mut reader = cut_off.session("R").await;
    let mut sent = send_to(&cut_off, "R", 2).await;
    let mut read = read_and_ack(&mut reader, 2).await;
    proxies.iter().for_each(|proxy| proxy.pass(false, false));
    // One is on its way when the route is cut.
    let body = json!({ "id": MESSAGES.to_string(), "to": { "session": "R" }, "payload": MESSAGES });
    let (early, at_other, state) = futures::join!(
        cut_off.post("/v1/messages?session=S", &body),
        send_to(&other, "R", MESSAGES),
        becomes(&cut_off, "/readyz", 503)
    );
    assert_eq!(early.code(), "unavailable");
    assert_eq!(state["status"], "degraded", "{state}");
    assert_eq!(at_other[..2], sent);
    // Nothing comes, and the socket stays.
    reader.ping().await;
    proxies.iter().for_each(|proxy| proxy.pass(true, true));
    all_healthy(&servers).await;
    let rest = timeout(WAIT, read_and_ack(&mut reader, MESSAGES - 2)).await.expect("all come in time");
    read.extend(rest);
    becomes(&cut_off, "/readyz", 200).await;
    sent = send_to(&cut_off, "R", MESSAGES + 1).await;
    assert_eq!(sent[..10], at_other);
    read.extend(read_and_ack(&mut reader, 1).await);
    assert_eq!(read, sent.into_iter().zip(0..=MESSAGES).collect::<Vec<_>>());
    reader.ping().await;
}

#[tokio::test]
async fn a_node_leaves_a_server_that_is_cut_off_if_it_knows_another_one() {
    const MESSAGES: u64 = 10;
    let (servers, proxies) = NatsServer::cluster_to_cut().await;
    let to: SocketAddr = servers[1].url()["nats://".len()..].parse().unwrap();
    // At its start the node reaches the first server only.
    let second = Proxy::start(to.ip(), to).await;
    second.pass(false, false);
    let urls = format!("{},nats://{}", servers[0].url(), second.address);
    let node = node_with(&urls, 3, &[]).await;
    second.pass(true, true);
    let other = node_with(&servers[2].url(), 3, &[]).await;
    let mut reader = node.session("R").await;
    let mut sent = send_to(&node, "R", 2).await;
    let mut read = read_and_ack(&mut reader, 2).await;
    let (fails, leaves) = (node.log_from_here(), node.log_from_here());
    proxies.iter().for_each(|proxy| proxy.pass(false, false));
    // While the cut lasts. A server that leads streams finds only after a while that it is cut off.
    fails.contains("NATS cannot be used now").await;
    leaves.contains("does not reach the others").await;
    becomes(&node, "/readyz", 200).await;
    sent.extend(&send_to(&other, "R", MESSAGES).await[2..]);
    read.extend(timeout(WAIT, read_and_ack(&mut reader, MESSAGES - 2)).await.expect("all come in time"));
    assert_eq!(send_to(&node, "R", MESSAGES).await, sent, "the ids are known");
    assert_eq!(read, sent.into_iter().zip(0..MESSAGES).collect::<Vec<_>>());
    reader.ping().await;
}

#[tokio::test]
async fn readers_of_all_transports_wait_while_nats_is_away() {
    let mut nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut reader = two.session("R").await;
    let mut events = Events::open(&one, "?session=R", None).await;
    let mut page = one.http().await;
    nats.kill().await;
    becomes(&one, "/readyz", 503).await;
    becomes(&two, "/readyz", 503).await;
    for _ in 0..if is_long() { 6 } else { 1 } {
        poll_of_ten_seconds(&mut page).await;
        let body = json!({ "to": { "session": "R" }, "payload": 0 });
        assert_eq!(two.post("/v1/messages?session=S", &body).await.code(), "unavailable");
    }
    reader.ping().await;
    nats.restart().await;
    let sent = timeout(WAIT, async {
        let sent = send_to(&one, "R", 1).await[0];
        one.send("S", "page", json!({ "n": 1 })).await;
        assert_eq!(reader.message().await["seq"], sent);
        // An acknowledgement at the other node before that would take it from this reader.
        loop {
            let event = events.next().await;
            if event.name == "message" {
                assert_eq!(event.id, Some(sent));
                break;
            }
        }
        assert_eq!(page.x0("page").await, [json!({ "n": 1 })]);
        sent
    });
    let sent = sent.await.expect("all come in time");
    reader.ack(sent).await;
    floor_becomes(&one, "R", sent).await;
}

#[tokio::test]
async fn a_node_that_dies_before_it_knows_that_a_message_is_stored() {
    let nats = NatsServer::start().await;
    let to: SocketAddr = nats.url()["nats://".len()..].parse().unwrap();
    let proxy = Proxy::start(to.ip(), to).await;
    let one = node_with(&format!("nats://{}", proxy.address), 1, &[]).await;
    let two = nats.node().await;
    let mut reader = two.session("R").await;
    // NATS hears the node, and the node does not hear NATS.
    proxy.pass(true, false);
    let body = json!({ "id": "c", "to": { "session": "R" }, "payload": 1 });
    let mut http = one.http().await;
    let sending = tokio::spawn({
        let body = body.to_string();
        async move { http.try_request("POST", "/v1/messages?session=S", &[], body).await }
    });
    let message = reader.message().await;
    one.kill().await;
    assert!(soon(sending).await.unwrap().is_err(), "the node has not answered");
    assert_eq!(two.post("/v1/messages?session=S", &body).await.json()["seq"], message["seq"]);
    reader.ping().await;
    assert_eq!(two.read_all("R").await.messages.len(), 1);
}

/// Restarts one server after the other, while the ids of acknowledged messages count.
async fn ids_are_known_after_restarts(servers: &mut [NatsServer]) {
    let urls: Vec<String> = servers.iter().map(NatsServer::url).collect();
    let (urls, replicas) = (urls.join(","), servers.len());
    let (one, two) = (node_with(&urls, replicas, &[]).await, node_with(&urls, replicas, &[]).await);
    let mut reader = one.session("R").await;
    let sent = send_to(&one, "R", 5).await;
    read_and_ack(&mut reader, 5).await;
    floor_becomes(&two, "R", sent[4]).await;
    for at in 0..servers.len() {
        servers[at].kill().await;
        servers[at].restart().await;
        all_healthy(servers).await;
    }
    let again = send_to(&two, "R", 6).await;
    assert_eq!(again[..5], sent);
    assert_eq!(read_and_ack(&mut reader, 1).await, [(again[5], 5)]);
    reader.ping().await;
    floor_becomes(&two, "R", again[5]).await;
    assert!(two.read_all("R").await.messages.is_empty());
}

#[tokio::test]
async fn acknowledged_ids_are_known_after_a_restart_of_the_server() {
    ids_are_known_after_restarts(&mut [NatsServer::start().await]).await;
}

#[tokio::test]
async fn acknowledged_ids_are_known_after_a_rolling_restart() {
    ids_are_known_after_restarts(&mut NatsServer::cluster::<3>().await).await;
}
