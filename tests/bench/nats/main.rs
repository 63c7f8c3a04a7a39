//! The engine on NATS: what it costs, on real servers.
//!
//!     X0_MSG_NATS_SERVER=nats-server cargo bench --features nats --bench nats -- WORKLOAD [r1|r3] [always] [SECONDS]
//!
//! - `append`: the engine against a publisher that does nothing else, in turn; then one address, and one append at a time.
//! - `nodes`: the same load through one node and through two, in turn.
//! - `ack`: what an acknowledgement of each message adds.
//! - `deliver`: 500 messages a second to another node: after which time its reader has them, and the sender its answer.
//! - `catchup`: requests to the servers for 100 messages that wait.
//! - `idle`: memory of 50,000 sessions that are read and get nothing, here and in the embedded engine.
//! - `sessions`: 100,000 registered sessions without messages.
//! - `pinned`: a million acknowledged messages under 1,000 that wait; with `less`, a tenth of them.
//!
//! Processor times are those of this process and of all servers, for each message. Rates say little on a busy machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::value::RawValue;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Embedded, Storage};
use x0_msg_server::engine::nats::{Feeds, Nats, NatsOptions};
use x0_msg_server::engine::{Append, Engine};
use x0_msg_server::hub::{Hubs, Transport};
use x0_msg_server::message::{Address, Author, Item, Kind, Message, SenderName, Seq, SessionId};
use x0_msg_server::server::engine_settings;
use x0_msg_server::subscriber::{Start, Subscriber};

mod bare;
mod idle;
#[path = "../memory.rs"]
mod memory;
mod servers;

use bare::Bare;
use servers::{Servers, cpu};

/// Bytes of a payload.
const SIZE: usize = 256;

/// Addresses of the load, and messages in flight.
const ADDRESSES: usize = 10_000;
const IN_FLIGHT: usize = 64;

/// Turns of what is compared.
const ROUNDS: usize = 3;

/// A node: its engine and its hubs.
pub(crate) struct Node {
    pub(crate) engine: Engine,
    pub(crate) hubs: Hubs,
}

pub(crate) fn mailbox(name: &str) -> Address {
    Address::Session(SessionId::new(name).expect("a name"))
}

impl Node {
    async fn start(url: &str, replicas: usize) -> Self {
        let feeds = Arc::new(Feeds::default());
        let hubs = Hubs::watched(None, feeds.clone());
        let options = NatsOptions {
            url: url.to_owned(),
            credentials: None,
            token: None,
            node: None,
            prefix: "x0".to_owned(),
            replicas,
            create: false,
            shards: 8,
            max_payload: 1 << 20,
            max_ttl: Duration::from_secs(7 * 86_400),
        };
        let config = Config::default();
        let mut settings = engine_settings(&config, Clock::Wall);
        settings.dedup_window = Duration::from_secs(120);
        loop {
            // The servers elect a leader first.
            let parts = (hubs.clone(), feeds.clone());
            if let Ok(engine) = Nats::start(settings, parts, options.clone()).await {
                return Self { engine: engine.into(), hubs };
            }
        }
    }

    pub(crate) fn embedded() -> Self {
        let hubs = Hubs::new(None);
        let settings = engine_settings(&Config::default(), Clock::Wall);
        let engine = Embedded::start(settings, hubs.clone(), &Storage::Memory).expect("memory").into();
        Self { engine, hubs }
    }

