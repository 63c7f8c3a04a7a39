//! Sender, broker and reader on a simulated network with virtual time. Connections are cut and delayed, the broker
//! crashes, and clients change their transport at random, with hundreds of seeds.
//!
//! A failure prints its seed. `X0_MSG_SEED=…` runs this seed alone, with the same faults at the same moments.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};
use turmoil::net::{TcpListener, TcpStream};
use x0_msg_server::broker::Broker;
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded};
use x0_msg_server::hub::Hubs;
use x0_msg_server::link::{Link, MonitoredStream};
use x0_msg_server::server::{Server, broker_limits, engine_settings};

use crate::common::{Events, Http};

const MESSAGES: u64 = 20;

/// The time during which the network and the broker fail, in virtual time.
const CHAOS: Duration = Duration::from_secs(8);

/// The time after which a client repeats a request without an answer.
const PATIENCE: Duration = Duration::from_secs(2);

type Failure = Box<dyn std::error::Error>;

/// What was confirmed to the sender, and what the reader received.
#[derive(Default)]
struct Ledger {
    /// The confirmed seq of each message.
    confirmed: Mutex<BTreeMap<u64, Option<u64>>>,
    /// The received message of each seq.
    got: Mutex<BTreeMap<u64, u64>>,
    /// Every event with its time, printed when a run fails.
    trace: Mutex<Vec<String>>,
    all_sent: AtomicBool,
}

impl Ledger {
    fn note(&self, event: String) {
        let now = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        self.trace.lock().unwrap().push(format!("{now} {event}"));
    }

    fn is_complete(&self) -> bool {
        self.all_sent.load(Ordering::SeqCst) && self.got.lock().unwrap().len() as u64 == MESSAGES
    }
}

/// A broker on a store that survives its crash. Its writer takes as long as a disk.
async fn broker(dir: PathBuf, seed: u64) -> Result<(), Failure> {
    let mut random = Rng::with_seed(seed);
    let config = Config { hub_slots: Some(2), ..Config::default() };
    let hubs = Hubs::new(config.hub_slots);
    let settings = engine_settings(&config, Clock::Wall);
    let (engine, mut writer) = Embedded::open_stepped(settings, hubs.clone(), &dir, Durability::Os)?;
    let broker = Broker::new(engine.into(), hubs, broker_limits(&config), Clock::Wall);
    let server = Server::with(broker, config)?;
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(random.u64(1..30))).await;
            writer.turn();
        }
    });
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let link = Link::new();
        tokio::spawn(server.connection(MonitoredStream::opaque(stream, Arc::clone(&link)), link));
    }
}

async fn connect() -> Result<TcpStream, Failure> {
    Ok(timeout(PATIENCE, TcpStream::connect("broker:80")).await??)
}

type Socket = WebSocketStream<TcpStream>;

async fn socket(query: &str) -> Result<Socket, Failure> {
    let connecting = client_async(format!("ws://broker/ws{query}"), connect().await?);
    let (socket, _) = timeout(PATIENCE, connecting).await??;
    Ok(socket)
}

async fn receive(socket: &mut Socket) -> Result<Value, Failure> {
    loop {
        match timeout(PATIENCE, socket.next()).await?.ok_or("closed")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => return Err("closed".into()),
            _ => {}
        }
    }
}

/// One attempt to send; the seq, if the answer has it.
async fn send(way: u32, open: &mut Option<Socket>, n: u64) -> Result<Option<u64>, Failure> {
    let body =
        json!({ "type": "send", "id": format!("id-{n}"), "to": { "session": "R" }, "payload": { "n": n } });
    match way {
        0 => {
            let mut socket = match open.take() {
                Some(socket) => socket,
                None => {
                    let mut socket = self::socket("?session=S").await?;
                    assert_eq!(receive(&mut socket).await?["type"], "welcome");
                    socket
                }
            };
            timeout(PATIENCE, socket.send(Message::text(body.to_string()))).await??;
            let answer = receive(&mut socket).await?;
            assert_eq!((&answer["type"], &answer["id"]), (&json!("sent"), &body["id"]), "{answer}");
            *open = Some(socket);
            Ok(answer["seq"].as_u64())
        }
        1 => {
            let mut http = Http::on(connect().await?, "broker").await;
            let request = http.try_request("POST", "/v1/messages?session=S", &[], body.to_string());
            let reply = timeout(PATIENCE, request).await??;
            assert_eq!(reply.status, 200, "{}", reply.body);
            Ok(reply.json()["seq"].as_u64())
        }
        _ => {
            let mut http = Http::on(connect().await?, "broker").await;
            let body =
                json!({ "type": "SET", "session_src": "S", "session_dst": "R", "payload": { "n": n } });
            let target = format!("/python/MsgHandler.py?a__={n}");
            let reply = timeout(PATIENCE, http.try_request("POST", &target, &[], body.to_string())).await??;
            assert_eq!(reply.json(), json!({ "messages": null, "status": "ok" }));
            Ok(None)
        }
    }
}

