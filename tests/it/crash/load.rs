//! Senders that repeat what was not answered, and the comparison with what the readers received.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use super::readers::{Name, Shared, Where, address, by_poll, by_sse, by_websocket, by_x0};
use crate::common::*;

const SENDERS: usize = 4;
pub const MAILBOXES: [&str; 4] = ["by-websocket", "by-poll", "by-sse", "by-x0"];

/// How often a sender sends on several nodes, at most: its readers do not fall behind.
const PACE: Duration = Duration::from_millis(20);

/// How senders and readers behave.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Whether there are readers.
    reading: bool,
    /// The unanswered messages of a sender, at most.
    window: usize,
    /// Whether there are several nodes, which clients change now and then, and which may be unavailable.
    roams: bool,
}

impl Habits {
    /// For one server.
    pub fn one_server(reading: bool) -> Self {
        Self { reading, window: 16, roams: false }
    }

    /// For several nodes. A sender has one unanswered message for each mailbox: their order is only known on one node.
    #[cfg_attr(not(feature = "nats"), allow(dead_code))]
    pub fn several_nodes() -> Self {
        Self { reading: true, window: MAILBOXES.len(), roams: true }
    }
}

/// The confirmed seq of each message and when it was confirmed, by mailbox and name.
type Confirmed = HashMap<(&'static str, Name), (u64, Instant)>;

/// The answers that the senders received.
#[derive(Default)]
struct Ledger {
    confirmed: Mutex<Confirmed>,
    /// Notified at each confirmation.
    changed: Notify,
    stop: AtomicBool,
}

impl Ledger {
    fn expected(&self, mailbox: &str) -> HashMap<Name, u64> {
        let confirmed = self.confirmed.lock().unwrap();
        confirmed
            .iter()
            .filter(|((to, _), _)| *to == mailbox)
            .map(|((_, name), (seq, _))| (*name, *seq))
            .collect()
    }
}

/// Sends until `stop` is set and every message is answered. Returns the number of messages.
async fn sender(me: usize, mut place: Where, ledger: Arc<Ledger>, habits: Habits) -> u64 {
    let (mut next, mut pace) = (0, interval(PACE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered: VecDeque<u64> = VecDeque::new();
    let mailbox = |n: u64| MAILBOXES[(n as usize + me) % MAILBOXES.len()];
    let frame = |n: u64| {
        let payload = json!({ "s": me, "n": n, "fill": "x".repeat(n as usize * 7 % 300) });
        let id = format!("{me}-{n}");
        Message::text(
            json!({ "type": "send", "id": id, "to": { "session": mailbox(n) }, "payload": payload })
                .to_string(),
        )
    };
    loop {
        let url = format!("ws://{}/ws?session=S{me}", address(&mut place).await);
        let Ok((mut socket, _)) = connect_async(url).await else {
            tokio::task::yield_now().await;
            continue;
        };
        // Unanswered messages go first, in order.
        for n in &unanswered {
            _ = socket.feed(frame(*n)).await;
        }
        _ = socket.flush().await;
        loop {
            let stopping = ledger.stop.load(Ordering::SeqCst);
            if stopping && unanswered.is_empty() {
                return next;
            }
            while !stopping && unanswered.len() < habits.window {
                if habits.roams {
                    pace.tick().await;
                }
                unanswered.push_back(next);
                _ = socket.feed(frame(next)).await;
                next += 1;
            }
            if socket.flush().await.is_err() {
                break;
            }
            let Some(Ok(frame)) = socket.next().await else { break };
            let Message::Text(text) = frame else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            match answer["type"].as_str().unwrap() {
                "sent" => {
                    let n = unanswered.pop_front().unwrap();
                    assert_eq!(answer["id"], format!("{me}-{n}"), "answers come in order");
                    let seq = answer["seq"].as_u64().unwrap();
                    ledger.confirmed.lock().unwrap().insert((mailbox(n), (me, n)), (seq, Instant::now()));
                    ledger.changed.notify_one();
                }
                "welcome" => {}
                "error" if habits.roams && answer["code"] == "unavailable" => break,
                _ => panic!("{answer}"),
            }
        }
    }
}

/// Senders and readers that follow the server from one start to the next.
pub struct Load {
    pub place: watch::Sender<Vec<SocketAddr>>,
    ledger: Arc<Ledger>,
    senders: Vec<JoinHandle<u64>>,
    readers: Vec<(&'static str, JoinHandle<()>, Arc<Shared>)>,
}

impl Load {
    pub fn start(habits: Habits) -> Self {
        let (place, at) = watch::channel(Vec::new());
        let ledger = Arc::<Ledger>::default();
        let senders = (0..SENDERS)
            .map(|me| tokio::spawn(sender(me, at.clone(), Arc::clone(&ledger), habits)))
            .collect();
        let mut readers = Vec::new();
        if habits.reading {
            let roams = habits.roams;
            let shared = Arc::<Shared>::default;
            let (one, two, three, four) = (shared(), shared(), shared(), shared());
            readers = vec![
                (MAILBOXES[0], tokio::spawn(by_websocket(at.clone(), Arc::clone(&one), roams)), one),
                (MAILBOXES[1], tokio::spawn(by_poll(at.clone(), Arc::clone(&two), roams)), two),
                (MAILBOXES[2], tokio::spawn(by_sse(at.clone(), Arc::clone(&three), roams)), three),
                (MAILBOXES[3], tokio::spawn(by_x0(at, Arc::clone(&four))), four),
            ];
        }
        Self { place, ledger, senders, readers }
    }

    /// Puts load on this server until so many messages are confirmed.
    pub async fn on(&self, server: &TestServer, messages: usize) {
        self.place.send_replace(vec![server.address]);
        self.goes_on(messages).await;
    }

    /// Waits until so many more messages are confirmed.
    pub async fn goes_on(&self, messages: usize) {
        let before = self.confirmed();
        soon(async {
            while self.confirmed() < before + messages {
                self.ledger.changed.notified().await;
            }
        })
        .await;
    }

    fn confirmed(&self) -> usize {
        self.ledger.confirmed.lock().unwrap().len()
    }

    /// Stops the senders once every message is answered. Returns the number of messages.
    pub async fn answered(&mut self) -> u64 {
        self.ledger.stop.store(true, Ordering::SeqCst);
        let mut sent = 0;
        for sender in self.senders.drain(..) {
            sent += soon(sender).await.unwrap();
        }
        assert_eq!(sent as usize, self.confirmed());
        sent
    }

    pub fn expected(&self, mailbox: &str) -> HashMap<Name, u64> {
        self.ledger.expected(mailbox)
    }

    /// When messages were confirmed, and when they came to their reader.
    #[cfg_attr(not(feature = "nats"), allow(dead_code))]
    pub fn times(&self) -> Vec<(&'static str, Instant, Instant)> {
        let confirmed = self.ledger.confirmed.lock().unwrap();
        let arrival = |mailbox, name| {
            let (.., shared) = self.readers.iter().find(|(of, ..)| *of == mailbox).unwrap();
            shared.got.lock().unwrap().arrivals[name]
        };
        confirmed.iter().map(|((to, name), (_, at))| (*to, *at, arrival(*to, name))).collect()
    }

    /// Waits until every reader has every message that is confirmed by now.
    pub async fn arrive(&mut self) {
        for (mailbox, reader, shared) in &mut self.readers {
            let expected = self.ledger.expected(mailbox);
            let names: Vec<Name> = expected.keys().copied().collect();
            let complete = shared.complete(&names, reader);
            if tokio::time::timeout(SOON, complete).await.is_err() {
                let got = shared.got.lock().unwrap();
                let mut missing: Vec<_> =
                    expected.iter().filter(|(name, _)| !got.seqs.contains_key(name)).collect();
                missing.sort();
                panic!("{mailbox} misses {} of {}: {missing:?}", missing.len(), expected.len());
            }
        }
    }

    /// Waits until every reader has every message, and compares them.
    pub async fn verify(&mut self) {
        self.arrive().await;
        for (mailbox, reader, shared) in &self.readers {
            let mailbox = *mailbox;
            let expected = self.ledger.expected(mailbox);
            reader.abort();
            let got = shared.got.lock().unwrap();
            assert_eq!(got.seqs.len(), expected.len(), "{mailbox}: nothing that was not sent");
            for (name, seq) in expected {
                let at = got.seqs[&name];
                assert!(at == seq || mailbox == "by-x0", "{mailbox}: {name:?} was told {seq}, came as {at}");
            }
            for (sender, order) in &got.firsts {
                assert!(
                    order.is_sorted(),
                    "{mailbox}: the messages of {sender} came in another order: {order:?}"
                );
            }
        }
    }
}