    fn append(&self, address: &Address) -> Append {
        let payload = format!(r#"{{"text":"{}"}}"#, "x".repeat(SIZE - 11));
        let payload = RawValue::from_string(payload).expect("JSON");
        let from = SenderName::new("sender").ok();
        let message = Message { kind: Kind::Message, from, payload, ts: 1_763_886_000_000, reference: None };
        Append::new(address.clone(), message, Author::Anonymous)
    }

    pub(crate) fn reader(&self, address: &Address) -> Subscriber {
        let start = Start { cursor: Seq::START, epoch: self.engine.epoch() };
        Subscriber::new(&self.engine, &self.hubs, address, start, (Transport::Websocket, 8))
            .expect("the first")
    }

    /// Appends with so many in flight. Returns how many were stored.
    async fn run(&self, time: Duration, addresses: &[Address], in_flight: usize) -> u64 {
        let (begun, mut sent, mut stored) = (Instant::now(), 0, 0);
        let mut commits = FuturesUnordered::new();
        loop {
            while commits.len() < in_flight {
                commits.push(self.engine.append(self.append(&addresses[sent % addresses.len()])));
                sent += 1;
            }
            commits.next().await.expect("some are in flight").expect("it is stored");
            stored += 1;
            if begun.elapsed() > time {
                return stored;
            }
        }
    }
}

/// Runs something, and returns its rate and its processor times for each message in µs, here and at the servers.
async fn measured(servers: &Servers, run: impl Future<Output = u64>) -> (f64, f64, f64) {
    let (begun, here, there) = (Instant::now(), cpu(std::process::id()), servers.cpu());
    let count = run.await as f64;
    let rate = count / begun.elapsed().as_secs_f64();
    let micros = |from: f64, to: f64| (to - from) * 1e6 / count;
    (rate, micros(here, cpu(std::process::id())), micros(there, servers.cpu()))
}

fn show(what: &str, (rate, here, there): (f64, f64, f64)) {
    println!("{what}: {rate:.0}/s, {here:.1}+{there:.1} us");
}

async fn append(servers: &Servers, time: Duration) {
    let (node, bare) = (
        Node::start(&servers.url(), servers.count()).await,
        Bare::new(&servers.url(), servers.count()).await,
    );
    let addresses: Vec<Address> = (0..ADDRESSES).map(|n| mailbox(&format!("session {n}"))).collect();
    let (name, load) = (servers.name(), (ADDRESSES, IN_FLIGHT, SIZE));
    for _ in 0..ROUNDS {
        show(&format!("{name} bare"), measured(servers, bare.run(time, load)).await);
        show(&format!("{name} engine"), measured(servers, node.run(time, &addresses, IN_FLIGHT)).await);
    }
    let topics: Vec<Address> =
        vec![Address::Topic(x0_msg_server::message::TopicName::new("t").expect("a name"))];
    show(&format!("{name} engine, one address"), measured(servers, node.run(time, &topics, IN_FLIGHT)).await);
    show(&format!("{name} engine, one at a time"), measured(servers, node.run(time, &addresses, 1)).await);
}

/// The same load through one node and through two, in this process.
async fn nodes(servers: &Servers, time: Duration) {
    let url = servers.url();
    let (one, two) = (Node::start(&url, servers.count()).await, Node::start(&url, servers.count()).await);
    let addresses: Vec<Address> = (0..ADDRESSES).map(|n| mailbox(&format!("session {n}"))).collect();
    let (name, half) = (servers.name(), IN_FLIGHT / 2);
    for _ in 0..ROUNDS {
        show(&format!("{name} one node"), measured(servers, one.run(time, &addresses, IN_FLIGHT)).await);
        let both = async {
            let runs = futures::join!(one.run(time, &addresses, half), two.run(time, &addresses, half));
            runs.0 + runs.1
        };
        show(&format!("{name} two nodes"), measured(servers, both).await);
    }
}

/// Appends to mailboxes that are read here, and takes what comes.
async fn append_and_take(
    node: &Node,
    time: Duration,
    readers: &mut [(Address, Subscriber)],
    acks: bool,
) -> u64 {
    let (begun, mut count) = (Instant::now(), 0);
    loop {
        for group in readers.chunks_mut(IN_FLIGHT) {
            let commits: Vec<_> =
                group.iter().map(|(address, _)| node.engine.append(node.append(address))).collect();
            for (commit, (address, reader)) in commits.into_iter().zip(group) {
                let seq = commit.await.expect("it is stored");
                let Some(Item::Message(message)) = reader.next().await else { panic!("it comes") };
                assert_eq!(message.seq(), Some(seq));
                reader.mark_sent(seq);
                count += 1;
                if acks && let Some(through) = node.hubs.acknowledge(address, seq) {
                    node.engine.trim(address, through);
                }
            }
            if begun.elapsed() > time {
                return count;
            }
        }
    }
}

async fn ack(servers: &Servers, time: Duration) {
    // Each mailbox gets its next message when its last acknowledgement is stored: none is covered by a later one.
    let (node, many) = (Node::start(&servers.url(), servers.count()).await, 4_000);
    let mut readers = Vec::new();
    for n in 0..many {
        let address = mailbox(&format!("session {n}"));
        let mut reader = node.reader(&address);
        reader.ready().await.expect("it can be read");
        readers.push((address, reader));
    }
    let name = servers.name();
    for _ in 0..ROUNDS {
        for acks in [false, true] {
            let what = if acks { "append, deliver and acknowledge" } else { "append and deliver" };
            let run = measured(servers, append_and_take(&node, time, &mut readers, acks)).await;
            show(&format!("{name} {what}"), run);
        }
    }
    show(&format!("{name} append"), {
        let addresses: Vec<Address> = (0..many).map(|n| mailbox(&format!("other {n}"))).collect();
        measured(servers, node.run(time, &addresses, IN_FLIGHT)).await
    });
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}

async fn deliver(servers: &Servers, time: Duration) {
    let (one, two) = (
        Node::start(&servers.url(), servers.count()).await,
        Node::start(&servers.url(), servers.count()).await,
    );
    let address = mailbox("R");
    let mut reader = two.reader(&address);
    reader.ready().await.expect("it can be read");
    let (sent, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        let mut times = Vec::new();
        while let Some(begun) = arrivals.recv().await {
            let _: Instant = begun;
            let Some(Item::Message(message)) = reader.next().await else { panic!("it comes") };
            times.push(begun.elapsed());
            reader.mark_sent(message.seq().expect("it is stored"));
        }
        times
    });
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let (begun, mut answers) = (Instant::now(), Vec::new());
    let mut last = Seq::START;
    while begun.elapsed() < time {
        ticks.tick().await;
        let begun = Instant::now();
        sent.send(begun).expect("it is read");
        last = one.engine.append(one.append(&address)).await.expect("it is stored");
        answers.push(begun.elapsed());
        if answers.len() % 100 == 0 {
            one.engine.trim(&address, last);
        }
    }
    drop(sent);
    let times = reading.await.expect("no panic");
    one.engine.trim(&address, last);
    println!("{}: answer {}; at the other node {}", servers.name(), percentiles(answers), percentiles(times));
}