async fn sender(ledger: Arc<Ledger>, seed: u64) -> turmoil::Result {
    let mut random = Rng::with_seed(seed ^ 1);
    let mut open = None;
    for n in 0..MESSAGES {
        // A send of x0 has another kind of id, so it is repeated as a send of x0.
        let legacy = random.u8(..4) == 0;
        let seq = loop {
            let way = if legacy { 2 } else { random.u32(..2) };
            match send(way, &mut open, n).await {
                Ok(seq) => break seq,
                Err(_) => sleep(Duration::from_millis(random.u64(1..100))).await,
            }
        };
        ledger.note(format!("sent {n}"));
        ledger.confirmed.lock().unwrap().insert(n, seq);
        sleep(Duration::from_millis(random.u64(..400))).await;
    }
    ledger.all_sent.store(true, Ordering::SeqCst);
    Ok(())
}

struct Reader {
    ledger: Arc<Ledger>,
    random: Rng,
    cursor: u64,
}

impl Reader {
    /// Checks that seqs grow, and that each seq has one message.
    fn take(&mut self, seq: u64, payload: &Value) {
        let n = payload["n"].as_u64().unwrap();
        assert!(seq > self.cursor, "seq {seq} came after {}", self.cursor);
        self.cursor = seq;
        self.ledger.note(format!("got {n}"));
        let before = self.ledger.got.lock().unwrap().insert(seq, n);
        assert!(before.is_none_or(|before| before == n), "seq {seq} is two messages");
    }

    /// After a cut at a random moment, the reader forgets some of the messages that it did not acknowledge.
    fn forget(&mut self, acknowledged: u64) {
        if self.random.u8(..4) == 0 {
            self.cursor = acknowledged;
        }
    }

    async fn by_websocket(&mut self, acknowledged: &mut u64) -> Result<(), Failure> {
        let after = if self.cursor > 0 { format!("&after={}", self.cursor) } else { String::new() };
        let mut socket = socket(&format!("?session=R{after}")).await?;
        for _ in 0..self.random.u32(1..8) {
            let frame = receive(&mut socket).await?;
            match frame["type"].as_str().unwrap() {
                "message" => self.take(frame["seq"].as_u64().unwrap(), &frame["payload"]),
                "welcome" => {}
                // No other reader acknowledges, so there is no gap.
                other => panic!("{other}: {frame}"),
            }
            if self.random.bool() && self.cursor > 0 {
                let ack = json!({ "type": "ack", "seq": self.cursor }).to_string();
                timeout(PATIENCE, socket.send(Message::text(ack))).await??;
                *acknowledged = self.cursor;
            }
        }
        Ok(())
    }

    async fn by_poll(&mut self, acknowledged: &mut u64) -> Result<(), Failure> {
        let mut http = Http::on(connect().await?, "broker").await;
        for _ in 0..self.random.u32(1..4) {
            let target = format!("/v1/messages?session=R&after={}&wait=1", self.cursor);
            // The cursor acknowledges. Before the answer, it is not known whether it arrived.
            *acknowledged = self.cursor;
            let reply = timeout(PATIENCE, http.try_request("GET", &target, &[], "")).await??;
            let answer = reply.json();
            assert!(answer["gaps"].is_null(), "{answer}");
            for message in answer["messages"].as_array().unwrap() {
                self.take(message["seq"].as_u64().unwrap(), &message["payload"]);
            }
        }
        Ok(())
    }

