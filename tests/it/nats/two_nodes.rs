//! What holds on one server holds over two nodes: transports, and the recorded exchanges of today's x0 client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use x0_msg_server::broker::Broker;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::Engine;
use x0_msg_server::engine::nats::{Feeds, Nats, NatsOptions};
use x0_msg_server::hub::Hubs;
use x0_msg_server::server::{broker_limits, engine_settings};

use super::haproxy::Haproxy;
use crate::common::*;
use crate::legacy::{departures, recordings, replay};
use crate::model::{Node, run};
use crate::parity::{all_transports_at_once, switch_transports};

#[tokio::test]
async fn one_session_over_all_transports_at_once() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    all_transports_at_once(&one, &two).await;
}

#[tokio::test]
async fn switching_transports_and_nodes_loses_and_repeats_nothing() {
    let nats = NatsServer::start().await;
    let (one, two) = (nats.node().await, nats.node().await);
    switch_transports(&one, &two).await;
}

/// A node within this process.
async fn node(nats: &NatsServer, hub_slots: usize) -> Node {
    let config = Config { hub_slots: Some(hub_slots), store_limit: Some(64 << 20), ..Config::default() };
    let feeds = Arc::new(Feeds::default());
    let hubs = Hubs::watched(config.hub_slots, feeds.clone());
    let options = NatsOptions {
        url: nats.url(),
        credentials: None,
        token: None,
        node: None,
        prefix: "model".to_owned(),
        replicas: 1,
        create: false,
        shards: 1,
        max_payload: 64 << 10,
        max_ttl: Duration::from_secs(30 * 86_400),
    };
    let settings = engine_settings(&config, Clock::Wall);
    let engine = Engine::from(Nats::start(settings, (hubs.clone(), feeds), options).await.unwrap());
    (Broker::new(engine.clone(), hubs, broker_limits(&config), Clock::Wall), engine)
}

/// The model of a mailbox, whose readers and senders are at two nodes.
#[tokio::test]
async fn random_use_of_two_nodes_loses_and_repeats_nothing() {
    let nats = NatsServer::start().await;
    let first = std::env::var("X0_MSG_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    for (seed, hub_slots) in [(0, 2), (1, 2), (first, 16), (first.wrapping_add(1), 2)] {
        let nodes = [node(&nats, hub_slots).await, node(&nats, hub_slots).await];
        run(seed, hub_slots, &nodes).await;
    }
}

#[tokio::test]
async fn a_cursor_that_a_node_cannot_check_now_is_believed_and_an_acknowledgement_is_not() {
    let nats = NatsServer::start().await;
    let to: SocketAddr = nats.url()["nats://".len()..].parse().unwrap();
    let proxy = Proxy::start(to.ip(), to).await;
    let one = nats.node().await;
    let two = node_with(&format!("nats://{}", proxy.address), 1, &[]).await;
    // What is stored from here on is not known at this node.
    proxy.pass(true, false);
    let seq = one.send("S", "R", json!(1)).await;
    let mut reader = two.ws(&format!("?session=R&after={seq}")).await;
    assert_eq!(reader.recv().await["type"], "welcome");
    for ack in [seq, seq + 1000] {
        reader.ack(ack).await;
        assert_eq!(reader.error().await, "unavailable");
    }
    proxy.pass(true, true);
    // No gap: it reads on where it was.
    let next = one.send("S", "R", json!(2)).await;
    let message = soon(async {
        loop {
            let frame = reader.recv().await;
            if frame["code"] != "unavailable" {
                return frame;
            }
        }
    });
    let message = message.await;
    assert_eq!((&message["seq"], &message["payload"]), (&json!(next), &json!(2)), "{message}");
    reader.ack(next + 1000).await;
    assert_eq!(reader.error().await, "not_found");
    reader.ack(next).await;
    reader.ping().await;
}

macro_rules! behind_haproxy {
    ($($shows:ident: $name:literal;)*) => { $(
        #[tokio::test]
        async fn $shows() {
            let nats = NatsServer::start().await;
            let flags = ["--poll-timeout", "2s"];
            let nodes = [nats.node_with(&flags).await, nats.node_with(&flags).await];
            replay(&Haproxy::start(&nodes).await, $name, departures($name)).await;
        }
    )* };
}

recordings! { behind_haproxy }
