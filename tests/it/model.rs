//! Random sends, subscriptions, acknowledgements, drops and lags, compared with a plain model; several seeds.
//!
//! The model of a mailbox is a `Vec`. Every reader must see, in order, every message that was not acknowledged when it
//! attached, and every later one, whatever the hub dropped. Only a reader that held back more acknowledged messages than
//! it may is told a gap instead of the oldest of them. On several nodes, so is a reader that has not read what was acknowledged
//! at another one.

use std::time::Duration;

use serde_json::value::RawValue;
use x0_msg_server::broker::{Broker, Sending};
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::Engine;
use x0_msg_server::engine::embedded::{Durability, Embedded, Storage};
use x0_msg_server::grant::Grant;
use x0_msg_server::hub::{Hubs, Transport};
use x0_msg_server::message::{Address, GapReason, Item, Seq, SessionId};
use x0_msg_server::protocol::{Resume, SendRequest, To};
use x0_msg_server::server::{broker_limits, engine_settings};
use x0_msg_server::subscriber::Subscriber;

use crate::common::soon;

/// How many messages that others acknowledged a slower reader may hold back.
const HELD_BACK: usize = 1_000;

/// A node: an engine, and the broker on it.
pub type Node = (Broker, Engine);

struct Reader {
    subscriber: Subscriber,
    /// Which node it reads at.
    node: usize,
    /// The last seq that it received.
    at: Seq,
}

struct Model {
    /// Every message that was sent, in order.
    sent: Vec<Seq>,
    floor: Seq,
}

impl Model {
    fn after(&self, at: Seq) -> impl Iterator<Item = Seq> {
        let from = at.max(self.floor);
        self.sent.iter().copied().filter(move |seq| *seq > from)
    }

    /// How many acknowledged messages there were after this one.
    fn acknowledged_after(&self, at: Seq) -> usize {
        self.sent.iter().filter(|seq| **seq > at && **seq <= self.floor).count()
    }
}

impl Reader {
    /// Reads the next message of the model, or a gap that the model allows. `is_alone`: there is one node.
    async fn read(&mut self, model: &Model, expected: Seq, is_alone: bool, when: &str) {
        match soon(self.subscriber.next()).await {
            Some(Item::Message(message)) => {
                let seq = message.seq().unwrap();
                // A reader without a position is told no gap: what another node acknowledged since it attached is not for it.
                let is_new = !is_alone && self.at == Seq::START;
                let is_next = seq == expected
                    || is_new && model.sent.iter().all(|one| *one >= seq || *one <= model.floor);
                assert!(is_next, "{when}: {seq:?} instead of {expected:?} after {:?}", self.at);
                let index = model.sent.iter().position(|one| *one == seq).unwrap();
                assert_eq!(message.payload(), index.to_string(), "{when}");
                self.at = seq;
            }
            Some(Item::Gap(gap)) => {
                assert_eq!(gap.reason, GapReason::Acknowledged, "{when}");
                let (before, after) = (model.acknowledged_after(self.at), model.acknowledged_after(gap.to));
                assert!(!is_alone || before > HELD_BACK, "{when}: {gap:?} after {:?}", self.at);
                assert!(!is_alone || after >= HELD_BACK, "{when}: {gap:?} is too large");
                assert!(gap.to <= model.floor, "{when}: {gap:?} is not acknowledged");
                self.at = gap.to;
            }
            None => panic!("{when}: the mailbox has ended"),
        }
    }
}

/// A broker with a store on the disk, and its directory.
fn broker(config: &Config) -> (Node, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::Directory(dir.path().to_owned(), Durability::Os);
    let settings = engine_settings(config, Clock::Wall);
    let hubs = Hubs::new(config.hub_slots);
    let engine = Engine::from(Embedded::start(settings, hubs.clone(), &storage).unwrap());
    ((Broker::new(engine.clone(), hubs, broker_limits(config), settings.clock), engine), dir)
}

async fn send(broker: &Broker, to: &SessionId, payload: usize) -> Seq {
    let send = SendRequest {
        id: None,
        to: To::Session(to.clone()),
        payload: RawValue::from_string(payload.to_string()).unwrap(),
        ttl: None,
        volatile: false,
        receipt: false,
        request: false,
    };
    let sending: Sending = broker.send(&Grant::Open { session: None, manages: false }, send).await.unwrap();
    sending.await.unwrap().seq.unwrap()
}

async fn run_alone(seed: u64, hub_slots: usize) {
    let config = Config { hub_slots: Some(hub_slots), ..Config::default() };
    let (node, _dir) = broker(&config);
    run(seed, hub_slots, &[node]).await;
}