    async fn by_sse(&mut self, acknowledged: &mut u64) -> Result<(), Failure> {
        let last = (self.cursor > 0).then_some(self.cursor);
        *acknowledged = self.cursor;
        let stream = connect().await?;
        let mut events = timeout(PATIENCE, Events::on(stream, "?session=R", last)).await??;
        for _ in 0..self.random.u32(1..5) {
            let event = timeout(PATIENCE, events.try_next()).await?.ok_or("closed")?;
            match event.name.as_str() {
                "message" => self.take(event.id.unwrap(), &event.data["payload"]),
                "welcome" => {}
                other => panic!("{other}: {:?}", event.data),
            }
        }
        Ok(())
    }

    async fn read(mut self) -> turmoil::Result {
        let mut acknowledged = 0;
        while !self.ledger.is_complete() {
            let done = match self.random.u32(..3) {
                0 => self.by_websocket(&mut acknowledged).await,
                1 => self.by_poll(&mut acknowledged).await,
                _ => self.by_sse(&mut acknowledged).await,
            };
            if done.is_err() {
                self.forget(acknowledged);
                sleep(Duration::from_millis(self.random.u64(1..100))).await;
            }
        }
        Ok(())
    }
}

fn store() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// One run; the number of crashes.
fn simulate(seed: u64) -> usize {
    let mut random = Rng::with_seed(seed ^ 2);
    let dir = store();
    let ledger = Arc::<Ledger>::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(5))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(random.u64(2..80)))
        .simulation_duration(Duration::from_secs(600))
        .build();
    let path = dir.path().to_owned();
    sim.host("broker", move || {
        let path = path.clone();
        async move { broker(path, seed).await }
    });
    sim.client("sender", sender(Arc::clone(&ledger), seed));
    let reader = Reader { ledger: Arc::clone(&ledger), random: Rng::with_seed(seed ^ 3), cursor: 0 };
    sim.client("reader", reader.read());
    let mut crashes = 0;
    let mut calm = false;
    while !sim.step().unwrap_or_else(|error| panic!("{error}: {:?}", ledger.trace.lock().unwrap())) {
        if sim.elapsed() > CHAOS {
            if !calm {
                calm = true;
                for client in ["sender", "reader"] {
                    sim.repair(client, "broker");
                    sim.release(client, "broker");
                }
            }
            continue;
        }
        let client = if random.bool() { "sender" } else { "reader" };
        match random.u32(..1000) {
            0..8 => sim.partition(client, "broker"),
            8..40 => sim.repair(client, "broker"),
            40..44 => sim.hold(client, "broker"),
            44..80 => sim.release(client, "broker"),
            80..82 => {
                crashes += 1;
                sim.bounce("broker");
            }
            _ => {}
        }
    }
    let confirmed = ledger.confirmed.lock().unwrap();
    let got = ledger.got.lock().unwrap();
    let order: Vec<u64> = got.values().copied().collect();
    assert_eq!(order, (0..MESSAGES).collect::<Vec<_>>(), "everything, in its order, once");
    for (seq, n) in got.iter() {
        assert!(
            confirmed[n].is_none_or(|told| told == *seq),
            "{n} was told {:?} and came as {seq}",
            confirmed[n]
        );
    }
    crashes
}

#[test]
fn random_faults_lose_and_repeat_nothing() {
    let seeds: Vec<u64> = match std::env::var("X0_MSG_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) if std::env::var_os("X0_MSG_LONG_TESTS").is_some() => {
            (0..3000).map(|_| fastrand::u64(..)).collect()
        }
        Err(_) => (0..200).collect(),
    };
    let (count, seeds) = (seeds.len(), Mutex::new(seeds.into_iter()));
    let crashes = AtomicUsize::new(0);
    // A panic in a thread fails the test at the end of the scope.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(seed) = seeds.lock().unwrap().next() else { return };
                    match std::panic::catch_unwind(|| simulate(seed)) {
                        Ok(crashed) => crashes.fetch_add(crashed, Ordering::Relaxed),
                        Err(_) => panic!("failed with X0_MSG_SEED={seed}"),
                    };
                }
            });
        }
    });
    println!("{count} seeds, {crashes:?} crashes of the broker");
}
