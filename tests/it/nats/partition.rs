//! A server that is cut off with its node: packets vanish, and no connection is closed. Clients reach all nodes.

use std::time::{Duration, Instant};

use futures::future::join;
use tokio::time::sleep;

use super::becomes;
use super::chaos::{Cluster, FLAGS, Phase};
use super::faults::is_long;
use crate::common::*;

/// How long a server is cut off, at least. The others elect leaders meanwhile.
const CUT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_confirmed_comes_in_order_and_once_though_a_server_is_cut_off_with_its_node() {
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => {
            println!("not tested: only root may make network namespaces ({why})");
            return;
        }
    };
    let servers = NatsServer::cluster_on(&network.hosts).await;
    let node = async |n: usize| node_at(&network.hosts[n], &servers[n].url(), 3, &FLAGS).await;
    let nodes = vec![node(0).await, node(1).await];
    let cluster = Cluster::of(servers, nodes);
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
        phases.push(Phase { fault: format!("cut off {n}"), began, healed, ended: Instant::now() });
    }
    cluster.verify(&phases).await;
}
