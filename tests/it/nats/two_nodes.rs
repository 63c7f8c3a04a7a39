//! What holds on one server holds over two nodes: transports, and the recorded exchanges of today's x0 client.

use super::haproxy::Haproxy;
use crate::common::*;
use crate::legacy::{departures, recordings, replay};
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
