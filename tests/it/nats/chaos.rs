//! Servers and nodes are killed, stopped and restarted under load: what was confirmed comes, in order, once, and soon.

use std::fmt;
use std::time::{Duration, Instant};

use super::faults::{CONTINUE, STOP, WAIT, is_long};
use super::send_to;
use crate::common::*;
use crate::crash::load::{Habits, Load, MAILBOXES};

/// What a node is told: pages poll often, and mailboxes are never full.
pub const FLAGS: [&str; 4] = ["--mailbox-messages", "1000000", "--poll-timeout", "2s"];

/// How long faults are made in a long run.
const LONG: Duration = Duration::from_secs(8 * 60);

#[derive(Debug, Clone, Copy)]
enum Fault {
    ServerKilled,
    ServerStopped,
    NodeKilled,
    NodeStopped,
    NodeRestarted,
}

use Fault::{NodeKilled, NodeRestarted, NodeStopped, ServerKilled, ServerStopped};

/// A fault: when it began, when all servers and nodes were well again, and when the load had gone on for a while and readers had what
/// was confirmed.
pub struct Phase {
    pub fault: String,
    pub began: Instant,
    pub healed: Instant,
    pub ended: Instant,
}

/// The longest times without a confirmation, and without a message to each reader.
struct Silence<'a> {
    phase: &'a Phase,
    senders: Duration,
    readers: Vec<(&'static str, Duration)>,
}

impl fmt::Display for Silence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Phase { fault, began, healed, .. } = self.phase;
        write!(f, "{fault} for {:.1?}: silence {:.1?}", *healed - *began, self.senders)?;
        self.readers.iter().try_for_each(|(reader, silence)| write!(f, ", {reader} {silence:.1?}"))
    }
}

impl Phase {
    /// The longest time in which nothing happened.
    fn silence(&self, times: impl Iterator<Item = Instant>) -> Duration {
        let mut times: Vec<Instant> = times.filter(|time| (self.began..self.ended).contains(time)).collect();
        times.extend([self.began, self.ended]);
        times.sort();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }

    fn silences<'a>(&'a self, times: &[(&'static str, Instant, Instant)]) -> Silence<'a> {
        let of = |mailbox| times.iter().filter(move |(to, ..)| *to == mailbox).map(|(.., came)| *came);
        let readers = MAILBOXES.map(|mailbox| (mailbox, self.silence(of(mailbox)))).into();
        Silence { phase: self, senders: self.silence(times.iter().map(|(_, at, _)| *at)), readers }
    }
}

/// Servers, nodes on them, and clients of the nodes.
pub struct Cluster {
    pub servers: [NatsServer; 3],
    urls: String,
    pub nodes: Vec<TestServer>,
    pub load: Load,
}

impl Cluster {
    async fn start() -> Self {
        let servers = NatsServer::cluster::<3>().await;
        let urls = servers.each_ref().map(NatsServer::url).join(",");
        let nodes = vec![node_with(&urls, 3, &FLAGS).await, node_with(&urls, 3, &FLAGS).await];
        Self::of(servers, nodes)
    }

    /// These servers and nodes, with clients.
    pub fn of(servers: [NatsServer; 3], nodes: Vec<TestServer>) -> Self {
        let urls = servers.each_ref().map(NatsServer::url).join(",");
        let cluster = Self { servers, urls, nodes, load: Load::start(Habits::several_nodes()) };
        cluster.tell();
        cluster
    }

    /// Tells the clients which nodes there are.
    fn tell(&self) {
        self.load.place.send_replace(self.nodes.iter().map(|node| node.address).collect());
    }

    async fn meet(&mut self, fault: Fault, random: &mut fastrand::Rng) -> Phase {
        let began = Instant::now();
        let server = random.usize(..self.servers.len());
        let node = random.usize(..self.nodes.len());
        match fault {
            ServerKilled => {
                self.servers[server].kill().await;
                self.load.goes_on(100).await;
                self.servers[server].restart().await;
            }
            ServerStopped => {
                self.servers[server].signal(STOP);
                self.load.goes_on(100).await;
                self.servers[server].signal(CONTINUE);
            }
            NodeStopped => {
                self.nodes[node].signal(STOP);
                send_to(&self.nodes[1 - node], "other", 20).await;
                self.nodes[node].signal(CONTINUE);
            }
            NodeKilled | NodeRestarted => {
                let gone = self.nodes.remove(node);
                self.tell();
                match fault {
                    NodeKilled => drop(gone.kill().await),
                    _ => drop(gone.stop().await),
                }
                self.load.goes_on(100).await;
                self.nodes.push(node_with(&self.urls, 3, &FLAGS).await);
                self.tell();
            }
        }
        all_healthy(&self.servers).await;
        let healed = Instant::now();
        self.load.goes_on(100).await;
        self.load.arrive().await;
        Phase { fault: format!("{fault:?}"), began, healed, ended: Instant::now() }
    }

    /// Ends the load: what was confirmed came in order, once, and soon after all was well.
    pub async fn verify(mut self, phases: &[Phase]) {
        let sent = self.load.answered().await;
        self.load.verify().await;
        let times = self.load.times();
        println!("{sent} messages");
        phases.iter().for_each(|phase| println!("{}", phase.silences(&times)));
        for (reader, confirmed, came) in times {
            // The next fault may begin while it is on its way.
            let from = phases.iter().fold(confirmed, |from, phase| {
                let is_in_its_way = phase.began < from + WAIT && from < phase.healed;
                if is_in_its_way { phase.healed } else { from }
            });
            assert!(came < from + WAIT, "{reader}: a message came {:?} after all was well", came - from);
        }
    }
}

#[tokio::test]
async fn what_is_confirmed_comes_in_order_and_once_whatever_fails() {
    let seed = std::env::var("X0_MSG_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    // Shown if the test fails.
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut cluster = Cluster::start().await;
    cluster.load.goes_on(100).await;
    let mut phases = Vec::new();
    let begun = Instant::now();
    while phases.is_empty() || is_long() && begun.elapsed() < LONG {
        let mut faults = [ServerKilled, ServerStopped, NodeKilled, NodeStopped, NodeRestarted];
        random.shuffle(&mut faults);
        for fault in faults {
            phases.push(cluster.meet(fault, &mut random).await);
        }
    }
    cluster.verify(&phases).await;
}