/// Runs a seed on nodes of one store, in a mailbox that is named after it.
pub async fn run(seed: u64, hub_slots: usize, nodes: &[Node]) {
    let (mut random, is_alone) = (fastrand::Rng::with_seed(seed), nodes.len() == 1);
    let session = SessionId::new(&format!("B{seed}")).unwrap();
    let mut model = Model { sent: Vec::new(), floor: Seq::START };
    let mut readers: Vec<Reader> = Vec::new();
    for step in 0..400 {
        let node = random.usize(..nodes.len());
        let broker = &nodes[node].0;
        match random.u32(..100) {
            // A burst longer than the buffer of the hub makes every reader lag.
            0..30 => {
                for _ in 0..random.usize(1..=3 * hub_slots) {
                    model.sent.push(send(broker, &session, model.sent.len()).await);
                }
            }
            30..45 if readers.len() < 5 => {
                // Attach at the floor, or resume at or above it.
                let known: Vec<Seq> = model.after(model.floor).collect();
                let after = if random.bool() { random.choice(known) } else { None };
                let resume = Resume { after, epoch: after.map(|_| broker.epoch()) };
                let (subscriber, opening) =
                    broker.mailbox(&session, &resume, Transport::Websocket).await.unwrap();
                // Another node may not know yet what is acknowledged at this one.
                let is_known = opening.seq == model.floor || !is_alone && opening.seq < model.floor;
                assert!(is_known, "seed {seed}, step {step}: {:?} for {:?}", opening.seq, model.floor);
                readers.push(Reader { subscriber, node, at: after.unwrap_or(opening.seq) });
            }
            45..55 if !readers.is_empty() => drop(readers.swap_remove(random.usize(..readers.len()))),
            55..70 if !readers.is_empty() => {
                // Acknowledge what one reader has received.
                let Reader { at, node, .. } = readers[random.usize(..readers.len())];
                if at > Seq::START {
                    model.floor = model.floor.max(at);
                    let floor = nodes[node].0.ack(&session, at, None).await.unwrap();
                    let is_known = floor == model.floor || !is_alone && at <= floor && floor < model.floor;
                    assert!(is_known, "seed {seed}, step {step}: {floor:?} for {:?}", model.floor);
                }
            }
            _ if !readers.is_empty() => {
                // Read some messages. The acknowledgement of another reader must not have deleted one.
                let reader = random.usize(..readers.len());
                let reader = &mut readers[reader];
                for _ in 0..random.usize(1..=2 * hub_slots) {
                    let expected = model.sent.iter().copied().find(|seq| *seq > reader.at);
                    match expected {
                        None => {
                            let more = tokio::time::timeout(Duration::ZERO, reader.subscriber.next()).await;
                            assert!(more.is_err(), "seed {seed}, step {step}: {more:?}");
                            break;
                        }
                        Some(expected) => {
                            let when = format!("seed {seed}, step {step}, node {}", reader.node);
                            reader.read(&model, expected, is_alone, &when).await;
                        }
                    }
                }
                reader.subscriber.mark_sent(reader.at);
            }
            _ => {}
        }
    }
    // In the end every reader gets every message.
    for reader in &mut readers {
        while let Some(expected) = model.sent.iter().copied().find(|seq| *seq > reader.at) {
            reader.read(&model, expected, is_alone, &format!("seed {seed}, at the end")).await;
        }
    }
    drop(readers);
    // Without readers, acknowledged messages are gone and the others are there. All nodes know that soon.
    let address = Address::Session(session.clone());
    for (_, engine) in nodes {
        soon(async { while engine.position(&address).await.floor != model.floor {} }).await;
    }
    let broker = &nodes[0].0;
    let (mut last, _) = broker.mailbox(&session, &Resume::default(), Transport::Poll).await.unwrap();
    for expected in model.after(Seq::START) {
        let Some(Item::Message(message)) = soon(last.next()).await else {
            panic!("seed {seed}: not a message")
        };
        assert_eq!(message.seq(), Some(expected), "seed {seed}, after all left");
    }
    assert!(last.try_next().is_none(), "seed {seed}");
}

#[tokio::test]
async fn a_small_hub_under_random_use_loses_and_repeats_nothing() {
    for seed in 0..60 {
        run_alone(seed, 2).await;
    }
}

#[tokio::test]
async fn a_usual_hub_under_random_use_loses_and_repeats_nothing() {
    let first: u64 = fastrand::u64(..);
    for seed in 0..40 {
        run_alone(first.wrapping_add(seed), 16).await;
    }
}

/// Readers and senders on several threads. A hub of two slots lags all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lagging_readers_lose_and_repeat_nothing() {
    const MESSAGES: usize = 5_000;
    let config = Config { hub_slots: Some(2), ..Config::default() };
    let ((broker, _), _dir) = broker(&config);
    let session = SessionId::new("B").unwrap();
    let mut readers = Vec::new();
    for _ in 0..8 {
        let (mut subscriber, _) =
            broker.mailbox(&session, &Resume::default(), Transport::Poll).await.unwrap();
        readers.push(tokio::spawn(async move {
            for n in 0..MESSAGES {
                let Some(Item::Message(message)) = subscriber.next().await else { panic!("not a message") };
                assert_eq!(message.payload(), n.to_string());
            }
        }));
    }
    for n in 0..MESSAGES {
        send(&broker, &session, n).await;
        if n % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for reader in readers {
        soon(reader).await.unwrap();
    }
}
