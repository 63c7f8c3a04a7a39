//! A server that is cut off with its node: packets vanish, and no connection is closed. Clients reach all nodes.

use std::time::{Duration, Instant};

use futures::future::join;
use serde_json::json;
use tokio::time::sleep;

use super::chaos::{Cluster, FLAGS, Phase};
use super::faults::{is_long, leader};
use super::{becomes, send_to};
use crate::common::*;

/// How long a server is cut off, at least. The others elect leaders meanwhile.
const CUT: Duration = Duration::from_secs(10);

/// Three servers, each on a machine of its own; `None` if this account cannot make machines.
async fn three_machines() -> Option<(Network, [NatsServer; 3])> {
    match Network::new() {
        Ok(network) => {
            let servers = NatsServer::cluster_on(&network.hosts).await;
            Some((network, servers))
        }
        Err(why) => {
            println!("not tested: only root may make network namespaces ({why})");
            None
        }
    }
}

#[tokio::test]
async fn a_leader_that_is_cut_off_is_not_asked_what_the_newest_message_is() {
    let Some((network, servers)) = three_machines().await else { return };
    let node = async |n: usize| node_at(&network.hosts[n], &servers[n].url(), 3, &FLAGS).await;
    let nodes = [node(0).await, node(1).await, node(2).await];
    nodes[0].send("S", "R", json!(0)).await;
    let leader = leader(&servers).await;
    network.cut(leader);
    // The others elect a leader, and store what the old one does not know.
    let seqs = send_to(&nodes[(leader + 1) % 3], "R", 3).await;
    let mut reader = nodes[leader].ws(&format!("?session=R&after={}", seqs[0])).await;
    assert_eq!(reader.recv().await["type"], "welcome");
    reader.ack(seqs[0]).await;
    assert_eq!(reader.error().await, "unavailable");
    network.heal(leader);
    let message = soon(async {
        loop {
            let frame = reader.recv().await;
            if frame["code"] != "unavailable" {
                return frame;
            }
        }
    });
    let message = message.await;
    assert_eq!((&message["seq"], &message["payload"]), (&json!(seqs[1]), &json!(1)), "{message}");
}

#[tokio::test]
async fn what_is_confirmed_comes_in_order_and_once_though_a_server_is_cut_off_with_its_node() {
    let Some((network, servers)) = three_machines().await else { return };
    let node = async |n: usize| node_at(&network.hosts[n], &servers[n].url(), 3, &FLAGS).await;
    let nodes = vec![node(0).await, node(1).await];
    let mut cluster = Cluster::of(servers, nodes);
    cluster.load.goes_on(100).await;
    let mut phases = Vec::new();
    for n in (0..3).cycle().take(if is_long() { 9 } else { 1 }) {
        let began = Instant::now();
        network.cut(n);
        let majority_goes_on = join(sleep(CUT), cluster.load.goes_on(100));
        match cluster.nodes.get(n) {
            Some(node) => drop(join(majority_goes_on, becomes(node, "/readyz", 503)).await),
            None => drop(majority_goes_on.await),
        }
        network.heal(n);
        all_healthy(&cluster.servers).await;
        let healed = Instant::now();
        cluster.load.goes_on(100).await;
        cluster.load.arrive().await;
        phases.push(Phase { fault: format!("cut off {n}"), began, healed, ended: Instant::now() });
    }
    cluster.verify(&phases).await;
}