async fn catchup(servers: &Servers) {
    let node = Node::start(&servers.url(), servers.count()).await;
    let address = mailbox("R");
    for count in [0, 1, 10, 100] {
        let mut seq = Seq::START;
        for _ in 0..count {
            seq = node.engine.append(node.append(&address)).await.expect("it is stored");
        }
        let reader = node.reader(&address);
        let read = || node.engine.read(&address, Seq::START, 256);
        assert_eq!(read().await.expect("it can be read").items.len(), count);
        const READS: u64 = 50;
        let (before, begun) = (servers.messages_in(), Instant::now());
        for _ in 0..READS {
            assert_eq!(read().await.expect("it can be read").items.len(), count);
        }
        let (took, asked) = (begun.elapsed() / 50, servers.messages_in() - before);
        println!("{count} messages: {:.1} requests, {took:?}", asked as f64 / READS as f64);
        drop(reader);
        node.engine.trim(&address, seq);
    }
}

async fn pinned(servers: &mut Servers, messages: usize) {
    let node = Node::start(&servers.url(), servers.count()).await;
    for n in 0..1_000 {
        let address = mailbox(&format!("pinned {n}"));
        node.engine.append(node.append(&address)).await.expect("it is stored");
    }
    let (addresses, begun): (Vec<Address>, _) =
        ((0..100).map(|n| mailbox(&format!("busy {n}"))).collect(), Instant::now());
    for _ in 0..messages / 10_000 {
        let each = addresses.iter().map(async |address| {
            let mut commits: Vec<_> = (0..100).map(|_| node.engine.append(node.append(address))).collect();
            let last = commits.pop().expect("some").await.expect("it is stored");
            node.engine.trim(address, last);
        });
        futures::future::join_all(each).await;
    }
    println!("{messages} messages stored and acknowledged in {:.1} s", begun.elapsed().as_secs_f64());
    let show = async |servers: &Servers, wait: u64| {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let (memory, disk, live) = (servers.memory(), servers.disk(), servers.live());
        println!(
            "after {wait} s more: {memory:.0} MiB memory, {disk:.1} MiB disk, of which {live:.1} MiB are messages"
        );
    };
    for wait in [0, 130, 180] {
        show(servers, wait).await;
    }
    let took = servers.restart();
    println!("a restart takes {took:?}");
    for wait in [0, 130] {
        show(servers, wait).await;
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let has = |what: &str| arguments.iter().any(|argument| argument == what);
    let number = arguments.iter().find_map(|argument| argument.parse::<f64>().ok());
    let time = Duration::from_secs_f64(number.unwrap_or(3.0));
    let count = if has("r3") { 3 } else { 1 };
    if has("idle-here") {
        return idle::here(&Node::embedded()).await;
    }
    if let Some(url) = arguments.iter().find(|argument| argument.starts_with("nats://")) {
        return idle::here(&Node::start(url, 1).await).await;
    }
    let mut servers = Servers::start(count, has("always"));
    match arguments.first().map(String::as_str) {
        Some("append") => append(&servers, time).await,
        Some("nodes") => nodes(&servers, time).await,
        Some("ack") => ack(&servers, time).await,
        Some("deliver") => deliver(&servers, time).await,
        Some("catchup") => catchup(&servers).await,
        Some("idle") => idle::both(&servers),
        Some("sessions") => {
            idle::sessions(&Node::start(&servers.url(), servers.count()).await, &servers).await
        }
        Some("pinned") => pinned(&mut servers, if has("less") { 100_000 } else { 1_000_000 }).await,
        _ => eprintln!(
            "append, nodes, ack, deliver, catchup, idle, sessions or pinned? See the first lines of this file"
        ),
    }
}
