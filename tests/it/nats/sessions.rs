//! Registrations, acknowledgements and ends at one node, and what another node knows of them.

use std::net::SocketAddr;

use futures::StreamExt;
use serde_json::{Value, json};

use super::{floor_becomes, send_to};
use crate::common::*;
use crate::guarded::{Guarded, KEY};

/// How often two nodes race.
fn races() -> usize {
    if std::env::var_os("X0_MSG_LONG_TESTS").is_some() { 1_000 } else { 100 }
}

/// Two nodes in token mode.
async fn guarded(nats: &NatsServer) -> (TestServer, TestServer, impl Drop) {
    let (dir, args) = Guarded::prepare(&[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    (nats.node_with(&args).await, nats.node_with(&args).await, dir)
}

async fn call(http: &mut Http, method: &str, session: &str, body: Value) -> Reply {
    let bearer = format!("Bearer {KEY}");
    let headers = [("authorization", bearer.as_str())];
    http.request(method, &format!("/v1/sessions/{session}"), &headers, body.to_string()).await
}

#[tokio::test]
async fn a_session_that_one_node_registers_is_let_in_by_the_other_at_once() {
    let nats = NatsServer::start().await;
    let (one, two, _dir) = guarded(&nats).await;
    let (mut at_one, mut at_two) = (one.http().await, two.http().await);
    for n in 0..races() {
        let id = format!("{:032x}", fastrand::u128(..));
        let (http, other) = if n % 2 == 0 { (&mut at_one, &two) } else { (&mut at_two, &one) };
        let mut ws = other.ws("").await;
        let registered = call(http, "PUT", &id, json!({ "user": "ann", "proof": true })).await;
        assert_eq!(registered.status, 200, "{}", registered.body);
        ws.send(json!({ "type": "hello", "session": id })).await;
        let welcome = ws.recv().await;
        assert_eq!((&welcome["type"], &welcome["user"]), (&json!("welcome"), &json!("ann")), "{welcome}");
        assert_eq!(call(http, "DELETE", &id, Value::Null).await.status, 204);
        assert_eq!(ws.closed().await.0, 4502);
    }
}

#[tokio::test]
async fn of_two_users_that_register_a_session_at_once_exactly_one_has_it() {
    let nats = NatsServer::start().await;
    let (one, two, _dir) = guarded(&nats).await;
    let (mut at_one, mut at_two) = (one.http().await, two.http().await);
    let mut wins = [0; 2];
    for n in 0..races() {
        let id = format!("race-{n}");
        let (first, second) = futures::join!(
            call(&mut at_one, "PUT", &id, json!({ "user": "ann" })),
            call(&mut at_two, "PUT", &id, json!({ "user": "eve" }))
        );
        let winner = match (first.status, second.status) {
            (200, 403) => 0,
            (403, 200) => 1,
            _ => panic!("{} {}", first.body, second.body),
        };
        wins[winner] += 1;
        // The one that lost knows who has it.
        let loser = if winner == 0 { &mut at_two } else { &mut at_one };
        assert_eq!(call(loser, "GET", &id, Value::Null).await.json()["user"], ["ann", "eve"][winner]);
    }
    println!("{wins:?}");
}

/// How many messages wait in all mailboxes.
async fn stored(nats: &NatsServer) -> u64 {
    let mut messages = 0;
    for shard in 0..8 {
        let info = nats.ask(&format!("STREAM.INFO.x0_M{shard}"), &Value::Null).await;
        messages += info["state"]["messages"].as_u64().unwrap();
    }
    messages
}

/// A node that has not heard of the end of a session stores a message for its user afterwards.
#[tokio::test]
async fn what_is_stored_for_a_session_that_has_ended_elsewhere_is_not_for_the_next_user() {
    let nats = NatsServer::start().await;
    let to: SocketAddr = nats.url()["nats://".len()..].parse().unwrap();
    let proxy = Proxy::start(to.ip(), to).await;
    let (dir, args) = Guarded::prepare(&[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let one = node_with(&format!("nats://{}", proxy.address), 1, &args).await;
    let two = nats.node_with(&args).await;
    let mut at_two = two.http().await;
    let id = format!("{:032x}", fastrand::u128(..));
    let register = json!({ "user": "ann", "proof": true });
    assert_eq!(call(&mut one.http().await, "PUT", &id, register).await.status, 200);
    // NATS hears the first node, and that node hears nothing.
    proxy.pass(true, false);
    assert_eq!(call(&mut at_two, "DELETE", &id, Value::Null).await.status, 204);
    let register = json!({ "user": "bob", "proof": true });
    assert_eq!(call(&mut at_two, "PUT", &id, register).await.status, 200);
    let live = two.session(&id).await;
    let send = |user: &str| json!({ "to": { "user": user }, "payload": format!("for {user}") }).to_string();
    let bearer = format!("Bearer {KEY}");
    let headers = [("authorization", bearer.as_str())];
    let mut http = one.http().await;
    let late = http.try_request("POST", "/v1/messages", &headers, send("ann"));
    let is_stored = soon(async {
        while stored(&nats).await == 0 {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        answer = late => panic!("it cannot know: {answer:?}"),
        () = is_stored => {}
    }
    let sent = at_two.request("POST", "/v1/messages", &headers, send("bob")).await;
    assert_eq!(sent.status, 200, "{}", sent.body);
    for mut reader in [live, two.session(&id).await] {
        let message = loop {
            let frame = reader.recv().await;
            if frame["type"] != "gap" {
                break frame;
            }
        };
        assert_eq!(message["payload"], "for bob", "{message}");
    }
    drop(dir);
}

#[tokio::test]
async fn the_end_of_a_session_closes_its_sockets_on_both_nodes() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let mut sockets = [one.session("R").await, two.session("R").await];
    let mut events =
        [Events::open(&one, "?session=R", None).await, Events::open(&two, "?session=R", None).await];
    one.attached("R", 4).await;
    two.send("S", "R", json!(1)).await;
    for socket in &mut sockets {
        assert_eq!(socket.payload().await, 1);
    }
    assert_eq!(two.http().await.request("DELETE", "/v1/sessions/R", &[], "").await.status, 204);
    for socket in &mut sockets {
        assert_eq!(socket.closed().await.0, 4502);
    }
    for events in &mut events {
        soon(async { while events.try_next().await.is_some() {} }).await;
    }
    for node in [&one, &two] {
        assert!(node.read_all("R").await.messages.is_empty());
    }
}

#[tokio::test]
async fn what_is_acknowledged_at_one_node_is_not_read_at_the_other() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let sent = send_to(&one, "R", 3).await;
    let mut reader = one.session("R").await;
    for _ in 0..3 {
        reader.message().await;
    }
    reader.ack(sent[1]).await;
    floor_becomes(&two, "R", sent[1]).await;
    let mailbox = two.read_all("R").await;
    assert_eq!(mailbox.messages.keys().copied().collect::<Vec<_>>(), sent[2..]);
    assert!(mailbox.gaps.is_empty());
    // A cursor from before is told what it misses.
    let answer = two.get(&format!("/v1/messages?session=R&after={}&wait=0", sent[0])).await.json();
    let gap = json!({ "from": sent[0], "to": sent[2], "reason": "acknowledged" });
    assert_eq!(answer["gaps"][0], gap, "{answer}");
}

/// Acknowledges what comes, not always the newest and not in order.
async fn acknowledge(mut reader: Ws, count: u64) {
    let mut seqs = Vec::new();
    for _ in 0..count {
        seqs.push(reader.message().await["seq"].as_u64().unwrap());
        reader.ack(*fastrand::choice(&seqs).unwrap()).await;
    }
    reader.ack(*seqs.last().unwrap()).await;
    reader.ping().await;
}

#[tokio::test]
async fn a_floor_never_goes_back_under_two_that_acknowledge() {
    const MESSAGES: u64 = 300;
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    let client = async_nats::connect(nats.url()).await.unwrap();
    let mut records = client.subscribe("records").await.unwrap();
    client.flush().await.unwrap();
    let consumer = json!({ "deliver_subject": "records", "deliver_policy": "all", "ack_policy": "none" });
    let made = nats.ask("CONSUMER.CREATE.x0_F", &json!({ "stream_name": "x0_F", "config": consumer })).await;
    assert!(made.get("error").is_none(), "{made}");
    let [first, second] = [one.session("R").await, two.session("R").await];
    let (sent, ..) = futures::join!(
        send_to(&one, "R", MESSAGES),
        acknowledge(first, MESSAGES),
        acknowledge(second, MESSAGES)
    );
    let last = *sent.last().unwrap();
    let mut floors = vec![0];
    while floors.last() != Some(&last) {
        let record = soon(records.next()).await.unwrap();
        let record: Value = serde_json::from_slice(&record.payload).unwrap();
        floors.push(record["floor"].as_u64().unwrap());
    }
    assert!(floors.is_sorted_by(|one, next| one < next), "{floors:?}");
    assert!(floors.len() > 3, "the nodes stored it in turn: {floors:?}");
    floor_becomes(&one, "R", last).await;
    floor_becomes(&two, "R", last).await;
}
