//! Random sends, subscriptions, acknowledgements, drops and lags, compared with a plain model; several seeds.
//!
//! The model of a mailbox is a `Vec`. Every reader must see, in order, every message that was not acknowledged when it
//! attached, and every later one, whatever the hub dropped. Only a reader that held back more acknowledged messages than
//! it may is told a gap instead of the oldest of them.

use std::time::Duration;

use serde_json::value::RawValue;
use x0_msg_server::broker::{Broker, Sending};
use x0_msg_server::clock::Clock;
use x0_msg_server::config::Config;
use x0_msg_server::engine::embedded::{Durability, Embedded, Storage};
use x0_msg_server::grant::Grant;
use x0_msg_server::hub::{Hubs, Transport};
use x0_msg_server::message::{GapReason, Item, Seq, SessionId};
use x0_msg_server::protocol::{Resume, SendRequest, To};
use x0_msg_server::server::{broker_limits, engine_settings};
use x0_msg_server::subscriber::Subscriber;

use crate::common::soon;

/// How many messages that others acknowledged a slower reader may hold back.
const HELD_BACK: usize = 1_000;

struct Reader {
    subscriber: Subscriber,
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
    /// Reads the next message of the model, or a gap that the model allows.
    async fn read(&mut self, model: &Model, expected: Seq, when: &str) {
        match soon(self.subscriber.next()).await {
            Some(Item::Message(message)) => {
                assert_eq!(message.seq(), Some(expected), "{when}");
                let index = model.sent.iter().position(|seq| *seq == expected).unwrap();
                assert_eq!(message.payload(), index.to_string(), "{when}");
                self.at = expected;
            }
            Some(Item::Gap(gap)) => {
                assert_eq!(gap.reason, GapReason::Acknowledged, "{when}");
                assert!(model.acknowledged_after(self.at) > HELD_BACK, "{when}: {gap:?} after {:?}", self.at);
                assert!(model.acknowledged_after(gap.to) >= HELD_BACK, "{when}: {gap:?} is too large");
                self.at = gap.to;
            }
            None => panic!("{when}: the mailbox has ended"),
        }
    }
}

/// A broker with a store on the disk, and its directory.
fn broker(config: &Config) -> (Broker, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::Directory(dir.path().to_owned(), Durability::Os);
    let settings = engine_settings(config, Clock::Wall);
    let hubs = Hubs::new(config.hub_slots);
    let engine = Embedded::start(settings, hubs.clone(), &storage).unwrap();
    (Broker::new(engine.into(), hubs, broker_limits(config), settings.clock), dir)
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

async fn run(seed: u64, hub_slots: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let config = Config { hub_slots: Some(hub_slots), ..Config::default() };
    let (broker, _dir) = broker(&config);
    let session = SessionId::new("B").unwrap();
    let mut model = Model { sent: Vec::new(), floor: Seq::START };
    let mut readers: Vec<Reader> = Vec::new();
    for step in 0..400 {
        match random.u32(..100) {
            // A burst longer than the buffer of the hub makes every reader lag.
            0..30 => {
                for _ in 0..random.usize(1..=3 * hub_slots) {
                    model.sent.push(send(&broker, &session, model.sent.len()).await);
                }
            }
            30..45 if readers.len() < 5 => {
                // Attach at the floor, or resume at or above it.
                let known: Vec<Seq> = model.after(model.floor).collect();
                let after = if random.bool() { random.choice(known) } else { None };
                let resume = Resume { after, epoch: after.map(|_| broker.epoch()) };
                let (subscriber, opening) =
                    broker.mailbox(&session, &resume, Transport::Websocket).await.unwrap();
                assert_eq!(opening.seq, model.floor, "seed {seed}, step {step}");
                readers.push(Reader { subscriber, at: after.unwrap_or(model.floor) });
            }
            45..55 if !readers.is_empty() => drop(readers.swap_remove(random.usize(..readers.len()))),
            55..70 if !readers.is_empty() => {
                // Acknowledge what one reader has received.
                let at = readers[random.usize(..readers.len())].at;
                if at > Seq::START {
                    model.floor = model.floor.max(at);
                    assert_eq!(
                        broker.ack(&session, at, None).await.unwrap(),
                        model.floor,
                        "seed {seed}, step {step}"
                    );
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
                            reader.read(&model, expected, &format!("seed {seed}, step {step}")).await;
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
            reader.read(&model, expected, &format!("seed {seed}, at the end")).await;
        }
    }
    drop(readers);
    // Without readers, acknowledged messages are gone and the others are there.
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
        run(seed, 2).await;
    }
}

#[tokio::test]
async fn a_usual_hub_under_random_use_loses_and_repeats_nothing() {
    let first: u64 = fastrand::u64(..);
    for seed in 0..40 {
        run(first.wrapping_add(seed), 16).await;
    }
}

/// Readers and senders on several threads. A hub of two slots lags all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lagging_readers_lose_and_repeat_nothing() {
    const MESSAGES: usize = 5_000;
    let config = Config { hub_slots: Some(2), ..Config::default() };
    let (broker, _dir) = broker(&config);
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
